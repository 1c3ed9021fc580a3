"""The compiled decoder against float64 numpy, and what its seams promise."""

import dataclasses
import functools
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import params as params_lib
from rfq import taps
from rfq.errors import InputError
from rfq.model import layers, products, transformer
from rfq.model.config import BLOCK_SITES, FED_BY, SITES, TAP_SETS
from rfq.quant import grid, integer, weights
from rfq.stats import central
from tests.model import examples
from tests.oracles import decoder, deferred

# Activations are of size 1 to 10 and pass a dozen float32 products of length 12 to 24;
# attention and normalization amplify the roundings (6e-8) by at most a few hundred.
FORWARD = 3e-4


def run(model, params, batch, seams=transformer.PLAIN, states=None):
    """Logits and records, operation by operation: variants share what they compile."""
    with jax.disable_jit():
        return transformer.apply(params, batch[:, :-1], model, seams, states)


def compiled(model, params, batch, seams=transformer.PLAIN, **options):
    """The same as one program."""
    forward = functools.partial(transformer.apply, config=model, seams=seams)
    return jax.jit(forward, compiler_options=options)(params, batch[:, :-1])


def example(**changes):
    model = examples.config(**changes)
    return model, examples.params(model), examples.batch(model)


@functools.cache
def loss_and_grads(model):
    """Of the mean loss, with the example's parameters and batch."""
    params, batch = examples.params(model), examples.batch(model)

    def mean_loss(params):
        return jnp.mean(transformer.token_losses(params, batch, model)[0])

    return jax.jit(jax.value_and_grad(mean_loss))(params)


# --- Equations 1 and 2 -------------------------------------------------------------


