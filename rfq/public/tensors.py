"""Named tensors <-> the parameter tree, by the parameter table.

A public layer computes y = x W^T with W [out, in]; ours is y = x W with W [in, out], of
which the axes may be cut (a head, a head's width). So the parameter table gives the
shape and the order of every public tensor, and this file only has their names.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from rfq import params as params_lib
from rfq.errors import InputError
from rfq.model import transformer
from rfq.model.config import ModelConfig
from rfq.types import Params

# Parameter -> the name of its tensor, of one layer where it is stacked.
NAMES: Mapping[str, str] = {
    "embedding": "model.embed_tokens.weight",
    "unembedding": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "w_q": "model.layers.{}.self_attn.q_proj.weight",
    "w_k": "model.layers.{}.self_attn.k_proj.weight",
    "w_v": "model.layers.{}.self_attn.v_proj.weight",
    "b_q": "model.layers.{}.self_attn.q_proj.bias",
    "b_k": "model.layers.{}.self_attn.k_proj.bias",
    "b_v": "model.layers.{}.self_attn.v_proj.bias",
    "w_o": "model.layers.{}.self_attn.o_proj.weight",
    "w_up": "model.layers.{}.mlp.up_proj.weight",
    "w_mlp_gate": "model.layers.{}.mlp.gate_proj.weight",
    "w_down": "model.layers.{}.mlp.down_proj.weight",
}

# Tensors of these types are read, without loss; widest last.
DTYPES = ("float16", "bfloat16", "float32")


class Tensor(NamedTuple):
    """A tensor that has not been read yet.

    Attributes:
        shape: Its shape in the file.
        dtype: The name of its type: a row of `DTYPES`, or what cannot be imported.
        read: () -> the array.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Place(NamedTuple):
    """The place of a public tensor in the tree.

    Attributes:
        leaf: The parameter.
        layer: Its layer, None where it exists once.
        shape: The shape of the public tensor.
        transposed: The public tensor is [out, in] and ours [in, out].
    """

    leaf: str
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool


def places(model: ModelConfig) -> dict[str, Place]:
    """Return {public name: its place} of every tensor of a model."""
    found = {}
    shapes = transformer.shapes(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = params_lib.leaf_name(path)
        row = params_lib.TABLE[name]
        stacked = row.logical[0] == "layer"
        shape, transposed = leaf.shape[1:] if stacked else leaf.shape, False
        if row.matrix is not None:
            sizes = tuple(
                math.prod(leaf.shape[axis] for axis in axes)
                for axes in (row.matrix.out_axes, row.matrix.in_axes)
            )
            shape, transposed = sizes, row.matrix.in_axes < row.matrix.out_axes
        elif stacked:
            shape = (math.prod(shape),)
        for layer in range(model.num_layers) if stacked else (None,):
            place = Place(name, layer, shape, transposed)
            found[NAMES[name].format(layer)] = place
    return found


def check(
    tensors: Mapping[str, Tensor], model: ModelConfig, where: str
) -> dict[str, Place]:
    """Hold tensors against a model, without reading them.

    Raises:
        InputError: one is missing, surplus, of another shape or of another type.
    """
    wanted = places(model)
    for name in sorted(set(wanted) - set(tensors)):
        raise InputError(
            f"{where} lacks the tensor {name!r}, which its config asks for; give the "
            "whole checkpoint with the config that came with it"
        )
    for name in sorted(set(tensors) - set(wanted)):
        raise InputError(
            f"{where} holds the tensor {name!r}, which the model of its config does "
            "not have; give the config that came with it"
        )
    for name, place in wanted.items():
        tensor = tensors[name]
        if tensor.shape != place.shape:
            raise InputError(
                f"tensor {name!r} of {where} has shape {list(tensor.shape)} where the "
                f"config asks for {list(place.shape)}; give the config of these tensors"
            )
        if tensor.dtype not in DTYPES:
            raise InputError(
                f"tensor {name!r} of {where} has type {tensor.dtype}, and rfq imports "
                f"{', '.join(DTYPES)}; give the checkpoint before it was quantized"
            )
    return wanted


def load(
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    where: str,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Params, str]:
    """Read tensors one after the other into the float32 parameter tree.

    One tensor is in memory beside the tree at a time.

    Returns:
        Host arrays, and sixteen hexadecimal digits that name their values.

    Raises:
        InputError: as `check`; a tensor cannot be read or holds a value that is not
            finite.
    """
    wanted = check(tensors, model, where)
    params = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, np.float32), transformer.shapes(model)
    )
    digest = hashlib.sha256()
    for done, name in enumerate(sorted(wanted), start=1):
        place = wanted[name]
        try:
            tensor = tensors[name].read().astype(np.float32)
        except Exception as error:  # The readers raise many types for a damaged file.
            raise InputError(
                f"tensor {name!r} of {where} cannot be read ({error}); the file is "
                "damaged, so fetch it again"
            ) from error
        if tensor.shape != place.shape or not np.isfinite(tensor).all():
            raise InputError(
                f"tensor {name!r} of {where} is cut short or holds values that are not "
                "finite; the file is damaged, so fetch it again"
            )
        digest.update(name.encode() + tensor.tobytes())
        to = _slot(params, place)
        to[...] = (tensor.T if place.transposed else tensor).reshape(to.shape)
        progress(done)
    return params, digest.hexdigest()[:16]


def named(params: Params, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the public tensors of host arrays, one after the other; inverts `load`."""
    for name, place in places(model).items():
        own = _slot(params, place)
        turned = place.shape[::-1] if place.transposed else place.shape
        matrix = np.asarray(own).reshape(turned)
        yield name, np.ascontiguousarray(matrix.T if place.transposed else matrix)


def _slot(params: Params, place: Place) -> np.ndarray:
    if place.layer is None:
        return params[place.leaf]
    return params["blocks"][place.leaf][place.layer]
