"""Initialization recipes: abstract parameter tree -> arrays.

The paper's recipe ties parameters to each other (W_Q with W_K per head, W_V with W_O),
so it is a function on the tree and not a property of each parameter. Every array is
drawn from a key derived from its name and layer: adding a parameter moves no other.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from rfq import factorize
from rfq import params as params_lib
from rfq.errors import InputError, check_choices
from rfq.model import transformer
from rfq.model.config import ModelConfig
from rfq.types import Array, Params

# --- The paper's recipe ------------------------------------------------------------

# A recipe: every hidden matrix of the blocks, stacked over layers, by name.
Recipe = Callable[["InitConfig", ModelConfig, Array], dict[str, Array]]
# Two matrices that are drawn together: (config, model, key) -> both, [L, in, out].
Pair = Callable[["InitConfig", ModelConfig, Array], tuple[Array, Array]]


def _orthogonal_recipe(
    config: "InitConfig", model: ModelConfig, key: Array
) -> dict[str, Array]:
    """Semi-orthogonal everywhere (Saxe et al. 2014), tied as section 4 (i) says.

    Per layer, and per head for the first line:
        W_Q = W_K = sqrt(alpha_qk) S,    S^T S = I_K   so W_Q^T W_K = alpha_qk I_K
        W_V = sqrt(alpha_vo) U, W_O = sqrt(alpha_vo) U^T or a row of `VO_PAIRS`
        W_U W_U^T and W_D^T W_D = `mlp_gram` times I_D, by a row of `MLP_PAIRS`
    A gate starts at one half, W_gate = 0, which keeps the equations of W_V W_O.
    """
    D, H, K = model.width, model.num_heads, model.head_width

    def heads(layer_key: Array) -> Array:
        head_keys = jax.vmap(lambda head: jax.random.fold_in(layer_key, head))
        draw = jax.vmap(lambda head_key: orthonormal_columns(D, K, key=head_key))
        return jnp.moveaxis(draw(head_keys(jnp.arange(H))), 0, 1)  # [D, H, K]

    w_qk = math.sqrt(config.alpha_qk) * _per_layer("w_qk", model, key, heads)
    v, o = VO_PAIRS[config.vo_pair](config, model, key)
    up, down = MLP_PAIRS[config.w_down](config, model, key)
    gram_u, gram_d = mlp_gram(config, model)
    return {
        "w_q": w_qk,
        "w_k": w_qk,
        "w_v": math.sqrt(config.alpha_vo) * v,
        "w_gate": jnp.zeros((model.num_layers, D, H)),
        "w_o": math.sqrt(config.alpha_vo) * o,
        "w_up": math.sqrt(gram_u) * up,
        "w_down": math.sqrt(gram_d) * down,
    }


def _square(name: str, model: ModelConfig, key: Array) -> Array:
    """A Haar matrix for each layer, [L, D, D]."""
    D = model.width
    return _per_layer(name, model, key, lambda k: orthonormal_columns(D, D, key=k))


def _transposes(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """V = U, O = U^T for a Haar matrix U: V O = I (section 4 i)."""
    del config
    v = _square("w_v", model, key)
    return v, v.swapaxes(1, 2)


def _independent(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """Two Haar matrices (D22; arXiv 2510.00345): V O is one, too."""
    del config
    return _square("w_v", model, key), _square("w_o", model, key)


# Of W_V and W_O, each over sqrt(alpha_vo).
VO_PAIRS: Mapping[str, Pair] = {"transpose": _transposes, "independent": _independent}


def _up_and_down(
    model: ModelConfig, key: Array, *, center: bool
) -> tuple[Array, Array]:
    F, D = model.mlp_width, model.width

    def up(layer_key: Array) -> Array:
        return orthonormal_columns(F, D, key=layer_key).T

    def down(layer_key: Array) -> Array:
        return orthonormal_columns(F, D, key=layer_key, center=center)

    return _per_layer("w_up", model, key, up), _per_layer("w_down", model, key, down)


def _plain(config: "InitConfig", model: ModelConfig, key: Array) -> tuple[Array, Array]:
    """Independent, with orthonormal rows and with orthonormal columns."""
    del config
    return _up_and_down(model, key, center=False)


def _centered(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """As plain, and the columns of W_D sum to 0 (D20)."""
    del config
    return _up_and_down(model, key, center=True)


# Of W_U and W_D, each over the square root of its `mlp_gram`.
MLP_PAIRS: Mapping[str, Pair] = {"plain": _plain, "centered": _centered}

# Readings of the paper's MLP scale: (alpha, out / in) -> g of W_U or of W_D, where
# out / in is 1 for a matrix that does not widen (D14, D15).
MLP_SCALES: Mapping[str, Callable[[float, float], float]] = {
    "gram": lambda alpha, widening: alpha,
    "suo_sqrt": lambda alpha, widening: alpha * widening,
    "suo": lambda alpha, widening: alpha**2 * widening,
}


def mlp_gram(config: "InitConfig", model: ModelConfig) -> tuple[float, float]:
    """The scalars g_u, g_d of W_U W_U^T = g_u I and W_D^T W_D = g_d I (D14, D15).

    "gram" takes the paper's equation at its word, g = alpha. "suo_sqrt" and "suo" scale
    SUO (Martens et al. 2021: a Haar matrix times max(1, sqrt(out / in))) by sqrt(alpha)
    and by alpha. With F = 4 D and alpha = 1.5 the variance of W_U's output for unit
    inputs, g_u D / F, is 0.375, 1.5 and 2.25.
    """
    scale = MLP_SCALES[config.mlp_scale]
    widening = model.mlp_width / model.width
    return scale(config.alpha_u, widening), scale(config.alpha_d, 1.0)


def orthonormal_columns(
    rows: int, columns: int, *, key: Array, center: bool = False
) -> Array:
    """A Haar matrix Q [rows, columns] with Q^T Q = I; rows >= columns.

    QR of a Gaussian matrix with the signs of R's diagonal removed, which makes the law
    exactly uniform (Mezzadri 2007). With `center`, each Gaussian column first loses its
    mean, so that every column of Q is orthogonal to the all-ones vector.
    """
    gaussian = jax.random.normal(key, (rows, columns), jnp.float32)
    if center:
        gaussian -= jnp.mean(gaussian, axis=0, keepdims=True)
    q, r = factorize.qr(gaussian)
    return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None, :]


# --- Gaussian controls -------------------------------------------------------------


def _gpt2_recipe(
    config: "InitConfig", model: ModelConfig, key: Array
) -> dict[str, Array]:
    """N(0, 0.02^2); W_O and W_D, which write to the stream, over sqrt(2 L) (D16)."""
    del config
    into_stream = {"w_o", "w_down"}
    return _gaussian_matrices(
        model,
        key,
        lambda name, fan_in, fan_out: (
            0.02 / math.sqrt(2 * model.num_layers) if name in into_stream else 0.02
        ),
    )


def _xavier_recipe(
    config: "InitConfig", model: ModelConfig, key: Array
) -> dict[str, Array]:
    """N(0, 2 / (fan_in + fan_out)), appendix B.3."""
    del config
    return _gaussian_matrices(
        model, key, lambda name, fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))
    )


def _kaiming_recipe(
    config: "InitConfig", model: ModelConfig, key: Array
) -> dict[str, Array]:
    """N(0, 2 / fan_in), appendix B.3."""
    del config
    return _gaussian_matrices(
        model, key, lambda name, fan_in, fan_out: math.sqrt(2 / fan_in)
    )


RECIPES: Mapping[str, Recipe] = {
    "orthogonal": _orthogonal_recipe,
    "gpt2": _gpt2_recipe,
    "xavier": _xavier_recipe,
    "kaiming": _kaiming_recipe,
}


def _gaussian_matrices(
    model: ModelConfig, key: Array, std: Callable[[str, int, int], float]
) -> dict[str, Array]:
    """Every hidden matrix iid normal with the given std(name, fan_in, fan_out)."""
    blocks = transformer.shapes(model)["blocks"]
    drawn = {}
    for name, leaf in blocks.items():
        matrix = params_lib.TABLE[name].matrix
        if params_lib.TABLE[name].kind == "matrix" and matrix is not None:
            fan_in = math.prod(leaf.shape[axis] for axis in matrix.in_axes)
            fan_out = math.prod(leaf.shape[axis] for axis in matrix.out_axes)
            draw = functools.partial(jax.random.normal, shape=leaf.shape[1:])
            drawn[name] = std(name, fan_in, fan_out) * _per_layer(
                name, model, key, draw
            )
    return drawn


# --- The config and what it makes --------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Which recipe fills the parameters, and its scales.

    The scales alpha_* and the choices below them belong to "orthogonal" alone. Their
    defaults are the paper's (section 4, appendix D) read as D14 to D16 and D20 to D22
    of DECISIONS.md say.
    """

    # "orthogonal" is the paper's; the others are Gaussian controls.
    recipe: Literal[*RECIPES] = "orthogonal"  # pyright: ignore
    embedding_std: float = 0.02  # Of the tied embedding, all recipes.
    alpha_qk: float = 0.9  # W_Q^T W_K per head; diagonal logit alpha_qk sqrt(d_h).
    alpha_vo: float = 3.0  # W_V W_O.
    alpha_u: float = 1.5  # W_U W_U^T.
    alpha_d: float = 1.5  # W_D^T W_D.
    # W_O = W_V^T ("transpose": W_V W_O = alpha_vo I, the paper's equation) or drawn on
    # its own ("independent": W_V W_O = alpha_vo times an orthogonal matrix).
    vo_pair: Literal[*VO_PAIRS] = "transpose"  # pyright: ignore
    # Readings of the paper's MLP scale, see `mlp_gram`.
    mlp_scale: Literal[*MLP_SCALES] = "gram"  # pyright: ignore
    # "centered": the columns of W_D are also orthogonal to the all-ones vector, so that
    # the mean of the hidden activations adds nothing (small nets of depth 12 need it).
    w_down: Literal[*MLP_PAIRS] = "plain"  # pyright: ignore

    def __post_init__(self):
        check_choices(self, "init")
        for name in ("embedding_std", "alpha_qk", "alpha_vo", "alpha_u", "alpha_d"):
            if not getattr(self, name) > 0:
                raise InputError(f"init.{name}={getattr(self, name)} must be > 0")