@pytest.mark.parametrize(
    ("skip", "norm", "attention_scale", "others"),
    [  # Every pair of choices meets in one of the first four.
        ("residual", "rms_norm", "head_width", {}),
        ("residual", "layer_norm", "width", {}),
        ("residual_free", "rms_norm", "width", {}),
        ("residual_free", "layer_norm", "head_width", {}),
        ("residual", "single_scale_norm", "head_width", examples.RIVALS),
        ("weighted", "rms_norm", "head_width", {"attention_kind": "decaying"}),
        ("residual_free", "rms_norm", "head_width", {"attention_kind": "shaped"}),
        ("residual", "rms_norm", "head_width", examples.LLAMA),
        ("residual", "layer_norm", "width", {"mlp": "geglu", "norm_eps": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} others",
)
def test_every_activation_is_that_of_float64_numpy(skip, norm, attention_scale, others):
    # Three layers with beta = 1.3: tau_l = 1.3^-l, l from 1 or 0, or nothing agrees.
    model, params, batch = example(
        **{**others, "skip": skip, "norm": norm, "attention_scale": attention_scale}
    )
    seams = transformer.Seams(taps.Taps(examples.keep, SITES))
    logits, records = run(model, params, batch, seams)
    expected, sites = decoder.forward(params, batch[:, :-1], model)
    assert set(records) == set(SITES) >= set(sites)
    for site in sites:
        # Layer by layer: a record's leading axis is the layer, in order.
        np.testing.assert_allclose(
            records[site], sites[site], rtol=FORWARD, atol=FORWARD, err_msg=site
        )
    np.testing.assert_allclose(logits, expected, rtol=FORWARD, atol=FORWARD)
    assert logits.dtype == jnp.float32


def test_the_loss_is_that_of_float64_numpy():
    model, params, batch = example(skip="residual")
    expected = decoder.token_losses(params, batch, model).mean()
    np.testing.assert_allclose(loss_and_grads(model)[0], expected, rtol=FORWARD)


@pytest.mark.parametrize(
    ("skip", "others"),
    [
        ("residual", examples.RIVALS),
        ("residual_free", {}),
        ("weighted", {"attention_kind": "decaying"}),
        ("residual_free", {"attention_kind": "shaped"}),
        ("residual", examples.LLAMA),
    ],
    ids=[
        "residual, gated, projected",
        "residual_free",
        "weighted, decaying",
        "shaped",
        "llama",
    ],
)
def test_a_loss_does_not_depend_on_later_tokens(skip, others):
    model, params, _ = example(skip=skip, **others)
    T = model.seq_len
    # Every position has a token of its own, so that a row of the lookup is a position;
    # the head has its own copy, so that no gradient flows through it.
    batch = np.random.default_rng(0).permutation(model.vocab_size)[None, : T + 1]

    def losses_T(lookup_VD):
        h, _ = transformer.features(
            {**params, "embedding": lookup_VD}, batch[:, :-1], model
        )
        return layers.token_cross_entropy(
            h, batch[:, 1:], model.loss_chunks, lambda h: h @ params["embedding"].T
        )[0]

    jacobian = jax.jit(jax.jacrev(losses_T))(params["embedding"])
    influence_TT = np.linalg.norm(np.asarray(jacobian)[:, batch[0, :T]], axis=-1)
    assert np.all(np.triu(influence_TT, 1) == 0.0)  # Exactly: the mask is not small.
    assert np.all(influence_TT[np.tril_indices(T)] > 0.0)
    # Nor on tokens that are not there.
    absent = np.setdiff1d(np.arange(model.vocab_size), batch[0, :T])
    assert np.all(np.asarray(jacobian)[:, absent] == 0.0)


# --- What must change nothing ------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"remat": "block", "scan_unroll": 2, "loss_chunks": 5},
        {"remat": "products", "loss_chunks": 5},
        pytest.param({"scan_unroll": 99}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_memory_and_speed_options_change_no_number(change):
    loss, grads = loss_and_grads(examples.config(skip="residual", **change))
    expected, expected_grads = loss_and_grads(examples.config(skip="residual"))
    # The same operations; fusion and the order of sums may move the last bits, 6e-8
    # each, and gradients of size up to 1 are sums of tens of terms.
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), grads, expected_grads
    )


def test_the_identity_tap_leaves_no_trace():
    model, params, batch = example()
    identity = transformer.Seams(taps.Taps(taps.identity, SITES))

    def trace(seams):
        forward = functools.partial(transformer.apply, config=model, seams=seams)
        return str(jax.make_jaxpr(forward)(params, batch[:, :-1]))

    # The same program, so the same bits.
    assert trace(identity) == trace(transformer.PLAIN)


def test_measuring_changes_no_bit_and_records_each_layer():
    model, params, batch = example(skip="residual")
    as_users: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
        as_users["xla_cpu_use_fusion_emitters"] = True
    plain, _ = compiled(model, params, batch, **as_users)
    tap = taps.Measure(("range", "moments"))
    seams = transformer.Seams(taps.Taps(tap, SITES))
    measured, records = compiled(model, params, batch, seams, **as_users)
    np.testing.assert_array_equal(measured, plain)
    _, sites = decoder.forward(params, batch[:, :-1], model)
    for site, found in records.items():
        lead = (model.num_layers,) if site in BLOCK_SITES else ()
        assert {leaf.shape for leaf in jax.tree.leaves(records[site])} == {lead}
        x = sites[site].reshape(*lead, -1)
        m = found["moments"]
        for ours, theirs in (
            (m.count, np.full(lead, x.shape[-1])),
            (m.mean, x.mean(-1)),
            (central.variance(m), x.var(-1)),
            (found["range"].lo, x.min(-1)),
            (found["range"].hi, x.max(-1)),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=FORWARD, atol=FORWARD)
    # The layers differ, so their order was tested.
    assert np.ptp(records["attn_norm_in"]["range"].hi) > 0.1


# --- Taps that change x ------------------------------------------------------------

BITS = 4


def by_hand(x, layer, ranges):
    """Asymmetric rounding of one activation to 4 bits, in float64."""
    lo, hi = (np.float64(end if layer is None else end[layer]) for end in ranges)
    step = (hi - lo) / (2**BITS - 1)
    zero = np.round(-lo / step)
    return (np.clip(np.round(x / step) + zero, 0, 2**BITS - 1) - zero) * step


@pytest.mark.parametrize(
    ("skip", "stream", "tapped"),
    [
        ("residual", "branch", TAP_SETS["paper"]),
        ("residual", "in_place", TAP_SETS["paper"]),
        ("weighted", "in_place", TAP_SETS["paper"]),
        ("residual_free", "branch", TAP_SETS["paper"]),
        ("residual_free", "branch", ("q", "k", "v", "attn_out", "mlp_hidden")),
    ],
)
def test_fake_quantize_rounds_the_named_activations_and_no_others(skip, stream, tapped):
    model, params, batch = example(skip=skip)
    _, clean = decoder.forward(params, batch[:, :-1], model)
    # Ranges that clip some values and straddle zero, another one in each layer.
    ranges = {
        site: tuple(
            0.8 * reduce(clean[site], axis=tuple(range(1, clean[site].ndim)))
            for reduce in (np.min, np.max)
        )
        for site in tapped
    }
    grids = {
        site: jax.jit(grid.grid_from_range)(lo, hi, BITS)
        for site, (lo, hi) in ranges.items()
    }
    seams = transformer.Seams(
        taps.Taps(taps.fake_quantize, tapped), layers.STREAMS[stream]
    )
    logits, records = run(model, params, batch, seams, grids)
    assert records == {}

    def edit(site, layer, x):
        return by_hand(x, layer, ranges[site]) if site in tapped else x

    expected, _ = decoder.forward(
        params, batch[:, :-1], model, edit=edit, stream=stream
    )
    # With 16 levels, an error of 1e-6 moves a code once in 1e5 values, and there are
    # 3,000 of them: with these seeds, none.
    np.testing.assert_allclose(logits, expected, rtol=FORWARD, atol=FORWARD)


def test_only_a_residual_model_can_tell_the_streams_apart():
    def trace(skip, stream):
        model, params, batch = example(skip=skip)
        seams = transformer.Seams(
            taps.Taps(taps.fake_quantize, TAP_SETS["paper"]), layers.STREAMS[stream]
        )
        grids = dict.fromkeys(
            TAP_SETS["paper"], grid.Grid(*(np.ones(3, np.float32) for _ in range(3)))
        )
        forward = lambda p: transformer.apply(p, batch[:, :-1], model, seams, grids)  # noqa: E731
        return str(jax.make_jaxpr(forward)(params))

    free, residual = (
        [trace(skip, stream) for stream in examples.STREAMS]
        for skip in ("residual_free", "residual")
    )
    assert free[0] == free[1]  # One program, so the same bits.
    assert residual[0] != residual[1]  # And the test above says how they differ.


def test_an_unknown_site_is_refused_by_name():
    with pytest.raises(InputError, match=r"'attn_input'.*attn_norm_in"):
        transformer.Seams(taps.Taps(taps.identity, ("attn_input",)))


def test_a_quantized_site_without_a_grid_is_not_silently_left_alone():
    model, params, batch = example()
    seams = transformer.Seams(taps.Taps(taps.fake_quantize, ("q",)))
    with pytest.raises(AssertionError, match="no grid"):
        run(model, params, batch, seams)


# --- The dot -----------------------------------------------------------------------


D, H, K, F, V = 12, 3, 4, 24, 29
_LLAMA_SHAPES = {
    **{"w_q": (D, H, K), "w_k": (D, 1, K), "w_v": (D, 1, K), "w_o": (H, K, D)},
    **{"w_up": (D, 20), "w_mlp_gate": (D, 20), "w_down": (20, D)},
    "unembedding": (D, V),
}
_RIVALS_SHAPES = {
    **{"w_q": (D, H, K), "w_k": (D, H, K), "w_v": (D, H, K), "w_o": (H, K, D)},
    **{"w_gate": (D, H), "w_embed": (D, D), "w_unembed": (D, D)},
    **{"w_up": (D, F), "w_down": (F, D), "embedding": (D, V)},
}


@pytest.mark.parametrize(
    ("others", "shapes"),
    [(examples.RIVALS, _RIVALS_SHAPES), (examples.LLAMA, _LLAMA_SHAPES)],
    ids=["rivals", "llama"],
)
def test_every_weight_meets_the_activations_through_dot_under_its_name(others, shapes):
    model, params, batch = example(**others)
    seen = {}

    def dot(x, w, name, state):
        assert state is None
        seen[name] = w.shape
        return jnp.tensordot(x, w, axes=len(params_lib.TABLE[name].matrix.in_axes))

    seams = transformer.Seams(dot=dot)
    logits, _ = run(model, params, batch, seams)
    assert seen == shapes
    plain, _ = run(model, params, batch)
    np.testing.assert_allclose(logits, plain, rtol=FORWARD, atol=FORWARD)


def test_every_matrix_of_the_table_has_met_them():
    matrices = {name for name, row in params_lib.TABLE.items() if row.matrix}
    assert {*_RIVALS_SHAPES, *_LLAMA_SHAPES} == matrices


def rounded_and_kept(x, state):
    rounded, _ = taps.fake_quantize(x, state)
    return rounded, rounded


def on_integers(model, params, batch, weight_bits, act_bits):
    """The codes of the weights, and states with the grids of both factors."""
    keep = transformer.Seams(taps.Taps(examples.keep, TAP_SETS["full"]))
    _, clean = run(model, params, batch, keep)
    codes, w_grids = weights.encode(params, weight_bits, axes=params_lib.quantized_axes)
    states = {}
    for site, x in clean.items():
        axes = tuple(range(1, x.ndim)) if site in BLOCK_SITES else None
        lo, hi = jnp.min(x, axis=axes), jnp.max(x, axis=axes)
        states[site] = grid.grid_from_range(lo, hi, act_bits)
    for name, w_grid in w_grids["blocks"].items():
        if w_grid is not None:
            states[name] = integer.Operands(states[FED_BY[name]], w_grid)
    return codes, states


@pytest.mark.slow  # tests/test_export.py has the whole path.
@pytest.mark.parametrize(
    ("skip", "others", "weight_bits"),
    [
        *itertools.product(decoder.SKIPS, [{}], [8, 4]),
        ("residual", examples.RIVALS, 8),
        ("residual", examples.LLAMA, 8),
    ],
    ids=lambda value: f"{len(value)} others" if isinstance(value, dict) else None,
)
def test_a_model_on_integers_is_its_simulation(skip, others, weight_bits):
    model, params, batch = example(skip=skip, **others)
    codes, states = on_integers(model, params, batch, weight_bits, 8)
    matrices = {name for name in FED_BY if name in codes["blocks"]}
    for name, leaf in {**codes, **codes["blocks"]}.items():
        if name != "blocks":  # The embedding and what folds into it stay floats.
            dtype = {8: jnp.int8, 4: jnp.int4}[weight_bits]
            assert (leaf.dtype == dtype) == (name in matrices), name
    fake = taps.Taps(rounded_and_kept, TAP_SETS["full"])
    (logits, sites), (expected, expected_sites) = (
        run(model, codes, batch, transformer.Seams(fake, dot=dot), states)
        for dot in (products.integer_matmul, deferred.matmul)
    )
    # Both sums are exact: every activation and every logit has the same bits.
    for site, x in sites.items():
        np.testing.assert_array_equal(x, expected_sites[site], err_msg=site)
    np.testing.assert_array_equal(logits, expected)
    # And it is the model of rounded weights: nothing but float32 lies between them,
    # where no activation sits so close to a tie that it rounds to another code.
    rounded = weights.quantize(params, weight_bits, axes=params_lib.quantized_axes)
    plain, _ = run(model, rounded, batch, transformer.Seams(fake), states)
    error = np.abs(logits - plain).max() / np.abs(plain).max()
    assert error < 1e-5
    full, _ = run(model, params, batch)
    assert np.abs(logits - full).max() / np.abs(full).max() > 1e-3


@pytest.mark.slow
def test_integers_are_what_is_multiplied():
    model, params, batch = example()
    codes, states = on_integers(model, params, batch, 4, 8)
    fake = taps.Taps(taps.fake_quantize, TAP_SETS["full"])
    seams = transformer.Seams(fake, dot=products.integer_matmul)
    traced = jax.make_jaxpr(
        lambda codes: transformer.apply(codes, batch[:, :-1], model, seams, states)[0]
    )(codes)
    found = [
        tuple(str(var.aval.dtype) for var in (*equation.invars, *equation.outvars))
        for equation in examples.equations(traced.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    # Six matrices in the scanned block; attention's two products and the head remain.
    assert sorted(found) == 3 * [("float32",) * 3] + 6 * [("int8", "int8", "int32")]


@pytest.mark.slow
def test_weights_alone_on_integers_are_rounded_weights():
    model, params, batch = example(skip="residual")
    codes, w_grids = weights.encode(params, 3, axes=params_lib.quantized_axes)
    states = {name: g for name, g in w_grids["blocks"].items() if g is not None}
    seams = transformer.Seams(dot=products.dequantized_matmul)
    logits, _ = run(model, codes, batch, seams, states)
    rounded = weights.quantize(params, 3, axes=params_lib.quantized_axes)
    expected, _ = run(model, rounded, batch)
    np.testing.assert_array_equal(logits, expected)


def test_every_weight_is_fed_by_the_site_right_before_it():
    model, params, batch = example(**{**examples.LLAMA, "attention_gate": "head"})
    keep = transformer.Seams(taps.Taps(examples.keep, SITES))
    _, sites = run(model, params, batch, keep)

    def dot(x, w, name, state):
        y = products.matmul(x, w, name, None)
        return jnp.where(jnp.all(x == state), y, jnp.nan)

    states = {name: sites[site] for name, site in FED_BY.items()}
    logits, _ = run(model, params, batch, transformer.Seams(dot=dot), states)
    assert np.isfinite(logits).all()
    states["w_v"], states["w_up"] = states["w_up"], states["w_v"]
    logits, _ = run(model, params, batch, transformer.Seams(dot=dot), states)
    assert np.isnan(logits).all()


# --- What folds away ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "same"), [(1.0, "residual"), (0.0, "residual_free")]
)
def test_a_weighted_skip_holds_both_connections(weight, same):
    model, params, batch = example(skip="weighted")
    params["blocks"]["skip_weight"] = np.full(3, weight, np.float32)
    logits, _ = run(model, params, batch)
    plain = dataclasses.replace(model, skip=same)
    del params["blocks"]["skip_weight"]
    expected, _ = run(plain, params, batch)
    np.testing.assert_array_equal(logits, expected)  # 1 x and 0 x are exact.


def test_heads_without_a_slope_are_plain_attention():
    model, params, batch = example(attention_kind="decaying")
    slopes = params["blocks"].pop("head_decay")
    plain, _ = run(dataclasses.replace(model, attention_kind="softmax"), params, batch)
    flat = {**params["blocks"], "head_decay": 0.0 * slopes}
    logits, _ = run(model, {**params, "blocks": flat}, batch)
    np.testing.assert_array_equal(logits, plain)


def test_shaped_attention_starts_as_the_identity():
    # beta A - gamma C is exactly 0 where W_Q = 0, so each token keeps its own value.
    model, params, _ = example(attention_kind="shaped")
    ones = {n: np.ones((3, 3), np.float32) for n in ("mix_identity", "mix_softmax")}
    silent = {**ones, "mix_uniform": np.ones((3, 3), np.float32)}
    blocks = {**params["blocks"], **silent, "w_q": 0.0 * params["blocks"]["w_q"]}
    seams = transformer.Seams(taps.Taps(examples.keep, ("v", "attn_out")))
    batch = examples.batch(model)
    _, records = run(model, {**params, "blocks": blocks}, batch, seams)
    np.testing.assert_array_equal(records["attn_out"], records["v"])


def test_constants_have_no_gradient():
    model = examples.config(skip="weighted", attention_kind="decaying")
    grads = loss_and_grads(model)[1]["blocks"]
    for name in ("skip_weight", "head_decay"):
        assert not np.any(grads[name]), name
    assert np.all(np.any(grads["w_q"] != 0, axis=(1, 2, 3)))


def test_a_projected_embedding_is_another_embedding():
    # W_unembed = W_embed^T: tied, and the plain model of E W_embed.
    model, params, batch = example(embedding="projected")
    w_embed = params["w_embed"]
    logits, _ = run(model, {**params, "w_unembed": w_embed.T}, batch)
    plain = dataclasses.replace(model, embedding="plain")
    folded = {
        **{name: params[name] for name in ("blocks", "final_norm")},
        "embedding": params["embedding"] @ w_embed,
    }
    expected, _ = run(plain, folded, batch)
    np.testing.assert_allclose(logits, expected, rtol=FORWARD, atol=FORWARD)


def test_gates_at_one_half_halve_what_attention_writes():
    model, params, batch = example(attention_gate="head", skip="residual")
    closed = {**params["blocks"], "w_gate": 0 * params["blocks"]["w_gate"]}
    half = {**params["blocks"], "w_o": params["blocks"]["w_o"] / 2}
    del half["w_gate"]
    logits, _ = run(model, {**params, "blocks": closed}, batch)
    plain = dataclasses.replace(model, attention_gate="none")
    expected, _ = run(plain, {**params, "blocks": half}, batch)
    # Halving is exact in floating point.
    np.testing.assert_array_equal(logits, expected)


# --- bfloat16 ----------------------------------------------------------------------


def test_bfloat16_changes_the_carrier_and_not_what_is_computed():
    model, params, batch = example(skip="residual", loss_chunks=2)
    narrow = dataclasses.replace(model, compute_dtype="bfloat16")
    losses, _ = jax.jit(transformer.token_losses, static_argnums=2)(
        params, batch, narrow
    )
    expected = decoder.token_losses(params, batch, model)
    # 2^-8 per rounding, on losses near 8 nats with logits of size 10.
    np.testing.assert_allclose(losses.mean(), expected.mean(), rtol=0.02)
    assert losses.dtype == jnp.float32


def test_gradients_are_float32_and_the_lookup_is_summed_in_it():
    # In bfloat16 a token's 257th contribution of equal size would be lost.
    model, params, batch = example(compute_dtype="bfloat16")

    def mean_loss(params):
        return jnp.mean(transformer.token_losses(params, batch, model)[0])

    traced = jax.make_jaxpr(jax.grad(mean_loss))(params)
    assert {aval.dtype for aval in traced.out_avals} == {np.dtype("float32")}
    table = (model.vocab_size, model.width)
    sums = [
        equation.outvars[0].aval.dtype
        for equation in examples.equations(traced.jaxpr)
        if equation.primitive.name == "scatter-add"
        and equation.outvars[0].aval.shape == table
    ]
    assert sums == [np.dtype("float32")]


@pytest.mark.parametrize("stream", examples.STREAMS)
@pytest.mark.parametrize("skip", examples.SKIPS)
def test_float32_taps_fit_a_bfloat16_carrier(skip, stream):
    model, params, batch = example(skip=skip, compute_dtype="bfloat16")
    grids = {
        site: grid.Grid(
            *(
                jax.ShapeDtypeStruct((3,) if site in BLOCK_SITES else (), jnp.float32)
                for _ in range(3)
            )
        )
        for site in SITES
    }
    seams = transformer.Seams(
        taps.Taps(taps.fake_quantize, SITES), layers.STREAMS[stream]
    )
    logits, _ = jax.eval_shape(
        lambda states: transformer.apply(params, batch[:, :-1], model, seams, states),
        grids,
    )
    assert logits.dtype == jnp.float32
