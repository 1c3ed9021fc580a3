"""Rotations keep the function and take outliers apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import taps
from rfq.model import transformer
from rfq.model.config import SITES, ModelConfig, unfolded
from rfq.quant import rotate
from tests.model import examples

# Widths of public models: 2^8, 12 * 2^6 (Paley I) and 36 * 2^4 (Paley II).
KNOWN = (1, 2, 4, 12, 20, 28, 36, 256, 576, 768)
UNKNOWN = (3, 6, 10, 22)


@pytest.mark.parametrize("width", KNOWN)
def test_a_hadamard_matrix_is_signs_with_orthogonal_rows(width):
    found = rotate.hadamard(width)
    assert set(np.unique(found)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(found @ found.T, width * np.eye(width))


@pytest.mark.parametrize("width", UNKNOWN)
def test_no_hadamard_matrix_is_invented(width):
    assert rotate.hadamard(width) is None


@pytest.mark.parametrize("width", [1, 2, 3, 10, 12, 28, 64, 96])
def test_a_rotation_is_orthogonal_and_computes_its_matrix(width):
    turn = rotate.Rotation(width, seed=3)
    np.testing.assert_allclose(turn.matrix @ turn.matrix.T, np.eye(width), atol=1e-12)
    x = np.random.default_rng(0).standard_normal((2, 5, width)).astype(np.float32)
    np.testing.assert_allclose(turn(jnp.asarray(x)), x @ turn.matrix, atol=2e-6)
    other = rotate.Rotation(width, seed=4).matrix
    assert width == 1 or not np.array_equal(other, turn.matrix)


def test_one_outlier_channel_is_spread_over_all():
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    x[:, 7] *= 300.0
    peak = np.abs(x).max() / x.std()
    turned = np.asarray(rotate.Rotation(256)(jnp.asarray(x)))
    assert peak > 20.0 and np.abs(turned).max() / turned.std() < 5.0


MODELS = {
    "residual": {"skip": "residual"},
    "residual-free": {"skip": "residual_free"},
    "weighted": {"skip": "weighted"},
    "shaped": {"attention_kind": "shaped"},
    "rivals": examples.RIVALS,
    "rivals, untied": {**examples.RIVALS, "head": "untied"},
    "llama": examples.LLAMA,
    "llama, residual-free, tied": {
        **examples.LLAMA,
        "head": "tied",
        "skip": "residual_free",
        "num_heads": 6,
        "num_kv_heads": 3,
    },
}


def rotated(model: ModelConfig, params, seed=0):
    """The parameters, the configuration and the seams of the rotated model."""
    rotations = rotate.draw(model.width, model.head_width, model.mlp_width, seed=seed)
    return (
        rotate.rotated(params, rotations),
        unfolded(model),
        transformer.Seams(taps.Taps(examples.keep, SITES), turns=rotations.online),
    )


# Which fast tests see: two that differ in everything.
QUICK = ("residual", "llama, residual-free, tied")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def test_a_rotated_model_is_the_same_function(name):
    model = examples.config(**MODELS[name])
    params, batch = examples.params(model), examples.batch(model)
    turned, config, seams = rotated(model, params)
    shapes = jax.tree.map(jnp.shape, turned)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, transformer.shapes(config))
    kept = transformer.Seams(taps.Taps(examples.keep, SITES))
    with jax.default_matmul_precision("highest"):
        before, old = transformer.apply(params, batch[:, :-1], model, kept)
        after, new = transformer.apply(turned, batch[:, :-1], config, seams)
    assert np.linalg.norm(after - before) < 1e-5 * np.linalg.norm(before)
    assert jnp.std(before) > 0.1
    # The activations did turn, by a matrix that keeps their norms where no gain is.
    for site in ("attn_norm_in", "mlp_hidden", "v"):
        assert np.abs(old[site] - new[site]).max() > 0.1 * np.std(old[site])
        energy = [jnp.sum(x[site] ** 2, axis=-1) for x in (old, new)]
        np.testing.assert_allclose(*energy, rtol=1e-4)
    # Behind a norm without gains the RMS is 1.
    np.testing.assert_allclose(jnp.mean(new["attn_in"] ** 2, -1), 1.0, atol=0.2)


def test_the_weights_alone_are_another_function():
    # Or the law above would hold without the rotation of the hidden activation.
    model = examples.config()
    params, batch = examples.params(model), examples.batch(model)
    turned, config, _ = rotated(model, params)
    before, _ = transformer.apply(params, batch[:, :-1], model)
    after, _ = transformer.apply(turned, batch[:, :-1], config)
    assert np.abs(after - before).max() > 0.1
