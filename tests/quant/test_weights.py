"""Per-channel weight quantization over the parameter table."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import errors
from rfq import params as table
from rfq.quant import grid, integer, weights

L, D, H, K, F, V = 2, 16, 2, 4, 24, 11

quantize, encode, grids = (
    functools.partial(function, axes=table.quantized_axes)
    for function in (weights.quantize, weights.encode, weights.grids)
)


@pytest.fixture
def params():
    shapes = {
        "embedding": (V, D),
        "blocks": {
            "w_q": (L, D, H, K),
            "w_k": (L, D, H, K),
            "w_v": (L, D, H, K),
            "w_o": (L, H, K, D),
            "w_up": (L, D, F),
            "w_down": (L, F, D),
            "attn_norm": (L, D),
            "mlp_norm": (L, D),
        },
        "final_norm": (D,),
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return treedef.unflatten(
        jax.random.normal(key, shape) for key, shape in zip(keys, leaves, strict=True)
    )


def _alone(w, num_bits):
    return grid.grid_from_range(jnp.min(w), jnp.max(w), num_bits)


def test_every_output_channel_of_every_layer_has_its_own_grid(params):
    blocks = params["blocks"]
    quantized = jax.jit(quantize)(params, 4)["blocks"]
    rounded = jax.jit(lambda w: grid.fake_quantize(w, _alone(w, 4)))
    for layer in range(L):
        for column in (0, 5, D - 1):
            for name, channel in (
                ("w_o", (layer, slice(None), slice(None), column)),
                ("w_down", (layer, slice(None), column)),
                ("w_q", (layer, slice(None), column % H, column % K)),
            ):
                w = blocks[name][channel]
                np.testing.assert_array_equal(quantized[name][channel], rounded(w))


def test_embedding_and_gains_are_left_alone(params):
    quantized = quantize(params, 2)
    chex.assert_trees_all_equal_structs(quantized, params)
    for leaf, row, before in zip(
        jax.tree.leaves(quantized),
        jax.tree.leaves(table.axes(params), is_leaf=lambda x: hasattr(x, "kind")),
        jax.tree.leaves(params),
        strict=True,
    ):
        chex.assert_equal_shape((leaf, before))
        assert (leaf is before) == (row.kind != "matrix")


def test_scaling_one_output_channel_scales_only_that_channel(params):
    scale = jnp.ones((1, 1, F)).at[0, 0, 3].set(64.0)
    scaled = params | {"blocks": params["blocks"] | {}}
    scaled["blocks"]["w_up"] = params["blocks"]["w_up"] * scale
    expected = quantize(params, 6)["blocks"]["w_up"] * scale
    np.testing.assert_array_equal(quantize(scaled, 6)["blocks"]["w_up"], expected)


def test_full_precision_is_the_same_object(params):
    assert quantize(params, None) is params


def test_one_compilation_serves_every_width(params):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def compiled(params, weight_bits):
        return quantize(params, weight_bits)

    for bits in (2, 8, 16):
        traced = compiled(params, jnp.int32(bits))
        chex.assert_trees_all_equal(traced, quantize(params, bits))


@pytest.mark.parametrize(("num_in", "expected"), [(768, {4: 18.2, 6: 30.7, 8: 42.9})])
def test_sqnr_of_gaussian_columns(num_in, expected):
    w = jax.random.normal(jax.random.key(1), (1, num_in, 4096))
    for num_bits, db in expected.items():
        w_hat = quantize({"w_up": w}, num_bits)["w_up"]
        measured = 10 * jnp.log10(jnp.sum(w**2) / jnp.sum((w - w_hat) ** 2))
        # Mean over 4,096 columns; the table has one decimal.
        np.testing.assert_allclose(measured, db, atol=0.1)


def test_groups_of_inputs_have_their_own_grid(params):
    # 4 inputs of a column, counted over heads and widths together.
    w = params["blocks"]["w_o"]
    quantized = quantize(params, 3, group_size=4)["blocks"]["w_o"]
    flat, flat_hat = (leaf.reshape(L, H * K, D) for leaf in (w, quantized))
    group = flat[1, 4:8, 3]
    rounded = grid.fake_quantize(group, _alone(group, 3))
    np.testing.assert_array_equal(flat_hat[1, 4:8, 3], rounded)


@pytest.mark.parametrize("num_bits", [4, 8])
def test_groups_are_closer_than_channels(params, num_bits):
    leaf = {"w_down": params["blocks"]["w_down"]}

    def error(group_size):
        quantized = quantize(leaf, num_bits, group_size=group_size)
        return jnp.sum((quantized["w_down"] - leaf["w_down"]) ** 2)

    assert error(2) < error(8) < error(None)


def test_a_group_that_does_not_divide_is_refused(params):
    with pytest.raises(errors.InputError, match="group_size=5"):
        quantize(params, 4, group_size=5)


def test_the_embedding_has_a_grid_per_vocabulary_entry_when_asked(params):
    axes = table.quantized_axes(params)
    axes["embedding"] = table.TABLE["embedding"].matrix
    quantized = weights.quantize(params, 4, axes=axes)
    row = params["embedding"][7]
    alone = grid.grid_from_range(jnp.min(row), jnp.max(row), 4)
    np.testing.assert_array_equal(
        quantized["embedding"][7], grid.fake_quantize(row, alone)
    )


def test_the_grids_are_those_of_quantize(params):
    found = grids(params, 5)
    assert found["embedding"] is None and found["blocks"]["mlp_norm"] is None
    quantized = quantize(params, 5)
    for name in ("w_q", "w_o", "w_up"):
        np.testing.assert_array_equal(
            grid.fake_quantize(params["blocks"][name], found["blocks"][name]),
            quantized["blocks"][name],
        )
    chex.assert_shape(found["blocks"]["w_o"].step, (L, 1, 1, D))


def test_group_128_of_gaussian_columns():
    w = jax.random.normal(jax.random.key(2), (1, 768, 1024))
    for num_bits, db in ((4, 20.0), (6, 32.4), (8, 44.5)):
        w_hat = quantize({"w_up": w}, num_bits, group_size=128)["w_up"]
        measured = 10 * jnp.log10(jnp.sum(w**2) / jnp.sum((w - w_hat) ** 2))
        np.testing.assert_allclose(measured, db, atol=0.1)


@pytest.mark.parametrize("num_bits", [2, 4, 5, 8, 16])
def test_the_codes_are_those_of_quantize(params, num_bits):
    codes, found = encode(params, num_bits)
    quantized = quantize(params, num_bits)
    dtype = {2: jnp.int4, 4: jnp.int4, 5: jnp.int8, 8: jnp.int8, 16: jnp.int16}
    for name, g in found["blocks"].items():
        leaf, expected = codes["blocks"][name], quantized["blocks"][name]
        if g is None:
            assert leaf is params["blocks"][name]
            continue
        assert leaf.dtype == dtype[num_bits]
        loaded = integer.load(integer.Codes(leaf, g))
        np.testing.assert_array_equal(loaded, expected)
    assert codes["embedding"] is params["embedding"] and found["embedding"] is None


def alone(column, num_bits):
    return grid.fake_quantize(column, _alone(column, num_bits))


def test_any_tree_is_quantized_by_its_own_axes(params):
    # [out, in] as Equinox has it, a convolution [h, w, in, out], and what is no array.
    draw = functools.partial(jax.random.normal, jax.random.key(3))
    tree = {"linear": draw((3, 5)), "conv": draw((2, 2, 4, 6)), "f": jax.nn.gelu}
    axes = {
        "linear": weights.MatrixAxes((1,), (0,)),
        "conv": weights.MatrixAxes((0, 1, 2), (3,)),
        "f": None,
    }
    for given in (axes, lambda tree: axes):
        found = weights.quantize(tree, 3, axes=given)
        np.testing.assert_array_equal(found["linear"][1], alone(tree["linear"][1], 3))
        column = alone(tree["conv"][..., 2], 3)
        np.testing.assert_array_equal(found["conv"][..., 2], column)
        assert found["f"] is tree["f"]


def test_without_axes_the_leaves_of_two_axes_are_matrices():
    draw = functools.partial(jax.random.normal, jax.random.key(4))
    tree = {
        "kernel": draw((5, 3)),
        "bias": draw((3,)),
        "hole": None,
        "ids": np.eye(3, dtype=int),
    }
    found = weights.quantize(tree, 3)
    np.testing.assert_array_equal(found["kernel"][:, 2], alone(tree["kernel"][:, 2], 3))
    assert found["bias"] is tree["bias"] and found["ids"] is tree["ids"]
    assert found["hole"] is None


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"w": weights.MatrixAxes((2,), (0,))}, r"axes of parameter \['w'\]"),
        ({"w": weights.MatrixAxes((-1,), (0,))}, "from 0 to 1"),
        ({"w": weights.MatrixAxes((), (0,))}, "tuples of different axes"),
        ({"w": weights.MatrixAxes(0, 1)}, "tuples of different axes"),
        ({"w": (0, 1)}, r"are \(0, 1\)"),
        ({"v": None}, "must have the structure of the parameters"),
    ],
)
def test_axes_that_do_not_fit_are_a_sentence(axes, said):
    with pytest.raises(errors.InputError, match=said):
        weights.quantize({"w": jnp.ones((2, 2))}, 4, axes=axes)
