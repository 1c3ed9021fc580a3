"""The parameter table, which describes each leaf of the model once.

Initialization, the optimizers' partition, weight quantization and sharding all read
this table, so that adding a parameter is one line here and a missing line is an
error that names the leaf.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax

from rfq.errors import InputError


class MatrixAxes(NamedTuple):
    """The axes of a leaf that are the matrix; any other axis is a batch of matrices.

    y = x W contracts x with `in_axes` and leaves `out_axes`. A leaf `[L, D, H, K]` with
    `in_axes=(1,)` and `out_axes=(2, 3)` is L matrices of shape D x HK.
    """

    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]


class ParamAxes(NamedTuple):
    """One row of the table.

    Attributes:
        kind: "matrix" (matrix optimizers, weight quantization), "projection" (matrix
            optimizers; folds into the embedding, which is not quantized), "embedding"
            (AdamW; the lookup and the head), "gain" (AdamW without decay, never
            quantized; starts at 1), "bias" (the same, but starts at 0) or "constant"
            (data beside the weights: neither trained nor quantized).
        logical: one name per array axis, translated to mesh axes in `sharding`; an
            axis of a gain may also have one element (`model.norm`).
        matrix: the matrix axes; None for gains, biases and constants.
    """

    kind: Literal["matrix", "projection", "embedding", "gain", "bias", "constant"]
    logical: tuple[str, ...]
    matrix: MatrixAxes | None


def _to_heads(heads: str) -> ParamAxes:
    logical = ("layer", "embed", heads, "head_width")
    return ParamAxes("matrix", logical, MatrixAxes((1,), (2, 3)))


def _of_heads(heads: str) -> ParamAxes:
    return ParamAxes("bias", ("layer", heads, "head_width"), None)


# As the head, logits = h E^T: it maps width (in) to vocabulary (out).
_VOCABULARY = ParamAxes("embedding", ("vocab", "embed"), MatrixAxes((1,), (0,)))
_PROJECTION = ParamAxes("projection", ("embed", "width"), MatrixAxes((0,), (1,)))
_TO_HIDDEN = ParamAxes("matrix", ("layer", "embed", "mlp"), MatrixAxes((1,), (2,)))

TABLE: Mapping[str, ParamAxes] = {
    "embedding": _VOCABULARY,
    # Only where `model.head` is "untied".
    "unembedding": _VOCABULARY,
    # Only where `model.embedding` is "projected".
    "w_embed": _PROJECTION,
    "w_unembed": _PROJECTION,
    "w_q": _to_heads("heads"),
    "w_k": _to_heads("kv_heads"),
    "w_v": _to_heads("kv_heads"),
    # Only where `model.biases` is "qkv".
    "b_q": _of_heads("heads"),
    "b_k": _of_heads("kv_heads"),
    "b_v": _of_heads("kv_heads"),
    # Only where `model.attention_gate` is "head".
    "w_gate": ParamAxes("matrix", ("layer", "embed", "heads"), MatrixAxes((1,), (2,))),
    "w_o": ParamAxes(
        "matrix", ("layer", "heads", "head_width", "embed"), MatrixAxes((1, 2), (3,))
    ),
    "w_up": _TO_HIDDEN,
    # Only where `model.mlp` is gated.
    "w_mlp_gate": _TO_HIDDEN,
    "w_down": ParamAxes("matrix", ("layer", "mlp", "embed"), MatrixAxes((1,), (2,))),
    "attn_norm": ParamAxes("gain", ("layer", "embed"), None),
    "mlp_norm": ParamAxes("gain", ("layer", "embed"), None),
    "final_norm": ParamAxes("gain", ("embed",), None),
    # Only where `model.skip` is "weighted".
    "skip_weight": ParamAxes("constant", ("layer",), None),
    # Only where `model.attention_kind` is "decaying", or "shaped".
    "head_decay": ParamAxes("constant", ("layer", "heads"), None),
    "mix_identity": ParamAxes("gain", ("layer", "heads"), None),
    "mix_softmax": ParamAxes("gain", ("layer", "heads"), None),
    "mix_uniform": ParamAxes("gain", ("layer", "heads"), None),
}


def leaf_name(path: tuple) -> str:
    """Return the last key of a jax key path, which names the leaf in TABLE."""
    return str(getattr(path[-1], "key", getattr(path[-1], "name", path[-1])))


def axes(params):
    """Map a parameter tree (arrays or shapes) to a tree of `ParamAxes`.

    Raises:
        InputError: a leaf is not in TABLE, or its rank differs from its row's.
    """

    def row(path, leaf) -> ParamAxes:
        name = leaf_name(path)
        if name not in TABLE:
            raise InputError(
                f"parameter {jax.tree_util.keystr(path)} has no row in "
                f"rfq.params.TABLE; rows: {sorted(TABLE)}"
            )
        if len(leaf.shape) != len(TABLE[name].logical):
            raise InputError(
                f"parameter {jax.tree_util.keystr(path)} has shape {leaf.shape}, but "
                f"rfq.params.TABLE gives it the axes {TABLE[name].logical}"
            )
        return TABLE[name]

    return jax.tree_util.tree_map_with_path(row, params)


def matrix_axes(params):
    """Make the `axes` argument of `rfq.optim`'s transforms, for our own models.

    Same structure as `params`, with `MatrixAxes` at the hidden matrices and projections
    and None at the others, which fall back to AdamW.
    """
    return jax.tree.map(
        lambda row: row.matrix if row.kind in ("matrix", "projection") else None,
        axes(params),
        is_leaf=lambda row: isinstance(row, ParamAxes),
    )


def quantized_axes(params):
    """Make the `axes` argument of `rfq.quant.quantize`, for our own models.

    Same structure as `params`, with `MatrixAxes` at the hidden matrices and None at the
    embedding (which is also the head), what folds into it and the gains.
    """
    return jax.tree.map(
        lambda row: row.matrix if row.kind == "matrix" else None,
        axes(params),
        is_leaf=lambda row: isinstance(row, ParamAxes),
    )


def decayed(params):
    """Return True at leaves that weight decay shrinks: those that are matrices."""
    return jax.tree.map(
        lambda row: row.matrix is not None,
        axes(params),
        is_leaf=lambda row: isinstance(row, ParamAxes),
    )


def overlaid(params, given):
    """Return nested dicts with the leaves of `given`, which may lack some of them."""
    return {
        name: overlaid(leaf, given.get(name, {}))
        if isinstance(leaf, Mapping)
        else given.get(name, leaf)
        for name, leaf in params.items()
    }
