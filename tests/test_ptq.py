import functools
import gc
import itertools
import json
import pathlib
import shutil
import signal
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import checkpoint, experiment, heldout, metrics, params, ptq, sharding, steps
from rfq import rows as rows_lib
from rfq import taps as tap_lib
from rfq.errors import InputError, Preempted
from rfq.model import transformer
from rfq.model.config import BLOCK_SITES, TAP_SETS, num_params
from rfq.quant import calibrate
from rfq.quant.spec import QuantSpec
from tests import tiny

STREAMS = ("branch", "in_place")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    tiny.quick(monkeypatch)


@pytest.fixture
def given(tmp_path_factory):
    return tiny.experiment(tiny.data(tmp_path_factory))


@pytest.fixture
def swept(tmp_path_factory):
    """A run with the whole grid, which nothing interrupted."""
    return tiny.quantized(tmp_path_factory)


@pytest.fixture
def rows(swept):
    found = metrics.read(swept / "quantize" / "rows.jsonl")
    return {(row["spec"], row["stream"]): row for row in found}


@pytest.fixture
def unswept(tmp_path_factory, tmp_path):
    """A finished run that nobody has quantized."""
    return tiny.copied(tiny.trained(tmp_path_factory), tmp_path)


def _texts(run_dir: pathlib.Path) -> dict[str, list[str]]:
    names = ("rows.jsonl", "sites.jsonl", "losses.jsonl", "statistics.json")
    return {name: tiny.lines(run_dir / "quantize" / name) for name in names}


def _same(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in tiny.TIMES}


def test_a_row_has_every_field(swept, given):
    described = json.loads((swept / "config.json").read_text())
    for kind in ("rows", "sites", "losses"):
        for record in metrics.read(swept / "quantize" / f"{kind}.jsonl"):
            assert rows_lib.make(kind, record) == record
    for row in metrics.read(swept / "quantize" / "rows.jsonl"):
        spec = QuantSpec.parse(row["spec"])
        assert (row["weight_bits"], row["act_bits"]) == (
            spec.weight_bits,
            spec.act_bits,
        )
        assert row["arm"] == "tiny"
        assert row["num_params"] == num_params(given.model)
        assert row["tokens_seen"] == tiny.NUM_STEPS * 8 * tiny.SEQ_LEN
        assert row["config_fingerprint"] == described["fingerprint"]
        assert row["calibration_tokens"] == 64 * tiny.SEQ_LEN
        assert row["eval_tokens"] == 64 * tiny.SEQ_LEN
        assert row["compute_dtype"] == "float32"
        assert (row["sqnr_db"] is None) == (spec.act_bits is None)
        assert (row["nmse"] is None) == (spec.act_bits is None)
        assert row["seconds"] > 0


def test_rows_come_in_the_order_of_the_grid(swept):
    rows = metrics.read(swept / "quantize" / "rows.jsonl")
    assert [(row["spec"], row["stream"]) for row in rows] == list(
        itertools.product(tiny.SPECS, STREAMS)
    )


def test_full_precision_is_what_increases_are_measured_against(rows):
    for stream in STREAMS:
        row = rows["FP", stream]
        assert row["loss_increase"] == 0.0
        assert row["loss_increase_lo"] == row["loss_increase_hi"] == 0.0
    full = rows["FP", "branch"]["loss"]
    for row in rows.values():
        assert row["loss_increase"] == row["loss"] - full


def test_the_interval_holds_the_increase(rows):
    for (spec, _), row in rows.items():
        lo, hi = row["loss_increase_lo"], row["loss_increase_hi"]
        assert lo <= row["loss_increase"] <= hi
        assert spec == "FP" or lo < hi


def test_kurtosis_is_that_of_the_full_precision_model(swept, rows):
    last = metrics.read(swept / "measures.jsonl")[-1]["sites"]
    values = {row["excess_kurtosis"] for row in rows.values()}
    assert len(values) == 1
    # Training measured 16 of these 64 sequences: one quantity, two samples.
    worst = max(last["attn_norm_in"]["excess_kurtosis"])
    assert values.pop() == pytest.approx(worst, abs=0.5)


