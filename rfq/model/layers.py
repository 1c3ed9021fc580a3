"""The block's equations as functions of arrays, without a framework or parameters.

Shapes in names: B batch, T position, D width, H head, K head width, V vocabulary.
Softmax, norms and the loss are computed in float32 whatever the carrier.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rfq.model.cache import Cache
from rfq.types import Array

# (clean stream, the same after its tap) -> what the skip path carries.
Stream = Callable[[Array, Array], Array]

_EPS = 1e-6


def rms_norm(x: Array, gain: Array, eps: float = _EPS) -> Array:
    """Compute x / sqrt(mean(x^2) + eps) * gain over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps)
    return (x32 * scale * _as_row(gain, x)).astype(x.dtype)


def layer_norm(x: Array, gain: Array, eps: float = _EPS) -> Array:
    """Compute (x - mean) / sqrt(var + eps) * gain over the last axis; no bias."""
    x32 = x.astype(jnp.float32)
    centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    return rms_norm(centered, gain, eps).astype(x.dtype)


def _as_row(gain: Array, x: Array) -> Array:
    return gain.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + gain.shape)


def residual(x: Array, update: Array) -> Array:
    """Add the sublayer to the stream (equation 1)."""
    return x + update


def residual_free(x: Array, update: Array) -> Array:
    """Replace the stream by the sublayer (equation 2)."""
    del x
    return update


def weighted(x: Array, update: Array, weight: Array) -> Array:
    """Compute weight * x + update; the weight is data, one of each layer."""
    return weight.astype(x.dtype) * x + update


def branch(clean: Array, tapped: Array) -> Array:
    """Return the clean stream for the skip path: the tap serves the norm alone."""
    del tapped
    return clean


def in_place(clean: Array, tapped: Array) -> Array:
    """Return the tapped stream, which then serves the norm and the skip path alike."""
    del clean
    return tapped


class Norm(NamedTuple):
    """A row of `NORMS`.

    Attributes:
        apply: (x, gain, eps) -> norm(x) * gain over the last axis, whose mean square is
            that of the gain; eps has a default.
        one_gain: One gain serves all channels.
        turns: Without its gain it commutes with rotations of the channels.
    """

    apply: Callable[..., Array]
    one_gain: bool = False
    turns: bool = True


NORMS: Mapping[str, Norm] = {
    "rms_norm": Norm(rms_norm),
    "layer_norm": Norm(layer_norm, turns=False),
    # g sqrt(D) x / |x| with one g (arXiv 2506.19697).
    "single_scale_norm": Norm(rms_norm, one_gain=True),
}


class Connection(NamedTuple):
    """A row of `SKIPS`.

    Attributes:
        join: (stream, what the sublayer computed, *leaves) -> the next stream.
        leaves: Numbers of each layer that `join` takes: rows of `params.TABLE`.
    """

    join: Callable[..., Array]
    leaves: tuple[str, ...] = ()


SKIPS: Mapping[str, Connection] = {
    "residual": Connection(residual),
    "residual_free": Connection(residual_free),
    # A weight of 0 is residual-free and a weight of 1 is residual.
    "weighted": Connection(weighted, ("skip_weight",)),
}
STREAMS: Mapping[str, Stream] = {"branch": branch, "in_place": in_place}


def rope(x_BTHK: Array, base: float, positions_BT: Array) -> Array:
    """Embed positions by rotation (Su et al., arXiv 2104.09864), half-split pairs.

    Coordinates k and k + K/2 of position t turn by the angle t * base^(-2k/K).
    """
    half = x_BTHK.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BT[:, :, None, None] * rates[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    return jnp.concatenate(turned, axis=-1).astype(x_BTHK.dtype)


def causal_attention(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    scale: Array,
    implementation: Literal["auto", "xla", "cudnn"],
    slope_H: Array | None = None,
) -> Array:
    """Compute softmax(scale * q.k, over earlier and own positions) v, per head.

    This is the attention of section 3.1. With slopes m, the logits are
    scale * q.k - m (t - s) for query t and key s.

    Args:
        q_BTHK: Queries of H heads.
        k_BTHK: Keys of as many heads, or of fewer, of which each serves neighboring
            queries (Ainslie et al., arXiv 2305.13245).
        v_BTHK: Values, of the shape of the keys.
        scale: Scalar tau_l / sqrt(K) or tau_l / sqrt(D); data, so that all layers of a
            scan share one program.
        implementation: "xla" anywhere, "cudnn" for flash attention on NVIDIA GPUs;
            "auto" that nobody decided is "xla".
        slope_H: m of each head; None for no bias.
    """
    q_BTHK = (q_BTHK.astype(jnp.float32) * scale).astype(q_BTHK.dtype)
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTHK,
        v_BTHK,
        bias=_distance_bias(slope_H, k_BTHK.shape[1]),
        scale=1.0,
        is_causal=True,
        implementation="xla" if implementation == "auto" else implementation,
    )


