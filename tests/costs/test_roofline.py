"""The work of a program: FLOPs, bytes and exchanges, with loops multiplied out."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rfq.costs import hlo, plan, roofline, targets, work
from rfq.experiment import Experiment, TrainConfig
from rfq.model.config import ModelConfig, flops_per_token
from rfq.optim.schedule import ScheduleConfig
from tests.tiny import MODEL, experiment

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
CHIP = targets.CHIPS["h100"]


def read(text, shares=None, mesh=ONE, hosts=(0,)):
    return roofline.read(text, CHIP, mesh, hosts, shares or {})


def compiled(function, *shapes):
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*given).compile().as_text()


def test_a_product_in_a_loop_counts_once_a_trip():
    def looped(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    found = read(compiled(looped, (64, 96), (96, 96)))
    assert sum(found.flops.values()) == 7 * 2 * 64 * 96 * 96
    # Each trip reads both factors and writes the result at least.
    assert found.bytes_moved >= 7 * 4 * (2 * 64 * 96 + 96 * 96)
    assert found.unknown_loops == 0


def test_a_loop_of_unknown_length_is_counted_once_and_said():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9.0, lambda x: x @ x, x)

    found = read(compiled(until, (32, 32)))
    assert found.unknown_loops == 1
    assert sum(found.flops.values()) == 2 * 32**3


def test_a_slice_of_a_stack_is_read_as_a_slice():
    """As a scan over layers reads the parameters of one layer at a time."""

    def layers(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.sin(x + w), None), x, stack)[0]

    num, size = 100, 64 * 64
    found = read(compiled(layers, (num, 64, 64), (64, 64)))
    # Slice, old and new x; copies and counters may come on top, whole stacks must not.
    assert 3 * num * 4 * size <= found.bytes_moved < 8 * num * 4 * size


@pytest.mark.parametrize(
    ("scope", "share", "products"), [("rare", 0.25, 1.25), ("rare", 0.0, 1), ("", 1, 2)]
)
def test_a_branch_counts_as_often_as_it_is_taken(scope, share, products):
    def branched(x, flag):
        with jax.named_scope("rare"):
            y = jax.lax.cond(flag[0] > 0, lambda x: x @ x, lambda x: x, x)
        return y @ x

    found = read(compiled(branched, (64, 64), (1,)), {scope: share} if scope else {})
    assert sum(found.flops.values()) == products * 2 * 64**3


def instruction(line):
    program = hlo.parse(
        "ENTRY %main (a: f32[1]) -> f32[1] {\n"
        "  %a = bf16[8,64,32]{2,1,0} parameter(0)\n"
        "  %b = bf16[8,16,32]{2,1,0} parameter(1)\n"
        "  %x = bf16[128,32]{1,0} parameter(2)\n"
        "  %w = bf16[32,12,8]{2,1,0} parameter(3)\n"
        f"  ROOT {line}\n}}"
    )
    (root,) = (one for one in program.computations["main"].values() if one.is_root)
    return program, root


# Products as compilers write them -> their FLOPs.
WRITTEN = {
    # A TPU's batched product: a window as long as the batch, dilated so far that only
    # equal numbers meet.
    "%c = f32[8,64,16]{2,1,0} convolution(%a, %b), window={size=8 stride=7 "
    "lhs_dilate=8}, dim_labels=0bf_0oi->0bf": 2 * 8 * 64 * 16 * 32,
    "%d = f32[8,64,16]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, "
    "lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={2}": 2 * 8
    * 64 * 16 * 32,
    '%g = (f32[8,64,16]{2,1,0}, s8[0]{0}) custom-call(%a, %b), custom_call_target='
    '"__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_batch_dimensions":["0"]}}}': 2 * 8 * 64 * 16 * 32,
    '%f = (bf16[2,3,16,8]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b, %b), '
    'custom_call_target="__cudnn$fmhaSoftmax", backend_config={'
    '"intermediate_tensor_shape": {"dimensions": ["2", "3", "16", "16"]}, '
    '"mask_type": "CAUSAL"}': 2 * (2 * 2 * 3 * 16 * 16 * 8) / 2,
}  # fmt: skip


@pytest.mark.parametrize("line", WRITTEN)
def test_products_are_recognized_as_each_compiler_writes_them(line):
    program, root = instruction(line)
    (product,) = work.products(program, root, "main")
    assert product.flops == WRITTEN[line]
    assert product.unit == "bfloat16"


def test_a_window_counts_the_positions_that_meet_an_input():
    def brute(size, window, made, stride, low, dilate, spread):
        real = {place * dilate for place in range(size)}
        return sum(
            out * stride + at * spread - low in real
            for out in range(made)
            for at in range(window)
        )

    for case in ((5, 3, 3, 1, 0, 1, 1), (5, 3, 5, 1, 1, 1, 1), (4, 4, 4, 3, 0, 4, 1),
                 (1, 12, 12, 1, 11, 1, 1), (6, 3, 2, 2, 1, 1, 2)):  # fmt: skip
        names = ("size", "window", "made", "stride", "low", "dilate", "spread")
        assert work._valid(**dict(zip(names, case, strict=True))) == brute(*case), case


@pytest.mark.parametrize(
    ("written", "groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", [(0, 1), (2, 3), (4, 5), (6, 7)], "tensor"),
        ("[2,4]<=[2,2,2]T(1,0,2)", [(0, 1, 4, 5), (2, 3, 6, 7)], "data*tensor"),
        ("[1,8]<=[8]", [tuple(range(8))], "data*fsdp*tensor"),
        (
            "mesh['a'=2,'b'=2,'c'=2] {'b'}",
            [(0, 2), (1, 3), (4, 6), (5, 7)],
            "fsdp",
        ),
    ],
)
def test_groups_are_read_in_every_form_and_named_by_axes(written, groups, axes):
    line = f"%r = f32[4] all-reduce(%x), replica_groups={written}, to_apply=%add"
    found = hlo.groups(line)
    assert found == groups
    assert roofline.axes_of(found, {"data": 2, "fsdp": 2, "tensor": 2}) == axes


def exchanging(op, axes="[1,4]<=[4]"):
    return (
        "ENTRY %main (x: f32[1000]) -> f32[1000] {\n  %x = f32[1000]{0} parameter(0)\n"
        f"  ROOT %r = f32[1000]{{0}} {op}(%x), replica_groups={axes}\n}}"
    )


@pytest.mark.parametrize(
    ("op", "sent"),
    [("all-reduce", 6000), ("all-gather", 3000), ("reduce-scatter", 12000)],
)
def test_an_exchange_takes_the_bytes_it_sends_at_the_speed_of_its_links(op, sent):
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    inside = read(exchanging(op), mesh=mesh, hosts=(0, 0, 0, 0))
    across = read(exchanging(op), mesh=mesh, hosts=(0, 0, 1, 1))
    assert inside.exchanges[0][:3] == (op, "data", 4000)
    assert inside.seconds == pytest.approx(sent / CHIP.link)
    assert across.seconds == pytest.approx(sent / CHIP.network)


def test_a_step_multiplies_what_the_model_says_and_no_more(tmp_path):
    """Attention is computed whole; the model counts half, 6 L T D a token less."""
    given, model = experiment(tmp_path), MODEL
    found = plan.make(given, targets.Target("one", (jax.devices()[0],), None))
    tokens = given.tokens_per_step
    attention = 6 * model.num_layers * model.seq_len * model.width
    flops = {part: n / tokens for part, n in found.roofline.flops.items()}
    whole = flops_per_token(model) + attention
    assert flops["forward"] + flops["backward"] == pytest.approx(whole, rel=1e-9)
    assert flops["recomputed"] == flops["optimizer"] == 0


def test_the_unit_of_a_product_follows_type_and_precision():
    for name in ("float32_highest", "float32_high"):
        asked = name.removeprefix("float32_")
        line = f"%d = f32[2]{{0}} dot(%a, %b), operand_precision={{{asked},{asked}}}"
        assert work._unit(hlo.Shape("f32", (2,)), line) == name
    assert work._unit(hlo.Shape("f32", (2,)), "dot(%a, %b)") == "float32"
    assert work._unit(hlo.Shape("s8", (2,)), "dot(%a, %b)") == "int8"


# Wide enough that attention's own products are a small part, as in the paper's model.
KEEPING = ModelConfig(
    num_layers=2,
    width=128,
    num_heads=4,
    vocab_size=512,
    seq_len=32,
    compute_dtype="float32",
    loss_chunks=4,
)


def stepped(remat: str):
    given = Experiment(
        arm="remat",
        model=dataclasses.replace(KEEPING, remat=remat),
        train=TrainConfig(num_steps=20, batch_size=4),
        schedule=ScheduleConfig(warmup_steps=2),
    )
    found = plan.make(given, targets.Target("one", (jax.devices()[0],), None))
    assert found.roofline is not None
    return found.roofline.flops


@pytest.mark.parametrize("skip", ["residual", "residual_free"])
def test_keeping_products_multiplies_next_to_nothing_twice(skip, monkeypatch):
    monkeypatch.setitem(globals(), "KEEPING", dataclasses.replace(KEEPING, skip=skip))
    whole, kept = stepped("block"), stepped("products")
    passes = kept["forward"] + kept["backward"]
    # The logits of attention, one of its two products.
    attention = 4 * 32 * 2 * 2 * 32 * 128
    assert kept["recomputed"] <= attention
    assert passes + kept["recomputed"] <= 1.02 * passes
    # A block run again is a third of both passes, but for its last product.
    assert whole["recomputed"] > 0.2 * passes
