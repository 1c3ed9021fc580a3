"""When 16 bits cost as much as 10: is it clipping, rounding, or are sites dead?

Models with planted massive activations (quantization.md, section 4): the diagnostics
must tell which of the three it is, and the report must show it.
"""

import numpy as np
import pytest

from rfq import metrics, ptq
from rfq.data import tokenize
from rfq.report import load, tables, view
from tests import tiny

# Every document begins with this token, which is massive in one channel: 1 value in
# some 4,000, so that a percentile of 99.9 leaves it out.
TOKEN, CHANNEL, MASSIVE = tokenize.load("byte").bos_id, 5, 4000.0


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    tiny.quick(monkeypatch)


def _planted(params: dict) -> dict:
    embedding = params["embedding"].copy()
    embedding[TOKEN, CHANNEL] = MASSIVE
    return {**params, "embedding": embedding}


def _swept(tmp_path_factory, out, change, calibrator):
    given = tiny.with_fields(
        tiny.experiment(tiny.data(tmp_path_factory)),
        "quantize",
        specs=("FP", "A16", "A10", "A8"),
        streams=("branch",),
        calibrators=(calibrator,),
        eval_tokens=32 * tiny.SEQ_LEN,
    )
    run_dir = out / "arms" / given.arm / "seed-0"
    run_dir.parent.mkdir(parents=True)
    ptq.run(given, tiny.fabricated(given, run_dir, change))
    sites = metrics.read(run_dir / "quantize" / "sites.jsonl")
    return {row["spec"]: row["sites"]["attn_norm_in"] for row in sites}, {
        cells[1].text: [cell.text for cell in cells]
        for made in [tables.noise(view.of(load.read([out], out)))]
        for cells in map(made.cells, made.lines)
    }


def test_without_planting_it_is_rounding(tmp_path_factory, tmp_path):
    sites, table = _swept(tmp_path_factory, tmp_path, lambda p: p, "min_max")
    # Six bits are 36 dB.
    gained = np.subtract(sites["A16"]["sqnr_db"], sites["A10"]["sqnr_db"])
    assert np.all(gained > 30)
    assert table["A8"][2:5] == ["0", "0", "8"]


def test_a_range_that_misses_a_massive_value_clips(tmp_path_factory, tmp_path):
    sites, table = _swept(tmp_path_factory, tmp_path, _planted, "percentile_99.9")
    first = {spec: {k: v[0] for k, v in row.items()} for spec, row in sites.items()}
    # The plateau: 64 times finer steps change nothing.
    assert abs(first["A16"]["sqnr_db"] - first["A10"]["sqnr_db"]) < 0.1
    assert first["A16"]["clip_noise_fraction"] > 0.99
    assert first["A8"]["dead_fraction"] < 0.5
    assert int(table["A16"][2]) >= 1 and table["A16"][3] == "0"


def test_a_range_that_holds_it_leaves_the_others_dead(tmp_path_factory, tmp_path):
    sites, table = _swept(tmp_path_factory, tmp_path, _planted, "min_max")
    first = {spec: {k: v[0] for k, v in row.items()} for spec, row in sites.items()}
    assert first["A8"]["dead_fraction"] > 0.9
    # The tensor's SQNR is that of its massive values; the bulk has nothing left.
    assert first["A8"]["sqnr_db"] > 20 > 1 > first["A8"]["bulk_sqnr_db"]
    assert int(table["A8"][3]) >= 1 and table["A8"][2] == "0"
    # At 16 bits the steps are fine enough again: no plateau here.
    assert first["A16"]["dead_fraction"] < 0.1