def _distance_bias(slope_H: Array | None, num_keys: int) -> Array | None:
    """Compute -m (t - s) but for m t, which all keys share and softmax removes: m s.

    Float32 [1, H, 1, S], exact up to 2^24 where m is an integer.
    """
    if slope_H is None:
        return None
    keys_S = jnp.arange(num_keys, dtype=jnp.float32)
    return slope_H[None, :, None, None] * keys_S[None, None, None, :]


def cached_attention(
    q_BTHK: Array, cache: Cache, scale: Array, slope_H: Array | None = None
) -> Array:
    """Attend from a cache's last T tokens to themselves and to all before.

    This is `causal_attention` with a cache.

    Returns:
        The heads' mixes [B, T, H, K].
    """
    T, S = q_BTHK.shape[1], cache.k_BSHK.shape[1]
    own_BT = cache.length_B[:, None] - T + jnp.arange(T, dtype=jnp.int32)[None, :]
    slots_S = jnp.arange(S, dtype=jnp.int32)
    seen_B1TS = slots_S[None, None, None, :] <= own_BT[:, None, :, None]
    return jax.nn.dot_product_attention(
        (q_BTHK.astype(jnp.float32) * scale).astype(q_BTHK.dtype),
        cache.k_BSHK,
        cache.v_BSHK,
        bias=_distance_bias(slope_H, S),
        mask=seen_B1TS,
        scale=1.0,
        implementation="xla",
    )


# (queries, slopes or None) -> the heads' mixes of what they attend to.
Attend = Callable[[Array, Array | None], Array]


def plain_attention(attend: Attend, q_BTHK: Array, v_BTHK: Array) -> Array:
    """Compute Y = A V with A = softmax(scale * q.k)."""
    del v_BTHK
    return attend(q_BTHK, None)


def decaying_attention(
    attend: Attend, q_BTHK: Array, v_BTHK: Array, slope_H: Array
) -> Array:
    """Compute Y = A V, A = softmax(scale * q.k - m (t - s)), m constant in each head.

    The linear bias of ALiBi (Press et al., arXiv 2108.12409). A head with W_Q = 0 is a
    decaying kernel, as E-SPA has it at the start (He et al., arXiv 2302.10322); a head
    with m = 0 has no bias.
    """
    del v_BTHK
    return attend(q_BTHK, slope_H)


def shaped_attention(
    attend: Attend,
    q_BTHK: Array,
    v_BTHK: Array,
    identity_H: Array,
    softmax_H: Array,
    uniform_H: Array,
) -> Array:
    """Compute Y = (alpha I + beta A - gamma C) V, C the softmax of zero logits.

    Shaped attention (Noci et al., arXiv 2306.17759; He and Hofmann, arXiv 2311.01906),
    with alpha, beta and gamma of each head trained from 1. With W_Q = 0 at the start
    A = C, so that Y = V exactly. It carries each token's value past the mixing: a
    model with it is not free of skips.
    """
    alpha, beta, gamma = (
        weight_H[None, None, :, None].astype(v_BTHK.dtype)
        for weight_H in (identity_H, softmax_H, uniform_H)
    )
    mixed, uniform = (attend(q, None) for q in (q_BTHK, jnp.zeros_like(q_BTHK)))
    return alpha * v_BTHK + (beta * mixed - gamma * uniform)


class AttentionKind(NamedTuple):
    """A row of `ATTENTION_KINDS`.

    Attributes:
        mix: (attend, queries, values, *leaves) -> the heads' mixes.
        leaves: Numbers of each head that `mix` takes: rows of `params.TABLE`.
        silent: Which heads start with W_Q = 0: "none", "soft" (those of
            `init.soft_layers`) or "all".
    """

    mix: Callable[..., Array]
    leaves: tuple[str, ...] = ()
    silent: Literal["none", "soft", "all"] = "none"


ATTENTION_KINDS: Mapping[str, AttentionKind] = {
    "softmax": AttentionKind(plain_attention),
    "decaying": AttentionKind(decaying_attention, ("head_decay",), "soft"),
    "shaped": AttentionKind(
        shaped_attention, ("mix_identity", "mix_softmax", "mix_uniform"), "all"
    ),
}


def gelu(up_BTF: Array) -> Array:
    """Compute x Phi(x), exactly."""
    return jax.nn.gelu(up_BTF, approximate=False)


def swiglu(up_BTF: Array, gate_BTF: Array) -> Array:
    """Compute up * silu(gate) (Shazeer, arXiv 2002.05202)."""
    return up_BTF * jax.nn.silu(gate_BTF)


def geglu(up_BTF: Array, gate_BTF: Array) -> Array:
    """Compute up * gelu(gate) (Shazeer, arXiv 2002.05202)."""
    return up_BTF * gelu(gate_BTF)


class Mlp(NamedTuple):
    """A row of `MLPS`.

    Attributes:
        hidden: (h W_up, *(h W of each leaf)) -> the hidden activation.
        leaves: Matrices beside W_up that `hidden` needs: rows of `params.TABLE`.
    """

    hidden: Callable[..., Array]
    leaves: tuple[str, ...] = ()


