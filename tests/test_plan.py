"""The plan of a step: shares that fall as 1/D, and collectives as the formula says."""

import dataclasses
import functools
import math

import jax
import pytest

from rfq import cli, hlo, optim, plan, sharding
from rfq.errors import InputError
from rfq.experiment import Experiment, TrainConfig
from rfq.model import transformer
from rfq.model.config import ModelConfig, num_params
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


@functools.cache
def planned(given: Experiment, num_devices: int = 8) -> plan.Plan:
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sharding, "make_mesh", lambda config: make_mesh(num_devices, config)
        )
        return plan.make(given)


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
        assert found.argument_bytes is not None
        assert share < found.argument_bytes < share + small
        # The step comes on top, and flags that no step reads are left out.
        rest = found.argument_bytes - state_bytes(found) - batch / num_devices
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


@pytest.mark.mesh
def test_the_placement_names_every_parameter_and_stack(monkeypatch, capsys):
    """Nothing is compiled here: the step's program is a stand-in."""

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
            assert batch.sharding.shard_shape(batch.shape)[0] == BATCH_SIZE // 4
            return Program()

    compile_train = plan.steps.compile_train
    monkeypatch.setattr(
        plan.steps, "compile_train", lambda *given: Steps(compile_train(*given))
    )
    plan.run(experiment("muon", strategy="fsdp_tp"))
    said = capsys.readouterr().out
    assert "8, fsdp_tp: data=1 x fsdp=4 x tensor=2" in said
    for name in ("blocks/w_q", "embedding", "optimizer 32x128", "optimizer embedding"):
        assert name in said
    assert "vocab=64 x embed=32" in said and "P('tensor', 'fsdp')" in said
    assert "8 matrices, padding included" in said
    assert "not told by this backend" in said
    assert hlo.collective_bytes("") == {}


def test_devices_belong_to_a_dry_run(capsys):
    config = "configs/demo/residual_adamw.py"
    assert cli.main(["train", config, "--devices", "8"]) != 0
    assert "--devices is of --dry-run" in capsys.readouterr().err
    with pytest.raises(InputError, match="--devices=0"):
        plan.pretend(0)
