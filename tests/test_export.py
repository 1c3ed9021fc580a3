"""Checkpoints of integers: what is written, what is read back, what it computes."""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import (
    checkpoint,
    cli,
    export,
    heldout,
    integer_bench,
    metrics,
    runs,
    sharding,
    steps,
    taps,
)
from rfq import params as params_lib
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model import products, transformer
from rfq.model.config import TAP_SETS
from rfq.quant import grid, integer, weights
from rfq.tasks import decode
from tests import tiny
from tests.model import examples
from tests.oracles import deferred

# Each pair of a connection and a weight width of "W8A8" and "W4A8" is also compared,
# bit for bit and layer by layer, in tests/model/test_transformer.py.
SPECS = {"residual": ("W8A8", "W4"), "residual_free": ("W4A8",)}
FULL = TAP_SETS["full"]

_compile = functools.cache(steps.compile_integer)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """As `tiny.quick`: each program of a model and a stream is compiled once."""

    def compile_integer(given: Experiment, mesh, stream: str) -> steps.IntegerSteps:
        kept = {n: getattr(given, n) for n in ("model", "init", "sharding")}
        only = Experiment(arm="any", **kept)
        return _compile(only, mesh, stream)

    tiny.quick(monkeypatch)
    monkeypatch.setattr(steps, "compile_integer", compile_integer)


def _specs(given, *specs):
    return tiny.with_fields(given, "quantize", specs=specs)


_once = {}


def _made(factory, skip):
    """(run directory, export directory, rows) of a tiny run; do not write into it."""
    if skip not in _once:
        _once[skip] = _make(factory, skip)
    return _once[skip]


def _make(factory, skip):
    given = tiny.with_fields(tiny.experiment(tiny.data(factory)), "model", skip=skip)
    run_dir = tiny.fabricated(given, factory.mktemp("fabricated") / "run")
    out = factory.mktemp("exported")
    return run_dir, out, export.run(_specs(given, *SPECS[skip]), run_dir, out)


@pytest.fixture(params=list(SPECS))
def made(request, tmp_path_factory):
    """What `_made` gives, and the first of its settings."""
    return *_made(tmp_path_factory, request.param), SPECS[request.param][0]


@pytest.fixture
def residual(tmp_path_factory):
    return _made(tmp_path_factory, "residual")


@pytest.fixture
def spoiled(tmp_path_factory, tmp_path):
    """A copy of a W4A8 checkpoint, to be spoiled."""
    _, out, _ = _made(tmp_path_factory, "residual_free")
    return tiny.copied(out / "W4A8", tmp_path)


def _params(run_dir):
    with checkpoint.Checkpoints(run_dir) as saved:
        shapes = transformer.shapes(runs.load(run_dir)[0].model)
        return saved.params(tiny.NUM_STEPS, shapes)


def _compiled(run_dir):
    return steps.compile_integer(runs.load(run_dir)[0], sharding.make_mesh(), "branch")


def _encoded(run_dir, weight_bits):
    """Codes and grids that come from the run, not from a file."""
    codes, grids = _compiled(run_dir).encode(_params(run_dir), weight_bits)
    return codes, {name: g for name, g in grids["blocks"].items() if g is not None}


def rounded_and_kept(x, state):
    rounded, _ = taps.fake_quantize(x, state)
    return rounded, rounded


def _forward(quantized, experiment, dot):
    """Logits and the tapped activations of 64 sequences: 1,024 positions."""
    mesh = sharding.make_mesh()
    (batch,) = heldout.batches(
        experiment, "heldout", num_tokens=1024, batch_size=64, mesh=mesh
    )
    seams = transformer.Seams(taps.Taps(rounded_and_kept, FULL), dot=dot)
    run = jax.jit(transformer.apply, static_argnums=(2, 3))
    logits, records = run(
        quantized.params, batch[:, :-1], experiment.model, seams, quantized.states
    )
    return np.asarray(logits), {site: np.asarray(x) for site, x in records.items()}


