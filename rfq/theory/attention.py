"""Attention: the kurtosis of softmax, the scale of scores, and what averaging does."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from rfq.model import init, layers
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.stats import moments as moments_lib
from rfq.theory import laws, mixing
from rfq.theory.check import Check, Estimate, exact
from rfq.types import Array

# --- Softmax --------------------------------------------------------------------------


def saturated_kurtosis(num_scores: int) -> float:
    """gamma of a one-hot vector's coordinates, (T^2 - 6 T + 6) / (T - 1) (lemma 13).

    Also the largest that T values can have.
    """
    return (num_scores**2 - 6.0 * num_scores + 6.0) / (num_scores - 1.0)


def lognormal_kurtosis(tau: float) -> float:
    """gamma of softmax(tau g) as T -> infinity: that of exp(tau g).

    w^4 + 2 w^3 + 3 w^2 - 6 with w = exp(tau^2).
    """
    w = math.exp(tau**2)
    return w**4 + 2.0 * w**3 + 3.0 * w**2 - 6.0


def softmax_kurtosis(
    tau: float, num_scores: int, *, seed: int, num_batches: int = 32
) -> Estimate:
    """gamma of the coordinates of softmax(tau g), g ~ N(0, I_T), by Monte Carlo."""

    def draw(key: Array) -> Array:
        g = jax.random.normal(key, ((1 << 17) // num_scores, num_scores))
        # Times T: gamma does not change, and float32 keeps the fourth powers.
        return num_scores * jax.nn.softmax(tau * g, axis=-1)

    return laws.pooled_kurtosis(draw, seed=seed, num_batches=num_batches)


# --- Scores ---------------------------------------------------------------------------


def scores(q: Array, k: Array, divisor: float) -> np.ndarray:
    """q k^T / sqrt(divisor) of two sets of vectors, [n, m]."""
    return np.asarray(q @ k.T, np.float64) / math.sqrt(divisor)


def off_diagonal(s: np.ndarray) -> np.ndarray:
    """The entries of a square matrix outside its diagonal."""
    return s[~np.eye(len(s), dtype=bool)]


@functools.cache
def tokens(count: int, width: int, *, seed: int) -> Array:
    """Gaussian tokens behind an RMSNorm of unit gain, [count, width]."""
    x = jax.random.normal(jax.random.key(seed), (count, width))
    return layers.rms_norm(x, jnp.ones(width))


def single_head_scores(m: Array | None, width: int) -> np.ndarray:
    """s_ij = x_i M x_j^T / sqrt(d) of 400 normalized tokens (lemma 14); None is I."""
    x = tokens(400, width, seed=14)
    return scores(x if m is None else x @ m, x, width)


# The paper's sizes, one layer, and few pieces since they do not matter here.
PAPER = ModelConfig(num_layers=1, vocab_size=2)


@functools.cache
def fresh() -> dict[str, Array]:
    """The paper's initialization at the paper's width, one layer: {name: weight}."""
    drawn = init.RECIPES["orthogonal"](InitConfig(), PAPER, jax.random.key(0))
    return {name: w[0] for name, w in drawn.items()}


def head_scores(divisor: float, *, num_tokens: int) -> np.ndarray:
    """Scores of the fresh model's first head, [T, T], before temperature and mask."""
    x, w = tokens(num_tokens, PAPER.width, seed=15), fresh()
    return scores(x @ w["w_q"][:, 0], x @ w["w_k"][:, 0], divisor)


def diagonal_score(alpha: float, divisor: float) -> float:
    """E s_ii = alpha d_h / sqrt(divisor) per head with W_Q = W_K = sqrt(alpha) S."""
    return alpha * PAPER.head_width / math.sqrt(divisor)


def other_score(alpha: float, divisor: float) -> float:
    """Deviation of s_ij, i != j: alpha sqrt(d_h) / sqrt(divisor)."""
    return alpha * math.sqrt(PAPER.head_width / divisor)


# --- Averaging ------------------------------------------------------------------------


def self_weight(layer: int, divisor: float, *, num_tokens: int = 512) -> float:
    """Mean weight of a token on itself in causal attention, mean-field (section 4 iii).

    mean_i e^(tau g) / (e^(tau g) + (i - 1) e^(tau^2 s^2 / 2)), tau = beta^-layer, with
    `diagonal_score` g and `other_score` s at the paper's alpha_qk and beta.
    """
    alpha, tau = InitConfig().alpha_qk, PAPER.beta**-layer
    own = math.exp(tau * diagonal_score(alpha, divisor))
    other = math.exp((tau * other_score(alpha, divisor)) ** 2 / 2.0)
    return float(np.mean(own / (own + np.arange(num_tokens) * other)))


