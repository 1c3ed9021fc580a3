"""The Linen shell: declares parameters, names sites, scans over stacked layers.

Only this file imports flax.linen. Everything outside sees `shapes`, `features`,
`apply` and `token_losses`, pure functions of (params, tokens).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rfq import params as params_lib
from rfq import taps as taps_lib
from rfq.errors import InputError
from rfq.model import cache as cache_lib
from rfq.model import layers, places, products
from rfq.model.config import HEADS, MODEL_SITES, SITES, ModelConfig
from rfq.types import Array, Params, Record, SiteState, Turns


def _declare(module: nn.Module, name: str, *shape: int) -> Array:
    """Declare a float32 parameter; `rfq.model.init` gives its values."""
    leaf = module.param(name, nn.initializers.zeros, shape, jnp.float32)
    is_constant = params_lib.TABLE[name].kind == "constant"
    return jax.lax.stop_gradient(leaf) if is_constant else leaf


@dataclasses.dataclass(frozen=True)
class Seams:
    """The parts of the forward pass that an experiment may swap, outside the model.

    Attributes:
        taps: What to do at which sites.
        stream: What a residual skip carries past a tapped norm input.
        dot: How activations meet weights; what it needs beside them is in the states
            under the parameter's name.
        placing: Where activations, and weights in use, are.
        turns: What is applied to the activation of a site before any tap sees it; the
            weights have its inverse.
    """

    taps: taps_lib.Taps | taps_lib.Both = taps_lib.NO_TAPS
    stream: layers.Stream = layers.branch
    dot: products.Dot = products.matmul
    placing: places.Placing = places.ANYWHERE
    turns: Turns = ()

    def __post_init__(self):
        turned = (name for name, _ in self.turns)
        unknown = sorted({*self.taps.sites, *turned} - set(SITES))
        if unknown:
            raise InputError(
                f"tap site {unknown[0]!r} is unknown; choose from {sorted(SITES)}"
            )

    def at(self, site: str, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Turn the activation of a site, and apply the tap."""
        for name, turn in self.turns:
            x = turn(x) if name == site else x
        return self.taps.at(site, x, state)


PLAIN = Seams()

# Under this name in the states, a `Cache` with leading [L] lets tokens attend to those
# of earlier calls; under it in the records it comes back with the new ones.
CACHE = "cache"

# Positions of a group whose logits `target_log_probs` forms at a time.
HEAD_CHUNK = 128


