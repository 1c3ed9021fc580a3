"""The methods of a setting: exact forms of a run, its rows and what they compile."""

import dataclasses

import jax
import numpy as np
import pytest

from rfq import experiment, ladder, metrics, ptq, settings, sharding
from rfq.errors import InputError
from rfq.model import transformer
from rfq.model.config import TAP_SETS
from rfq.rows import Setting
from tests import tiny

FORMS = ("W16A16", "W16A16+rotate", "W16A16+smooth", "W16A16+rotate+smooth+gptq")
RUNGS = ("FP", "W3A4", "W3A4+clip", "W3A4+rotate", "W3A4+smooth", "W3A4+gptq")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    tiny.quick(monkeypatch)


@pytest.fixture
def given(tmp_path_factory):
    return tiny.experiment(tiny.data(tmp_path_factory))


@pytest.fixture
def unswept(tmp_path_factory, tmp_path):
    return tiny.copied(tiny.trained(tmp_path_factory), tmp_path)


def asked(given, *specs, **fields):
    fields = {"streams": ("branch",), **fields}
    return tiny.with_fields(given, "quantize", specs=specs, **fields)


def test_clip_is_a_calibrator_and_the_other_methods_are_a_field(given):
    more = asked(given, "W4A8+clip+smooth", "W4A8", calibrators=("min_max", "absmax"))
    found = settings.every(more, more.quantize.specs)
    named = [(one.spec, one.calibrator, one.methods) for one in found]
    assert named == [
        ("W4A8", settings.CLIP, "smooth"),
        ("W4A8", "min_max", "none"),
        ("W4A8", "absmax", "none"),
    ]
    # A row of before the field has none.
    old = {k: v for k, v in found[1]._asdict().items() if k != "methods"}
    assert settings.of(old) == found[1]


def test_what_looks_at_no_data_does_not_depend_on_its_draw(given):
    def one(spec: str, seed: int, **fields) -> Setting:
        more = asked(given, spec, calibration_seeds=(0, seed), **fields)
        found = settings.every(more, (spec,))[-1]
        assert found.calibration_seed == seed
        return settings.canonical(found, more)

    assert one("W4", 1).calibration_seed == 0
    assert one("W4+rotate", 1).calibration_seed == 0
    assert one("W4+gptq", 1).calibration_seed == 1
    per_token = {"granularities": ("per_token",)}
    assert one("W4A4+rotate", 1, **per_token).calibration_seed == 0
    assert one("W4A4+smooth", 1, **per_token).calibration_seed == 1
    assert one("W4A4", 1).calibration_seed == 1
    assert settings.full(one("W4A4+gptq", 1), given).methods == "none"
    assert ladder.recipe(one("W4", 1)) == ladder.Recipe()


@pytest.mark.slow
def test_fine_grids_show_the_same_function_in_every_form(unswept, given):
    rows = ptq.run(asked(given, "FP", *FORMS), unswept)
    assert [row["methods"] for row in rows[1:]] == [
        "none", "rotate", "smooth", "rotate+smooth+gptq",
    ]  # fmt: skip
    for row in rows[1:]:
        assert abs(row["loss_increase"]) < 2e-4
        assert row["relative_error"] < 1e-5


@pytest.mark.slow
def test_each_rung_is_a_row_of_its_own(unswept, given, monkeypatch):
    rows = ptq.run(asked(given, *RUNGS), unswept)
    kept = metrics.read(unswept / "quantize" / "rows.jsonl")
    assert kept == rows and len(rows) == len(RUNGS)
    assert [(row["calibrator"], row["methods"]) for row in rows[2:]] == [
        ("mse", "none"),
        ("min_max", "rotate"),
        ("min_max", "smooth"),
        ("min_max", "gptq"),
    ]
    assert {row["spec"] for row in rows[1:]} == {"W3A4"}
    assert len({row["loss"] for row in rows}) == len(RUNGS)
    # A second sweep finds them all.
    tiny.no_work(monkeypatch)
    assert ptq.run(asked(given, *RUNGS), unswept) == rows