def test_each_bit_of_activations_is_worth_six_decibels(rows):
    # 20 log10(2) = 6.02 a bit, as long as nothing clips: the ranges come from other
    # text, for which half a decibel is granted.
    gained = rows["A8", "branch"]["sqnr_db"] - rows["A4", "branch"]["sqnr_db"]
    assert gained / 4 == pytest.approx(6.02, abs=0.5 / 4)
    assert rows["A8", "branch"]["nmse"] < rows["A4", "branch"]["nmse"]


def test_a_residual_stream_feels_where_the_rounding_sits(rows):
    assert rows["A4", "branch"]["loss"] != rows["A4", "in_place"]["loss"]
    # What is rounded is the same; SQNR looks at each tensor alone.
    assert rows["A4", "branch"]["sqnr_db"] == rows["A4", "in_place"]["sqnr_db"]
    # Without a tapped activation there is nothing to place.
    assert rows["W2", "branch"]["loss"] == rows["W2", "in_place"]["loss"]


def _rounded(w: np.ndarray, in_axes: tuple[int, ...], bits: int) -> np.ndarray:
    """Asymmetric min-max rounding per output channel, in numpy."""
    lo = np.minimum(w.min(axis=in_axes, keepdims=True), np.float32(0))
    hi = np.maximum(w.max(axis=in_axes, keepdims=True), np.float32(0))
    levels = np.float32(2**bits - 1)
    step = (hi - lo) / levels
    zero = np.clip(np.rint(-lo / step), 0, levels)
    return (np.clip(np.rint(w / step) + zero, 0, levels) - zero) * step


def _expected_loss(run_dir, given, spec: str, stream: str) -> float:
    """The loss of a setting, put together by hand from the compiled functions."""
    bits = QuantSpec.parse(spec)
    mesh = sharding.make_mesh()
    compiled = steps.compile_quant(given, mesh, "paper")
    with checkpoint.Checkpoints(run_dir) as saved:
        tree = jax.device_get(saved.params(tiny.NUM_STEPS, compiled.params))
    if bits.weight_bits is not None:
        tree = {
            **tree,
            "blocks": {
                name: w
                if params.TABLE[name].kind == "gain"
                else _rounded(w, params.TABLE[name].matrix.in_axes, bits.weight_bits)
                for name, w in tree["blocks"].items()
            },
        }

    def batches(split, num_tokens, seed=None):
        return heldout.batches(
            given, split, num_tokens=num_tokens, batch_size=32, mesh=mesh, seed=seed
        )

    def score(batch):
        if bits.act_bits is None:
            return compiled.score.plain(tree, batch)
        quantized = compiled.score.quantized[stream]
        return quantized(tree, batch, calibrate.grids(ranges, bits.act_bits))

    seen = [
        jax.device_get(compiled.calibrate(tree, batch))
        for batch in batches("calibration", given.quantize.calibration_tokens, 0)
    ]
    ranges = {
        site: (
            functools.reduce(np.minimum, [record[site]["range"].lo for record in seen]),
            functools.reduce(np.maximum, [record[site]["range"].hi for record in seen]),
        )
        for site in TAP_SETS["paper"]
    }
    scored = [np.asarray(score(b), np.float64) for b in batches("heldout", 64 * 16)]
    return float(np.concatenate(scored).mean())


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("spec", ["FP", "A4", "W2", "W2A3"])
def test_a_setting_is_weights_then_ranges_then_activations(
    swept, given, rows, spec, stream
):
    # numpy and XLA may round a weight's scale differently by one ulp.
    expected = _expected_loss(swept, given, spec, stream)
    assert rows[spec, stream]["loss"] == pytest.approx(expected, rel=1e-6)


