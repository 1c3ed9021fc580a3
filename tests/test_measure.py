"""`rfq measure`: a table and a figure of any finished run."""

import csv

import numpy as np
import pytest

from rfq import cli, heldout, runs, sharding, steps
from rfq.model.config import BLOCK_SITES, MODEL_SITES
from rfq.stats import central
from tests import tiny


@pytest.mark.slow
def test_the_table_has_every_site_and_layer_and_agrees_with_the_sweep(
    tmp_path_factory, tmp_path, monkeypatch, capsys
):
    tiny.quick(monkeypatch)
    run_dir, out = tiny.trained(tmp_path_factory), tmp_path / "out"
    words = ["--out", str(out), "--eval-tokens", "1024", "--batch-size", "32"]
    assert cli.main(["measure", str(run_dir), *words]) == 0
    said = capsys.readouterr().out
    assert "layer 1" in said and "final norm" in said
    assert (out / "kurtosis_by_layer.png").read_bytes().startswith(b"\x89PNG")
    with (out / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    layers = tiny.MODEL.num_layers
    assert len(rows) == len(BLOCK_SITES) * layers + len(MODEL_SITES)
    experiment = tiny.with_fields(
        tiny.experiment(tiny.data(tmp_path_factory)), "quantize", eval_tokens=1024
    )
    mesh = sharding.make_mesh(config=experiment.sharding)
    compiled = steps.compile_quant(experiment, mesh, "paper")
    params = runs.final_params(experiment, run_dir, compiled.params)
    batches = heldout.batches(
        experiment, "heldout", num_tokens=1024, batch_size=32, mesh=mesh
    )
    merged = heldout.merge([compiled.measure(params, batch) for batch in batches])
    for site in ("attn_norm_in", "mlp_hidden"):
        own = [float(r["excess_kurtosis"]) for r in rows if r["site"] == site]
        expected = central.excess_kurtosis(merged[site]["moments"])
        np.testing.assert_allclose(own, expected, rtol=1e-3, err_msg=site)


@pytest.mark.slow
def test_other_text_is_prepared_with_the_run_s_tokenizer(
    tmp_path_factory, tmp_path, monkeypatch, capsys
):
    tiny.quick(monkeypatch)
    run_dir, out = tiny.trained(tmp_path_factory), tmp_path / "out"
    text = tiny.write_text(tmp_path / "other.jsonl")
    words = ["--eval-tokens", "1024", "--batch-size", "8", "--out", str(out)]
    assert cli.main(["measure", str(run_dir), "--data", str(text), *words]) == 0
    assert (out / "data" / "manifest.json").is_file()
    assert len((out / "sites.csv").read_text().splitlines()) > len(BLOCK_SITES)
    assert cli.main(["measure", str(run_dir), "--data", "nowhere.txt", *words]) == 2
    assert "nowhere.txt" in capsys.readouterr().err


def test_an_unfinished_run_is_refused(tmp_path_factory, tmp_path, capsys):
    copy = tiny.copied(tiny.trained(tmp_path_factory), tmp_path)
    (copy / "done.json").unlink()
    assert cli.main(["measure", str(copy)]) == 2
    assert "is not trained to its last step" in capsys.readouterr().err
    assert not (copy / "measure").exists()