def realized_self_weight(layer: int, divisor: float) -> float:
    """The same of the fresh model's first head, 512 tokens."""
    s = PAPER.beta**-layer * head_scores(divisor, num_tokens=512)
    s[np.triu_indices(len(s), 1)] = -np.inf
    weights = np.exp(s - s.max(axis=-1, keepdims=True))
    return float(np.mean(np.diag(weights) / weights.sum(axis=-1)))


def averaged_kurtosis(num_tokens: int) -> float:
    """gamma over positions of causal means of T Gaussian values, Var_i = 1 / i.

    3 (T H2 / H^2 - 1) with H = sum 1/i and H2 = sum 1/i^2.
    """
    i = np.arange(1, num_tokens + 1)
    h, h2 = np.sum(1.0 / i), np.sum(1.0 / i**2)
    return float(3.0 * (num_tokens * h2 / h**2 - 1.0))


def uniform_attention(num_tokens: int, *, normalize: bool, seed: int) -> Estimate:
    """gamma of what causal attention makes of Gaussian values when all scores are 0.

    Twelve heads of width 64; behind an RMSNorm of each token if `normalize`.
    """
    shape = (1, num_tokens, PAPER.num_heads, PAPER.head_width)

    def draw(key: Array) -> Array:
        v = jax.random.normal(key, shape)
        zero = jnp.zeros(shape)
        mixed = layers.causal_attention(zero, zero, v, jnp.float32(1.0), "xla")
        x = mixed.reshape(num_tokens, PAPER.width)
        return layers.rms_norm(x, jnp.ones(PAPER.width)) if normalize else x

    return laws.pooled_kurtosis(draw, seed=seed, num_batches=8)


# --- Claims ---------------------------------------------------------------------------


def lemma_13() -> list[Check]:
    """Softmax: O(1) while not saturated, (T^2 - 6 T + 6) / (T - 1) when saturated."""
    one_hot = jnp.zeros(512).at[0].set(1.0)
    most = saturated_kurtosis(512)
    rows = [
        Check(
            where="C.6",
            statement="saturated, gamma = (T^2 - 6 T + 6) / (T - 1): a one-hot vector, "
            "T 512",
            predicted=most,
            measured=exact(
                moments_lib.excess_kurtosis(
                    moments_lib.to_float64(moments_lib.moments(one_hot))
                )
            ),
            tolerance=1e-3,
        ),
        Check(
            where="C.6",
            statement="saturated, gamma = (T^2 - 6 T + 6) / (T - 1): softmax(32 g), "
            "T 512",
            predicted=most,
            measured=softmax_kurtosis(32.0, 512, seed=32),
            tolerance=0.05 * most,  # tau is finite.
        ),
    ]
    rows += [
        Check(
            where="C.6",
            statement=f"not saturated, near-Gaussian: softmax({tau:g} g), T 2048",
            predicted=laws.NEAR_GAUSSIAN,
            measured=softmax_kurtosis(tau, 2048, seed=13),
            tolerance=0.0,
            relation="<=",
            corrected=lognormal_kurtosis(tau),
            note="O(1) in T, but the lognormal's gamma grows with tau",
        )
        for tau in (0.1, 0.25, 1.0)
    ]
    return rows


def lemma_14() -> list[Check]:
    """Scores have variance O(1) with orthogonal W_Q and W_K."""
    d = 256
    haar = mixing.haar(d, seed=14)
    s = single_head_scores(haar, d)
    return [
        Check(
            where="C.6",
            statement=f"Var s_ij = 1, i != j: Haar M = Q K^T, 400 tokens, d {d}",
            predicted=1.0,
            measured=exact(np.var(off_diagonal(s))),
            tolerance=0.03,
        ),
        Check(
            where="C.6",
            statement=f"E s_ii = 0: Haar M, d {d}",
            predicted=0.0,
            measured=laws.over_batches(np.diag(s)),
            tolerance=0.0,
        ),
        Check(
            where="C.6; section 4 (i)",
            statement=f"E s_ii = 0: W_Q = W_K, so that M = I, d {d}",
            predicted=0.0,
            measured=laws.over_batches(np.diag(single_head_scores(None, d))),
            tolerance=1e-3,
            note="s_ii = |x_i|^2 / sqrt(d) = sqrt(d): x_i is not independent of itself",
        ),
    ]