def test_settings_that_differ_give_losses_that_differ(rows):
    # Otherwise the test above could not tell W2A3 from A8 from FP.
    losses = [rows[spec, "branch"]["loss"] for spec in ("FP", "A4", "W2", "W2A3")]
    gaps = np.diff(sorted(losses)) / losses[0]
    assert gaps.min() > 1e-5


def test_the_distortion_of_each_site_is_kept(swept, rows):
    found = metrics.read(swept / "quantize" / "sites.jsonl")
    expected = [
        (spec, stream)
        for spec, stream in itertools.product(tiny.SPECS, STREAMS)
        if "A" in spec
    ]
    assert [(row["spec"], row["stream"]) for row in found] == expected
    for row in found:
        assert set(row["sites"]) == {*TAP_SETS["paper"], "head_in"}
        values = [row["sites"][site]["sqnr_db"] for site in TAP_SETS["paper"]]
        assert {len(layers) for layers in values} == {2}
        mean = np.mean(values)
        assert rows[row["spec"], row["stream"]]["sqnr_db"] == pytest.approx(mean)


def test_histograms_hold_every_activation_once(swept, given):
    (found,) = metrics.read(swept / "quantize" / "statistics.json")
    assert found["num_tokens"] == 64 * tiny.SEQ_LEN
    num_values = found["num_tokens"] * given.model.width
    for site in ("attn_norm_in", "mlp_in", "final_norm_in"):
        counts = np.asarray(found["sites"][site]["counts"])
        assert counts.shape[1] == len(found["edges"]) - 1
        np.testing.assert_array_equal(counts.sum(axis=1), num_values)
    hidden = np.asarray(found["sites"]["mlp_hidden"]["counts"])
    np.testing.assert_array_equal(hidden.sum(axis=1), 4 * num_values)


def test_a_second_sweep_does_nothing(swept, given, tmp_path, monkeypatch):
    run_dir = tiny.copied(swept, tmp_path)
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    tiny.no_work(monkeypatch)
    with tiny.compilations() as compiled:
        rows = ptq.run(given, run_dir)
    assert compiled == []
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before
    assert rows == metrics.read(run_dir / "quantize" / "rows.jsonl")


def test_a_killed_sweep_goes_on_after_its_last_row(swept, unswept, given, monkeypatch):
    # 12 rows, 8 lines of sites, 12 of losses: three random kills among the 32, each
    # counted from the start of its own sweep, and a line that the last kill cut in two.
    rng = np.random.default_rng(0)
    for num_calls in rng.integers(1, 7, size=3):
        with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
            tiny.kill_after(patch, metrics, "append", int(num_calls))
            ptq.run(given, unswept)
    with (unswept / "quantize" / "rows.jsonl").open("a") as file:
        file.write('{"arm": "tiny", "loss": 3.0')
    found = ptq.run(given, unswept)
    assert _texts(unswept) == _texts(swept)
    expected = metrics.read(swept / "quantize" / "rows.jsonl")
    assert list(map(_same, found)) == list(map(_same, expected))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name
)
def test_a_sweep_told_to_end_keeps_its_rows_and_goes_on(
    swept, unswept, given, monkeypatch, number
):
    with monkeypatch.context() as patch, pytest.raises(Preempted) as caught:
        tiny.signal_at(patch, step=3, number=number)
        ptq.run(given, unswept)
    assert "3 of 12 settings are saved" in str(caught.value)
    assert len(metrics.read(unswept / "quantize" / "rows.jsonl")) == 3
    ptq.run(given, unswept)
    assert _texts(unswept) == _texts(swept)


