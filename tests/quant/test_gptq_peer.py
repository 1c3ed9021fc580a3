"""GPTQ reaches the objective of the published loop, which is in torch."""

import numpy as np
import pytest

from rfq.params import MatrixAxes
from rfq.quant import gptq, weights

K, N, TOKENS = 96, 40, 400


def published(torch, w, h, bits, *, group, block, ordered, damping=0.01):
    """The loop of github.com/IST-DASLab/gptq: [out, in], blocks, an inverse first.

    Grids are asymmetric min-max ones with 0 inside, found on the given weights: per
    channel as there, per group as its option `static_groups`.
    """
    weight = torch.tensor(w).T.float().clone()
    hessian = torch.tensor(h).float()
    columns = weight.shape[1]
    size, most = group or columns, 2**bits - 1
    parts = weight.reshape(len(weight), -1, size)
    lowest, highest = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    scale = ((highest - lowest) / most).repeat_interleave(size, 1)
    zero = torch.round(-lowest.repeat_interleave(size, 1) / scale)
    order = torch.arange(columns)
    if ordered:
        order = torch.argsort(torch.diag(hessian), descending=True)
    weight, hessian = weight[:, order], hessian[order][:, order]
    scale, zero = scale[:, order], zero[:, order]
    hessian.diagonal().add_(damping * torch.diag(hessian).mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    inverse = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.zeros_like(weight)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.zeros(len(weight), stop - start)
        for i in range(start, stop):
            q = torch.clamp(
                torch.round(weight[:, i] / scale[:, i]) + zero[:, i], 0, most
            )
            rounded[:, i] = scale[:, i] * (q - zero[:, i])
            error = (weight[:, i] - rounded[:, i]) / inverse[i, i]
            weight[:, i:stop] -= error[:, None] * inverse[i, i:stop][None]
            errors[:, i - start] = error
        weight[:, stop:] -= errors @ inverse[start:stop, stop:]
    return rounded[:, torch.argsort(order)].T.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_objective_is_that_of_the_published_loop(bits, group, ordered):
    torch = pytest.importorskip("torch", reason="not run: needs the extra torch-peers")
    rng = np.random.default_rng(0)
    w = rng.standard_normal((K, N)).astype(np.float32)
    x = rng.standard_normal((TOKENS, K)) @ rng.standard_normal((K, K))
    x *= rng.permutation(np.geomspace(0.1, 3.0, K))
    h = x.T @ x
    theirs = published(torch, w, h, bits, group=group, block=32, ordered=ordered)
    axes = MatrixAxes((0,), (1,))
    how = {"axes": axes, "group_size": group}
    ours = np.asarray(gptq.quantize(w, bits, h, is_ordered=ordered, **how))
    plain = np.asarray(weights.quantize(w, bits, **how))

    def costs(q):
        error = np.float64(w) - q
        return np.sum(error * (h @ error), axis=0)

    # They have no choice of the better rounding of a channel, which is ours alone.
    assert np.mean(ours == plain) < 0.99
    expected = np.minimum(costs(theirs), costs(plain)).sum()
    np.testing.assert_allclose(costs(ours).sum(), expected, rtol=0.01)
    assert expected < costs(plain).sum()