def _programs(names: list[str]) -> list[str]:
    """Those of a sweep's programs that were compiled, without eager operations."""
    swept = ("quantize", "score", "calibrate", "histogram", "distort", "compare")
    own = ("rotated", "measure_peaks", "smoothed_by", "measure_gram", "round_with")
    return sorted(name for name in (*swept, *own) if f"jit({name})" in names)


def test_what_a_method_compiles_and_that_others_compile_nothing(unswept, given):
    ptq.run(asked(given, "FP", "W8A8"), unswept)
    with tiny.compilations() as names:
        ptq.run(asked(given, "W3A4", "W4A6+clip"), unswept)
    assert _programs(names) == []
    # What rounds and scores takes smoothed and compensated weights as data.
    methods = "+smooth+gptq"
    with tiny.compilations() as names:
        ptq.run(asked(given, *(f"W{n}A{n}{methods}" for n in (4, 5, 6))), unswept)
    assert _programs(names) == sorted(
        ["measure_gram", "measure_peaks", "round_with", "smoothed_by"]
    )
    assert all(names.count(f"jit({name})") == 1 for name in _programs(names))


def test_gptq_of_a_run_lowers_the_error_of_its_products(unswept, given):
    mesh = sharding.make_mesh()
    sweep = ptq.Sweep(asked(given, "W3A8+gptq"), unswept)
    models = sweep._models
    recipe = ladder.Recipe(is_compensated=True)
    compiled = ladder.compile_ladder(given, mesh, False, "")
    grams = ladder.grams(models.params, compiled, sweep._calibration(0))
    plain = models.programs("paper", False).quantize(models.params, np.int32(3))
    found = models.quantized(3, "asymmetric", recipe)
    for name, site in (
        ("w_q", "attn_in"),
        ("w_o", "attn_out"),
        ("w_down", "mlp_hidden"),
    ):
        w, q, p = (np.asarray(t["blocks"][name]) for t in (models.params, found, plain))
        gram = np.asarray(grams[site], np.float64)

        def cost(rounded, w=w, gram=gram):
            error = (w - rounded).reshape(len(w), gram.shape[1], -1)
            return np.einsum("lkn,lkm,lmn->l", error, gram, error)

        assert np.all(cost(q) < cost(p)), name
    np.testing.assert_array_equal(found["embedding"], models.params["embedding"])


def test_a_rotated_run_decodes_and_answers_as_it_scores(unswept, given):
    sweep = ptq.Sweep(asked(given, "FP"), unswept)
    plain = sweep.model(settings.one(given, "W16", "", ""))
    turned = sweep.model(settings.one(given, "W16+rotate", "", ""))
    assert turned.seams.turns and turned.config.head == "untied"
    tokens = sweep.heldout[0][:4, :-1]
    found = [
        transformer.apply(m.params, tokens, m.config, m.seams, m.states)[0]
        for m in (plain, turned)
    ]
    np.testing.assert_allclose(*map(np.asarray, found), atol=2e-3)


def test_a_norm_without_an_exact_form_is_refused(given):
    centred = dataclasses.replace(given.model, norm="layer_norm")
    with pytest.raises(InputError, match=r"'W4A4\+rotate' cannot rotate.*layer_norm"):
        dataclasses.replace(asked(given, "W4A4+rotate"), model=centred)
    one_gain = dataclasses.replace(given.model, norm="single_scale_norm")
    with pytest.raises(InputError, match=r"cannot smooth.*single_scale_norm"):
        dataclasses.replace(asked(given, "W4A4+smooth"), model=one_gain)
    assert dataclasses.replace(asked(given, "W4A4+rotate"), model=one_gain)


def test_methods_leave_the_fingerprint_of_a_run_alone(given):
    more = asked(given, *RUNGS)
    assert experiment.fingerprint(more) == experiment.fingerprint(given)


def test_diverged_calibration_is_refused(unswept, given):
    sweep = ptq.Sweep(given, unswept)
    compiled = ladder.compile_ladder(given, sharding.make_mesh(), False, "")
    params = jax.tree.map(lambda leaf: leaf * np.inf, sweep._models.params)
    with pytest.raises(InputError, match="NaN or inf during calibration"):
        ladder.grams(params, compiled, sweep._calibration(0))
    assert set(TAP_SETS["full"]) > {"attn_in", "attn_out", "mlp_in", "mlp_hidden"}
