"""The plan of a step: shares that fall as 1/D, and collectives as the formula says."""

import dataclasses
import functools
import math
import re

import jax
import pytest

from rfq import cli, metrics, optim, sharding
from rfq.costs import hlo, plan, targets
from rfq.errors import InputError
from rfq.experiment import Experiment, TrainConfig
from rfq.model import transformer
from rfq.model.config import ModelConfig, flops_per_token, num_params
from rfq.optim.schedule import ScheduleConfig
from rfq.sharding import ShardingConfig

BATCH_SIZE = 16
MODEL = ModelConfig(
    num_layers=2,
    width=32,
    num_heads=4,
    vocab_size=64,
    seq_len=16,
    compute_dtype="float32",
    loss_chunks=2,
)
OPTIMIZERS = {"adamw": optim.AdamWConfig(), "muon": optim.MuonConfig()}


def experiment(optimizer="adamw", *, model=MODEL, **sizes) -> Experiment:
    return Experiment(
        arm="plan",
        model=model,
        optimizer=OPTIMIZERS[optimizer],
        schedule=ScheduleConfig(warmup_steps=2),
        train=TrainConfig(num_steps=20, batch_size=BATCH_SIZE),
        sharding=ShardingConfig(**sizes),
    )


def pretended(num_devices: int = 8) -> targets.Target:
    return targets.Target("pretended", tuple(jax.devices()[:num_devices]), None)


@functools.cache
def planned(given: Experiment, num_devices: int = 8) -> plan.Plan:
    return plan.make(given, pretended(num_devices))


def state_bytes(found: plan.Plan) -> int:
    return sum(group.num_bytes for group in (*found.params, *found.opt_state))


@pytest.mark.slow
@pytest.mark.mesh
def test_bytes_of_parameters_and_optimizer_fall_as_one_over_devices():
    """What a program takes: the state, and a batch that is shared as well."""
    model = dataclasses.replace(MODEL, width=64)
    given = experiment(model=model, strategy="fsdp")
    batch = 4 * BATCH_SIZE * (model.seq_len + 1)
    # Step, AdamW's count and a flag and a counter for each of ten leaves are whole.
    small = 100
    for num_devices in (1, 2, 4, 8):
        found = planned(given, num_devices)
        share = (3 * 4 * num_params(model) + batch) / num_devices
        assert found.memory is not None and found.memory.arguments is not None
        assert share < found.memory.arguments < share + small
        # The step comes on top, and flags that no step reads are left out.
        rest = found.memory.arguments - state_bytes(found) - batch / num_devices
        assert abs(rest) < 16
        assert max(group.num_bytes for group in found.params) * num_devices == 4 * (
            model.num_layers * model.width * model.mlp_width
        )
        assert not any(
            group.whole and group.num_bytes > small for group in found.params
        )


