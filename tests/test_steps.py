"""The compiled functions: one program each, the same numbers on one device or eight."""

import contextlib
import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import gradients, optim, sharding, steps, taps
from rfq import params as params_lib
from rfq.errors import InputError
from rfq.experiment import Experiment, LogConfig, QuantizeConfig, TrainConfig
from rfq.model import init as init_lib
from rfq.model import layers, transformer
from rfq.model.config import BLOCK_SITES, SITES, TAP_SETS
from rfq.model.init import InitConfig
from rfq.optim import matrix
from rfq.optim.schedule import ScheduleConfig
from rfq.quant import calibrate, distortion, grid
from rfq.quant.spec import QuantSpec
from rfq.sharding import ShardingConfig
from tests import tiny
from tests.model import examples
from tests.oracles import decoder

MODEL = dataclasses.replace(tiny.MODEL, vocab_size=32)
NUM_STEPS, BATCH_SIZE = 10, 8
PARAMS = examples.params(MODEL)
OPTIMIZERS = {
    "adamw": optim.AdamWConfig(learning_rate=1e-2),
    "muon": optim.MuonConfig(learning_rate=3e-3),
    "kl_shampoo": optim.KLShampooConfig(learning_rate=3e-3, init_factor=1e-3),
}


def experiment(row="adamw", **changes) -> Experiment:
    base = Experiment(
        arm="steps",
        model=MODEL,
        init=InitConfig(recipe="gpt2"),
        optimizer=OPTIMIZERS[row],
        schedule=ScheduleConfig(warmup_steps=2),
        train=TrainConfig(num_steps=NUM_STEPS, batch_size=BATCH_SIZE),
    )
    return dataclasses.replace(base, **changes)


def batches():
    """Walks around the vocabulary in steps of 1 to 3: something to learn."""
    rng = np.random.default_rng(0)
    walks = np.cumsum(
        rng.integers(1, 4, (NUM_STEPS, BATCH_SIZE, MODEL.seq_len + 1)), axis=2
    )
    return (walks % MODEL.vocab_size).astype(np.int32)


@functools.cache
def compiled(optimizer="adamw", num_devices=1, strategy="ddp"):
    config = experiment(optimizer, sharding=ShardingConfig(strategy=strategy))
    return steps.compile_train(config, sharding.make_mesh(num_devices, config.sharding))


@functools.cache
def initial(optimizer="adamw", num_devices=1):
    """The first state, on the host; `PARAMS` because random numbers compile slowly.

    It depends on the number of devices only in the padding of the optimizer's stacks.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(init_lib, "init", lambda config, model, key: PARAMS)
        init = compiled(optimizer, num_devices).init
        return jax.device_get(init(jax.random.key(0)))


def place(tree, abstract):
    """Puts host arrays where the compiled functions declare them."""
    return jax.tree.map(
        lambda leaf, declared: jax.device_put(leaf, declared.sharding), tree, abstract
    )


def trained(optimizer, num_devices=1, strategy="ddp", *, reverse=False):
    """Metrics of every step, and the last state."""
    functions = compiled(optimizer, num_devices, strategy)
    state = place(initial(optimizer, num_devices), functions.state)
    mesh = sharding.make_mesh(num_devices, ShardingConfig(strategy=strategy))
    rows = []
    for batch in batches():
        rows_in_order = np.ascontiguousarray(batch[::-1]) if reverse else batch
        state, metrics = functions.train(state, sharding.to_global(rows_in_order, mesh))
        rows.append(metrics)
    rows = jax.device_get(rows)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, state


@contextlib.contextmanager
def counted_traces():
    """A list that grows by one whenever the model's Python code runs."""
    traces, features = [], transformer.features

    def counting(*args):
        traces.append(args)
        return features(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "features", counting)
        yield traces


# --- Training ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_fresh_state_is_what_was_declared():
    # Not `compiled`, whose initialization `initial` replaces.
    functions = steps.compile_train(experiment(), sharding.make_mesh(1))
    state = functions.init(jax.random.key(0))
    jax.tree.map(
        lambda leaf, declared: np.testing.assert_equal(
            (leaf.shape, leaf.dtype, leaf.sharding),
            (declared.shape, declared.dtype, declared.sharding),
        ),
        state,
        functions.state,
    )
    assert state.step == 0 and functions.finite(state)
    drawn = init_lib.init(experiment().init, MODEL, key=jax.random.key(0))
    # The same numbers drawn, up to how the compiler rounds the inverse of erf.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, drawn
    )


