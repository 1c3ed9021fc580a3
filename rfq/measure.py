"""DRIVER of `rfq measure`: statistics of activations, and who holds the outliers.

OUT/sites.csv                one line for each site and layer, see `stats.holders`
OUT/kurtosis_by_layer.png    and .svg: with and without the first token and the largest
                             channels
"""

import csv
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rfq import files, heldout, imported, metrics, runs, sharding, steps
from rfq.data import manifest as manifest_lib
from rfq.data import packing, tokenize
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model.config import BLOCK_SITES, SITES
from rfq.report import render, style
from rfq.stats import central, holders

# What the figure draws, with the words of its legend.
_CURVES = {
    "excess_kurtosis": "all values",
    "without_first": "without the first token",
    "without_starts": "without tokens that begin a document, either",
    "without_channels": f"without {holders.NUM_CHANNELS} channels",
}
_PANELS = ("attn_norm_in", "mlp_norm_in", "attn_in", "mlp_hidden")


def run(
    experiment: Experiment, run_dir: pathlib.Path, out: pathlib.Path, data: str | None
) -> list[dict[str, Any]]:
    """Measure every site and layer in full precision, and write a table and a figure.

    The layers run one after the other in one program, and a layer leaves numbers for
    each channel and position alone, so that memory does not grow with the tokens.

    Args:
        experiment: The run's; `quantize.eval_tokens` held-out tokens are measured.
        run_dir: The finished run.
        out: Where the files go.
        data: Other text or prepared data; None for the run's own.

    Returns:
        The rows of the table.

    Raises:
        InputError: the run is not finished, or the data do not fit it.
    """
    runs.require_finished(experiment, run_dir)
    if experiment.model.seq_len < 2:
        raise InputError("model.seq_len=1 has no token but the first to compare with")
    metrics.make_directory(out)
    if data is not None:
        tokenizer = tokenize.load(experiment.data.tokenizer)
        place = imported.prepared(data, out / "data", tokenizer, experiment.model)
        experiment = imported.on_data(experiment, place)
    runs.check(experiment)
    rows = _measured(experiment, run_dir)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if metrics.is_writer():
        files.replace(out / "sites.csv", table.getvalue())
        render.write_files(_figure(experiment.arm, rows), out)
    return rows


def _measured(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    config, mesh = experiment.quantize, sharding.make_mesh(config=experiment.sharding)
    compiled = steps.compile_quant(experiment, mesh, config.taps[0])
    params = runs.final_params(experiment, run_dir, compiled.params)
    batches = heldout.batches(
        experiment,
        "heldout",
        num_tokens=config.eval_tokens,
        batch_size=config.batch_size,
        mesh=mesh,
    )
    tokenizer = tokenize.load(experiment.data.tokenizer)
    boundary = manifest_lib.load(experiment.data.dir).recipe.boundary
    begins, _ = packing.BOUNDARIES[boundary]
    token = tokenizer.bos_id if begins else tokenizer.eos_id
    mark = holders.Mark(token, not begins)
    merged: dict[str, holders.Holders] = {}
    with metrics.progress(f"measure {experiment.arm}", len(batches)) as bar:
        for number, batch in enumerate(batches, start=1):
            held = sharding.fetched(compiled.hold(params, batch, mark))
            for site, record in held.items():
                new = central.to_float64(record)
                old = merged.get(site)
                merged[site] = new if old is None else holders.merge(old, new)
            bar.update(number)
    return [row for site in SITES for row in _rows(site, merged[site], experiment)]


def _rows(
    site: str, held: holders.Holders, experiment: Experiment
) -> Iterator[dict[str, Any]]:
    """Yield a row for each layer of a site."""
    by_layer = {n: np.atleast_1d(v) for n, v in holders.numbers(held).items()}
    for layer, values in enumerate(zip(*by_layer.values(), strict=True)):
        number = layer + experiment.model.first_layer if site in BLOCK_SITES else ""
        own = dict(zip(by_layer, (value.item() for value in values), strict=True))
        yield {"site": site, "layer": number, **own, "held_by": holders.named(own)}


def _figure(arm: str, rows: list[dict[str, Any]]) -> render.Figure:
    looks = dict(zip(_CURVES, style.SPARE, strict=False))

    def panel(site: str) -> render.Panel:
        own = [row for row in rows if row["site"] == site]

        def draw(ax: Axes) -> None:
            ax.set_yscale("symlog", linthresh=1.0)
            for name, look in looks.items():
                ax.plot(
                    [row["layer"] for row in own],
                    [row[name] for row in own],
                    color=look.color,
                    linestyle=look.line,
                    marker=look.marker,
                    markersize=3.0,
                )
            ax.set_xlabel("layer")
            ax.set_ylabel("excess kurtosis")

        return render.Panel(name=site, title=f"{arm}: {site}", draw=draw)

    return render.Figure(
        name="kurtosis_by_layer",
        title="Who holds the outliers",
        guide="What is left of each layer's excess kurtosis without a few values.",
        panels=[panel(site) for site in _PANELS],
        legend={_CURVES[name]: look for name, look in looks.items()},
    )