def section_4() -> list[Check]:
    """The identities of the initialization, at the paper's sizes."""
    w, config = fresh(), InitConfig()
    w_q, w_k = w["w_q"][:, 0], w["w_k"][:, 0]

    def off(gram: Array, alpha: float) -> Estimate:
        return exact(jnp.linalg.norm(gram - alpha * jnp.eye(len(gram)), 2) / alpha)

    rounding = 1e-4
    rank = "a d x d product of rank d_h is alpha times a projector"
    return [
        Check(
            where="4 (i)",
            statement="W_Q W_K^T = alpha_qk I per head: relative spectral distance",
            predicted=0.0,
            measured=off(w_q @ w_k.T, config.alpha_qk),
            tolerance=rounding,
            note=rank,
        ),
        Check(
            where="4 (i)",
            statement="W_U W_U^T = alpha_u I: relative spectral distance",
            predicted=0.0,
            measured=off(w["w_up"] @ w["w_up"].T, config.alpha_u),
            tolerance=rounding,
        ),
        Check(
            where="4 (i)",
            statement="W_V W_O = alpha_vo I: relative spectral distance",
            predicted=0.0,
            measured=off(w["w_v"] @ w["w_o"], config.alpha_vo),
            tolerance=rounding,
        ),
        *(
            Check(
                where="4 (iii)",
                statement=f"weight of a token on itself, {name}, layer {layer}, T 512, "
                "against its mean-field value",
                predicted=self_weight(layer, divisor),
                measured=exact(realized_self_weight(layer, divisor)),
                tolerance=0.1 * self_weight(layer, divisor),
            )
            for name, divisor in (
                ("1/sqrt(d_h)", float(PAPER.head_width)),
                ("1/sqrt(d)", float(PAPER.width)),
            )
            for layer in (1, 24)
        ),
    ]


def f_6() -> list[Check]:
    """Per head, s_ii is alpha sqrt(d_h) and not 0."""
    alpha = InitConfig().alpha_qk
    s = head_scores(PAPER.head_width, num_tokens=512)
    return [
        Check(
            where="Lemma 14",
            statement="E s_ii = alpha sqrt(d_h) = 7.2: the paper's initialization",
            predicted=diagonal_score(alpha, PAPER.head_width),
            measured=laws.over_batches(np.diag(s)),
            tolerance=0.02,
        ),
        Check(
            where="Lemma 14",
            statement="deviation of s_ij is alpha = .9: the paper's initialization",
            predicted=other_score(alpha, PAPER.head_width),
            measured=exact(np.std(off_diagonal(s))),
            tolerance=0.03,
        ),
        Check(
            where="Lemma 14",
            statement="s_ii = sqrt(d): W_Q = W_K, so that M = I, d 256",
            predicted=16.0,
            measured=laws.over_batches(np.diag(single_head_scores(None, 256))),
            tolerance=1e-3,
        ),
    ]


def f_7() -> list[Check]:
    """The identities hold for the Gram matrices on the small side."""
    w, config = fresh(), InitConfig()
    w_q, w_k, w_down = w["w_q"][:, 0], w["w_k"][:, 0], w["w_down"]
    return [
        Check(
            where="4 (i)",
            statement=f"{name} = {alpha} I: largest entry of the difference",
            predicted=0.0,
            measured=exact(jnp.max(jnp.abs(gram - alpha * jnp.eye(len(gram))))),
            tolerance=1e-5,
        )
        for name, gram, alpha in (
            ("W_Q^T W_K", w_q.T @ w_k, config.alpha_qk),
            ("W_D^T W_D", w_down.T @ w_down, config.alpha_d),
        )
    ]


def f_9() -> list[Check]:
    """The size of "O(1)": the lognormal limit, and how slowly it is reached."""
    found = {t: softmax_kurtosis(1.0, t, seed=9) for t in (64, 2048)}
    return [
        Check(
            where="Lemma 13",
            statement="gamma of softmax(g) still grows with T: T 2048 against T 64",
            predicted=found[64].value,
            measured=found[2048],
            tolerance=0.0,
            relation=">=",
        ),
        Check(
            where="Lemma 13",
            statement="gamma of softmax(g) is below its lognormal limit: T 2048",
            predicted=lognormal_kurtosis(1.0),
            measured=found[2048],
            tolerance=0.0,
            relation="<=",
        ),
    ]


def f_13() -> list[Check]:
    """Causal averaging alone makes pooled gamma large; a norm per token undoes it."""
    return [
        Check(
            where="4 (iii); D",
            statement="gamma of uniform causal attention over Gaussian values, T 512",
            predicted=averaged_kurtosis(512),
            measured=uniform_attention(512, normalize=False, seed=13),
            tolerance=0.0,
        ),
        Check(
            where="4 (iii); D",
            statement="|gamma| < .05 behind an RMSNorm of each token",
            predicted=0.05,
            measured=uniform_attention(512, normalize=True, seed=13),
            tolerance=0.0,
            relation="<=",
        ),
    ]
