"""KL-Shampoo, KL-SOAP and SOAP of one matrix in float64 numpy, written to be read.

Everything is kept in the parameters' coordinates and decomposed by LAPACK, nothing is
batched and nothing is clever: this is what `rfq.optim` is compared with where no stored
PyTorch trajectory covers an option. Names follow the papers (arXiv 2509.03378,
2409.11321). Each function returns the directions, before rate and decay.
"""

import numpy as np


def _descending_eigenvectors(s: np.ndarray) -> np.ndarray:
    return np.linalg.eigh(s + 1e-30 * np.eye(len(s)))[1][:, ::-1]


def _rms_to(u: np.ndarray, target: float | None) -> np.ndarray:
    return u if target is None else u * target / (np.sqrt(np.mean(u**2)) + 1e-30)


def kl_directions(
    grads,
    *,
    soap: bool,
    b1=0.9,
    b2=0.98,
    factor_b2=0.98,
    eps=1e-8,
    k=10,
    init_factor=0.1,
    max_clamp=4000.0,
    damping=0.0,
    rms_target=None,
    basis=None,
):
    """KL-Shampoo, or KL-SOAP; `basis` replaces the eigenvectors after call 0."""
    m, n = grads[0].shape
    b = factor_b2
    s_l = (1 - b) / n * grads[0] @ grads[0].T
    s_r = (1 - b) / m * grads[0].T @ grads[0]
    q_l, q_r = _descending_eigenvectors(s_l), _descending_eigenvectors(s_r)
    if basis is not None:
        q_l, q_r = basis
    r_l, r_r = np.full(m, init_factor**-0.5), np.full(n, init_factor**-0.5)
    mom, v = np.zeros((m, n)), np.zeros((m, n))
    yield np.zeros((m, n))

    def root(r, d):
        lam = b / r**2 + (1 - b) * d
        with np.errstate(divide="ignore"):
            r = lam**-0.5
        r = np.where(np.isfinite(r), r, 0.0)
        cap = np.inf if max_clamp is None else max(10.0, min(len(r), max_clamp))
        return np.minimum(r, cap)

    for t, g in enumerate(grads[1:], start=1):
        h = q_l.T @ g @ q_r
        if soap:
            mom = b1 * mom + (1 - b1) * h
            v = b2 * v + (1 - b2) * h**2
            u = q_l @ (mom / (np.sqrt(v) + eps)) @ q_r.T
        else:
            mom = b1 * mom + (1 - b1) * g
            d = np.outer(r_l, r_r)
            u = q_l @ (q_l.T @ mom @ q_r * d / (1 + eps * d)) @ q_r.T
        yield _rms_to(u, rms_target)
        a_l, a_r = g @ q_r * r_r, g.T @ q_l * r_l
        s_l = b * s_l + (1 - b) / n * a_l @ a_l.T
        s_r = b * s_r + (1 - b) / m * a_r @ a_r.T
        d_l = np.mean((h * r_r) ** 2, axis=1) + damping * np.mean(r_r**2)
        d_r = np.mean((h * r_l[:, None]) ** 2, axis=0) + damping * np.mean(r_l**2)
        r_l, r_r = root(r_l, d_l), root(r_r, d_r)
        if t % k == 0:
            new_l, new_r = np.linalg.qr(s_l @ q_l)[0], np.linalg.qr(s_r @ q_r)[0]
            if soap:
                mom = new_l.T @ (q_l @ mom @ q_r.T) @ new_r
            q_l, q_r = new_l, new_r


def soap_directions(
    grads,
    *,
    b1=0.95,
    b2=0.95,
    factor_b2=0.95,
    eps=1e-8,
    k=10,
    max_precondition_dim=10_000,
    bias_correction=True,
    rms_target=None,
    basis=None,
):
    """SOAP; sides beyond `max_precondition_dim` keep the identity as their basis."""
    shape, b = grads[0].shape, factor_b2
    rotated = [size <= max_precondition_dim for size in shape]

    def outers(g):
        return [g @ g.T, g.T @ g]

    factors = [(1 - b) * outer for outer in outers(grads[0])]
    q = [
        _descending_eigenvectors(s) if on else np.eye(len(s))
        for s, on in zip(factors, rotated, strict=True)
    ]
    if basis is not None:
        q = list(basis)
    mom, v = np.zeros(shape), np.zeros(shape)
    yield np.zeros(shape)
    for t, g in enumerate(grads[1:], start=1):
        h = q[0].T @ g @ q[1]
        mom = b1 * mom + (1 - b1) * h
        v = b2 * v + (1 - b2) * h**2
        u = _rms_to(q[0] @ (mom / (np.sqrt(v) + eps)) @ q[1].T, rms_target)
        yield u * np.sqrt(1 - b2**t) / (1 - b1**t) if bias_correction else u
        factors = [
            b * s + (1 - b) * outer for s, outer in zip(factors, outers(g), strict=True)
        ]
        if t % k == 0:
            plain = q[0] @ mom @ q[1].T
            for side in (0, 1):
                if rotated[side]:
                    e = np.diag(q[side].T @ factors[side] @ q[side])
                    order = np.argsort(-e, kind="stable")
                    v = np.take(v, order, axis=side)
                    q[side] = np.linalg.qr(factors[side] @ q[side][:, order])[0]
            mom = q[0].T @ plain @ q[1]