def test_integers_compute_what_the_simulation_computes(made):
    run_dir, out, _, spec = made
    quantized, described = export.load(out / spec)
    experiment, _ = runs.load(run_dir)
    logits, sites = _forward(quantized, experiment, products.integer_matmul)
    expected, expected_sites = _forward(quantized, experiment, deferred.matmul)
    # Every sum is exact on both sides and rounded once; what follows is the same
    # arithmetic, fused differently perhaps: 1e-6 of the largest logit is 16 roundings.
    for site in FULL:
        np.testing.assert_array_equal(sites[site], expected_sites[site], err_msg=site)
    assert logits.shape[:2] == (64, 16)
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
    assert np.abs(logits - expected).max() <= 1e-6 * np.abs(expected).max()
    assert described["spec"] == spec and len(np.unique(logits.argmax(-1))) > 5


@pytest.mark.slow
def test_a_product_in_float32_differs_by_float32(made):
    # The ordinary simulation, site by site on the same input: a sum of at most 64
    # products, each rounded. It moves a code only where a value lies within that
    # distance of a tie, and from there on two runs of the whole model part.
    run_dir, out, _, spec = made
    quantized, _ = export.load(out / spec)
    experiment, _ = runs.load(run_dir)
    _, sites = _forward(quantized, experiment, products.integer_matmul)
    for name, operands in quantized.states.items():
        if not isinstance(operands, integer.Operands):
            continue
        x = jnp.asarray(sites[export.FED_BY[name]])
        w = jnp.asarray(quantized.params["blocks"][name])
        for layer in range(x.shape[0]):
            one = jax.tree.map(lambda leaf: leaf[layer], operands)  # noqa: B023
            on_integers = products.integer_matmul(x[layer], w[layer], name, one)
            with jax.default_matmul_precision("highest"):
                simulated = products.dequantized_matmul(x[layer], w[layer], name, one.w)
            error = np.abs(on_integers - simulated).max()
            assert 0 < error < 5e-6 * np.abs(simulated).max(), name


def test_every_array_comes_back_bit_for_bit(made):
    run_dir, out, rows, _ = made
    for row in rows:
        quantized, _ = export.load(out / row["spec"])
        codes, grids = _encoded(run_dir, 8 if row["spec"] == "W8A8" else 4)
        assert jax.tree.structure(quantized.params) == jax.tree.structure(codes)
        for found, expected in zip(
            jax.tree.leaves((quantized.params, quantized.weights)),
            jax.tree.leaves((codes, grids)),
            strict=True,
        ):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        assert set(quantized.sites) == (set() if row["spec"] == "W4" else set(FULL))


@pytest.mark.parametrize("weight_bits", [2, 4, 5, 8, 9, 16])
def test_every_width_is_read_as_it_was_written(residual, tmp_path, weight_bits):
    _, out, _ = residual
    quantized, described = export.load(out / "W4")
    dtype = integer.storage_dtype(weight_bits)
    half = 2 ** (dtype.itemsize * 8 - 1) if dtype != jnp.int4 else 8
    rng, levels = np.random.default_rng(0), 2.0**weight_bits - 1.0

    def draw(path, leaf):
        if params_lib.leaf_name(path) not in quantized.weights:
            return leaf
        codes = rng.integers(0, int(levels) + 1, leaf.shape) - half
        return codes.astype(np.int32).astype(dtype)

    drawn = export.Quantized(
        jax.tree_util.tree_map_with_path(draw, quantized.params),
        {
            name: grid.Grid(
                step=rng.random(g.step.shape, np.float32),
                zero_point=np.float32(rng.integers(0, int(levels) + 1, g.step.shape)),
                levels=np.full(g.step.shape, levels, np.float32),
            )
            for name, g in quantized.weights.items()
        },
        {},
    )
    export.save(tmp_path, drawn, {**described, "spec": f"W{weight_bits}"})
    read, _ = export.load(tmp_path)
    for found, expected in zip(
        jax.tree.leaves(read), jax.tree.leaves(drawn), strict=True
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "matrix", "left"),
    [
        (examples.RIVALS, "w_gate", ("w_embed", "w_unembed", "final_norm")),
        (examples.LLAMA, "w_mlp_gate", ("embedding", "unembedding", "final_norm")),
    ],
    ids=["rivals", "llama"],
)
def test_any_block_is_exported_and_what_is_no_hidden_matrix_stays_float32(
    tmp_path_factory, tmp_path, others, matrix, left
):
    base = tiny.experiment(tiny.data(tmp_path_factory))
    given = tiny.with_fields(
        base, "model", **{**others, "mlp_ratio": 2, "vocab_padding": 0}
    )
    run_dir = tiny.fabricated(given, tmp_path / "run")
    (row,) = export.run(_specs(given, "W8A8"), run_dir, tmp_path / "exported")
    assert np.isfinite(row["loss"])
    quantized, _ = export.load(tmp_path / "exported" / "W8A8")
    params = _params(run_dir)
    for name in left:
        np.testing.assert_array_equal(quantized.params[name], params[name])
    assert quantized.params["blocks"][matrix].dtype == np.int8