@pytest.mark.slow
def test_anchored_parameters_stay_near_those_that_training_starts_with():
    held = dataclasses.replace(OPTIMIZERS["adamw"], anchors={"w_v": 50.0})
    mesh, moved = sharding.make_mesh(1), {}
    for name, optimizer in {"free": OPTIMIZERS["adamw"], "held": held}.items():
        functions = steps.compile_train(experiment(optimizer=optimizer), mesh)
        # The old state, with its copy of W_V, is given away at every step.
        state = functions.init(jax.random.key(0), PARAMS)
        for batch in batches():
            state, _ = functions.train(state, sharding.to_global(batch, mesh))
        change = state.params["blocks"]["w_v"] - PARAMS["blocks"]["w_v"]
        moved[name] = float(jnp.sqrt(jnp.mean(change**2)))
    # At the peak rate half of the distance is taken back at every step.
    assert 0.0 < moved["held"] < moved["free"] / 3


def test_a_step_reports_what_it_did():
    metrics, state = trained("adamw")
    assert state.step == NUM_STEPS
    # Warm-up over two steps from 0, then a cosine to a tenth of the peak.
    np.testing.assert_allclose(metrics["learning_rate"][:3], [0.0, 5e-3, 1e-2])
    assert np.all(np.diff(metrics["learning_rate"][2:]) < 0)
    # The loss is that of the batch before the step, in nats a token.
    expected = decoder.token_losses(initial().params, batches()[0], MODEL).mean()
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)
    assert metrics["loss"][-1] < metrics["loss"][0] - 0.3
    assert np.all(metrics["grad_norm"] > 0)


@pytest.mark.slow
def test_the_gradient_norm_is_that_before_clipping():
    @jax.jit
    def norm(params, batch):
        def mean_loss(params):
            return jnp.mean(transformer.token_losses(params, batch, MODEL)[0])

        grads = jax.tree.leaves(jax.grad(mean_loss)(params))
        return jnp.linalg.norm(jnp.concatenate([g.ravel() for g in grads]))

    metrics, _ = trained("adamw")
    expected = norm(initial().params, batches()[0])
    np.testing.assert_allclose(metrics["grad_norm"][0], expected, rtol=1e-4)