class _Block(nn.Module):
    """Attention and MLP, pre-norm, joined by the configured connection (eq. 1, 2)."""

    config: ModelConfig
    seams: Seams

    @nn.compact
    def __call__(self, x_BTD: Array, scanned: tuple[Array, dict[str, SiteState]]):
        c = self.config
        layer, states = scanned
        norm, skip = layers.NORMS[c.norm].apply, layers.SKIPS[c.skip]
        kind, mlp = layers.ATTENTION_KINDS[c.attention_kind], layers.MLPS[c.mlp]
        D, H, K, F = c.width, c.num_heads, c.head_width, c.mlp_width
        attn_norm = _declare(self, "attn_norm", c.gain_width)
        mlp_norm = _declare(self, "mlp_norm", c.gain_width)
        w_o = _declare(self, "w_o", H, K, D)
        w_down = _declare(self, "w_down", F, D)
        of_skip = tuple(_declare(self, n) for n in skip.leaves)
        of_heads = tuple(_declare(self, n, H) for n in kind.leaves)

        records: dict[str, Record] = {}

        def site(name: str, x: Array) -> Array:
            x_out, records[name] = self.seams.at(name, x, states.get(name))
            return x_out

        place = self.seams.placing.activation

        def dot(x: Array, w: Array, name: str, *axes: str) -> Array:
            """Multiply; the result has these axes behind batch and position."""
            logical = params_lib.TABLE[name].logical[1:]
            w = _in_use(w, logical, self.seams, c.compute_dtype)
            y = self.seams.dot(x, w, name, states.get(name))
            return place(y, ("batch", "position", *axes))

        def to_heads(h_BTD: Array, which: str, num_heads: int, axis: str) -> Array:
            w = _declare(self, f"w_{which}", D, num_heads, K)
            y_BTHK = dot(h_BTD, w, f"w_{which}", axis, "head_width")
            if c.biases == "qkv":
                bias_HK = _declare(self, f"b_{which}", num_heads, K)
                y_BTHK = y_BTHK + bias_HK[None, None].astype(y_BTHK.dtype)
            return y_BTHK

        def to_hidden(h_BTD: Array, name: str) -> Array:
            y_BTF = dot(h_BTD, _declare(self, name, D, F), name, "mlp")
            return checkpoint_name(y_BTF, "hidden")

        def connect(x_BTD: Array, tapped_BTD: Array, update_BTD: Array) -> Array:
            carried = skip.join(
                self.seams.stream(x_BTD, tapped_BTD), update_BTD, *of_skip
            )
            return carried.astype(c.compute_dtype)  # A tap may have made it float32.

        # Attention. tau_l = beta ** -l, in the paper's counting l = 1..L.
        tau = jnp.float32(c.beta) ** -layer
        scale = tau / math.sqrt(K if c.attention_scale == "head_width" else D)
        tapped = site("attn_norm_in", x_BTD)
        h_BTD = norm(tapped, attn_norm, c.norm_eps)
        h_BTD = site("attn_in", h_BTD).astype(c.compute_dtype)
        cache = states.get(CACHE)
        at_BT = cache_lib.positions(h_BTD.shape[1], cache)
        q = to_heads(h_BTD, "q", H, "heads")
        k = to_heads(h_BTD, "k", c.kv_heads, "kv_heads")
        v = to_heads(h_BTD, "v", c.kv_heads, "kv_heads")
        q = checkpoint_name(site("q", layers.rope(q, c.rope_base, at_BT)), "q")
        k = checkpoint_name(site("k", layers.rope(k, c.rope_base, at_BT)), "k")
        v = checkpoint_name(site("v", v), "v")
        if cache is not None:
            records[CACHE] = cache = cache_lib.extended(cache, k, v)

        def attend(q: Array, slope_H: Array | None) -> Array:
            if cache is None:
                mix = layers.causal_attention(q, k, v, scale, c.attention, slope_H)
                return checkpoint_name(mix, "mix")
            return layers.cached_attention(q, cache, scale, slope_H)

        heads_BTHK = kind.mix(attend, q, v, *of_heads)
        if c.attention_gate == "head":
            w_gate = _declare(self, "w_gate", D, H)
            logits_BTH = dot(h_BTD, w_gate, "w_gate", "heads")
            logits_BTH = checkpoint_name(logits_BTH, "gate")
            heads_BTHK = layers.head_gate(heads_BTHK, logits_BTH)
        update = dot(site("attn_out", heads_BTHK), w_o, "w_o", "width")
        x_BTD = checkpoint_name(connect(x_BTD, tapped, update), "stream")

        # MLP.
        tapped = site("mlp_norm_in", x_BTD)
        h_BTD = norm(tapped, mlp_norm, c.norm_eps)
        h_BTD = site("mlp_in", h_BTD).astype(c.compute_dtype)
        hidden_BTF = mlp.hidden(*(to_hidden(h_BTD, n) for n in ("w_up", *mlp.leaves)))
        update = dot(site("mlp_hidden", hidden_BTF), w_down, "w_down", "width")
        x_BTD = connect(x_BTD, tapped, update)
        return x_BTD, records


