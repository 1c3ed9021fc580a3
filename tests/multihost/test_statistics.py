"""One array, measured on one device, on eight, and by two processes."""

import jax
import numpy as np
import pytest

from rfq import taps
from tests.multihost import processes, statistics_worker


def _record(leaves):
    shape = jax.eval_shape(
        lambda x: taps.Measure(statistics_worker.STATISTICS)(x, None)[1],
        statistics_worker.drawn(),
    )
    return taps.merged([jax.tree.unflatten(jax.tree.structure(shape), leaves)])


def _assert_same(leaves, reference):
    found, expected = _record(leaves), _record(reference)
    for name in ("moments", "channels"):
        np.testing.assert_array_equal(found[name].count, expected[name].count)
        for field in ("m2", "m4"):
            np.testing.assert_allclose(
                getattr(found[name], field), getattr(expected[name], field), rtol=1e-6
            )
        # Means near zero: relative to the standard deviation.
        std = np.sqrt(expected[name].m2 / expected[name].count)
        np.testing.assert_allclose(
            (found[name].mean - expected[name].mean) / std, 0.0, atol=1e-6
        )
    counted, whole = found["histogram"].histogram, expected["histogram"].histogram
    np.testing.assert_array_equal(counted.counts, whole.counts)
    assert counted.count == whole.count == statistics_worker.drawn().size
    ours, theirs = taps.numbers(found), taps.numbers(expected)
    # A kurtosis of 12,000 holds to its float32; one near zero absolutely.
    for key in ("excess_kurtosis", "channel_excess_kurtosis"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-5)
    for key in ("he_kurtosis", "token_cosine", "max_over_median", "negentropy"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def one_device():
    return statistics_worker.measured(jax.devices()[:1])


@pytest.mark.mesh
def test_eight_devices_measure_what_one_does(one_device):
    _assert_same(statistics_worker.measured(jax.devices()[:8]), one_device)


def test_two_processes_measure_what_one_does(one_device, one_device_env, tmp_path):
    out = tmp_path / "leaves.npz"
    processes.run(statistics_worker.__name__, str(out), env=one_device_env)
    with np.load(out) as saved:
        leaves = [saved[f"arr_{i}"] for i in range(len(saved.files))]
    _assert_same(leaves, one_device)