def formula(given: Experiment) -> dict[str, float]:
    """Of the docstring of `rfq.sharding`, for float32 with rematerialization."""
    model, config = given.model, given.sharding
    r, f, t = sharding.mesh_shape(config, 8, 1)
    shapes = transformer.shapes(model)
    embedding = shapes["embedding"].size
    matrices = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim > 2)
    tokens = BATCH_SIZE * model.seq_len
    stream = tokens * model.width / (r * f)
    c, k, m = 4, 2, config.microbatches
    gather = (f > 1) * (c * (m * k * matrices + embedding) / t + 4 * tokens / r)
    reduce = (r * f > 1) * m * c * (matrices + embedding) / t
    reduce += (r > 1 and f > 1) * m * c * matrices / (f * t)
    reduce += (r > 1) * m * 4 * embedding / (f * t)
    reduce += (t > 1) * (model.num_layers * (5 + k) * c + c + 4) * stream
    exchange = (f > 1) * 2 * c * stream
    if isinstance(given.optimizer, optim.MuonConfig):
        # 4 L square and 2 L oblong matrices, each kind padded to the 8 devices.
        padded = [-(-n * model.num_layers // 8) * 8 for n in (4, 2)]
        stacks = sum(n * ratio for n, ratio in zip(padded, (1, 4), strict=True))
        stacks *= model.width**2
        exchange += (f * t > 1) * 2 * 4 * stacks / 8
        gather += (r > 1) * 4 * stacks / (f * t)
    sizes = {"all-gather": gather, "all-reduce": reduce, "all-to-all": exchange}
    return {op: size for op, size in sizes.items() if size}


@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [
        ("adamw", {"strategy": "ddp"}),
        ("adamw", {"strategy": "fsdp"}),
        ("adamw", {"strategy": "fsdp_tp"}),
        ("muon", {"strategy": "hybrid", "data": 2, "tensor": 2, "microbatches": 2}),
    ],
    ids=["ddp", "fsdp", "fsdp_tp", "muon_on_all_axes_in_parts"],
)
def test_collectives_are_what_the_docstring_of_sharding_says(optimizer, sizes):
    given = experiment(optimizer, **sizes)
    found, expected = planned(given).collectives, formula(given)
    assert set(expected) <= set(found)
    for op, size in expected.items():
        # Gains and single numbers a token, which the formula leaves out.
        assert size <= found[op] < 1.02 * size, op
    others = sum(n for op, n in found.items() if op not in expected)
    assert others < 0.02 * sum(expected.values())


@pytest.mark.slow
@pytest.mark.mesh
def test_sums_of_gradients_stay_cut():
    """No array of the program is as large as a whole stacked parameter."""
    given = experiment(strategy="fsdp", microbatches=2, model=MODEL)
    largest = planned(given).largest
    whole = 4 * math.prod(transformer.shapes(MODEL)["blocks"]["w_up"].shape)
    assert largest.num_bytes < whole


@pytest.fixture
def not_compiled(monkeypatch):
    """Nothing is compiled: the step's program is a stand-in that tells nothing."""

    class Program:
        def compile(self):
            return self

        def as_text(self):
            return ""

        def memory_analysis(self):
            return None

    class Steps:
        def __init__(self, compiled):
            self.state = compiled.state
            self.train = self

        def lower(self, state, batch):
            shares = sharding.num_shares(batch.sharding.mesh)
            assert batch.sharding.shard_shape(batch.shape)[0] * shares == len(batch)
            return Program()

    compile_train = plan.steps.compile_train
    monkeypatch.setattr(
        plan.steps, "compile_train", lambda *given: Steps(compile_train(*given))
    )


def said_of(capsys, *arms, num_seeds=1, device_flops=None, json_path=None):
    plan.run(
        arms,
        pretended(),
        num_seeds=num_seeds,
        device_flops=device_flops,
        find_batch=False,
        json_path=json_path,
    )
    return capsys.readouterr().out


@pytest.mark.mesh
def test_the_placement_names_every_parameter_and_stack(not_compiled, capsys):
    said = said_of(capsys, experiment("muon", strategy="fsdp_tp"))
    assert "8 of pretended, fsdp_tp: data=1 x fsdp=4 x tensor=2" in said
    for name in ("blocks/w_q", "embedding", "optimizer 32x128", "optimizer embedding"):
        assert name in said
    assert "vocab=64 x embed=32" in said and "P('tensor', 'fsdp')" in said
    assert "8 matrices, padding included" in said
    assert "not told by this backend" in said
    assert hlo.collective_bytes("") == {}


@pytest.mark.mesh
def test_a_checkpoint_takes_the_parameters_and_two_moments(not_compiled):
    given = experiment(strategy="fsdp")
    row = plan.as_row(given, planned.__wrapped__(given))
    small = 100  # Counters and flags.
    moments = 3 * 4 * num_params(MODEL)
    assert moments < row["checkpoint_bytes"] < moments + small
    # Two are kept while a third is written.
    assert row["disk_bytes"] == 3 * row["checkpoint_bytes"]


@pytest.mark.mesh
def test_arms_are_added_up_and_rows_are_written(not_compiled, capsys, tmp_path):
    arms = [experiment(), experiment("muon")]
    path = tmp_path / "plans.jsonl"
    said = said_of(capsys, *arms, num_seeds=3, device_flops=1e6, json_path=path)
    rows = metrics.read(path)
    flops = 20 * BATCH_SIZE * MODEL.seq_len * flops_per_token(MODEL)
    hours = pytest.approx(flops / (8 * 1e6) / 3600)
    assert [row["hours"] for row in rows] == [hours, hours]
    last = said.splitlines()[-2].split()
    assert last[:4] == ["all,", "3", "seeds", f"{6 * rows[0]['hours']:.2f}"]
    disk = 3 * sum(row["disk_bytes"] for row in rows)
    assert last[-2:] == [f"{disk / 2**30:.3f}", "GiB"]
    assert f"rows: {path}" in said


@pytest.mark.mesh
def test_pretended_devices_have_no_hours_unless_their_speed_is_given(
    not_compiled, capsys
):
    said = said_of(capsys, experiment())
    assert "not known: these devices have no speed; plan for others with --target" in (
        said
    )
    assert "devices have no speed" not in said_of(
        capsys, experiment(), device_flops=1e9
    )
    with pytest.raises(InputError, match="--device-flops=0 must be > 0"):
        said_of(capsys, experiment(), device_flops=0)


def test_a_target_belongs_to_a_dry_run(capsys):
    config = "configs/demo/residual_adamw.py"
    for option, value in (
        ("--target", "cpu:8"),
        ("--device-flops", "1e9"),
        ("--json", "rows.jsonl"),
    ):
        assert cli.main(["train", config, option, value]) == 2
        assert f"{option} goes with --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["cpu", "cpu:0", "cpu:2x2", "h100:8", "v9:2x2", "v5p:"]
)
def test_an_unknown_target_is_one_sentence_with_what_there_is(name):
    with pytest.raises(InputError, match=f"--target='{name}'") as caught:
        targets.find(name)
    assert re.search("v5p:2x2x1|cpu:256|h100:1x8", str(caught.value))


