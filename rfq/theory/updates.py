"""The effect of a step of sign or spectral descent on an isometry."""

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from rfq.theory import laws
from rfq.theory.check import Check, Estimate, exact

# Everything here is float64 on the host: the drifts of interest are of the order of
# float32's rounding.


def drift(w: np.ndarray) -> float:
    """Compute ||W W^T - I||_2 (equation 14)."""
    return norm(w @ w.T - np.eye(len(w)))


def norm(s: np.ndarray) -> float:
    """Compute ||S||_2, the largest singular value."""
    return float(np.linalg.norm(s, 2))


def drift_bound(rate: float, update_norm: float, defect: float = 0.0) -> float:
    """Bound ||W' W'^T - I|| for W' = W - rate * S (proofs of lemmas 8 and 10).

    defect + 2 rate ||W|| ||S|| + rate^2 ||S||^2 with ||W||^2 <= 1 + defect. ||S|| is 1
    for a spectral step and between sqrt(d) and d for a step of signs.
    """
    step = rate * update_norm
    return defect + 2.0 * step * math.sqrt(1.0 + defect) + step**2


def spectral_drift(w: np.ndarray, o: np.ndarray, rate: float) -> float:
    """Compute the drift of an orthogonal W along an orthogonal O, by W^T O's phases.

    max_k |rate^2 - 2 rate cos theta_k|: the drift of W - rate O, exactly.
    """
    cosines = np.real(np.linalg.eigvals(w.T @ o))
    return float(np.max(np.abs(rate**2 - 2.0 * rate * cosines)))


def aligned_drift(rate: float, num_steps: int) -> float:
    """Compute the drift after steps that all point to -W: (1 + rate T)^2 - 1."""
    return (1.0 + rate * num_steps) ** 2 - 1.0


@functools.cache
def orthogonal(d: int, *, seed: int) -> np.ndarray:
    """Draw a Haar matrix, orthogonal to float64's rounding."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return q * np.sign(np.diag(r))


@functools.cache
def signs(d: int, *, seed: int) -> np.ndarray:
    """Draw independent random signs [d, d], those of a Gaussian gradient."""
    return np.sign(np.random.default_rng(seed).standard_normal((d, d)))


# (d, seed=) -> a random step; the polar factor of a Gaussian gradient is Haar.
RANDOM_STEPS: Mapping[str, Callable[..., np.ndarray]] = {
    "spectral": orthogonal,
    "sign": signs,
}


def low_rank_signs(d: int, rank: int, *, seed: int) -> np.ndarray:
    """Draw signs of a gradient of this rank, a product of Gaussian factors."""
    rng = np.random.default_rng(seed)
    return np.sign(rng.standard_normal((d, rank)) @ rng.standard_normal((rank, d)))


def rank_one_drift(rate: float, d: int, cosine: float) -> float:
    """Compute the drift of an orthogonal W along signs of rank 1, S = u v^T, exactly.

    With t = rate d and c the cosine between W v and u, W W^T - I becomes
    t^2 u u^T - t (W v u^T + u (W v)^T) for unit u and W v: a 2 x 2 matrix of trace
    t^2 - 2 t c and determinant -t^2 (1 - c^2).
    """
    t = rate * d
    trace = t**2 - 2.0 * t * cosine
    return (abs(trace) + math.sqrt(trace**2 + 4.0 * t**2 * (1.0 - cosine**2))) / 2.0


def low_rank_norm(rank: int) -> float:
    """Compute ||sign(G)||_2 / d of a gradient of this rank as d -> infinity.

    E |t| for the first coordinate t of a point on the sphere in R^rank,
    Gamma(r/2) / (sqrt(pi) Gamma((r+1)/2)): the eigenvalue of sign(<u, v>) that belongs
    to linear functions (Funk-Hecke). 1, .424 and .203 at rank 1, 4 and 16; finite d is
    above.
    """
    ratio = math.lgamma(rank / 2.0) - math.lgamma((rank + 1.0) / 2.0)
    return math.exp(ratio) / math.sqrt(math.pi)


def hadamard(d: int) -> np.ndarray:
    """Make Sylvester's Hadamard matrix; d is a power of 2."""
    h = np.ones((1, 1))
    while len(h) < d:
        h = np.block([[h, h], [h, -h]])
    return h