def test_the_old_state_is_given_to_the_new_one():
    functions = compiled()
    state = place(initial(), functions.state)
    batch = sharding.to_global(batches()[0], sharding.make_mesh(1))
    new, _ = functions.train(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


def test_a_run_is_one_program():
    with counted_traces() as traces:
        functions = steps.compile_train(experiment(), sharding.make_mesh(1))
        state = place(initial(), functions.state)
        for batch in batches()[:3]:
            batch = sharding.to_global(batch, sharding.make_mesh(1))
            state, _ = functions.train(state, batch)
    assert len(traces) == 1


@pytest.mark.slow
def test_measuring_gives_each_sequences_loss_and_each_layers_moments():
    params, batch = initial().params, batches()[0]
    losses, records = jax.device_get(compiled().measure(params, batch))
    expected = decoder.token_losses(params, batch, MODEL).mean(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert set(records) == {*BLOCK_SITES, "final_norm_in"}
    for site, record in records.items():
        lead = (MODEL.num_layers,) if site in BLOCK_SITES else ()
        assert {leaf.shape for leaf in record["moments"]} == {lead}
        assert set(record) == set(LogConfig().statistics)
        numbers = taps.numbers(taps.merged([record]))
        assert {number.shape for number in numbers.values()} == {lead}


def test_one_bad_number_makes_a_state_not_finite():
    state = initial()
    broken = {**state.params, "final_norm": state.params["final_norm"].copy()}
    broken["final_norm"][3] = np.inf
    assert not compiled().finite(dataclasses.replace(state, params=broken))


@pytest.mark.mesh
def test_gains_of_errors_are_the_same_where_devices_share_the_rows():
    sixteen = np.concatenate(batches()[:2])
    length = sixteen.shape[1]

    def gains(num_devices: int, num_tokens: int):
        given = tiny.with_fields(experiment(), "quantize", gain_tokens=num_tokens)
        mesh = sharding.make_mesh(num_devices)
        compiled = steps.compile_quant(given, mesh, "paper")
        batch = sharding.to_global(sixteen, mesh)
        return jax.device_get(compiled.propagate["in_place"](PARAMS, batch))

    # Eleven rows, which eight devices cannot share evenly.
    alone, shared = gains(1, 11 * length), gains(8, 11 * length)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, shared, alone)
    into_last = shared["mlp_norm_in"]["head_in"][-1]
    assert np.all(into_last > 0.1)


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("optimizer", "strategy"),
    # Others, with real processes, are in `tests/multihost/test_training.py`.
    [("adamw", "ddp"), pytest.param("muon", "fsdp", marks=pytest.mark.slow)],
)
def test_eight_devices_train_as_one(optimizer, strategy):
    one, _ = trained(optimizer)
    # Reversing the rows of every batch changes nothing but the order of sums: how far
    # that moves the losses is how well they are defined in float32. Eight devices sum
    # in a third order; ten times as much, and four ulp where the reversal found none.
    reversed_rows, _ = trained(optimizer, reverse=True)
    eight, state = trained(optimizer, 8, strategy)
    noise = np.abs(reversed_rows["loss"] - one["loss"]).max()
    ulp = np.spacing(np.float32(one["loss"].max()))
    assert noise < 1e-4  # Otherwise the next line would allow anything.
    np.testing.assert_allclose(
        eight["loss"], one["loss"], rtol=0, atol=10 * noise + 4 * ulp
    )
    w_up = state.params["blocks"]["w_up"]
    assert w_up.sharding.num_devices == 8
    assert w_up.sharding.is_fully_replicated == (strategy == "ddp")
    for leaf in jax.tree.leaves(stacks(state.opt_state)):
        assert leaf.addressable_shards[0].data.shape[0] * 8 == leaf.shape[0]


@functools.cache
def gradient(num_microbatches, num_devices=1):
    """Loss and gradient of a batch in so many parts."""

    def objective(params, batch):
        loss = jnp.mean(transformer.token_losses(params, batch, MODEL)[0])
        return loss, {"loss": loss}

    mesh = sharding.make_mesh(num_devices)
    accumulated = functools.partial(
        gradients.accumulated, objective, num_microbatches=num_microbatches
    )
    compiled = jax.jit(accumulated)
    found = compiled(PARAMS, sharding.to_global(batches()[0], mesh))
    values, grads = jax.device_get(found)
    return values["loss"], grads


@pytest.mark.slow
@pytest.mark.mesh
def test_rivals_have_one_gradient_on_one_device_and_on_eight():
    model = dataclasses.replace(MODEL, **examples.RIVALS)
    shapes = transformer.shapes(model)

    def found(num_devices, strategy):
        mesh = sharding.make_mesh(num_devices, ShardingConfig(strategy=strategy))
        seams = transformer.Seams(placing=sharding.placing(mesh))
        placed = sharding.params_shardings(mesh, shapes)

        def mean_loss(params, batch):
            return jnp.mean(transformer.token_losses(params, batch, model, seams)[0])

        run = jax.jit(jax.value_and_grad(mean_loss))
        params = jax.device_put(examples.params(model), placed)
        return jax.device_get(run(params, sharding.to_global(batches()[0], mesh)))

    loss, grads = found(8, "fsdp_tp")
    expected_loss, expected = found(1, "ddp")
    # Sums in another order. A single gain's gradient has 2,048 terms: sqrt(2048) times
    # 6e-8 is 3e-6 of the terms, and more of a sum in which they cancel.
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "num_microbatches", [4, pytest.param(BATCH_SIZE, marks=pytest.mark.slow)]
)
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(num_microbatches):
    loss, grads = gradient(num_microbatches)
    expected_loss, expected = gradient(1)
    # Means of parts of one size: a few roundings of float32, of sums of 128 terms.
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=1e-6)