MLPS: Mapping[str, Mlp] = {
    "gelu": Mlp(gelu),
    "swiglu": Mlp(swiglu, ("w_mlp_gate",)),
    "geglu": Mlp(geglu, ("w_mlp_gate",)),
}


def head_gate(heads_BTHK: Array, logits_BTH: Array) -> Array:
    """Compute Y' = Y * sigmoid(X W_gate), one gate for each token and head.

    This is the head-wise form of the gate behind scaled dot-product attention (G1 of
    Qiu et al., arXiv 2505.06708; for each head also in Bondarenko et al., arXiv
    2306.12929), without bias. X is what attention reads, behind its norm.

    Args:
        heads_BTHK: Y, the heads' mixes.
        logits_BTH: X W_gate.
    """
    gate_BTH = jax.nn.sigmoid(logits_BTH.astype(jnp.float32))
    return heads_BTHK * gate_BTH[..., None].astype(heads_BTHK.dtype)


# What model.remat keeps for the backward pass, beside a block's input: the names under
# which the forward pass marks the results of products.
KEPT: Mapping[str, tuple[str, ...]] = {
    "block": (),
    "products": ("q", "k", "v", "mix", "stream", "hidden", "gate", "logits"),
}


def keeping(names: tuple[str, ...]) -> Callable[..., Any]:
    """Make the policy of `jax.checkpoint` that keeps what bears these names.

    Where it keeps mixes, it also keeps what fused attention made besides (a number for
    each query), without which it would run again.
    """
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def policy(primitive, *args, **params) -> Any:
        if "mix" in names and "dot_product_attention_fwd" in primitive.name:
            return True
        return named(primitive, *args, **params)

    return policy


def token_cross_entropy(
    h_BTD: Array,
    targets_BT: Array,
    num_chunks: int,
    head: Callable[[Array], Array],
    kept: tuple[str, ...] = (),
) -> Array:
    """Compute -log softmax(head(h))[target] at every position, in nats.

    The sequence is cut in `num_chunks` slices whose logits are formed, reduced and
    dropped one after the other (and again in the backward pass), so that at most
    B * T / num_chunks * V logits exist at a time in float32.

    Args:
        h_BTD: Features.
        targets_BT: Token ids.
        num_chunks: Slices of the sequence.
        head: h [B, C, D] -> logits [B, C, V].
        kept: "logits" keeps them for the backward pass, in the type that the head gives
            them, which saves their product; see `KEPT`.

    Returns:
        Float32 [B, T].
    """

    def losses(h_BCD: Array, targets_BC: Array) -> Array:
        logits_BCV = checkpoint_name(head(h_BCD), "logits").astype(jnp.float32)
        picked = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)
        return jax.nn.logsumexp(logits_BCV, axis=-1) - picked[..., 0]

    if num_chunks == 1:
        return losses(h_BTD, targets_BT)
    B, T, D = h_BTD.shape
    h_NBCD = h_BTD.reshape(B, num_chunks, T // num_chunks, D).swapaxes(0, 1)
    targets_NBC = targets_BT.reshape(B, num_chunks, -1).swapaxes(0, 1)
    step = jax.checkpoint(losses, policy=keeping(kept))
    losses_NBC = jax.lax.map(lambda chunk: step(*chunk), (h_NBCD, targets_NBC))
    return losses_NBC.swapaxes(0, 1).reshape(B, T)


def target_log_probs(
    h_GPD: Array, targets_GP: Array, chunk: int, head: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Compute log softmax(head(h))[target] at some positions, and say if it is largest.

    Args:
        h_GPD: Features of P positions in each of G groups.
        targets_GP: Token ids.
        chunk: Positions of a group whose logits exist at a time; divides P.
        head: h [G, C, D] -> logits [G, C, V].

    Returns:
        Float32 [G, P] in nats, and bool [G, P].
    """

    def of_chunk(h_GCD: Array, targets_GC: Array) -> tuple[Array, Array]:
        logits_GCV = head(h_GCD).astype(jnp.float32)
        picked = jnp.take_along_axis(logits_GCV, targets_GC[..., None], axis=-1)[..., 0]
        log_prob = picked - jax.nn.logsumexp(logits_GCV, axis=-1)
        return log_prob, picked >= jnp.max(logits_GCV, axis=-1)

    G, P, D = h_GPD.shape
    h_NGCD = h_GPD.reshape(G, P // chunk, chunk, D).swapaxes(0, 1)
    targets_NGC = targets_GP.reshape(G, P // chunk, chunk).swapaxes(0, 1)
    found = jax.lax.map(lambda part: of_chunk(*part), (h_NGCD, targets_NGC))
    log_prob, is_greedy = (leaf.swapaxes(0, 1).reshape(G, P) for leaf in found)
    return log_prob, is_greedy
