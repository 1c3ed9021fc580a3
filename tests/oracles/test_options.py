"""Options that no stored trajectory covers, against plain float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import optim
from tests.oracles import numpy_optimizers
from tests.oracles.basis import get_basis
from tests.oracles.kl_reference import ReferenceConfig
from tests.oracles.test_optimizers import DATA

# What computes: the step-by-step form of KL-Shampoo, and the two decompositions.
FORMS = {
    optim.KLShampooConfig: (
        {"decomposition": "householder"},
        {"decomposition": "cholesky"},
    ),
    ReferenceConfig: ({},),
    optim.KLSoapConfig: (
        {"decomposition": "householder"},
        {"decomposition": "cholesky"},
    ),
    optim.SoapConfig: ({"decomposition": "householder"}, {"decomposition": "cholesky"}),
}
KL_FORMS = [
    (kind, form)
    for kind in (optim.KLShampooConfig, ReferenceConfig, optim.KLSoapConfig)
    for form in FORMS[kind]
]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def inputs():
    with np.load(DATA / "inputs.npz") as file:
        yield dict(file)


def directions(config, grads):
    """Directions of one matrix, and the first basis."""
    tx = config.directions(None, None).matrix
    params = {"w": jnp.zeros(grads[0].shape)}
    state, update, found = (
        tx.init(params),
        jax.jit(tx.update),
        [],
    )
    basis = None
    for g in grads:
        u, state = update({"w": jnp.asarray(g, jnp.float64)}, state, params)
        if basis is None:
            basis = get_basis(state, params, "w", axes=None)
        found.append(np.asarray(u["w"]))
    return np.stack(found), [None if q is None else np.asarray(q) for q in basis]


# Each row is one compiled program, so that each tries several options.
KL_OPTIONS = {
    "damping_unclamped_3": {
        "damping": 1e-3,
        "max_clamp": None,
        "b2": 0.8,
        "precondition_frequency": 3,
    },
    "normalized_1": {
        "rms_target": 1.0,
        "init_factor": 1e-3,
        "precondition_frequency": 1,
    },
}


# A refresh at step 1 of a rectangular problem would decompose singular factors, whose
# null space no two libraries complete alike.
PROBLEMS = {
    "damping_unclamped_3": "wide",
    "normalized_1": "square",
    "one_sided_7": "tall",
    "no_bias_correction_1": "square",
}


def as_numpy(options: dict) -> dict:
    renamed = {"precondition_frequency": "k"}
    return {renamed.get(key, key): value for key, value in options.items()}


@pytest.mark.parametrize("name", KL_OPTIONS)
@pytest.mark.parametrize(("config_type", "form"), KL_FORMS)
def test_kl_options(config_type, form, name, inputs):
    options = KL_OPTIONS[name]
    grads = inputs[f"grads/generic/{PROBLEMS[name]}"].astype(np.float64)
    ours, basis = directions(config_type(**form, **options), grads)
    theirs = numpy_optimizers.kl_directions(
        grads,
        soap=config_type is optim.KLSoapConfig,
        factor_b2=options.get("b2", 0.98),
        basis=basis,
        **as_numpy(options),
    )
    # Rounding of 30 steps; KL-SOAP divides by roots of second moments that are small.
    np.testing.assert_allclose(ours, np.stack(list(theirs)), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("config_type", "form"), [row for row in KL_FORMS if row[0] != optim.KLSoapConfig]
)
def test_clamp_of_small_gradients(config_type, form, inputs):
    """1e-4 x generic: the cap on s, max(10, 16), is reached."""
    grads = inputs["grads/small/square"].astype(np.float64)
    config = config_type(**form, init_factor=1e-3)
    ours, basis = directions(config, grads)
    theirs = numpy_optimizers.kl_directions(
        grads, soap=False, init_factor=1e-3, basis=basis
    )
    np.testing.assert_allclose(ours, np.stack(list(theirs)), rtol=0, atol=1e-9)


SOAP_OPTIONS = {
    "one_sided_7": {"max_precondition_dim": 16, "precondition_frequency": 7},
    "no_bias_correction_1": {
        "bias_correction": False,
        "precondition_frequency": 1,
        "rms_target": 1.0,
        "factor_b2": 0.8,
    },
}


@pytest.mark.parametrize("form", FORMS[optim.SoapConfig])
@pytest.mark.parametrize("name", SOAP_OPTIONS)
def test_soap_options(name, form, inputs):
    options = SOAP_OPTIONS[name]
    grads = inputs[f"grads/generic/{PROBLEMS[name]}"].astype(np.float64)
    ours, basis = directions(optim.SoapConfig(**form, **options), grads)
    basis = [
        np.eye(size) if q is None else q
        for q, size in zip(basis, grads[0].shape, strict=True)
    ]
    theirs = numpy_optimizers.soap_directions(grads, basis=basis, **as_numpy(options))
    np.testing.assert_allclose(ours, np.stack(list(theirs)), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("config_type", "form"), KL_FORMS)
def test_low_rank_gradients_of_kl(config_type, form, inputs):
    """The null space is never excited, so that its arbitrary basis does not matter."""
    grads = inputs["grads/lowrank/tall"]
    soap = config_type is optim.KLSoapConfig
    ours, _ = directions(config_type(**form), grads)
    theirs = np.stack(list(numpy_optimizers.kl_directions(grads, soap=soap)))
    # Adam in the basis divides rounding (1e-17) by eps (1e-8): the oracle allows 2e-5
    # on parameters at rate 1e-2, hence 2e-3 on a direction.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3 if soap else 1e-9)


@pytest.mark.parametrize("form", FORMS[optim.SoapConfig])
def test_low_rank_gradients_of_soap(form, inputs):
    grads = inputs["grads/lowrank/wide"]
    ours, _ = directions(optim.SoapConfig(**form), grads)
    theirs = np.stack(list(numpy_optimizers.soap_directions(grads)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)