def alpha_qk_for(diagonal_logit: float, head_width: int) -> float:
    """The alpha_qk at which a token's attention logit with itself starts at this value.

    With |h|^2 = D and W_Q = W_K = sqrt(alpha) S, S^T S = I_K, the diagonal logit is
    h W_Q W_K^T h^T / sqrt(K) = alpha sqrt(K) on average (0.9 at K = 64: 7.2).
    """
    return diagonal_logit / math.sqrt(head_width)


def init(config: InitConfig, model: ModelConfig, *, key: Array) -> Params:
    """Draws all parameters, float32, in the tree of `transformer.shapes`."""
    shapes = transformer.shapes(model)
    drawn = RECIPES[config.recipe](config, model, key)
    drawn["embedding"] = config.embedding_std * jax.random.normal(
        key_for(key, "embedding"), shapes["embedding"].shape
    )
    if model.embedding == "projected":
        # All recipes start as the plain model with a rotated embedding.
        D, key_embed = model.width, key_for(key, "w_embed")
        turn_DD = orthonormal_columns(D, D, key=key_embed)
        drawn |= {"w_embed": turn_DD, "w_unembed": turn_DD.T}

    def pick(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        name = params_lib.leaf_name(path)
        if params_lib.TABLE[name].kind == "gain":
            return jnp.ones(leaf.shape, jnp.float32)
        return drawn[name].reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(pick, shapes)


# --- Keys --------------------------------------------------------------------------


def _per_layer(
    name: str, model: ModelConfig, key: Array, draw: Callable[[Array], Array]
) -> Array:
    """Stacks draw(key of this name and layer) over the layers."""
    name_key = key_for(key, name)
    keys = jax.vmap(lambda layer: jax.random.fold_in(name_key, layer))
    return jax.vmap(draw)(keys(jnp.arange(model.num_layers)))


def key_for(key: Array, name: str) -> Array:
    """Derives the key of the parameter called `name`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
