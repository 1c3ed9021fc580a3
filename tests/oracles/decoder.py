"""The decoder of equations 1 and 2 in float64 numpy, one position and head at a time.

Written from the paper's text, independently of `rfq.model`: nothing is imported from
it but the names of the parameters and of the sites.
"""

import math

import numpy as np

EPS = 1e-6


def normalize(x, gain, norm):
    """Row by row: x over its root mean square, centered first for "layer_norm"."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        if norm == "layer_norm":
            row = row - row.mean()
        rows.append(row / math.sqrt((row * row).mean() + EPS) * gain)
    return np.array(rows).reshape(x.shape)


def rotate(x_TK, base):
    """RoPE by complex multiplication: pair k is (x_k, x_{k + K/2})."""
    half = x_TK.shape[1] // 2
    pairs = x_TK[:, :half] + 1j * x_TK[:, half:]
    for t in range(len(pairs)):
        for k in range(half):
            pairs[t, k] *= np.exp(1j * t / base ** (2 * k / x_TK.shape[1]))
    return np.concatenate([pairs.real, pairs.imag], axis=1)


def attend(q_TK, k_TK, v_TK, scale):
    """Every position averages the values of itself and of earlier positions."""
    out = np.empty_like(v_TK)
    for t in range(len(q_TK)):
        logits = scale * (k_TK[: t + 1] @ q_TK[t])
        weights = np.exp(logits - logits.max())
        out[t] = (weights / weights.sum()) @ v_TK[: t + 1]
    return out


def gelu(x):
    """x Phi(x), exactly."""
    return x * np.vectorize(lambda v: 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))))(x)


def forward(params, tokens_BT, config):
    """Returns logits [B, T, V], and {site: activation, block sites stacked over L}."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params["blocks"].items()}
    embedding = np.asarray(params["embedding"], np.float64)
    width, num_heads = config.width, config.num_heads
    head_width = width // num_heads
    divisor = math.sqrt(
        {"head_width": head_width, "width": width}[config.attention_scale]
    )
    sites = {}

    def seen(site, x):
        sites.setdefault(site, []).append(x)
        return x

    x = embedding[np.asarray(tokens_BT)]
    for l in range(1, config.num_layers + 1):  # noqa: E741 - the paper's letter.
        tau = 1.0 / config.beta**l
        w = {name: leaf[l - 1] for name, leaf in p.items()}
        h = normalize(seen("attn_norm_in", x), w["attn_norm"], config.norm)
        seen("attn_in", h)
        update = np.zeros_like(x)
        heads = {"q": [], "k": [], "v": [], "attn_out": []}
        for head in range(num_heads):
            q = h @ w["w_q"][:, head]
            k = h @ w["w_k"][:, head]
            v = h @ w["w_v"][:, head]
            q = np.array([rotate(row, config.rope_base) for row in q])
            k = np.array([rotate(row, config.rope_base) for row in k])
            a = np.array(
                [attend(*qkv, tau / divisor) for qkv in zip(q, k, v, strict=True)]
            )
            update += a @ w["w_o"][head]
            for name, value in zip(heads, (q, k, v, a), strict=True):
                heads[name].append(value)
        for name, values in heads.items():
            seen(name, np.stack(values, axis=2))
        x = x + update if config.skip == "residual" else update
        h = normalize(seen("mlp_norm_in", x), w["mlp_norm"], config.norm)
        seen("mlp_in", h)
        hidden = seen("mlp_hidden", gelu(h @ w["w_up"]))
        update = hidden @ w["w_down"]
        x = x + update if config.skip == "residual" else update
    sites = {site: np.stack(values) for site, values in sites.items()}
    sites["final_norm_in"] = x
    h = normalize(x, np.asarray(params["final_norm"], np.float64), config.norm)
    sites["head_in"] = h
    return h @ embedding.T, sites


def token_losses(params, batch, config):
    """-log softmax(logits)[target] at every position, [B, T]."""
    batch = np.asarray(batch)
    logits, _ = forward(params, batch[:, :-1], config)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    log_z += logits.max(-1)
    rows, columns = np.indices(log_z.shape)
    return log_z - logits[rows, columns, batch[:, 1:]]