def walked_drift(kind: str, *, d: int, rate: float, num_steps: int, seed: int) -> float:
    """Measure the drift after independent random steps from a Haar matrix."""
    w = orthogonal(d, seed=seed)
    for step in range(num_steps):
        w = w - rate * RANDOM_STEPS[kind](d, seed=seed + 1 + step)
    return drift(w)


RATE = 1e-3
SIZES = (64, 256, 768)


@functools.cache
def one_step(kind: str, d: int, rate: float) -> float:
    """Measure the drift of a Haar matrix after one random spectral or sign step."""
    return drift(orthogonal(d, seed=4) - rate * RANDOM_STEPS[kind](d, seed=5))


# --- Claims ---------------------------------------------------------------------------

# The rounding error of products of matrices in float64.
_ROUNDING = 1e-12


def lemma_4() -> list[Check]:
    """O(eta) against O(eta sqrt(d) + eta^2 d), and what is equal in that."""
    ends = (SIZES[0], SIZES[-1])

    def power(kind: str) -> Estimate:
        drifts = tuple(exact(one_step(kind, d, RATE)) for d in ends)
        return laws.exponent(ends, drifts)

    return [
        Check(
            where="3.2, eq. 5",
            statement=f"drift ~ d^p: a random spectral step, eta {RATE:g}, d 64 to 768",
            predicted=0.0,
            measured=power("spectral"),
            tolerance=0.01,
        ),
        Check(
            where="3.2, eq. 6",
            statement=f"drift ~ d^p: a random sign step, eta {RATE:g}, d 64 to 768",
            predicted=0.5,
            measured=power("sign"),
            tolerance=0.05,  # eta^2 d, and the slow approach of ||S|| to 2 sqrt(d).
        ),
        Check(
            where="3.2",
            statement="sign steps destroy isometry sqrt(d) times faster: random steps "
            "of equal Frobenius norm, d 768",
            predicted=math.sqrt(768),
            measured=exact(
                one_step("sign", 768, RATE)
                / one_step("spectral", 768, RATE * math.sqrt(768))
            ),
            tolerance=1.0,
            note="at equal eta a sign step is sqrt(d) times larger; step for step the "
            "two are of one order",
        ),
    ]


def lemma_8() -> list[Check]:
    """||W' W'^T - I|| <= epsilon + 2 eta + eta^2 for a spectral step."""
    d = 256
    w, o = orthogonal(d, seed=4), orthogonal(d, seed=5)
    printed = np.eye(d) - 2.0 * RATE * w @ o.T + RATE**2 * np.eye(d)
    moved = (w - RATE * o) @ (w - RATE * o).T
    rows = [
        Check(
            where="C.4",
            statement=f"drift <= epsilon + 2 eta + eta^2: {name}, eta {RATE:g}, d {d}",
            predicted=drift_bound(RATE, norm(step), drift(w)),
            measured=exact(drift(w - RATE * step)),
            tolerance=_ROUNDING,
            relation="<=",
        )
        for name, step in (
            ("one random spectral step", o),
            ("the worst step, O = -W", -w),
            ("a gradient of rank 16", o[:, :16] @ w[:, :16].T),
        )
    ]
    rows.append(
        Check(
            where="C.4",
            statement="W' W'^T = W W^T - 2 eta W V U^T + eta^2 I: norm of the "
            f"difference, a random step, d {d}",
            predicted=0.0,
            measured=exact(norm(moved - printed)),
            tolerance=_ROUNDING,
            note="the cross term is -eta (A + A^T) with A = W V U^T; the bound stands",
        )
    )
    return rows


def lemma_9() -> list[Check]:
    """||S||_2 = O(sqrt(d)) for "dense sign patterns"."""
    d = 768
    rng = np.random.default_rng(9)
    u, v = rng.standard_normal((2, d))
    return [
        Check(
            where="C.4",
            statement=f"||S|| / sqrt(d) = 2: random signs, d {d}",
            predicted=2.0,
            measured=exact(norm(signs(d, seed=5)) / math.sqrt(d)),
            tolerance=0.05,  # At finite width it is d^(-2/3) below.
        ),
        Check(
            where="C.4",
            statement="||S|| / sqrt(d) = 1: Sylvester's Hadamard matrix, d 256",
            predicted=1.0,
            measured=exact(norm(hadamard(256)) / 16.0),
            tolerance=1e-9,
        ),
        Check(
            where="C.4",
            statement="the same for dense patterns, ||S|| <= 2 sqrt(d): signs of a "
            f"gradient of rank 1, d {d}",
            predicted=2.0 * math.sqrt(d),
            measured=exact(norm(np.sign(np.outer(u, v)))),
            tolerance=1e-6,
            relation="<=",
            corrected=float(d),
            note="sqrt(d) <= ||S|| <= d, and a dense pattern of rank 1 reaches d",
        ),
    ]


