"""What a step minimizes: training through rounding, and that nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import objective, sharding, steps
from rfq import params as params_lib
from rfq.errors import InputError
from rfq.experiment import Experiment, TrainConfig
from rfq.model import transformer
from rfq.model.config import TAP_SETS
from rfq.model.init import InitConfig
from rfq.optim import AdamWConfig
from rfq.optim.schedule import ScheduleConfig
from rfq.quant.aware import QatConfig
from tests import tiny
from tests.model import examples
from tests.oracles import decoder

MODEL = dataclasses.replace(tiny.MODEL, vocab_size=32)
PARAMS = examples.params(MODEL)
NUM_STEPS, BITS = 4, 4
BATCH = (
    np.random.default_rng(0).integers(0, 32, (2, MODEL.seq_len + 1)).astype(np.int32)
)


def experiment(model=MODEL, **qat) -> Experiment:
    return Experiment(
        arm="rounded",
        model=model,
        init=InitConfig(recipe="gpt2"),
        optimizer=AdamWConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=1),
        train=TrainConfig(num_steps=NUM_STEPS, batch_size=2),
        qat=QatConfig(**qat),
    )


def slopes(given: Experiment):
    """Compile the loss of a step and its gradient."""
    minimized = objective.make(given, transformer.PLAIN)
    return jax.jit(jax.value_and_grad(minimized, has_aux=True))


# --- The straight-through definition, in float64 -------------------------------


def rounded(x, axis, bits=BITS):
    """Asymmetric rounding over the ranges along some axes, in float64."""
    lo = np.minimum(x.min(axis=axis, keepdims=True), 0.0)
    hi = np.maximum(x.max(axis=axis, keepdims=True), 0.0)
    step = (hi - lo) / (2**bits - 1)
    zero = np.round(-lo / step)
    return (np.clip(np.round(x / step) + zero, 0, 2**bits - 1) - zero) * step


def rounded_weights(params):
    def leaf(w, row):
        if row is None:
            return np.asarray(w, np.float64)
        return rounded(np.asarray(w, np.float64), row.in_axes)

    return jax.tree.map(leaf, params, params_lib.quantized_axes(params))


def loss(params, model, stream, edit):
    logits, _ = decoder.forward(params, BATCH[:, :-1], model, edit=edit, stream=stream)
    largest = logits.max(axis=-1, keepdims=True)
    norm = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
    targets = np.take_along_axis(logits, BATCH[:, 1:, None], axis=-1)[..., 0]
    return np.mean(norm - targets)


@pytest.mark.parametrize(
    ("skip", "stream", "granularity", "spec"),
    [
        ("residual", "branch", "per_tensor", "W4A4"),
        ("residual", "in_place", "per_token", "A4"),
        ("residual_free", "branch", "per_tensor", "W4A4"),
    ],
)
def test_the_gradient_is_the_straight_through_definition(
    skip, stream, granularity, spec
):
    # Rounding adds an error that the gradient takes for a constant: the loss at the
    # rounded weights, with these errors frozen at every site, has the same slope.
    model = dataclasses.replace(MODEL, skip=skip)
    given = experiment(
        model, spec=spec, stream=stream, granularity=granularity, taps="paper"
    )
    (found, _), grads = slopes(given)(PARAMS, BATCH, jnp.int32(0))
    axis = {"per_tensor": None, "per_token": -1}[granularity]
    weights = jax.tree.map(lambda w: np.asarray(w, np.float64), PARAMS)
    if given.qat.widths.weight_bits is not None:
        weights = rounded_weights(PARAMS)
    errors = {}

    def edit(site, layer, x):
        if site not in TAP_SETS["paper"]:
            return x
        errors[site, layer] = rounded(x, axis) - x
        return x + errors[site, layer]

    np.testing.assert_allclose(found, loss(weights, model, stream, edit), rtol=1e-5)

    def frozen(site, layer, x):
        return x + errors[site, layer] if site in TAP_SETS["paper"] else x

    rng = np.random.default_rng(1)
    flat, treedef = jax.tree.flatten(weights)
    for number, grad in enumerate(jax.tree.leaves(grads)):
        direction = rng.standard_normal(grad.shape)
        ends = []
        for size in (1e-6, -1e-6):
            moved = list(flat)
            moved[number] = flat[number] + size * direction
            ends.append(loss(treedef.unflatten(moved), model, stream, frozen))
        expected = (ends[0] - ends[1]) / 2e-6
        scale = np.linalg.norm(grad) * np.linalg.norm(direction)
        # The gradient is float32; a central difference is exact to 1e-9.
        np.testing.assert_allclose(
            np.sum(grad * direction) / scale, expected / scale, atol=1e-5
        )


# --- Noise ----------------------------------------------------------------------------


def test_noise_is_new_in_every_step_site_and_layer_and_the_same_when_asked_again():
    given = experiment(spec="W4A4", kind="noise")
    rounding = jax.jit(lambda step: objective.through_rounding(PARAMS, step, given))
    drawn = {}
    for step in (0, 0, 1):
        params, states = rounding(step)
        moved = params["blocks"]["w_q"] - PARAMS["blocks"]["w_q"]
        keys = [jax.random.key_data(states[site].key) for site in TAP_SETS["paper"]]
        drawn.setdefault(step, []).append((np.asarray(moved), np.concatenate(keys)))
    (first, again), (later,) = drawn[0], drawn[1]
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.any(first[0] == later[0])
    keys = np.concatenate([first[1], later[1]])
    assert len(np.unique(keys, axis=0)) == len(keys) == 2 * 4 * MODEL.num_layers


# --- When it begins ----------------------------------------------------------------


def test_rounding_begins_at_its_share_of_the_run_and_comes_and_goes_in_one_program():
    late = slopes(experiment(spec="W2A2", start=0.25, every=2))
    _, expected = slopes(experiment())(PARAMS, BATCH, jnp.int32(0))
    for step in range(NUM_STEPS):
        _, found = late(PARAMS, BATCH, jnp.int32(step))
        ours, theirs = found["blocks"]["w_q"], expected["blocks"]["w_q"]
        if step != 2:  # The only even step from 1 to 3.
            # Two programs may add up in another order.
            np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())
        else:
            assert np.abs(ours - theirs).max() > 0.1 * np.abs(theirs).max()
    assert late._cache_size() == 1


@pytest.mark.slow  # It compiles a whole step.
def test_a_run_that_begins_to_round_compiles_one_program():
    given = experiment(spec="W4A4", kind="noise", start=0.5)
    functions = steps.compile_train(given, sharding.make_mesh(1))
    state = functions.init(jax.random.key(0))
    for _ in range(NUM_STEPS):
        state, values = functions.train(state, BATCH)
        assert np.isfinite(values["loss"])
    assert functions.train._cache_size() == 1


def test_training_without_rounding_has_no_trace_of_it():
    def program(**qat):
        minimized = objective.make(experiment(**qat), transformer.PLAIN)
        return str(jax.make_jaxpr(minimized)(PARAMS, BATCH, jnp.int32(0)))

    other = {"kind": "noise", "start": 0.5, "granularity": "per_token"}
    assert program(**other) == program()
    assert program(spec="A8") != program()


def test_a_penalty_is_of_the_blocks_outputs_as_they_are_before_rounding():
    model = dataclasses.replace(MODEL, num_layers=1)
    train = TrainConfig(num_steps=NUM_STEPS, batch_size=2, penalty_weight=1.0)
    given = dataclasses.replace(experiment(model, spec="A2", taps="norms"), train=train)
    minimized = jax.jit(objective.make(given, transformer.PLAIN))
    params = examples.params(model)
    _, found = minimized(params, BATCH, jnp.int32(0))
    outputs = []

    def edit(site, layer, x):
        if site == "final_norm_in":
            outputs.append(x)
        return rounded(x, None, 2) if site in TAP_SETS["norms"] else x

    loss(params, model, "branch", edit)
    expected = np.mean((outputs[0] / train.penalty_threshold) ** 4)
    np.testing.assert_allclose(found["penalty"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("qat", "words"),
    [
        ({"spec": "W8B4"}, ["'W8B4'", "WnAm"]),
        ({"spec": "W4A4+rotate"}, ["'W4A4+rotate'", "give W4A4"]),
        ({"kind": "rounds"}, ["qat.kind='rounds'", "did you mean round?"]),
        ({"start": 1.0}, ["qat.start=1.0", "less than 1"]),
        ({"every": 0}, ["qat.every=0"]),
        ({"range": "mse"}, ["qat.range='mse'", "gaussian"]),
        ({"range": "gaussian", "granularity": "per_token"}, ["'per_token'"]),
        ({"taps": "papers"}, ["qat.taps='papers'"]),
        ({"stream": "inplace"}, ["qat.stream='inplace'"]),
        ({"granularity": "per_row"}, ["qat.granularity='per_row'"]),
        ({"granularity": "per_channel"}, ["qat.granularity='per_channel'"]),
        ({"granularity": "per_group_5", "spec": "A4"}, ["per_group_5", "divisor"]),
        ({"scheme": "odd"}, ["qat.scheme='odd'"]),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(qat, words):
    with pytest.raises(InputError) as refused:
        experiment(**qat)
    assert all(word in str(refused.value) for word in words), refused.value