@pytest.mark.slow  # A program of its own; the tap itself is in tests/test_taps.py.
def test_a_penalty_is_the_mean_fourth_power_of_what_blocks_put_out():
    # arXiv 2511.23225: loss + w (1 / L) sum_l mean((|A_l| / t)^4), in two microbatches.
    weight, threshold = 2.0, 4.0
    train = TrainConfig(
        num_steps=NUM_STEPS,
        batch_size=BATCH_SIZE,
        penalty_weight=weight,
        penalty_threshold=threshold,
    )
    given = experiment(train=train, sharding=ShardingConfig(microbatches=2))
    functions = steps.compile_train(given, sharding.make_mesh(1))
    batch = batches()[0]
    state = place(initial(), functions.state)
    _, found = functions.train(state, batch)

    _, sites = decoder.forward(PARAMS, batch[:, :-1], MODEL)
    outputs = np.stack([*sites["attn_norm_in"][1:], sites["final_norm_in"]])
    # Two blocks in float32, the fourth power of whose outputs is taken.
    penalty = np.mean((outputs / threshold) ** 4)
    np.testing.assert_allclose(found["penalty"], penalty, rtol=1e-4)
    loss, grads = gradient(1)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)

    keep = transformer.Seams(taps.Taps(examples.keep, SITES))

    def penalty_of(params):
        _, seen = transformer.features(params, batch[:, :-1], MODEL, keep)
        kept = jnp.stack([*seen["attn_norm_in"][1:], seen["final_norm_in"]])
        return jnp.mean((kept / threshold) ** 4)

    slope = jax.jit(jax.grad(penalty_of))(PARAMS)
    both = jax.tree.map(lambda a, b: a + weight * b, grads, slope)
    expected = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(both)))
    np.testing.assert_allclose(found["grad_norm"], expected, rtol=1e-4)
    assert weight * penalty > 0.1 * loss  # Neither could be missing.


def test_no_penalty_leaves_no_trace():
    def program(**fields):
        train = TrainConfig(num_steps=NUM_STEPS, batch_size=BATCH_SIZE, **fields)
        functions = steps.compile_train(experiment(train=train), sharding.make_mesh(1))
        batch = jax.ShapeDtypeStruct((BATCH_SIZE, MODEL.seq_len + 1), "int32")
        return str(jax.make_jaxpr(functions.train)(functions.state, batch))

    # A tap with another threshold would be another program.
    assert program(penalty_weight=0.0, penalty_threshold=9.0) == program()


def test_constants_move_by_their_schedule_alone():
    model = dataclasses.replace(MODEL, skip="weighted", attention_kind="decaying")
    given = experiment(
        model=model,
        init=InitConfig(recipe="gpt2", soft_layers="first", skip_weight=0.8),
        train=TrainConfig(num_steps=NUM_STEPS, batch_size=BATCH_SIZE, skip_anneal=0.3),
    )
    functions = steps.compile_train(given, sharding.make_mesh(1))
    state = functions.init(jax.random.key(0))
    first = jax.device_get(state.params["blocks"])
    np.testing.assert_array_equal(first["head_decay"], [[1, 0], [0, 0]])
    np.testing.assert_allclose(first["skip_weight"], 0.8)
    # .3 of 10 steps: after 1, 2, 3 and 4 of them.
    for batch, left in zip(batches()[:4], (2 / 3, 1 / 3, 0.0, 0.0), strict=True):
        state, _ = functions.train(state, batch)
        blocks = jax.device_get(state.params["blocks"])
        np.testing.assert_allclose(blocks["skip_weight"], 0.8 * left, atol=1e-7)
        np.testing.assert_array_equal(blocks["head_decay"], first["head_decay"])
    assert np.abs(blocks["w_q"] - first["w_q"]).max() > 1e-3


def test_a_batch_must_divide_into_its_parts():
    with pytest.raises(InputError, match=r"train\.batch_size=8 .*microbatches=3"):
        experiment(sharding=ShardingConfig(microbatches=3))


def stacks(opt_state):
    """The stacks of the matrix optimizers in an optimizer state."""
    return [
        state.stacks
        for state in jax.tree.leaves(opt_state, is_leaf=matrix.is_state)
        if matrix.is_state(state)
    ]