@pytest.mark.parametrize(
    ("name", "extra"), [("v5p:2x2x1", "plan-tpu"), ("h100:1x4", "plan-cuda")]
)
def test_a_missing_compiler_is_one_sentence_with_its_package(name, extra, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"pip install 'rfq\[{extra}\]'"):
        targets.find(name)


def test_a_program_that_the_compiler_refuses_does_not_fit():
    class Refused:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of "
                "memory in memory space hbm. Used 136.95G of 95.74G hbm."
            )

    text, memory = plan._compiled(Refused())
    assert text is None and memory.needed == int(136.95 * 2**30)


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_the_largest_batch_is_found_to_a_sixteenth(limit, monkeypatch):
    """With a step whose memory is a bent line in the batch."""
    compiled = []

    def needed(batch_size):
        return 1000 + 100 * batch_size + batch_size // 3

    def make(given, target):
        size = given.train.batch_size
        compiled.append(size)
        memory = plan.Memory(0, 0, 0, needed(size))
        work = None if needed(size) > there else object()
        return PLAN._replace(memory=memory, roofline=work)

    there = needed(8 * limit) + 50
    monkeypatch.setattr(targets, "memory", lambda target: there)
    monkeypatch.setattr(plan, "make", make)
    given = experiment()
    found = plan.largest_batch(given, pretended(), make(given, None))
    assert len(compiled) <= 1 + plan.MAX_COMPILES
    assert found <= 8 * limit and (found >= 7.5 * limit or limit - found // 8 <= 1)


PLAN = plan.Plan(
    pretended(), {"data": 8, "fsdp": 1, "tensor": 1}, [], [], {}, None,
    hlo.Made(0, "", ""), 0, 0.0, None,
)  # fmt: skip