class _Transformer(nn.Module):
    """Embedding, L blocks in one scan, final norm. The head is the caller's."""

    config: ModelConfig
    seams: Seams

    @nn.compact
    def __call__(self, tokens_BT: Array, states: dict[str, SiteState]):
        c = self.config
        embedding_VD = _declare(self, "embedding", c.vocab_size, c.width)
        final_norm = _declare(self, "final_norm", c.gain_width)
        if c.head == "untied":
            _declare(self, HEADS[c.head], c.vocab_size, c.width)  # `head` reads it.
        block = _Block
        if c.remat != "none":
            policy = layers.keeping(layers.KEPT[c.remat])
            block = nn.remat(_Block, prevent_cse=False, policy=policy)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.num_layers,
            unroll=min(c.scan_unroll, c.num_layers),
        )(c, self.seams, name="blocks")
        last_layer = c.first_layer + c.num_layers - 1
        layer_numbers = jnp.arange(c.first_layer, last_layer + 1, dtype=jnp.float32)
        once = (*MODEL_SITES, *HEADS.values())
        block_states = {name: s for name, s in states.items() if name not in once}

        # Look up, then cast: the gradient's scatter-add must run in float32, where a
        # frequent token's thousandth contribution still counts.
        # The table stays cut: tokens go to its columns, and come back as rows.
        place = self.seams.placing.activation
        tokens_BT = place(tokens_BT, ("copy_batch", "position"))
        x_BTD = place(embedding_VD[tokens_BT], ("copy_batch", "position", "embed"))
        x_BTD = place(x_BTD.astype(c.compute_dtype), ("batch", "position", "width"))
        if c.embedding == "projected":
            projections = {
                name: _declare(self, name, c.width, c.width)
                for name in ("w_embed", "w_unembed")  # The latter is `head`'s.
            }
            x_BTD = _project(x_BTD, projections, "w_embed", self.seams, c)
        x_BTD, records = stack(x_BTD, (layer_numbers, block_states))

        def site(name: str, x: Array) -> Array:
            x_out, records[name] = self.seams.at(name, x, states.get(name))
            return x_out

        norm = layers.NORMS[c.norm].apply
        tapped = site("final_norm_in", x_BTD)
        h_BTD = site("head_in", norm(tapped, final_norm, c.norm_eps))
        return h_BTD, {name: r for name, r in records.items() if r is not None}


def shapes(config: ModelConfig) -> Params:
    """Return the parameter tree as `jax.ShapeDtypeStruct`s; allocate nothing."""
    model = _Transformer(config, PLAIN)
    tokens_BT = jax.ShapeDtypeStruct((1, config.seq_len), jnp.int32)
    init = lambda tokens: model.init(jax.random.key(0), tokens, {})["params"]  # noqa: E731
    return jax.eval_shape(init, tokens_BT)


def features(
    params: Params,
    tokens_BT: Array,
    config: ModelConfig,
    seams: Seams = PLAIN,
    states: Mapping[str, SiteState] | None = None,
) -> tuple[Array, dict[str, Record]]:
    """Compute everything but the head.

    Args:
        params: As `shapes` declares.
        tokens_BT: Token ids.
        config: Sizes, connection, numerics.
        seams: Taps, stream and dot.
        states: {site: state} for the taps and {parameter's name: state} for the dot;
            each leaf has a leading [L], but for what exists once.

    Returns:
        The normalized features [B, T, D] and {site: record}; records of block sites
        have a leading [L].
    """
    model = _Transformer(config, seams)
    return model.apply({"params": params}, tokens_BT, dict(states or {}))  # type: ignore[return-value]


def apply(
    params: Params,
    tokens_BT: Array,
    config: ModelConfig,
    seams: Seams = PLAIN,
    states: Mapping[str, SiteState] | None = None,
) -> tuple[Array, dict[str, Record]]:
    """Compute logits in float32 [B, T, V] and the taps' records; see `features`."""
    h_BTD, records = features(params, tokens_BT, config, seams, states)
    logits_BTV = head(params, config, seams, states)(h_BTD)
    return logits_BTV.astype(jnp.float32), records


def token_losses(
    params: Params,
    batch: Array,
    config: ModelConfig,
    seams: Seams = PLAIN,
    states: Mapping[str, SiteState] | None = None,
) -> tuple[Array, dict[str, Record]]:
    """Compute each target's loss [B, T] in nats, float32, and the taps' records.

    `batch` holds token ids [B, T + 1]; the other arguments are `features`'.
    """
    h_BTD, records = features(params, batch[:, :-1], config, seams, states)
    losses_BT = layers.token_cross_entropy(
        h_BTD,
        batch[:, 1:],
        config.loss_chunks,
        head(params, config, seams, states),
        layers.KEPT.get(config.remat, ()),
    )
    return losses_BT, records