def lemma_10() -> list[Check]:
    """||W' W'^T - I|| <= 2 eta sqrt(d) + eta^2 d for a step of signs."""
    d = 768
    w = orthogonal(d, seed=4)
    defect = drift(w)
    rows = [
        Check(
            where="C.4, eq. 18",
            statement="drift <= epsilon + 2 eta sqrt(d) + eta^2 d: "
            f"{name}, eta {RATE:g}, d {d}",
            predicted=drift_bound(RATE, math.sqrt(d), defect),
            measured=exact(drift(w - RATE * s)),
            tolerance=_ROUNDING,
            relation="<=",
            corrected=drift_bound(RATE, norm(s), defect),
            note=note,
        )
        for name, s, note in (
            ("random signs", signs(d, seed=5), "||S|| is 2 sqrt(d), not sqrt(d)"),
            (
                "signs of a gradient of rank 1",
                low_rank_signs(d, 1, seed=5),
                "||S|| is d there: eta d + eta^2 d^2",
            ),
        )
    ]
    rows.append(
        Check(
            where="C.4, eq. 16",
            statement="W' W'^T = W W^T + eta (A + A^T) + eta^2 S S^T, A = W S^T: "
            "norm of the difference, random signs, d 64",
            predicted=0.0,
            measured=exact(_expansion_error(-1.0)),
            tolerance=_ROUNDING,
            note="the cross term is -eta (A + A^T); its norm is bounded, so the bound "
            "stands",
        )
    )
    return rows


def _expansion_error(sign: float) -> float:
    """Measure ||W' W'^T - (W W^T - sign * eta (A + A^T) + eta^2 S S^T)||."""
    w, s = orthogonal(64, seed=4), signs(64, seed=5)
    moved = (w - RATE * s) @ (w - RATE * s).T
    cross = RATE * (w @ s.T + s @ w.T)
    return norm(moved - (w @ w.T - sign * cross + RATE**2 * s @ s.T))


def signs_of_low_rank() -> list[Check]:
    """Signs of gradients of low rank keep a norm of the order of d."""
    d = 256
    return [
        Check(
            where="Lemma 9, 10",
            statement=f"||sign(G)|| / d >= its limit: G of rank {rank}, d {d}",
            predicted=low_rank_norm(rank),
            measured=exact(norm(low_rank_signs(d, rank, seed=5)) / d),
            tolerance=1e-9,
            relation=">=",
        )
        for rank in (1, 4, 16)
    ]


def drift_at_equal_size() -> list[Check]:
    """At equal size both drifts grow like sqrt(d), and over steps they add up."""
    ends = (SIZES[0], SIZES[-1])
    matched = tuple(exact(one_step("spectral", d, RATE * math.sqrt(d))) for d in ends)
    w, num_steps = orthogonal(64, seed=4), 100
    moved = w
    for _ in range(num_steps):
        u, _, vt = np.linalg.svd(-moved)
        moved = moved - RATE * (u @ vt)
    return [
        Check(
            where="Lemma 4",
            statement="drift ~ d^p: a random spectral step of eta sqrt(d), d 64 to 768",
            predicted=0.5,
            measured=laws.exponent(ends, matched),
            tolerance=0.05,
        ),
        Check(
            where="Lemma 4",
            statement=f"drift of T = {num_steps} aligned spectral steps is "
            "(1 + eta T)^2 - 1, d 64",
            predicted=aligned_drift(RATE, num_steps),
            measured=exact(drift(moved)),
            tolerance=1e-4,
        ),
    ]


def sign_of_the_cross_term() -> list[Check]:
    """The expansion behind lemmas 8 and 10 with its sign and its transpose."""
    return [
        Check(
            where="C.4, eq. 16",
            statement="W' W'^T = W W^T - eta (A + A^T) + eta^2 S S^T, A = W S^T: "
            "norm of the difference, random signs, d 64",
            predicted=0.0,
            measured=exact(_expansion_error(1.0)),
            tolerance=_ROUNDING,
        )
    ]
