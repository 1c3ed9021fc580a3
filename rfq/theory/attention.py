"""Attention: the kurtosis of softmax, the scale of scores, and what averaging does."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from rfq.model import init, layers
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.stats import central
from rfq.theory import activations, laws, mixing
from rfq.theory.check import Check, Estimate, exact
from rfq.types import Array

# --- Softmax --------------------------------------------------------------------------


def saturated_kurtosis(num_scores: int) -> float:
    """Return a one-hot vector's gamma, (T^2 - 6 T + 6) / (T - 1) (lemma 13).

    It is also the largest that T values can have.
    """
    return (num_scores**2 - 6.0 * num_scores + 6.0) / (num_scores - 1.0)


def lognormal_kurtosis(tau: float) -> float:
    """Compute gamma of softmax(tau g) as T -> infinity: that of exp(tau g).

    w^4 + 2 w^3 + 3 w^2 - 6 with w = exp(tau^2).
    """
    w = math.exp(tau**2)
    return w**4 + 2.0 * w**3 + 3.0 * w**2 - 6.0


def softmax_kurtosis(
    tau: float, num_scores: int, *, seed: int, num_batches: int = 32
) -> Estimate:
    """Measure gamma of softmax(tau g)'s coordinates, g ~ N(0, I_T), by Monte Carlo."""

    def draw(key: Array) -> Array:
        g = jax.random.normal(key, ((1 << 17) // num_scores, num_scores))
        # Times T: gamma does not change, and float32 keeps the fourth powers.
        return num_scores * jax.nn.softmax(tau * g, axis=-1)

    return laws.pooled_kurtosis(draw, seed=seed, num_batches=num_batches)


@functools.cache
def expected_softmax_kurtosis(tau: float, num_scores: int) -> float:
    """Compute what `softmax_kurtosis` estimates, by quadrature in float64.

    p = e_1 / S with e = exp(tau g) and S = sum e has, by 1 / S^k as an integral,

        E p^k = 1 / Gamma(k) int E[(s e)^k exp(-s e)] E[exp(-s e)]^(T-1) d log s.

    The kurtosis of few draws is mostly smaller: for tau of order 1 the fourth power
    comes from the largest weights, which are rare.
    """
    step = 0.25  # In log (s e), where the trapezoid rule errs by 1e-10 for k <= 4.
    g = np.arange(-10.0, 10.0, min(step, step / tau))
    density = np.exp(-(g**2) / 2.0)
    density /= density.sum()
    raw = np.zeros(5)
    first = -10.0 * tau - math.log(num_scores) - 40.0
    for log_s in np.arange(first, 10.0 * tau + 5.0, step):
        log_se = log_s + tau * g
        se = np.exp(np.minimum(log_se, 600.0))
        others = (density @ np.exp(-se)) ** (num_scores - 1)
        for k in range(1, 5):
            raw[k] += others * (density @ np.exp(k * log_se - se)) * step
    # Times T, so that the mean is 1.
    _, m1, m2, m3, m4 = raw * float(num_scores) ** np.arange(5) / (1, 1, 1, 2, 6)
    fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1**2 * m2 - 3.0 * m1**4
    return float(fourth / (m2 - m1**2) ** 2 - 3.0)


# --- Scores ---------------------------------------------------------------------------


def scores(q: Array, k: Array, divisor: float) -> np.ndarray:
    """Compute q k^T / sqrt(divisor) of two sets of vectors, [n, m]."""
    return np.asarray(q @ k.T, np.float64) / math.sqrt(divisor)


def off_diagonal(s: np.ndarray) -> np.ndarray:
    """Return the entries of a square matrix outside its diagonal."""
    return s[~np.eye(len(s), dtype=bool)]


@functools.cache
def tokens(count: int, width: int, *, seed: int) -> Array:
    """Draw Gaussian tokens behind an RMSNorm of unit gain, [count, width]."""
    x = jax.random.normal(jax.random.key(seed), (count, width))
    return layers.rms_norm(x, jnp.ones(width))


def single_head_scores(m: Array | None, width: int) -> np.ndarray:
    """Score 400 normed tokens, s_ij = x_i M x_j^T / sqrt(d) (lemma 14); None is I."""
    x = tokens(400, width, seed=14)
    return scores(x if m is None else x @ m, x, width)


# The paper's sizes with one layer and a small vocabulary, which does not matter here.
PAPER = ModelConfig(num_layers=1, vocab_size=2)


@functools.cache
def fresh() -> dict[str, Array]:
    """Draw the paper's initialization at its width, one layer: {name: weight}."""
    drawn = init.RECIPES["orthogonal"](InitConfig(), PAPER, jax.random.key(0))
    return {name: w[0] for name, w in drawn.items()}


def head_scores(divisor: float, *, num_tokens: int) -> np.ndarray:
    """Compute scores of the fresh model's first head, before temperature and mask."""
    x, w = tokens(num_tokens, PAPER.width, seed=15), fresh()
    return scores(x @ w["w_q"][:, 0], x @ w["w_k"][:, 0], divisor)


def diagonal_score(alpha: float, divisor: float) -> float:
    """Return E s_ii = alpha d_h / sqrt(divisor) per head, W_Q = W_K = sqrt(alpha) S."""
    return alpha * PAPER.head_width / math.sqrt(divisor)


def other_score(alpha: float, divisor: float) -> float:
    """Compute the deviation of s_ij, i != j: alpha sqrt(d_h) / sqrt(divisor)."""
    return alpha * math.sqrt(PAPER.head_width / divisor)


# --- Averaging ------------------------------------------------------------------------


def self_weight(layer: int, divisor: float, *, num_tokens: int = 512) -> float:
    """Compute a token's mean-field weight on itself in causal attention (section 4).

    mean_i e^(tau g) / (e^(tau g) + (i - 1) e^(tau^2 s^2 / 2)), tau = beta^-layer, with
    `diagonal_score` g and `other_score` s at the paper's alpha_qk and beta.
    """
    alpha, tau = InitConfig().alpha_qk, PAPER.beta**-layer
    own = math.exp(tau * diagonal_score(alpha, divisor))
    other = math.exp((tau * other_score(alpha, divisor)) ** 2 / 2.0)
    return float(np.mean(own / (own + np.arange(num_tokens) * other)))


def realized_self_weight(layer: int, divisor: float) -> float:
    """Measure the same in the fresh model's first head, with 512 tokens."""
    s = PAPER.beta**-layer * head_scores(divisor, num_tokens=512)
    s[np.triu_indices(len(s), 1)] = -np.inf
    weights = np.exp(s - s.max(axis=-1, keepdims=True))
    return float(np.mean(np.diag(weights) / weights.sum(axis=-1)))


def averaged_kurtosis(num_tokens: int) -> float:
    """Compute gamma over positions of causal means of T Gaussian values, Var_i = 1 / i.

    3 (T H2 / H^2 - 1) with H = sum 1/i and H2 = sum 1/i^2.
    """
    i = np.arange(1, num_tokens + 1)
    h, h2 = np.sum(1.0 / i), np.sum(1.0 / i**2)
    return float(3.0 * (num_tokens * h2 / h**2 - 1.0))


def uniform_attention(
    num_tokens: int, *, normalize: bool, seed: int, num_batches: int = 8
) -> Estimate:
    """Measure gamma of causal attention's output for Gaussian values and zero scores.

    Twelve heads of width 64; behind an RMSNorm of each token if `normalize`.
    """
    shape = (1, num_tokens, PAPER.num_heads, PAPER.head_width)

    def draw(key: Array) -> Array:
        v = jax.random.normal(key, shape)
        zero = jnp.zeros(shape)
        mixed = layers.causal_attention(zero, zero, v, jnp.float32(1.0), "xla")
        x = mixed.reshape(num_tokens, PAPER.width)
        return layers.rms_norm(x, jnp.ones(PAPER.width)) if normalize else x

    return laws.pooled_kurtosis(draw, seed=seed, num_batches=num_batches)


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
                central.excess_kurtosis(central.to_float64(central.moments(one_hot)))
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
            predicted=laws.PAPERS_LARGEST_GAMMA,
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
    """Score have variance O(1) with orthogonal W_Q and W_K."""
    d = 256
    haar = mixing.haar(d, seed=14)
    s = single_head_scores(haar, d)
    power = np.sum(np.asarray(tokens(400, d, seed=14), np.float64) ** 2, axis=-1)
    return [
        Check(
            where="C.6, eq. 20",
            statement=f"E |x_i|^2 = ||Sigma_i|| = 1 behind a norm, d {d}",
            predicted=1.0,
            measured=laws.over_batches(power),
            tolerance=1e-3,
            note="E |x_i|^2 is the trace, d; the operator norm of Sigma_i is 1",
        ),
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


def _distance(gram: Array, alpha: float) -> Estimate:
    """Return the largest entry of gram / alpha - I."""
    return exact(jnp.max(jnp.abs(gram / alpha - jnp.eye(len(gram)))))


def _identities(*grams: tuple[str, Array, Array, float], note: str = "") -> list[Check]:
    """Make a check of each (name, left, right, alpha): left @ right = alpha I."""
    return [
        Check(
            where="4 (i)",
            statement=f"{name} = alpha I: largest entry of the relative difference",
            predicted=0.0,
            measured=_distance(left @ right, alpha),
            tolerance=1e-5,
            note=note,
        )
        for name, left, right, alpha in grams
    ]


def section_4() -> list[Check]:
    """The identities of the initialization, at the paper's sizes."""
    w, config = fresh(), InitConfig()
    return _identities(
        ("W_Q W_K^T per head", w["w_q"][:, 0], w["w_k"][:, 0].T, config.alpha_qk),
        ("W_V W_O", w["w_v"], w["w_o"], config.alpha_vo),
        ("W_U W_U^T", w["w_up"], w["w_up"].T, config.alpha_u),
        ("W_D W_D^T", w["w_down"], w["w_down"].T, config.alpha_d),
        note="a product of lower rank than its size is alpha times a projector",
    )


def scores_per_head() -> list[Check]:
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


def grams_on_the_small_side() -> list[Check]:
    """Gram matrices on the small side, and what the scales come to."""
    w, config = fresh(), InitConfig()
    grams = _identities(
        ("W_Q^T W_K per head", w["w_q"][:, 0].T, w["w_k"][:, 0], config.alpha_qk),
        ("W_D^T W_D", w["w_down"].T, w["w_down"], config.alpha_d),
    )
    preactivations = tokens(400, PAPER.width, seed=14) @ w["w_up"]
    variance = Check(
        where="4 (i)",
        statement="variance behind W_U is alpha_u d / d_f",
        predicted=activations.preactivation_variance(config.mlp_scale),
        measured=exact(jnp.mean(preactivations**2)),
        tolerance=1e-5,
    )
    weights = [
        Check(
            where="4 (iii)",
            statement=f"mean-field weight of a token on itself: scores over {name}, "
            f"layer {layer}, T 512",
            predicted=self_weight(layer, divisor),
            measured=exact(realized_self_weight(layer, divisor)),
            tolerance=0.1 * self_weight(layer, divisor),
        )
        for name, divisor in (
            ("sqrt(d_h)", PAPER.head_width),
            ("sqrt(d)", PAPER.width),
        )
        for layer in (1, 24)
    ]
    return [*grams, variance, *weights]


def softmax_limit() -> list[Check]:
    """The size of "O(1)": the lognormal limit, and how slowly it is reached."""
    gamma_by_size = {t: softmax_kurtosis(1.0, t, seed=9) for t in (64, 2048)}
    return [
        Check(
            where="Lemma 13",
            statement="gamma of softmax(g) still grows with T: T 2048 against T 64",
            predicted=gamma_by_size[64].value,
            measured=gamma_by_size[2048],
            tolerance=0.0,
            relation=">=",
        ),
        Check(
            where="Lemma 13",
            statement="gamma of softmax(g) is below its lognormal limit: T 2048",
            predicted=lognormal_kurtosis(1.0),
            measured=gamma_by_size[2048],
            tolerance=0.0,
            relation="<=",
        ),
    ]


def causal_averaging() -> list[Check]:
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