def test_other_tokens_are_another_question(swept, given, tmp_path):
    run_dir = tiny.copied(swept, tmp_path)
    fewer = tiny.with_fields(given, "quantize", eval_tokens=32 * tiny.SEQ_LEN)
    fewer = tiny.with_fields(fewer, "quantize", specs=("FP", "A4"))
    for row in ptq.run(fewer, run_dir):
        assert row["eval_tokens"] == 32 * tiny.SEQ_LEN
    on_disk = metrics.read(run_dir / "quantize" / "rows.jsonl")
    assert {row["eval_tokens"] for row in on_disk} == {32 * tiny.SEQ_LEN}
    assert len(on_disk) == 4
    (histograms,) = metrics.read(run_dir / "quantize" / "statistics.json")
    assert histograms["num_tokens"] == 32 * tiny.SEQ_LEN


def test_more_settings_keep_the_rows_that_are_there(
    swept, given, tmp_path, monkeypatch
):
    run_dir = tiny.copied(swept, tmp_path)
    before = tiny.lines(run_dir / "quantize" / "rows.jsonl")
    more = tiny.with_fields(given, "quantize", specs=("A4", "A5", "FP", "A4"))
    found = ptq.run(more, run_dir)
    asked = list(itertools.product(("A4", "A5", "FP"), STREAMS))
    assert [(row["spec"], row["stream"]) for row in found] == asked
    after = tiny.lines(run_dir / "quantize" / "rows.jsonl")
    assert after[: len(before)] == before
    assert len(after) == len(before) + 2


def test_what_a_run_is_does_not_change_when_it_is_quantized(swept, given, tmp_path):
    run_dir = tiny.copied(swept, tmp_path)
    before = (run_dir / "config.json").read_bytes()
    ptq.run(tiny.with_fields(given, "quantize", specs=("FP",)), run_dir)
    assert (run_dir / "config.json").read_bytes() == before


def test_a_sweep_is_forgotten_when_it_is_over(unswept, given, monkeypatch):
    # Its parameters and held-out batches fill a device; the next arm needs the room.
    sweeps = []
    inner = ptq.Sweep

    def noted(*arguments):
        sweep = inner(*arguments)
        sweeps.append(weakref.ref(sweep))
        return sweep

    monkeypatch.setattr(ptq, "Sweep", noted)
    ptq.run(tiny.with_fields(given, "quantize", specs=("FP", "A4")), unswept)
    gc.collect()
    assert sweeps[0]() is None


def _refused(given: experiment.Experiment, run_dir: pathlib.Path) -> str:
    with tiny.compilations() as compiled, pytest.raises(InputError) as caught:
        ptq.run(given, run_dir)
    assert compiled == []
    assert str(run_dir) in str(caught.value)
    return str(caught.value)


def test_an_unfinished_run_is_a_sentence(unswept, given):
    (unswept / "done.json").unlink()
    assert "is not trained to its last step, 12" in _refused(given, unswept)
    assert not (unswept / "quantize").exists()


def test_a_run_without_its_last_checkpoint_is_a_sentence(unswept, given):
    shutil.rmtree(unswept / "checkpoints" / "12")
    message = _refused(given, unswept)
    assert "checkpoint of step 12 is gone" in message