def test_ranges_are_the_extremes_of_calibration_on_rounded_weights(residual):
    run_dir, out, _ = residual
    experiment, _ = runs.load(run_dir)
    quantized, _ = export.load(out / "W8A8")
    rounded = weights.quantize(_params(run_dir), 8, axes=params_lib.quantized_axes)
    batches = heldout.batches(
        experiment,
        "calibration",
        num_tokens=experiment.quantize.calibration_tokens,
        batch_size=32,
        mesh=sharding.make_mesh(),
        seed=0,
    )
    seams = transformer.Seams(taps.Taps(lambda x, state: (x, x), FULL))
    run = jax.jit(transformer.features, static_argnums=(2, 3))
    seen = [
        jax.device_get(run(rounded, batch[:, :-1], experiment.model, seams)[1])
        for batch in batches
    ]
    assert len(seen) == 2
    for site, found in quantized.sites.items():
        x = np.stack([records[site] for records in seen])
        layers_first = x.swapaxes(0, 1) if site != "head_in" else x[None]
        flat = layers_first.reshape(len(layers_first), -1)
        expected = grid.grid_from_range(flat.min(1), flat.max(1), 8)
        for a, b in zip(found, expected, strict=True):
            # Extremes of activations that two programs compute in two orders.
            np.testing.assert_allclose(np.atleast_1d(a), b, rtol=1e-5, atol=1e-7)


def test_a_file_scores_what_its_model_scores(made):
    run_dir, out, rows, _ = made
    experiment, _ = runs.load(run_dir)
    batches = heldout.batches(
        experiment,
        "heldout",
        num_tokens=1024,
        batch_size=32,
        mesh=sharding.make_mesh(),
    )
    for row in rows:
        assert (row["stream"], row["eval_tokens"]) == ("branch", 1024)
        codes, grids = _encoded(run_dir, 8 if row["spec"] == "W8A8" else 4)
        stored, _ = export.load(out / row["spec"])
        before = export.Quantized(codes, grids, stored.sites)
        weights_only = row["spec"] == "W4"
        compiled = _compiled(run_dir)
        score = compiled.score_weights_only if weights_only else compiled.score
        losses = heldout.losses(
            functools.partial(_swapped, score, before.params, before.states), batches
        )
        assert row["loss"] == losses.mean()
        # And so does whoever reads it again, later.
        assert export.evaluate(out / row["spec"]) == row
    assert len({row["loss"] for row in rows}) == len(rows)


def _swapped(score, params, states, batch):
    return score(params, batch, states)


def test_the_file_is_as_small_as_its_codes(made):
    _, out, rows, _ = made
    D, F, L, V = 16, 64, 2, 259
    matrices = L * (4 * D * D + 2 * D * F)
    channels = L * (4 * D + F + D)
    rest = 4 * (V * D + (2 * L + 1) * D)
    for row in rows:
        num_sites = 0 if row["spec"] == "W4" else 9 * L + 1
        bits = 8 if row["spec"] == "W8A8" else 4
        # A step of 4 bytes and a zero point of 1, for each channel and site.
        payload = matrices * bits // 8 + 5 * (channels + num_sites) + rest
        blob = (out / row["spec"] / "model.safetensors").read_bytes()
        header = 8 + int.from_bytes(blob[:8], "little")  # Names and places.
        assert row["num_bytes"] == len(blob) == header + payload
        assert header < 6000
        assert row["float32_bytes"] == 2 * row["bfloat16_bytes"]
        assert row["float32_bytes"] == 4 * matrices + rest


