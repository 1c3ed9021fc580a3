"""Initialization recipes: abstract parameter tree -> arrays.

The paper's recipe ties parameters to each other (W_Q with W_K per head, W_V with W_O),
so it is a function on the tree and not a property of each parameter. Every array is
drawn from a key derived from its name and layer: adding a parameter moves no other.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rfq import factorize
from rfq import params as params_lib
from rfq.errors import InputError, check_fields
from rfq.model import layers, transformer
from rfq.model.config import HEADS, ModelConfig
from rfq.types import Array, Params

# --- The paper's recipe ------------------------------------------------------------

# A recipe: every hidden matrix of the blocks, stacked over layers, by name.
Recipe = Callable[["InitConfig", ModelConfig, Array], dict[str, Array]]
# Two matrices that are drawn together: (config, model, key) -> both, [L, in, out].
Pair = Callable[["InitConfig", ModelConfig, Array], tuple[Array, Array]]


def _orthogonal_recipe(
    config: "InitConfig", model: ModelConfig, key: Array
) -> dict[str, Array]:
    """Draw semi-orthogonal matrices (Saxe et al. 2014), tied as section 4 (i) says.

    Per layer, and per head for the first line:
        W_Q = W_K = sqrt(alpha_qk) S,    S^T S = I_K   so W_Q^T W_K = alpha_qk I_K,
                    or a row of `QK_PAIRS`, with alpha_qk as `head_scales` has it
        W_V = sqrt(alpha_vo) U, W_O = sqrt(alpha_vo) U^T or a row of `VO_PAIRS`
        W_U W_U^T and W_D^T W_D = `mlp_gram` times I_D, by a row of `MLP_PAIRS`
    A gate starts at one half, W_gate = 0, which keeps the equations of W_V W_O.
    """
    q, k = QK_PAIRS[config.qk_pair](config, model, key)
    roots_LH = jnp.asarray(np.sqrt(head_scales(config, model)), jnp.float32)
    roots = roots_LH[:, None, :, None]
    v, o = VO_PAIRS[config.vo_pair](config, model, key)
    up, down = MLP_PAIRS[config.w_down](config, model, key)
    gram_u, gram_d = mlp_gram(config, model)
    return {
        "w_q": roots * q,
        "w_k": roots * k,
        "w_v": math.sqrt(config.alpha_vo) * v,
        "w_gate": jnp.zeros((model.num_layers, model.width, model.num_heads)),
        "w_o": math.sqrt(config.alpha_vo) * o,
        "w_up": math.sqrt(gram_u) * up,
        "w_down": math.sqrt(gram_d) * down,
    }


# Name -> the layers, of L, whose first head is soft. "thirds" and "every_fourth" make
# several layers mix, well apart from each other.
SOFT_LAYERS: Mapping[str, Callable[[int], Sequence[int]]] = {
    "none": lambda num_layers: (),
    "first": lambda num_layers: (0,),
    "thirds": lambda num_layers: sorted({i * num_layers // 3 for i in range(3)}),
    "every_fourth": lambda num_layers: range(0, num_layers, 4),
}


def soft_heads(config: "InitConfig", model: ModelConfig) -> np.ndarray:
    """Choose which heads start soft, bool [L, H]."""
    soft_LH = np.zeros((model.num_layers, model.num_heads), bool)
    soft_LH[list(SOFT_LAYERS[config.soft_layers](model.num_layers)), 0] = True
    return soft_LH


def head_scales(config: "InitConfig", model: ModelConfig) -> np.ndarray:
    """Return alpha_qk of every head, float64 [L, H]: sharp but for the soft heads.

    A diagonal logit g is alpha_qk sqrt(K), see `alpha_qk_for`; `check` has seen that
    `config.sharpness` fits.
    """
    shape = (model.num_layers, model.num_heads)
    scales_LH = np.full(shape, config.alpha_qk)
    if config.sharpness:
        logits = np.reshape(config.sharpness, (-1, model.num_heads))
        scales_LH = alpha_qk_for(1.0, model.head_width) * np.broadcast_to(logits, shape)
    soft = alpha_qk_for(config.soft_logit, model.head_width)
    return np.where(soft_heads(config, model), soft, scales_LH)


def _tied(config: "InitConfig", model: ModelConfig, key: Array) -> tuple[Array, Array]:
    """Draw W_Q = W_K = S per head, S^T S = I_K, every head on its own.

    The squared singular values of the whole W_Q [D, D] are not all 1: they reach 3.3.
    """
    del config
    D, K = model.width, model.head_width

    def draw(head_key: Array) -> Array:
        return orthonormal_columns(D, K, key=head_key)

    w = _per_head("w_qk", model, key, draw)
    return w, w


def _tied_haar(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """Draw as `_tied`, but cut the heads from one Haar matrix: W_Q is an isometry.

    That is the premise of lemma 4.
    """
    del config
    D, H, K = model.width, model.num_heads, model.head_width
    w = _square("w_qk", model, key).reshape(-1, D, H, K)
    return w, w


def _svd(config: "InitConfig", model: ModelConfig, key: Array) -> tuple[Array, Array]:
    """Set W_Q = U sqrt(S), W_K = V sqrt(S) of the K largest of Z + b I = U S V^T.

    Z is uniform of variance 1 / D and b is `qk_identity`: the code of the paper's
    predecessor (arXiv 2510.00345), which has 2 Z + .6 I. W_Q W_K^T is the best
    approximation of rank K, and Z spreads a token's attention over others.
    """
    D, K = model.width, model.head_width
    edge = math.sqrt(3.0 / D)

    def draw(head_key: Array) -> Array:
        z = jax.random.uniform(head_key, (D, D), minval=-edge, maxval=edge)
        u, s, vt = factorize.svd(z + config.qk_identity * jnp.eye(D))
        roots = jnp.sqrt(s[None, :K])
        return jnp.stack([u[:, :K] * roots, vt[:K].T * roots])

    both = _per_head("w_qk", model, key, draw)  # [L, 2, D, H, K]
    return both[:, 0], both[:, 1]


# How W_Q and W_K are drawn, each [L, D, H, K] and over the root of `head_scales`.
QK_PAIRS: Mapping[str, Pair] = {"tied": _tied, "tied_haar": _tied_haar, "svd": _svd}


def _square(name: str, model: ModelConfig, key: Array) -> Array:
    """Draw a Haar matrix for each layer, [L, D, D]."""
    D = model.width
    return _per_layer(name, model, key, lambda k: orthonormal_columns(D, D, key=k))


def _transposes(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """Set V = U, O = U^T for a Haar matrix U: V O = I (section 4 i)."""
    del config
    v = _square("w_v", model, key)
    return v, v.swapaxes(1, 2)


def _independent(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """Draw two Haar matrices (D22; arXiv 2510.00345): V O is one, too."""
    del config
    return _square("w_v", model, key), _square("w_o", model, key)


# How W_V and W_O are drawn, each over sqrt(alpha_vo).
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
    """Draw both independently, with orthonormal rows and with orthonormal columns."""
    del config
    return _up_and_down(model, key, center=False)


def _centered(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """Draw as `_plain`, but make the columns of W_D sum to 0 (D20)."""
    del config
    return _up_and_down(model, key, center=True)


def _looks_linear(
    config: "InitConfig", model: ModelConfig, key: Array
) -> tuple[Array, Array]:
    """Draw [A, -A] and [A^T; -A^T], both over sqrt(2), with A A^T = I_D.

    GELU(z) - GELU(-z) = z, so that the MLP starts as (alpha_u alpha_d)^(1/2) / 2 times
    the identity (Balduzzi et al., arXiv 1702.08591; here with A^T and Gram matrices of
    the paper's size). W_D is centred, too.
    """
    del config
    F, D = model.mlp_width, model.width

    def draw(layer_key: Array) -> Array:
        a_D = orthonormal_columns(F // 2, D, key=layer_key).T
        return jnp.concatenate([a_D, -a_D], axis=1) * math.sqrt(0.5)

    up = _per_layer("w_up", model, key, draw)
    return up, up.swapaxes(1, 2)


# How W_U and W_D are drawn, each over the square root of its `mlp_gram`.
MLP_PAIRS: Mapping[str, Pair] = {
    "plain": _plain,
    "centered": _centered,
    "looks_linear": _looks_linear,
}

# Readings of the paper's MLP scale: (alpha, out / in) -> g of W_U or of W_D, where
# out / in is 1 for a matrix that does not widen (D14, D15).
MLP_SCALES: Mapping[str, Callable[[float, float], float]] = {
    "gram": lambda alpha, widening: alpha,
    "suo_sqrt": lambda alpha, widening: alpha * widening,
    "suo": lambda alpha, widening: alpha**2 * widening,
}


def mlp_gram(config: "InitConfig", model: ModelConfig) -> tuple[float, float]:
    """Return g_u, g_d of W_U W_U^T = g_u I and W_D^T W_D = g_d I (D14, D15).

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
    """Draw a Haar matrix Q [rows, columns] with Q^T Q = I; rows >= columns.

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
    """Draw N(0, 0.02^2); W_O and W_D feed the stream and go over sqrt(2 L) (D16)."""
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
    """Draw N(0, 2 / (fan_in + fan_out)), appendix B.3."""
    del config
    return _gaussian_matrices(
        model, key, lambda name, fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))
    )


def _kaiming_recipe(
    config: "InitConfig", model: ModelConfig, key: Array
) -> dict[str, Array]:
    """Draw N(0, 2 / fan_in), appendix B.3."""
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
    """Draw every hidden matrix iid normal with the given std(name, fan_in, fan_out)."""
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
    """The recipe that fills the parameters, and its scales.

    The scales alpha_* and the choices below them belong to "orthogonal" alone. Their
    defaults are the paper's (section 4, appendix D) read as D14 to D16 and D20 to D22
    of DECISIONS.md say.
    """

    # "orthogonal" is the paper's; the others are Gaussian controls.
    recipe: Literal[*RECIPES] = "orthogonal"  # pyright: ignore
    embedding_std: float = 0.02  # Deviation of the tied embedding in all recipes.
    alpha_qk: float = 0.9  # W_Q^T W_K = alpha_qk I per head; logit alpha_qk sqrt(d_h).
    alpha_vo: float = 3.0  # The scale of W_V W_O.
    alpha_u: float = 1.5  # The scale of W_U W_U^T.
    alpha_d: float = 1.5  # The scale of W_D^T W_D.
    # "transpose" makes W_O = W_V^T, so that W_V W_O = alpha_vo I as in the paper;
    # "independent" draws W_O on its own: W_V W_O is alpha_vo times an orthogonal
    # matrix.
    vo_pair: Literal[*VO_PAIRS] = "transpose"  # pyright: ignore
    # How the paper's MLP scale is read, see `mlp_gram`.
    mlp_scale: Literal[*MLP_SCALES] = "gram"  # pyright: ignore
    # How W_U and W_D start. "centered" makes the columns of W_D orthogonal to the
    # all-ones vector, so that the mean of the hidden activations adds nothing (small
    # nets of depth 12 need it). "looks_linear" sets W_U = [A, -A] and W_D = [A^T;
    # -A^T], so that the MLP starts as a multiple of the identity.
    w_down: Literal[*MLP_PAIRS] = "plain"  # pyright: ignore

    # How W_Q and W_K of a head start. "tied" draws W_Q = W_K for each head on its own,
    # "tied_haar" cuts the heads from one Haar matrix, and "svd" takes them from the
    # singular vectors of Z + qk_identity I.
    qk_pair: Literal[*QK_PAIRS] = "tied"  # pyright: ignore
    qk_identity: float = 0.3  # For "svd", whose authors' scale is alpha_qk 2.
    # Diagonal logits that replace alpha_qk: one for each head, for all layers or layer
    # by layer.
    sharpness: tuple[float, ...] = ()
    # In these layers the first head starts with soft_logit instead, so that it mixes
    # tokens. With model.attention_kind "decaying" it starts with W_Q = 0 and a slope of
    # head_decay, too.
    soft_layers: Literal[*SOFT_LAYERS] = "none"  # pyright: ignore
    soft_logit: float = 2.0
    head_decay: float = 1.0  # The logits that a decaying head loses at each position.
    # With model.skip "weighted", the stream is multiplied by this.
    skip_weight: float = 1.0

    def __post_init__(self):
        check_fields(self, "init")
        for name in (
            "embedding_std", "alpha_qk", "alpha_vo", "alpha_u", "alpha_d", "soft_logit",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise InputError(f"init.{name}={getattr(self, name)} must be > 0")
        if not all(logit > 0 for logit in self.sharpness):
            raise InputError(f"init.sharpness={self.sharpness} must all be > 0")
        for name in ("qk_identity", "head_decay", "skip_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"init.{name}={getattr(self, name)} must be >= 0")


def check(config: InitConfig, model: ModelConfig) -> None:
    """Raise InputError where a recipe cannot fill a model of these sizes."""
    if config.w_down != "plain" and model.mlp_ratio < 2:
        raise InputError(
            f"init.w_down={config.w_down!r} needs model.mlp_ratio >= 2, not "
            f"{model.mlp_ratio}: the columns of W_D and the all-ones vector cannot be "
            "orthogonal in as many dimensions as there are columns"
        )
    if config.w_down == "looks_linear" and model.mlp_width % 2:
        raise InputError(
            "init.w_down='looks_linear' needs an even model.mlp_ratio * model.width, "
            f"not {model.mlp_width}"
        )
    if config.recipe == "orthogonal":
        for field, given, own in (
            ("num_kv_heads", model.kv_heads, model.num_heads),
            ("mlp", model.mlp, "gelu"),
        ):
            if given != own:
                raise InputError(
                    "init.recipe='orthogonal' ties W_Q to W_K, W_V to W_O and W_U to "
                    f"W_D, which it cannot with model.{field}={given!r} and not "
                    f"{own!r}; choose init.recipe gpt2, xavier or kaiming"
                )
        if model.mlp_ratio < 1:
            raise InputError(
                "init.recipe='orthogonal' needs model.mlp_ratio >= 1, not "
                f"{model.mlp_ratio}: the rows of W_U are orthogonal"
            )
    per_layer, all_layers = model.num_heads, model.num_layers * model.num_heads
    if len(config.sharpness) not in (0, per_layer, all_layers):
        raise InputError(
            f"init.sharpness has {len(config.sharpness)} numbers; give {per_layer}, "
            f"one for each head, or {all_layers}, one for each layer and head"
        )


def alpha_qk_for(diagonal_logit: float, head_width: int) -> float:
    """Return the alpha_qk that starts a token's logit with itself at this value.

    With |h|^2 = D and W_Q = W_K = sqrt(alpha) S, S^T S = I_K, the diagonal logit is
    h W_Q W_K^T h^T / sqrt(K) = alpha sqrt(K) on average (0.9 at K = 64: 7.2).
    """
    return diagonal_logit / math.sqrt(head_width)


# Kinds of parameters that start at one number in all recipes.
_STARTS: Mapping[str, float] = {"gain": 1.0, "bias": 0.0}


def init(config: InitConfig, model: ModelConfig, *, key: Array) -> Params:
    """Draw all parameters, float32, in the tree of `transformer.shapes`."""
    check(config, model)
    shapes = transformer.shapes(model)
    drawn = RECIPES[config.recipe](config, model, key)
    soft_LH = soft_heads(config, model)
    which = layers.ATTENTION_KINDS[model.attention_kind].silent
    silent_LH = {"none": False, "soft": soft_LH, "all": True}[which]
    if np.any(silent_LH):
        silent = np.broadcast_to(silent_LH, soft_LH.shape)[:, None, :, None]
        drawn["w_q"] = jnp.where(silent, 0.0, drawn["w_q"])
    drawn["head_decay"] = jnp.asarray(config.head_decay * soft_LH, jnp.float32)
    drawn["skip_weight"] = jnp.full(model.num_layers, config.skip_weight)
    for name in {"embedding", HEADS[model.head]}:
        drawn[name] = config.embedding_std * jax.random.normal(
            key_for(key, name), shapes["embedding"].shape
        )
    if model.embedding == "projected":
        # All recipes start as the plain model with a rotated embedding.
        D, key_embed = model.width, key_for(key, "w_embed")
        turn_DD = orthonormal_columns(D, D, key=key_embed)
        drawn |= {"w_embed": turn_DD, "w_unembed": turn_DD.T}

    def pick(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        name = params_lib.leaf_name(path)
        start = _STARTS.get(params_lib.TABLE[name].kind)
        if start is not None:
            return jnp.full(leaf.shape, start, jnp.float32)
        return drawn[name].reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(pick, shapes)


# --- Keys --------------------------------------------------------------------------


def _per_head(
    name: str, model: ModelConfig, key: Array, draw: Callable[[Array], Array]
) -> Array:
    """Stack draw(key of name, layer and head) [..., D, K] to [L, ..., D, H, K]."""

    def of_layer(layer_key: Array) -> Array:
        head_keys = jax.vmap(lambda head: jax.random.fold_in(layer_key, head))
        drawn = jax.vmap(draw)(head_keys(jnp.arange(model.num_heads)))
        return jnp.moveaxis(drawn, 0, -2)

    return _per_layer(name, model, key, of_layer)


def _per_layer(
    name: str, model: ModelConfig, key: Array, draw: Callable[[Array], Array]
) -> Array:
    """Stack draw(key of this name and layer) over the layers."""
    name_key = key_for(key, name)
    keys = jax.vmap(lambda layer: jax.random.fold_in(name_key, layer))
    return jax.vmap(draw)(keys(jnp.arange(model.num_layers)))


def key_for(key: Array, name: str) -> Array:
    """Derive the key of the parameter called `name`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