@pytest.mark.mesh
@pytest.mark.parametrize("strategy", sorted(sharding.STRATEGIES))
@pytest.mark.parametrize("optimizer", ["kl_shampoo", "muon", "shampoo", "soap"])
def test_each_device_keeps_its_share_of_the_optimizer(optimizer, strategy):
    """Whole matrices of 4 layers: 16 square and 8 oblong ones on up to 8 devices."""
    given = experiment(
        optimizer=optim.OPTIMIZERS[optimizer](),
        model=dataclasses.replace(MODEL, num_layers=4),
        sharding=ShardingConfig(strategy=strategy),
    )
    found = {}
    for num_devices in (1, 2, 8):
        mesh = sharding.make_mesh(num_devices, given.sharding)
        state = steps.compile_train(given, mesh).state.opt_state
        assert jax.tree.leaves(stacks(state))
        found[num_devices] = sharding.bytes_per_device(stacks(state))
    assert found[1] == 2 * found[2] == 8 * found[8]


# --- Memory ------------------------------------------------------------------------

WIDE = dataclasses.replace(
    MODEL, num_layers=1, width=8, vocab_size=32_000, seq_len=64, loss_chunks=16
)
LOGITS = BATCH_SIZE * WIDE.seq_len * WIDE.vocab_size


def traced_step(loss_chunks):
    model = dataclasses.replace(WIDE, loss_chunks=loss_chunks)
    functions = steps.compile_train(experiment(model=model), sharding.make_mesh(1))
    batch = jax.ShapeDtypeStruct((BATCH_SIZE, WIDE.seq_len + 1), jnp.int32)
    return functions.train.trace(functions.state, batch)


def largest_array(loss_chunks):
    """Elements of the largest array that a training step computes."""
    return max(
        out.aval.size
        for equation in examples.equations(traced_step(loss_chunks).jaxpr.jaxpr)
        for out in equation.outvars
        if hasattr(out.aval, "size")
    )


def test_a_training_step_never_holds_all_logits():
    assert largest_array(1) == LOGITS  # The measure sees them when they are there.
    assert largest_array(16) == LOGITS // 16


@pytest.mark.slow
def test_the_compiler_does_not_put_the_logits_together_again():
    text = traced_step(16).lower().compile().as_text()
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for shape in re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", text)
    ]
    assert LOGITS // 16 in sizes and max(sizes) < LOGITS


# --- Quantization ------------------------------------------------------------------

SPECS = [
    QuantSpec.parse(text)
    for text in QuantizeConfig().specs
    if QuantSpec.parse(text).act_bits is not None
]
STREAMS = ("branch", "in_place")


@functools.cache
def quantizing(tap_set="paper"):
    return steps.compile_quant(experiment(), sharding.make_mesh(1), tap_set)


class Sweep(NamedTuple):
    losses: dict  # (spec, stream) -> [B]
    effects: dict  # spec -> {site: Effect}
    diverged: dict  # (spec, stream) -> {site: Distortion}
    ranges: dict  # weight_bits -> {site: Bounds}
    num_traces: int


@functools.cache
def sweep(tap_set="paper"):
    """What `ptq` does with one batch: every setting of the paper's grid."""
    functions, found = quantizing(tap_set), Sweep({}, {}, {}, {}, 0)
    batch = sharding.to_global(batches()[0], sharding.make_mesh(1))
    params = {None: place(PARAMS, functions.params)}
    with counted_traces() as traces:
        for spec in SPECS:
            bits = spec.weight_bits
            if bits not in params:
                params[bits] = functions.quantize(params[None], jnp.int32(bits))
            if bits not in found.ranges:
                seen = jax.device_get(functions.calibrate(params[bits], batch))
                found.ranges[bits] = calibrate.finalize(
                    {site: record["range"] for site, record in seen.items()},
                    TAP_SETS[tap_set],
                )
            ranges = found.ranges[bits]
            targets = calibrate.grids(ranges, spec.act_bits)
            for stream in STREAMS:
                scored = functions.score.quantized[stream](params[bits], batch, targets)
                found.losses[spec, stream] = np.asarray(scored)
                found.diverged[spec, stream] = jax.device_get(
                    functions.diverge[stream](
                        params[None], params[bits], batch, targets
                    )
                )
            limits = {site: np.abs(hi) / 2 for site, (_, hi) in ranges.items()}
            found.effects[spec] = jax.device_get(
                functions.distort(params[bits], batch, targets, limits)
            )
    return found._replace(num_traces=len(traces))


