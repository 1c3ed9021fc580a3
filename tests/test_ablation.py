"""Families of arms: one at every scale, and each arm changes what its name says."""

import functools
import pathlib

import jax
import pytest

from rfq import config_files, sharding, steps
from rfq import experiment as experiment_lib
from rfq.config_files import SCALES
from rfq.errors import InputError
from rfq.experiment import fingerprint, from_dict, to_dict
from rfq.model.config import num_params

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FAMILIES = sorted(path.stem for path in (CONFIGS / "ablation").glob("*.py"))


@functools.cache
def arms(family: str, scale: str):
    """{name: arm}."""
    made = experiment_lib.load_arms(CONFIGS / "ablation" / f"{family}.py", scale)
    return {arm.arm: arm for arm in made}


def changed(arm, base) -> set[str]:
    """Fields in which an arm differs from another, but for its name."""
    found = experiment_lib.differences(to_dict(base), to_dict(arm))
    return {field for field, _, _ in found} - {"arm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_same_arms_at_every_scale_and_no_two_are_one(family):
    names = {tuple(arms(family, scale)) for scale in SCALES}
    assert len(names) == 1
    for scale in SCALES:
        found = arms(family, scale).values()
        assert len({fingerprint(arm) for arm in found}) == len(found)
        for arm in found:
            assert from_dict(to_dict(arm)) == arm


def test_scales_are_two_cores_one_gpu_and_the_papers():
    sizes = {
        scale: arms("theorem1", scale)["residual_gaussian_adamw"] for scale in SCALES
    }
    params = [num_params(arm.model) for arm in sizes.values()]
    tokens = [arm.train.num_steps * arm.tokens_per_step for arm in sizes.values()]
    assert params == sorted(params) and tokens == sorted(tokens)
    assert params[-1] == 194_482_944  # Appendix D.
    assert tokens[-1] == 13_107_200_000


@pytest.mark.parametrize("scale", SCALES)
def test_theorem_1_is_a_cube_whose_known_corners_are_the_scales_own_arms(scale):
    cube = arms("theorem1", scale)
    assert len(cube) == 8
    corners = {
        "residual_gaussian_adamw": "residual_adamw",
        "residual_gaussian_kl_shampoo": "residual_kl_shampoo",
        "residual_free_orthogonal_kl_shampoo": "residual_free_kl_shampoo",
    }
    for corner, own in corners.items():
        arm = experiment_lib.load(CONFIGS / scale / f"{own}.py")
        # Rows of one are rows of the other.
        assert fingerprint(cube[corner]) == fingerprint(arm)
    # An edge of the cube changes one ingredient: connections carry their own beta and
    # rates, initializations nothing else.
    for skip in ("residual", "residual_free"):
        for optimizer in ("adamw", "kl_shampoo"):
            ends = (
                cube[f"{skip}_{init}_{optimizer}"]
                for init in ("gaussian", "orthogonal")
            )
            fields = changed(*ends)
            assert "init.recipe" in fields
            assert {field.split(".")[0] for field in fields} == {"init"}


# Arm -> arm that it is a change of, and what it changes.
RIVALS = {
    "layer_norm": ("residual_adamw", {"model.norm"}),
    "gated_attention": ("residual_adamw", {"model.attention_gate"}),
    "penalty": ("residual_adamw", {"train.penalty_weight"}),
    "muon_single_scale_norm": ("muon", {"model.norm"}),
    "muon_projected_embedding": ("muon", {"model.embedding"}),
    "outlier_safe": ("muon", {"model.norm", "model.embedding"}),
    "residual_free_layer_norm": ("residual_free_kl_shampoo", {"model.norm"}),
}


@pytest.mark.parametrize("scale", SCALES)
def test_a_rival_is_one_change_of_its_control(scale):
    family = arms("rivals", scale)
    assert set(RIVALS) | {base for base, _ in RIVALS.values()} == set(family)
    for arm, (base, fields) in RIVALS.items():
        assert changed(family[arm], family[base]) == fields, arm
    muon = changed(family["muon"], family["residual_adamw"])
    assert {field.split(".")[0] for field in muon} == {"optimizer"}
    for arm in family.values():
        assert arm.quantize.streams == ("branch", "in_place")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("family", "section"), [("attention", "model"), ("initialization", "init")]
)
def test_readings_are_changes_of_the_residual_free_arm(family, section, scale):
    base = experiment_lib.load(CONFIGS / scale / "residual_free_kl_shampoo.py")
    found = arms(family, scale).values()
    for arm in found:
        assert {field.split(".")[0] for field in changed(arm, base)} <= {section}
    # One of them is that arm, so that its rows need no second run.
    assert sum(fingerprint(arm) == fingerprint(base) for arm in found) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_figure_3_changes_the_optimizer_or_the_temperature(scale):
    family = arms("optimizers", scale)
    free = family["residual_free_kl_shampoo"]
    for name in ("adamw", "muon", "soap", "kl_shampoo"):
        cold = family[f"residual_free_{name}"]
        hot = family[f"residual_free_{name}_beta_1.1"]
        assert changed(hot, cold) == {"model.beta"}
        assert {f.split(".")[0] for f in changed(cold, free)} <= {"optimizer"}
    # What the scale has as a config of its own needs no second run.
    own = {
        fingerprint(experiment_lib.load(path))
        for path in (CONFIGS / scale).glob("*.py")
        if path.stem not in ("residual_muon", "residual_soap")
        and not path.stem.endswith("_deep")
    }
    assert own <= {fingerprint(arm) for arm in family.values()}