def test_a_damaged_checkpoint_is_a_sentence(unswept, given):
    for path in (unswept / "checkpoints" / "12" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert "checkpoint of step 12 is damaged (" in _refused(given, unswept)


def test_another_experiment_is_a_sentence(unswept, given):
    other = tiny.with_fields(given, "model", beta=1.1)
    assert "model.beta is 1.0 there and 1.1 here" in _refused(other, unswept)


def test_parameters_that_calibration_cannot_use_are_a_sentence(
    unswept, given, monkeypatch
):
    inner = calibrate.finalize

    def finalize(ranges, sites):
        site = "attn_in"
        bad = {site: ranges[site]._replace(num_nonfinite=np.array([0.0, 3.0]))}
        return inner({**ranges, **bad}, sites)

    monkeypatch.setattr(calibrate, "finalize", finalize)
    with pytest.raises(InputError, match=r"'attn_in' in layers \[2\] produced NaN"):
        ptq.run(tiny.with_fields(given, "quantize", specs=("A8",)), unswept)


def _fabricated_rows(factory, arm: str, specs: tuple[str, ...], **model) -> list[dict]:
    """The rows of a model that nobody has trained, with some fields of its own."""
    given = tiny.experiment(tiny.data(factory), arm=arm)
    given = tiny.with_fields(given, "model", **model)
    given = tiny.with_fields(given, "quantize", specs=specs)
    return ptq.run(given, tiny.fabricated(given, factory.mktemp(arm)))


@pytest.mark.slow
def test_full_precision_is_given_as_trained_and_in_float32(tmp_path_factory):
    rows = _fabricated_rows(
        tmp_path_factory, "half", ("FP", "A4"), compute_dtype="bfloat16"
    )
    assert [(row["spec"], row["compute_dtype"], row["stream"]) for row in rows] == [
        ("FP", "bfloat16", "branch"),
        ("FP", "float32", "branch"),
        ("FP", "bfloat16", "in_place"),
        ("FP", "float32", "in_place"),
        ("A4", "float32", "branch"),
        ("A4", "float32", "in_place"),
    ]
    trained, full = rows[:2]
    assert full["loss_increase"] == 0.0
    # bfloat16 keeps 8 bits: losses of a few nats move in the third digit.
    assert 0 < abs(trained["loss_increase"]) < 0.1
    assert trained["loss"] - full["loss"] == trained["loss_increase"]


@pytest.mark.slow
def test_a_residual_free_model_has_one_stream(tmp_path_factory):
    branch, in_place = _fabricated_rows(
        tmp_path_factory, "free", ("A4",), skip="residual_free"
    )
    fields = set(rows_lib.KINDS["rows"]) - {"stream", "seconds"}
    assert {f: branch[f] for f in fields} == {f: in_place[f] for f in fields}
    assert branch["loss_increase"] != 0.0


@pytest.mark.slow
def test_each_tap_set_has_its_own_rows(unswept, given):
    every = tuple(TAP_SETS)
    swept = tiny.with_fields(given, "quantize", specs=("FP", "A4"), taps=every)
    rows = ptq.run(swept, unswept)
    assert [(r["spec"], r["taps"], r["stream"]) for r in rows] == list(
        itertools.product(("FP", "A4"), every, STREAMS)
    )
    losses = {(r["spec"], r["taps"], r["stream"]): r["loss"] for r in rows}
    assert len({losses["FP", taps, "branch"] for taps in every}) == 1
    assert len({losses["A4", taps, "branch"] for taps in every}) == len(every)
    sites = metrics.read(unswept / "quantize" / "sites.jsonl")
    for row in sites:
        assert set(row["sites"]) == {*TAP_SETS[row["taps"]], "head_in"}


def test_calibrators_and_draws_are_settings_like_any_other(swept, given, tmp_path):
    run_dir = tiny.copied(swept, tmp_path)
    more = tiny.with_fields(
        given,
        "quantize",
        specs=("FP", "A4"),
        streams=("branch",),
        calibrators=("min_max", "percentile_99.9"),
        calibration_seeds=(0, 1),
        calibration_tokens=32 * tiny.SEQ_LEN,
    )
    rows = {
        (row["spec"], row["calibrator"], row["calibration_seed"]): row
        for row in ptq.run(more, run_dir)
    }
    assert len(rows) == 2 * 2 * 2
    full = {row["loss"] for (spec, _, _), row in rows.items() if spec == "FP"}
    assert len(full) == 1
    # Other tokens are other ranges, and so is a range that leaves values out.
    quantized = {row["loss"] for (spec, _, _), row in rows.items() if spec == "A4"}
    assert len(quantized) == 4
    clipped = {key: row["clip_fraction"] for key, row in rows.items() if key[0] == "A4"}
    assert clipped["A4", "percentile_99.9", 0] > clipped["A4", "min_max", 0]


def _per_token(x, state):
    """Symmetric rounding of each token to 4 bits, over its own largest magnitude."""
    del state
    step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 7.0
    return jnp.round(x / step) * step, None


def test_granularities_and_schemes_are_settings(swept, given, tmp_path):
    run_dir = tiny.copied(swept, tmp_path)
    path = run_dir / "quantize" / "rows.jsonl"
    before = metrics.read(path)
    # Rows of before the two fields are rows of the defaults.
    for row in before:
        assert (row.pop("granularity"), row.pop("scheme")) == (
            "per_tensor",
            "asymmetric",
        )
    metrics.rewrite(path, before)
    more = tiny.with_fields(
        given,
        "quantize",
        specs=("FP", "W8A8", "A4"),
        streams=("branch",),
        granularities=("per_tensor", "per_token", "per_group_8"),
        schemes=("asymmetric", "symmetric"),
    )
    with tiny.compilations() as names:
        found = {
            (row["spec"], row["granularity"], row["scheme"]): row
            for row in ptq.run(more, run_dir)
            if "granularity" in row
        }
    assert metrics.read(path)[: len(before)] == before
    # All three specs of the defaults were there; bits and static ranges are data.
    assert len(found) == 3 * 3 * 2 - 3
    # Two programs of each dynamic granularity, and at most two for all that is static.
    assert 4 <= sum("score" in name for name in names) <= 6
    losses = {row["loss"] for (spec, *_), row in found.items() if spec == "A4"}
    assert len(losses) == 5
    full = next(row["loss"] for row in before if row["spec"] == "FP")
    assert {row["loss"] for (spec, *_), row in found.items() if spec == "FP"} == {full}
    sqnr = [
        found["A4", granularity, "symmetric"]["sqnr_db"]
        for granularity in ("per_tensor", "per_token", "per_group_8")
    ]
    assert sqnr == sorted(sqnr) and sqnr[-1] > sqnr[0] + 1.0

    with checkpoint.Checkpoints(run_dir) as saved:
        mesh = sharding.make_mesh()
        compiled = steps.compile_quant(given, mesh, "paper")
        params = saved.params(tiny.NUM_STEPS, compiled.params)
    seams = transformer.Seams(tap_lib.Taps(_per_token, TAP_SETS["paper"]))
    batches = heldout.batches(
        given, "heldout", num_tokens=64 * tiny.SEQ_LEN, batch_size=32, mesh=mesh
    )
    with jax.default_matmul_precision("highest"):
        expected = np.mean(
            [
                transformer.token_losses(params, batch, given.model, seams)[0]
                for batch in batches
            ]
        )
    # Eager division and XLA's may round one step by one ulp.
    assert found["A4", "per_token", "symmetric"]["loss"] == pytest.approx(
        expected, rel=1e-5
    )


def test_divergence_grows_as_bits_go(rows):
    # R at the head's input: of the whole quantized model against the clean one.
    found = [rows[spec, "branch"]["relative_error"] for spec in ("W8A8", "A8", "A4")]
    assert found[1] <= found[0] * 1.5 and found[2] > 30 * found[1] > 0
    assert rows["FP", "branch"]["relative_error"] is None
    for spec in ("A8", "A4"):
        row = rows[spec, "branch"]
        assert row["min_sqnr_db"] < row["sqnr_db"]


def test_statistics_say_what_every_site_and_matrix_looks_like(swept):
    (found,) = metrics.read(swept / "quantize" / "statistics.json")
    for site, numbers in found["sites"].items():
        layers = {len(values) for values in numbers.values()}
        assert layers == {2 if site in BLOCK_SITES else 1}
        assert set(numbers) >= {"negentropy", "token_cosine", "he_kurtosis", "center"}
        assert np.all(np.asarray(numbers["he_kurtosis"]) >= 1.0)
    assert set(found["weights"]) == {"w_q", "w_k", "w_v", "w_o", "w_up", "w_down"}