def test_one_program_serves_the_whole_grid():
    # 20 settings: calibrate, distort, and per stream score and diverge, traced once.
    assert len(SPECS) == 20
    assert sweep().num_traces == 2 + 2 * len(STREAMS)


def test_sixteen_bits_cost_nothing_and_each_bit_less_costs_more():
    losses, effects = sweep().losses, sweep().effects
    full = decoder.token_losses(PARAMS, batches()[0], MODEL).mean(axis=1)
    for stream in STREAMS:
        by_bits = [
            np.abs(losses[QuantSpec(None, bits), stream] - full).mean()
            for bits in (16, 12, 10, 8, 6, 4)
        ]
        # Two bits are a factor 4 in the step; losses follow it, noisily.
        assert by_bits[0] < 2e-3
        assert by_bits == sorted(by_bits) and by_bits[-1] > 50 * by_bits[1]
    for site in TAP_SETS["paper"]:
        sqnr = [
            distortion.sqnr_db_of(effects[QuantSpec(None, bits)][site].error)
            for bits in (12, 10, 8, 6)
        ]
        # 6.02 dB a bit, as far as rounding looks uniform.
        np.testing.assert_allclose(np.diff(sqnr, axis=0), -12.04, atol=0.7)


def test_only_the_skip_path_tells_the_streams_apart():
    losses = sweep().losses
    spec = QuantSpec(8, 4)
    difference = losses[spec, "branch"] - losses[spec, "in_place"]
    assert np.all(np.abs(difference) > 1e-3)


def test_distortion_is_local_on_clean_inputs():
    effects, ranges = sweep().effects, sweep().ranges
    spec = QuantSpec(None, 4)
    _, sites = decoder.forward(PARAMS, batches()[0][:, :-1], MODEL)
    for site in TAP_SETS["paper"]:
        lo, hi = ranges[None][site]
        for layer, x in enumerate(sites[site]):
            x_hat = grid.fake_quantize(
                x.astype(np.float32),
                grid.grid_from_range(lo[layer], hi[layer], spec.act_bits),
            )
            found = effects[spec][site].error
            np.testing.assert_allclose(found.signal[layer], (x**2).sum(), rtol=1e-3)
            # A value within 1e-4 of a boundary may fall on the other side of it; it
            # then errs by the same half step.
            np.testing.assert_allclose(
                found.noise[layer], ((x - x_hat) ** 2).sum(), rtol=1e-2
            )


def test_effects_say_what_the_grid_does():
    spec = QuantSpec(None, 4)
    for site, effect in sweep().effects[spec].items():
        lo, hi = sweep().ranges[None][site]
        assert effect.codes.shape == (MODEL.num_layers, 1 << 16)
        # A range that the batch itself gave is used to its ends, and clips nothing but
        # what the rounded zero point pushes out.
        assert np.all(effect.codes.sum(-1) <= 16) and np.all(effect.codes.sum(-1) > 10)
        clipped = distortion.clip_fraction(effect.usage)
        dead = distortion.dead_fraction(effect.usage)
        assert np.all(clipped < 0.01) and np.all((dead > 0.02) & (dead < 0.5))
        inside = effect.usage.bulk_signal / effect.error.signal
        assert np.all((inside > 0.05) & (inside < 1.0)), (lo, hi)


@pytest.mark.parametrize("stream", STREAMS)
def test_divergence_is_that_of_two_models_run_apart(stream):
    functions, spec = quantizing(), QuantSpec(8, 4)
    tokens = batches()[0][:, :-1]
    found = sweep().diverged[spec, stream]
    rounded = jax.device_get(functions.quantize(PARAMS, jnp.int32(8)))
    seams = transformer.Seams(
        taps.Taps(taps.fake_quantize, TAP_SETS["paper"]), layers.STREAMS[stream]
    )
    states = calibrate.grids(sweep().ranges[8], spec.act_bits)
    with jax.default_matmul_precision("highest"):
        clean, _ = transformer.features(PARAMS, tokens, MODEL)
        other, _ = transformer.features(rounded, tokens, MODEL, seams, states)
    expected = np.sum((clean - other) ** 2) / np.sum(clean**2)
    np.testing.assert_allclose(
        distortion.nmse_of(found["head_in"]), expected, rtol=1e-3
    )
    assert set(found) == {*TAP_SETS["paper"], "head_in"}
    stream_error = distortion.nmse_of(found["attn_norm_in"])
    # The embedding is not quantized, so nothing has gone wrong before the first block.
    assert stream_error[0] == 0.0 and stream_error[1] > 1e-4


