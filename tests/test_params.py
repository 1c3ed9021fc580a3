"""The parameter table says what every leaf is, and an unknown leaf is an error."""

import jax
import numpy as np
import pytest

from rfq import params as params_lib
from rfq.errors import InputError
from rfq.model import layers, transformer
from rfq.params import TABLE, MatrixAxes
from tests.model import examples

# Every parameter that a model may have: those of no model alone.
SHAPES = {"blocks": {}}
for kind in layers.ATTENTION_KINDS:
    for skip in layers.SKIPS:
        shapes = transformer.shapes(
            examples.config(
                **{**examples.RIVALS, "norm": "rms_norm"},
                attention_kind=kind,
                skip=skip,
            )
        )
        SHAPES = {**shapes, "blocks": {**SHAPES["blocks"], **shapes["blocks"]}}


OF_LLAMA = {"biases": "qkv", "mlp": "swiglu", "head": "untied"}
shapes = transformer.shapes(examples.config(**OF_LLAMA))
SHAPES = {**shapes, **SHAPES, "blocks": {**shapes["blocks"], **SHAPES["blocks"]}}


NORMS = {"attn_norm", "mlp_norm", "final_norm"}
OF_HEADS = {"head_decay", "mix_identity", "mix_softmax", "mix_uniform"}
BIASES = {"b_q", "b_k", "b_v"}
UNDECAYED = {*NORMS, *OF_HEADS, *BIASES, "skip_weight"}


def leaves(tree, is_leaf=None):
    """{name: leaf} of a tree with the parameters' structure."""
    return {
        params_lib.leaf_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    }


def is_axes(node):
    return node is None or isinstance(node, MatrixAxes)


def test_the_table_is_the_model_and_nothing_else():
    assert set(leaves(SHAPES)) == set(TABLE)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_axis_is_a_layer_an_input_or_an_output(name):
    row = TABLE[name]
    shape = leaves(SHAPES)[name].shape
    assert len(row.logical) == len(shape)
    if row.matrix is None:
        assert row.kind in ("gain", "bias", "constant")
        return
    layer = (0,) if row.logical[0] == "layer" else ()
    axes = (*layer, *row.matrix.in_axes, *row.matrix.out_axes)
    assert sorted(axes) == list(range(len(shape)))


def test_stacked_leaves_lead_with_the_layer():
    for name in SHAPES["blocks"]:
        assert TABLE[name].logical[0] == "layer"
        assert leaves(SHAPES)[name].shape[0] == examples.CONFIG.num_layers
    once = {"embedding", "unembedding", "w_embed", "w_unembed", "final_norm"}
    assert once == {n for n, row in TABLE.items() if "layer" not in row.logical}


def test_products_chain_through_the_axes_of_the_table():
    # x W_V W_O and x W_U W_D are maps of the width; axes of one name have one size.
    sizes = {}
    for name, leaf in leaves(SHAPES).items():
        for axis, size in zip(TABLE[name].logical, leaf.shape, strict=True):
            assert sizes.setdefault(axis, size) == size

    def ends(name):
        row = TABLE[name]
        # Several heads may share a key and a value.
        return tuple(
            tuple(row.logical[i].removeprefix("kv_") for i in axes)
            for axes in (row.matrix.in_axes, row.matrix.out_axes)
        )

    for first, second in (("w_v", "w_o"), ("w_up", "w_down")):
        assert ends(first)[1] == ends(second)[0]
        assert ends(first)[0] == ends(second)[1] == ("embed",)
    assert ends("embedding") == (("embed",), ("vocab",))


def test_matrix_optimizers_get_the_hidden_matrices():
    found = leaves(params_lib.matrix_axes(SHAPES), is_leaf=is_axes)
    others = {name for name, axes in found.items() if axes is None}
    assert others == {"embedding", "unembedding", *UNDECAYED}
    assert found["w_o"] == MatrixAxes((1, 2), (3,))


def test_weight_decay_spares_gains_and_constants():
    found = leaves(params_lib.decayed(SHAPES))
    spared = {name for name, decays in found.items() if not decays}
    assert spared == UNDECAYED


def test_a_parameter_without_a_row_is_named():
    tree = {"blocks": {"w_router": np.zeros((2, 3, 4))}}
    for function in (params_lib.axes, params_lib.matrix_axes, params_lib.decayed):
        with pytest.raises(InputError, match=r"\['blocks'\]\['w_router'\].*w_up"):
            function(tree)


def test_a_parameter_of_another_rank_is_named():
    with pytest.raises(InputError, match=r"\['w_up'\].*\(3, 4\).*'layer'"):
        params_lib.axes({"w_up": np.zeros((3, 4))})