@pytest.mark.slow  # The step of two dozen models is traced.
@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_can_be_dry_run(scale):
    """Up to the compiler: no array is made, and no two arms of one program traced."""
    seen = set()
    for family in FAMILIES:
        for arm in arms(family, scale).values():
            structure = (
                *(arm.model.skip, arm.model.norm, arm.model.attention_gate),
                *(arm.model.embedding, type(arm.optimizer), arm.train.penalty_weight),
            )
            if structure in seen:
                continue
            seen.add(structure)
            mesh = sharding.make_mesh(1, arm.sharding)
            compiled = steps.compile_train(arm, mesh)
            batch = jax.ShapeDtypeStruct(
                (arm.train.batch_size, arm.model.seq_len + 1), "int32"
            )
            state, metrics = jax.eval_shape(compiled.train, compiled.state, batch)
            assert ("penalty" in metrics) == (arm.train.penalty_weight > 0)
            sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
            assert sum(sizes) == num_params(arm.model)


# --- Files --------------------------------------------------------------------------

FAMILY = (
    "import dataclasses\nfrom rfq.experiment import Experiment\n\n\n"
    "def arms(scale):\n    one = Experiment(arm=scale)\n    return [{arms}]\n"
)
TWO = "one, dataclasses.replace(one, arm='other')"


def write(folder, text, name="family.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_users_own_family_works_like_ours(tmp_path):
    path = write(tmp_path, FAMILY.format(arms=TWO))
    assert config_files.is_family(path)
    found = experiment_lib.load_arms(path, "small")
    assert [arm.arm for arm in found] == ["small", "other"]


def test_what_is_wrong_with_a_family_is_said(tmp_path):
    family = write(tmp_path, FAMILY.format(arms=TWO))
    with pytest.raises(
        InputError, match=r"family of arms; .* --scale demo, small or p"
    ):
        experiment_lib.load(family)
    single = CONFIGS / "demo" / "residual_adamw.py"
    with pytest.raises(
        InputError, match=r"one experiment, no family.*leave --scale out"
    ):
        experiment_lib.load_arms(single, "demo")
    twice = write(tmp_path, FAMILY.format(arms="one, one"))
    with pytest.raises(InputError, match="two arms called 'demo'"):
        experiment_lib.load_arms(twice, "demo")
    wrong = write(tmp_path, FAMILY.format(arms="one, 3"))
    with pytest.raises(InputError, match="returned int, not an"):
        experiment_lib.load_arms(wrong, "demo")