def test_weights_have_their_statistics():
    found = jax.device_get(quantizing().weigh(PARAMS))
    for name, numbers in found.items():
        axes = params_lib.TABLE[name].matrix
        for layer, w in enumerate(PARAMS["blocks"][name].astype(np.float64)):
            matrix = w.reshape(np.prod([w.shape[a - 1] for a in axes.in_axes]), -1)
            s = np.linalg.svd(matrix, compute_uv=False)
            centred = matrix - matrix.mean()
            gamma = np.mean(centred**4) / np.mean(centred**2) ** 2 - 3
            expected = {
                "excess_kurtosis": gamma,
                "isometry_deviation": np.abs(s**2 / np.mean(s**2) - 1).max(),
                "singular_value_spread": s.max() / s.min(),
            }
            for key, value in expected.items():
                # A square Gaussian matrix is nearly singular: float32 of a small s.
                np.testing.assert_allclose(numbers[key][layer], value, rtol=2e-3)
    assert set(found) == {"w_q", "w_k", "w_v", "w_o", "w_up", "w_down"}


def test_ranges_are_the_extremes_of_each_layer():
    ranges = sweep().ranges
    _, sites = decoder.forward(PARAMS, batches()[0][:, :-1], MODEL)
    assert set(ranges[None]) == set(TAP_SETS["paper"])
    for site, (lo, hi) in ranges[None].items():
        x = sites[site].reshape(MODEL.num_layers, -1)
        np.testing.assert_allclose(lo, x.min(axis=1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(hi, x.max(axis=1), rtol=1e-3, atol=1e-4)


def test_weights_are_quantized_by_their_own_rule():
    found = quantizing().quantize(PARAMS, jnp.int32(8))
    for name in ("embedding", "final_norm"):
        np.testing.assert_array_equal(found[name], PARAMS[name])
    for name, w in PARAMS["blocks"].items():
        axes = params_lib.TABLE[name].matrix
        if axes is None:
            np.testing.assert_array_equal(found["blocks"][name], w)
            continue
        # Every output channel has a step of its own, and is off by half of it.
        step = np.ptp(w, axis=axes.in_axes, keepdims=True) / 255
        error = np.abs(found["blocks"][name] - w)
        # With a range that need not hold 0 the step is larger, up to twice.
        assert np.all(error <= step * 1.01) and error.max() > 0.2 * step.min()


@pytest.mark.slow
def test_full_precision_is_scored_as_trained_and_in_float32():
    # D17: a bfloat16 model has two full-precision losses, a float32 model one.
    narrow = dataclasses.replace(MODEL, compute_dtype="bfloat16")
    functions = steps.compile_quant(
        experiment(model=narrow), sharding.make_mesh(1), "paper"
    )
    full = functions.score.plain(PARAMS, batches()[0])
    expected = decoder.token_losses(PARAMS, batches()[0], MODEL).mean(axis=1)
    np.testing.assert_allclose(full, expected, rtol=1e-5)
    as_trained = functions.score.as_trained(PARAMS, batches()[0])
    assert 0 < np.abs(as_trained - full).max() < 0.2


@pytest.mark.slow
def test_the_full_tap_set_measures_and_quantizes_every_operand():
    losses = sweep("full").losses
    assert set(sweep("full").effects[QuantSpec(8, 8)]) == set(TAP_SETS["full"])
    paper = sweep().losses
    spec = QuantSpec(None, 6)
    assert not np.array_equal(losses[spec, "branch"], paper[spec, "branch"])
    functions, batch = quantizing("full"), batches()[0]
    measured = jax.device_get(functions.measure(PARAMS, batch))
    assert set(measured) == set(SITES)
    binnings = {site: record["binning"] for site, record in measured.items()}
    counted = jax.device_get(functions.histogram(PARAMS, batch, binnings))
    for site, record in counted.items():
        totals = record["histogram"].histogram.counts.sum(axis=-1)
        np.testing.assert_array_equal(totals, measured[site]["moments"].count)
