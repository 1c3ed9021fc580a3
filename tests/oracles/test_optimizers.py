"""Every stored trajectory of the public PyTorch references (data/README.md)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.oracles import optimizer_adapter as adapter

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "cases.json").read_text())["cases"]
TRAJECTORIES = [
    (name, key)
    for name, case in CASES.items()
    if name.split("_")[0] in adapter.KINDS
    for key in case.get("keys", ())
]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def inputs():
    with np.load(DATA / "inputs.npz") as file:
        yield dict(file)


def gradients(inputs, problem: str, key: str) -> np.ndarray:
    special = f"grads/{problem}/{key}"
    return inputs[special if special in inputs else f"grads/generic/{key}"]


def build(name: str) -> optax.GradientTransformation:
    return adapter.build(name.split("_")[0], CASES[name]["hyperparameters"], np.float64)


def trajectory(tx, params, grads, after_first=lambda state: state) -> np.ndarray:
    """Parameters after every call; `grads` are functions of the parameters."""
    key = next(iter(params))
    state = tx.init(params)
    update = jax.jit(tx.update)
    saved = []
    for index, grad in enumerate(grads):
        updates, state = update({key: grad(params[key])}, state, params)
        params = optax.apply_updates(params, updates)
        if index == 0:
            state = after_first(state)
        saved.append(np.asarray(params[key]))
    return np.stack(saved)


@pytest.mark.parametrize(("name", "key"), TRAJECTORIES)
def test_trajectory_is_the_references(name, key, inputs):
    case = CASES[name]
    with np.load(DATA / f"{name}.npz") as file:
        stored = dict(file)

    def after_first(state):
        # The reference's null space at call 0 is LAPACK roundoff: take it over.
        if key not in case["needs_Q0_injection"]:
            return state
        basis = [jnp.asarray(stored[f"state64/{key}/Q{i}/t0"]) for i in (0, 1)]
        return adapter.set_basis(state, key, basis)

    params = {key: jnp.asarray(inputs[f"p0/{key}"], jnp.float64)}
    grads = [
        lambda _, g=g: jnp.asarray(g, jnp.float64)
        for g in gradients(inputs, case["problem"], key)
    ]
    ours = trajectory(build(name), params, grads, after_first)
    exact = f"f64/{key}" in stored
    theirs = stored[f"f64/{key}"] if exact else stored[f"r32/{key}"]
    # cases.json argues the tolerances: 1e-9, or the rounding of what is stored.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=case["tolerance_f64"][key])


@pytest.mark.parametrize(
    "name", [n for n in dict(TRAJECTORIES) if "regression_tolerance_f64" in CASES[n]]
)
def test_closed_loop_regression_is_the_references(name, inputs):
    case = CASES[name]
    with np.load(DATA / f"{name}.npz") as file:
        if "reg64/params" not in file:
            pytest.skip("no regression stored for this case")
        theirs = file["reg64/params"]
    x, y = jnp.asarray(inputs["reg/X"]), jnp.asarray(inputs["reg/Y"])
    params = {"square": jnp.asarray(inputs["p0/square"], jnp.float64)}
    grads = [lambda w: x.T @ (x @ w - y) / x.shape[0]] * 40
    ours = trajectory(build(name), params, grads)
    np.testing.assert_allclose(
        ours[np.array(case["regression_saved_step_index"])],
        theirs,
        rtol=0,
        atol=case["regression_tolerance_f64"],
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, key in TRAJECTORIES
        if CASES[name]["tolerance_f32_last"][key] is not None
    ],
)
def test_float32_ends_as_near_as_the_references_own_float32_run(name, key, inputs):
    case = CASES[name]
    with np.load(DATA / f"{name}.npz") as file:
        stored = dict(file)
    params = {key: jnp.asarray(inputs[f"p0/{key}"], jnp.float32)}
    grads = [
        lambda _, g=g: jnp.asarray(g, jnp.float32)
        for g in gradients(inputs, case["problem"], key)
    ]
    ours = trajectory(build(name), params, grads)
    theirs = stored.get(f"f64/{key}", stored.get(f"r32/{key}"))
    np.testing.assert_allclose(
        ours[-1], theirs[-1], rtol=0, atol=case["tolerance_f32_last"][key]
    )
