"""The decoder of equations 1 and 2 in float64 numpy, one position and head at a time.

Written from the paper's text, independently of `rfq.model`: nothing is imported from
it, and only the names of parameters and sites are shared.
"""

import math

import numpy as np

# The choices that are written here; a model may have others.
NORMS = ("rms_norm", "layer_norm", "single_scale_norm")
SKIPS = ("residual", "residual_free", "weighted")
ATTENTION_KINDS = ("softmax", "decaying", "shaped")
MLPS = ("gelu", "swiglu", "geglu")


def normalize(x, gain, norm, eps=1e-6):
    """Row by row: x over its root mean square, centered first for "layer_norm".

    The gain is one number a channel, or one for "single_scale_norm".
    """
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        if norm == "layer_norm":
            row = row - row.mean()
        rows.append(row / math.sqrt((row * row).mean() + eps) * gain)
    return np.array(rows).reshape(x.shape)


def rotate(x_TK, base):
    """RoPE by complex multiplication: pair k is (x_k, x_{k + K/2})."""
    half = x_TK.shape[1] // 2
    pairs = x_TK[:, :half] + 1j * x_TK[:, half:]
    for t in range(len(pairs)):
        for k in range(half):
            pairs[t, k] *= np.exp(1j * t / base ** (2 * k / x_TK.shape[1]))
    return np.concatenate([pairs.real, pairs.imag], axis=1)


def attend(q_TK, k_TK, v_TK, scale, slope=0.0, shape=(0.0, 1.0, 0.0)):
    """Every position averages the values of itself and of earlier positions.

    A logit falls by `slope` a position of distance. `shape` weighs the own value, the
    average, and minus the mean of all values up to here.
    """
    own, mixed, uniform = shape
    out = np.empty_like(v_TK)
    for t in range(len(q_TK)):
        distance = t - np.arange(t + 1)
        logits = scale * (k_TK[: t + 1] @ q_TK[t]) - slope * distance
        weights = np.exp(logits - logits.max())
        average = (weights / weights.sum()) @ v_TK[: t + 1]
        mean = v_TK[: t + 1].mean(axis=0)
        out[t] = own * v_TK[t] + mixed * average - uniform * mean
    return out


def gelu(x):
    """x Phi(x), exactly."""
    return x * np.vectorize(lambda v: 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))))(x)


def hidden(mlp, up, gate):
    """The hidden activation of the MLP."""
    if mlp == "gelu":
        return gelu(up)
    return up * (gelu(gate) if mlp == "geglu" else gate / (1.0 + np.exp(-gate)))


def forward(params, tokens_BT, config, *, edit=None, stream="branch"):
    """The whole model.

    Args:
        params: the parameter tree.
        tokens_BT: token ids.
        config: the sizes and choices of `ModelConfig`.
        edit: (site, 0-based layer or None, x) -> x, what is done to an activation; the
            sites record what came before.
        stream: "branch", the skip path carries x as it was before its edit, or
            "in_place", as it is after.

    Returns:
        Logits [B, T, V], and {site: activation}, block sites stacked over layers.
    """
    w = {name: np.asarray(leaf, np.float64) for name, leaf in params["blocks"].items()}
    embedding = np.asarray(params["embedding"], np.float64)
    final_norm = np.asarray(params["final_norm"], np.float64)
    kv_heads = config.num_kv_heads or config.num_heads
    head_width = config.width // config.num_heads
    divisor = {"head_width": head_width, "width": config.width}[config.attention_scale]
    sites = {}

    def site(name, layer, x):
        sites.setdefault(name, []).append(x)
        return x if edit is None else edit(name, layer, x)

    def connect(i, x, tapped, update):
        if config.skip == "residual_free":
            return update
        weight = w["skip_weight"][i] if config.skip == "weighted" else 1.0
        return update + weight * (tapped if stream == "in_place" else x)

    x = embedding[np.asarray(tokens_BT)]
    if config.embedding == "projected":
        x = x @ np.asarray(params["w_embed"], np.float64)
    for i in range(config.num_layers):
        tau = config.beta ** -(i + config.first_layer)
        scale = tau / math.sqrt(divisor)
        tapped = site("attn_norm_in", i, x)
        h = normalize(tapped, w["attn_norm"][i], config.norm, config.norm_eps)
        h = site("attn_in", i, h)
        q, k, v = (
            np.stack([h @ w[n][i][:, head] for head in range(w[n].shape[2])], axis=2)
            for n in ("w_q", "w_k", "w_v")
        )
        if config.biases == "qkv":
            q, k, v = q + w["b_q"][i], k + w["b_k"][i], v + w["b_v"][i]
        q, k = (_over_heads(rotate, x, config.rope_base) for x in (q, k))
        q, k, v = site("q", i, q), site("k", i, k), site("v", i, v)
        mixed = np.empty_like(q)
        for b, head in np.ndindex(q.shape[0], q.shape[2]):
            at = (b, slice(None), head)
            own = (b, slice(None), head * kv_heads // config.num_heads)
            special = _special(w, config.attention_kind, i, head)
            mixed[at] = attend(q[at], k[own], v[own], scale, **special)
        if config.attention_gate == "head":
            mixed /= 1.0 + np.exp(-h @ w["w_gate"][i])[..., None]
        mixed = site("attn_out", i, mixed)
        update = sum(
            mixed[:, :, head] @ w["w_o"][i][head] for head in range(config.num_heads)
        )
        x = connect(i, x, tapped, update)
        tapped = site("mlp_norm_in", i, x)
        h = normalize(tapped, w["mlp_norm"][i], config.norm, config.norm_eps)
        h = site("mlp_in", i, h)
        gate = None if config.mlp == "gelu" else h @ w["w_mlp_gate"][i]
        inner = site("mlp_hidden", i, hidden(config.mlp, h @ w["w_up"][i], gate))
        x = connect(i, x, tapped, inner @ w["w_down"][i])
    stacked = {name: np.stack(values) for name, values in sites.items()}
    sites.clear()
    x = site("final_norm_in", None, x)
    h = normalize(x, final_norm, config.norm, config.norm_eps)
    h = site("head_in", None, h)
    if config.embedding == "projected":
        h = h @ np.asarray(params["w_unembed"], np.float64)
    if config.head == "untied":
        embedding = np.asarray(params["unembedding"], np.float64)
    return h @ embedding.T, stacked | {name: x for name, (x,) in sites.items()}


def _special(w, kind, i, head):
    """What a kind of attention has beside queries and keys, in layer i."""
    if kind == "decaying":
        return {"slope": w["head_decay"][i, head]}
    if kind == "shaped":
        names = ("mix_identity", "mix_softmax", "mix_uniform")
        return {"shape": [w[name][i, head] for name in names]}
    return {}


def _over_heads(function, x_BTHK, *args):
    out = np.empty_like(x_BTHK)
    for b, head in np.ndindex(x_BTHK.shape[0], x_BTHK.shape[2]):
        out[b, :, head] = function(x_BTHK[b, :, head], *args)
    return out


def token_losses(params, batch, config):
    """-log softmax(logits)[target] at every position, [B, T]."""
    batch = np.asarray(batch)
    logits, _ = forward(params, batch[:, :-1], config)
    peak = logits.max(-1)
    log_z = np.log(np.exp(logits - peak[..., None]).sum(-1)) + peak
    rows, columns = np.indices(log_z.shape)
    return log_z - logits[rows, columns, batch[:, 1:]]