def target_log_probs(
    params: Params,
    tokens_GRT: Array,
    positions_GP: Array,
    targets_GP: Array,
    config: ModelConfig,
    seams: Seams = PLAIN,
    states: Mapping[str, SiteState] | None = None,
) -> tuple[Array, Array]:
    """Compute log-probabilities of some next tokens, and say which are the likeliest.

    The head sees those positions alone.

    Args:
        params: As `shapes` declares.
        tokens_GRT: Token ids, R rows in each of G groups.
        positions_GP: row * T + position of the inputs whose next token is asked for.
        targets_GP: Those next tokens.
        config: As for `features`.
        seams: As for `features`.
        states: As for `features`.

    Returns:
        Float32 [G, P] in nats, and bool [G, P].
    """
    G, R, T = tokens_GRT.shape
    tokens_BT = tokens_GRT.reshape(G * R, T)
    h_BTD, _ = features(params, tokens_BT, config, seams, states)
    h_GND = h_BTD.reshape(G, R * T, config.width)
    h_GPD = jnp.take_along_axis(h_GND, positions_GP[..., None], axis=1)
    return layers.target_log_probs(
        h_GPD, targets_GP, HEAD_CHUNK, head(params, config, seams, states)
    )


def head(
    params: Params,
    config: ModelConfig,
    seams: Seams,
    states: Mapping[str, SiteState] | None,
) -> Callable[[Array], Array]:
    """Return the head h -> h E^T, or h W_unembed E^T where the embedding is projected.

    E is the embedding, or the head's own weights where it is untied. It is transposed
    once for all slices.
    Each share of the batch multiplies with a copy of its own, so that the gradients of
    all slices are summed where they arise and cross devices once, not once a slice.
    """
    name = HEADS[config.head]
    logical = params_lib.TABLE[name].logical
    head_VD = _in_use(params[name], logical, seams, config.compute_dtype)
    head_DV, state = head_VD.T, (states or {}).get(name)
    place, num_shares = seams.placing.activation, seams.placing.num_shares

    def dot(h_BTD: Array, head_DV: Array) -> Array:
        return seams.dot(h_BTD, head_DV, name, state)

    def project(h_BTD: Array) -> Array:
        if config.embedding == "plain":
            return h_BTD
        return _project(h_BTD, params, "w_unembed", seams, config)

    if num_shares == 1:
        return lambda h_BTD: place(
            dot(project(h_BTD), head_DV), ("batch", "position", "vocab")
        )
    head_GDV = jnp.broadcast_to(head_DV, (num_shares, *head_DV.shape))
    head_GDV = place(head_GDV, ("batch", "width", "vocab"))

    def head(h_BTD: Array) -> Array:
        h_GBTD = project(h_BTD).reshape(num_shares, -1, *h_BTD.shape[1:])
        logits_GBTV = jax.vmap(dot)(h_GBTD, head_GDV)
        logits_BTV = logits_GBTV.reshape(*h_BTD.shape[:-1], -1)
        return place(logits_BTV, ("batch", "position", "vocab"))

    return head


def _project(
    x_BTD: Array, params: Params, name: str, seams: Seams, config: ModelConfig
) -> Array:
    """Multiply by a projection, never quantized because it folds into the embedding."""
    logical = params_lib.TABLE[name].logical
    w_DD = _in_use(params[name], logical, seams, config.compute_dtype)
    y_BTD = seams.dot(x_BTD, w_DD, name, None)
    return seams.placing.activation(y_BTD, ("batch", "position", "width"))


def _in_use(w: Array, logical: tuple[str, ...], seams: Seams, dtype: str) -> Array:
    """Cast a weight for its products, before it travels; leave codes as they are."""
    if jnp.issubdtype(w.dtype, jnp.floating):
        w = w.astype(dtype)
    return seams.placing.weight(w, logical)