def test_what_describes_it_is_whole(residual, tmp_path_factory):
    run_dir, out, _ = residual
    described = json.loads((out / "W8A8" / "quantized.json").read_text())
    of_run = json.loads((run_dir / "config.json").read_text())
    for name in ("fingerprint", "data_fingerprint"):
        assert described[name] == of_run[name]
    assert described["experiment"]["quantize"]["specs"] == ["W8A8", "W4"]
    expected = {
        "format": "rfq.quantized.1",
        "spec": "W8A8",
        "taps": "full",
        "stream": "branch",
        "calibrator": "min_max",
        "calibration_seed": 0,
        "calibration_tokens": 1024,
        "levels": {"weights": 255.0, "sites": 255.0},
    }
    assert {name: described[name] for name in expected} == expected
    manifest = runs.check(tiny.experiment(tiny.data(tmp_path_factory)))
    recipe = manifest.recipe
    assert described["tokenizer_fingerprint"] == recipe.tokenizer_fingerprint


# --- What cannot be exported, or read -----------------------------------------------


@pytest.mark.parametrize("spec", ["FP", "A8", "W8A16", "W16A8", "W9A8"])
def test_a_setting_without_an_integer_product_is_refused(residual, tmp_path, spec):
    given, _ = runs.load(residual[0])
    with pytest.raises(InputError, match=f"'{spec}', which cannot run on integers"):
        export.run(_specs(given, "W8A8", spec), residual[0], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sums_that_could_overflow_are_refused(residual, tmp_path):
    given, _ = runs.load(residual[0])
    wide = tiny.with_fields(given, "model", mlp_ratio=2065)  # 33,040 products.
    with pytest.raises(InputError, match="33040 products of 8-bit codes can overflow"):
        export.run(_specs(wide, "W8A8"), residual[0], tmp_path)


def test_an_unfinished_run_is_refused(residual, tmp_path):
    run_dir = tiny.copied(residual[0], tmp_path)
    (run_dir / "done.json").unlink()
    given, _ = runs.load(run_dir)
    with pytest.raises(InputError, match="is not trained to its last step, 12"):
        export.run(_specs(given, "W8A8"), run_dir, tmp_path / "out")


def test_without_safetensors_the_extra_is_named(residual, tmp_path, monkeypatch):
    given, _ = runs.load(residual[0])
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (
        lambda: export.run(_specs(given, "W8A8"), residual[0], tmp_path / "out"),
        lambda: export.load(residual[1] / "W8A8"),
    ):
        with pytest.raises(InputError, match=r"install the extra rfq\[export\]"):
            call()


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _flip(directory):
    path = directory / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def _rewiden(directory):
    path = directory / "quantized.json"
    described = json.loads(path.read_text())
    described["experiment"]["model"]["mlp_ratio"] = 2
    path.write_text(json.dumps(described))


SPOILED = {
    "truncated": (_truncate, "truncated, damaged or from another export"),
    "one bit flipped": (_flip, "truncated, damaged or from another export"),
    "tensors gone": (lambda d: (d / "model.safetensors").unlink(), "cannot be read"),
    "config gone": (lambda d: (d / "quantized.json").unlink(), "is not a quantized"),
    "config cut": (
        lambda d: (d / "quantized.json").write_text('{"format": '),
        "is damaged",
    ),
    "config of a list": (lambda d: (d / "quantized.json").write_text("[1]"), "format"),
    "another format": (
        lambda d: _edit(d / "quantized.json", format="other"),
        "has format 'other', not 'rfq.quantized.1'",
    ),
    "another model": (_rewiden, "does not fit"),
    "another width": (lambda d: _edit(d / "quantized.json", spec="W8A8"), "does not"),
    "no width": (lambda d: _edit(d / "quantized.json", spec="A8"), "its spec is A8"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_checkpoint_is_one_sentence(spoiled, capsys, how):
    spoil, sentence = SPOILED[how]
    spoil(spoiled)
    with tiny.compilations() as compiled:
        assert cli.main(["evaluate", str(spoiled)]) == 2
    stderr = capsys.readouterr().err
    assert sentence in stderr and stderr.count("\n") == 1
    assert compiled == []


def test_a_kill_between_the_files_is_noticed(residual, spoiled, monkeypatch):
    quantized, described = export.load(residual[1] / "W8A8")
    tiny.kill_after(monkeypatch, metrics, "write_text", 0)
    with pytest.raises(tiny.Killed):
        export.save(spoiled, quantized, {**described, "spec": "W8A8"})
    with pytest.raises(InputError, match="from another export"):
        export.load(spoiled)


def test_data_of_another_tokenizer_are_refused(spoiled):
    _edit(spoiled / "quantized.json", tokenizer_fingerprint="0" * 64)
    with pytest.raises(InputError, match="tokenizer"):
        export.evaluate(spoiled)


# --- The commands -------------------------------------------------------------------


def test_the_commands_write_and_score(residual, tmp_path, capsys):
    run_dir, _, rows = residual
    out = tmp_path / "out"
    argv = ["quantize", str(run_dir), "--export", str(out), "--specs", "W8A8 W4"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert f"quantized: {out}" in said
    assert sorted(path.name for path in out.iterdir()) == ["W4", "W8A8"]
    for row in rows:
        line = next(x for x in said.splitlines() if x.startswith(f"{row['spec']} "))
        assert f"{row['loss']:.4f} nats" in line
        assert f"{row['num_bytes']:,} bytes" in line
        data = runs.load(run_dir)[0].data.dir
        assert cli.main(["evaluate", str(out / row["spec"]), "--data-dir", data]) == 0
        assert line in capsys.readouterr().out


def test_a_checkpoint_is_continued_on_its_integers(residual, tmp_path, capsys):
    _, out, _ = residual
    _, model = export.opened(out / "W8A8")
    assert model.params["blocks"]["w_up"].dtype == np.int8
    prompts = [np.arange(3, 9, dtype=np.int32), np.arange(40, 44, dtype=np.int32)]
    how = {
        "max_new_tokens": 6,
        "sampling": decode.Sampling(),
        "is_done": lambda number, new: False,
    }
    simulated = dataclasses.replace(model.seams, dot=deferred.matmul)
    found, expected = (
        decode.generate(one, prompts, **how)
        for one in (model, model._replace(seams=simulated))
    )
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 2
    assert (
        cli.main(["generate", str(out / "W8A8"), "the", "--max-new-tokens", "4"]) == 0
    )
    assert capsys.readouterr().out
    argv = ["generate", str(out / "W8A8"), "the", "--spec", "W4"]
    assert cli.main(argv) == 2
    assert "is a quantized checkpoint" in capsys.readouterr().err


def test_methods_are_no_part_of_an_export(residual):
    run_dir, out, _ = residual
    experiment, _ = runs.load(run_dir)
    with pytest.raises(InputError, match=r"without methods; export W8A8 \(--calib"):
        export.run(_specs(experiment, "W8A8+rotate"), run_dir, out)


@pytest.mark.slow
def test_the_bench_compares_integers_with_float32(residual, tmp_path):
    _, out, _ = residual
    given = [out / name for name in ("W8A8", "W4")]
    path = tmp_path / "rows.jsonl"
    rows = integer_bench.run(given, num_prompts=2, num_rounds=1, json_path=path)
    assert metrics.read(path) == rows
    works = [
        (row["work"], row["tokens"]) for row in rows if row["program"] == "float32"
    ]
    assert works == [("score", 32), ("generate", 16), ("product", 1), ("product", 32)]
    assert len(rows) == len(works) * (1 + 2 * len(given))
    size = {row["program"]: row["num_bytes"] for row in rows}
    assert size["W8A8 on integers"] * 4 == size["float32"] == size["W8A8 simulated"]
    assert size["W4 on integers"] * 8 == size["float32"]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert {row["ratio"] for row in rows if row["program"] == "float32"} == {1.0}
