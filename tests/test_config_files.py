"""Config files are found, run, and refused with their line."""

import dataclasses
import math
import pathlib

import pytest

from rfq import config_files, experiment
from rfq.errors import InputError
from rfq.experiment import Experiment

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def write(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_users_own_file_works_like_ours(tmp_path):
    path = write(
        tmp_path,
        "from rfq.experiment import Experiment\n"
        "def config():\n    return Experiment(arm='mine')\n",
    )
    assert experiment.load(str(path)) == Experiment(arm="mine")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = 1\n", ["mine.py", "no function config()"]),
        ("def config():\n    return {}\n", ["mine.py", "returned dict", "Experiment"]),
        (
            "from rfq.experiment import Experiment\n"
            "def config():\n    return Experiment(arm='a', stepps=3)\n",
            ["mine.py", "stepps"],
        ),
        (
            "from rfq.experiment import Experiment\n"
            "def config():\n    return Experiment()\n",
            ["mine.py", "arm"],
        ),
        (
            "from rfq.experiment import Experiment\n"
            "def config():\n    return Experiment(arm='a', seed=-1)\n",
            ["seed=-1"],
        ),
    ],
)
def test_what_is_wrong_with_a_config_file_is_said(tmp_path, text, parts):
    with pytest.raises(InputError) as caught:
        experiment.load(write(tmp_path, text))
    assert all(part in str(caught.value) for part in parts), caught.value


# What a config file holds -> the sentence about it, behind the path of the file.
BROKEN = {
    "def config(:\n    pass\n": "line 1: invalid syntax",
    "import no_such_module\n": "line 1: ModuleNotFoundError: No module named",
    "from rfq.optim import Adam\n": "line 1: ImportError: cannot import name 'Adam'",
    "def config():\n    return 1 + 'a'\n": "line 2: TypeError: unsupported operand",
    "from rfq.model.config import ModelConfig\n\nModelConfig(width='96')\n": (
        "line 3: model.width='96' is of type str; give int"
    ),
    "from rfq.experiment import TrainConfig\nTrainConfig(clip_norm='1')\n": (
        "line 2: train.clip_norm='1' is of type str; give float | None"
    ),
    "from rfq.experiment import QuantizeConfig\nQuantizeConfig(specs=['FP'])\n": (
        "line 2: quantize.specs=['FP'] is of type list; give tuple[str, ...]"
    ),
    "from rfq.model.config import ModelConfig\nModelConfig(norm='rmsnorm')\n": (
        "did you mean rms_norm?"
    ),
    "from rfq import experiment\n\nexperiment.load('demo/residual_adam')\n": (
        "line 3: config 'demo/residual_adam' is not a file, nor one that comes with rfq"
    ),
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_broken_in_a_config_file_is_said_with_its_line(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        experiment.load(path)
    assert str(caught.value).startswith(f"config {str(path)!r} line ")
    assert BROKEN[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_comes_with_rfq_is_found_by_its_name_from_anywhere(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert experiment.load("demo/residual_adamw").arm == "residual_adamw"
    arms = [path.stem for path in config_files.find("demo")]
    assert arms == sorted(path.stem for path in (CONFIGS / "demo").glob("*.py"))
    own = write(tmp_path, "", "demo.py")
    assert config_files.find("demo.py") == (own.relative_to(tmp_path),)
    with pytest.raises(InputError, match=r"did you mean demo/residual_adamw\?"):
        config_files.find("configs/demo/residual_adamw.py")
    with pytest.raises(InputError, match="is a folder of 4; give one of them"):
        experiment.load("demo")


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIGS.glob("wide/*.py")))
def test_a_wide_arm_is_its_deep_arm_but_for_the_sizes_of_the_wide_base(name):
    wide, deep, base = (
        experiment.load(CONFIGS / path)
        for path in (f"wide/{name}.py", f"deep/{name}.py", "wide_base.py")
    )
    sizes = {"width": 128, "num_heads": 4, "seq_len": 128}
    assert wide.model == dataclasses.replace(deep.model, **sizes)
    # Sharpness is kept, so heads must be as wide as they were.
    assert wide.model.head_width == deep.model.head_width
    assert wide.init == deep.init
    rates = {"learning_rate": base.optimizer.learning_rate}
    same = dataclasses.replace(deep.optimizer, **(rates if "adamw" in name else {}))
    assert wide.optimizer == same
    for section in ("schedule", "train", "log", "quantize", "data"):
        assert getattr(wide, section) == getattr(base, section)
    assert wide.train.num_steps * wide.tokens_per_step == 20_480_000


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("optimizer", ["kl_shampoo", "muon"])
def test_a_variant_with_the_deep_recipe_stands_beside_the_literal_one(scale, optimizer):
    name = f"residual_free_{optimizer}"
    literal, variant, deep = (
        experiment.load(CONFIGS / path)
        for path in (f"{scale}/{name}.py", f"{scale}/{name}_deep.py", f"deep/{name}.py")
    )
    to_dict = experiment.to_dict
    found = experiment.differences(to_dict(literal), to_dict(variant))
    assert {field for field, _, _ in found} - {"init.w_down", "model.beta"} == {
        *("arm", "init.alpha_qk", "init.soft_layers", "optimizer.rates.w_k"),
        "optimizer.rates.w_q",
    }
    model, init = variant.model, variant.init
    assert model.beta == 1.0
    assert init == dataclasses.replace(deep.init, alpha_qk=init.alpha_qk)
    # From 64 to 512 tokens, log T adds 2 to the logit of the depth (D21).
    logit = init.alpha_qk * math.sqrt(model.head_width)
    of_depth = {12: 12.0, 24: 16.0}[model.num_layers]
    assert logit == pytest.approx(of_depth + math.log(512 / 64), abs=0.1)
    assert variant.optimizer.rates == deep.optimizer.rates


@pytest.mark.parametrize("name", ["absent.py", "notes.txt", ""])
def test_a_path_that_is_no_python_file_is_refused(tmp_path, name):
    write(tmp_path, "text", "notes.txt")
    with pytest.raises(InputError, match=r"config '.*' is not"):
        experiment.load(tmp_path / name)
