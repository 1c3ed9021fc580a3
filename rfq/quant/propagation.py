"""The travel of rounding errors through a model, and the sum of all of them.

A site s that is rounded adds an error n_s to its tensor x_s. Its relative energy
e_s = |n_s|^2 / |x_s|^2 is the site's NMSE. To first order the error that enters a site
t is sum_s J_ts n_s, where J_ts is the Jacobian of the model. If the error of a site is
white, and errors of different sites and layers are uncorrelated, their energies add:

    R_t = sum_s G_ts e_s,    G_ts = E |J_ts u|^2 / |x_t|^2 * |x_s|^2 / E |u|^2

with u white. In an isometric model without skips
every gain is 1, so that R_t is the sum of the errors above t. A skip that carries the
clean stream makes gains small; a skip that carries the rounded one keeps those of the
stream. Behind a norm the sum S = sum_s G_ts e_s is bounded: the normalized tensor has
cosine 1 / sqrt(1 + S) with the clean one, so that R_t = 2 - 2 / sqrt(1 + S).

What R costs follows from the head. A white error of relative energy R at its input h
moves the logits by dz and the mean loss, to second order and where the model's own
probabilities p are right, by

    dL = R c,    c = 1/2 E Var_p(J_h u),    u white with |u| = |h|.

These equations are ours.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rfq.types import Array

# {site: errors added there [L, ...]} -> {site: the tensors that enter it [L, ...]}.
Enter = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def gains(
    enter: Enter, unmoved: Mapping[str, Array], *, key: Array
) -> dict[str, dict[str, Array]]:
    """Measure G_ts with one white error for each site and layer.

    Args:
        enter: Runs the model with errors added at sites. What exists once in the model
            has L = 1.
        unmoved: The errors that leave the model alone: zeros, as `enter` takes them.
        key: Draws the errors.

    Returns:
        {source: {target: [L of the source, L of the target]}}; 0 where the target is
        above the source.
    """
    clean = enter(unmoved)
    energy = {site: _energy(x) for site, x in clean.items()}
    sources = [(site, layer) for site, x in unmoved.items() for layer in range(len(x))]
    names = list(unmoved)

    def moved_by(source: Array, layer: Array, key: Array) -> dict[str, Array]:
        tangents = {}
        for number, site in enumerate(names):
            shape = unmoved[site].shape
            u = jax.random.normal(jax.random.fold_in(key, number), shape[1:])
            u = u * jnp.sqrt(energy[site][layer] / u.size)
            here = (source == number) & (jnp.arange(shape[0]) == layer)
            tangents[site] = here.reshape(-1, *(1,) * u.ndim) * u[None]
        _, moved = jax.jvp(enter, (dict(unmoved),), (tangents,))
        return {site: _energy(dx) / energy[site] for site, dx in moved.items()}

    index = jnp.asarray([(names.index(site), layer) for site, layer in sources])
    keys = jax.random.split(key, len(sources))
    measured = jax.lax.map(lambda s: moved_by(s[0][0], s[0][1], s[1]), (index, keys))
    cuts = np.cumsum([len(x) for x in unmoved.values()])[:-1]
    parts = {site: jnp.split(rows, cuts) for site, rows in measured.items()}
    return {
        site: {target: rows[number] for target, rows in parts.items()}
        for number, site in enumerate(names)
    }


def predict(
    measured: Mapping[str, Mapping[str, np.ndarray]], nmse: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Add up S_t = sum_s G_ts e_s over the sites and layers that are rounded.

    Args:
        measured: As `gains` returns.
        nmse: {source: e_s, one a layer}.

    Returns:
        {target: S_t, one a layer}.
    """
    totals: dict[str, np.ndarray] = {}
    for source, errors in nmse.items():
        for target, gain in measured[source].items():
            added = np.atleast_1d(errors) @ np.asarray(gain, np.float64)
            totals[target] = totals.get(target, 0.0) + added
    return totals


def shares(skip: str, stream: str, num_layers: int) -> np.ndarray:
    """Return the share of each layer's error that arrives at the end, by the law.

    `theory.rounding` derives it for isometries (D120): 1, but 1 / (l + 1) for layer l
    where a skip carries the clean stream.

    Args:
        skip: "residual" or "residual_free".
        stream: "branch" or "in_place".
        num_layers: L, of layers that round.
    """
    if (skip, stream) != ("residual", "branch"):
        return np.ones(num_layers)
    return 1.0 / (np.arange(1, num_layers + 1) + 1.0)


def normalized(added):
    """Return R = 2 - 2 / sqrt(1 + S) of a tensor behind a norm.

    Args:
        added: S, the energy of the errors over that of the signal, before the norm.
    """
    return 2.0 - 2.0 / np.sqrt(1.0 + added)


def loss_per_error(head: Callable[[Array], Array], h: Array, *, key: Array) -> Array:
    """Measure c, the nats a token that a relative error of energy 1 would cost.

    Args:
        head: From h to the logits, [..., V].
        h: The head's input, [..., D].
        key: Draws one error for each token.
    """
    h = h.astype(jnp.float32)
    u = jax.random.normal(key, h.shape)
    u *= jnp.linalg.norm(h, axis=-1, keepdims=True) / math.sqrt(h.shape[-1])
    logits, moved = jax.jvp(head, (h,), (u,))
    p = jax.nn.softmax(logits, axis=-1)
    mean = jnp.sum(p * moved, axis=-1, keepdims=True)
    return jnp.mean(jnp.sum(p * (moved - mean) ** 2, axis=-1)) / 2.0


def _energy(x: Array) -> Array:
    """Sum squares over all axes but the first."""
    return jnp.sum(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim)))
