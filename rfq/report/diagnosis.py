"""Tables of why an arm loses what it loses: noise, shape of activations, weights."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rfq.quant import distortion
from rfq.report import load, tables, view
from rfq.report.load import Record, Run
from rfq.report.tables import Cell, Line, Table
from rfq.report.view import Estimate, Precision, View
from rfq.stats import bootstrap

# Field of statistics.json -> (title, how the layers become one number, format).
STRUCTURE: Mapping[str, tuple[str, Callable[[Sequence[float]], float], str]] = {
    "excess_kurtosis": ("pooled γ, worst layer", max, ".2f"),
    "token_excess_kurtosis": ("γ within a token, worst", max, ".2f"),
    "channel_excess_kurtosis": ("γ of a channel, worst", max, ".2f"),
    "he_kurtosis": ("He's kurtosis, worst", max, ".2f"),
    "max_over_median": ("max/median, worst", max, ".1f"),
    "mean_share": ("share of the means", statistics.fmean, ".2f"),
    "token_cosine": ("token cosine", statistics.fmean, ".2f"),
    "negentropy": ("negentropy, nats", statistics.fmean, ".4f"),
    "hyvarinen_b": ("Hyvärinen's J_B", statistics.fmean, ".4f"),
}

WEIGHTS: Mapping[str, tuple[str, Callable[[Sequence[float]], float], str]] = {
    "excess_kurtosis": ("γ of the weights, worst matrix", max, ".2f"),
    "isometry_deviation": ("‖WWᵀ/α − I‖, median", statistics.median, ".2f"),
    "singular_value_spread": ("σmax/σmin, median", statistics.median, ".1f"),
}

# Settings that the paper's appendix E.5 finds equal, A8 = W8A8 = W16A8 and so on.
WEIGHT_WIDTHS = ("W8", "W16")


def noise_table(shown: View) -> Table:
    """What makes the noise of each arm: clipped values, dead sites, or rounding."""
    return Table(
        name="noise",
        title="Where the quantization noise comes from",
        caption=(
            "Counts of quantized sites and layers by what loses them: clipping (values "
            "outside the calibrated range make most of the noise), dead (most values "
            "become zero, because a few large ones stretch the grid), rounding "
            "(neither). R is the relative squared error at the head's input of the "
            "whole quantized model against the clean one, by placement of the stream's "
            "quantizer; nothing else here depends on it. Counts are of the first seed. "
            "If 16 bits cost as much as 10 and the noise is clipped or dead, finer "
            "steps cannot help."
        ),
        header=(
            "Arm",
            "Setting",
            "clipping",
            "dead",
            "rounding",
            "clipped values",
            "values at zero",
            "SQNR, dB",
            "SQNR of the bulk, dB",
            "fewest codes used",
            *(f"R at the head, {words}" for words in view.STREAMS.values()),
        ),
        lines=[
            Line(
                cells=[tables.arm_cell(arm), *_noise_cells(shown, arm, precision)],
                arm=arm,
            )
            for precision in shown.precisions
            if precision.act_bits is not None
            for arm in shown.arms
            if shown.find(shown.sites, arm, precision)
        ],
    )


def _noise_cells(shown: View, arm: str, precision: Precision) -> list[Cell]:
    def sites(stream: str | None = None) -> list[Record]:
        records = shown.find(shown.sites, arm, precision, stream)[:1]
        named = load.child(records[0], "sites") if records else {}
        return [load.child(named, site) for site in named]

    def everywhere(field: str) -> list[float | None]:
        return [x for site in sites() for x in load.numbers(site, field)]

    causes = [
        distortion.cause(clip, dead)
        for site in sites()
        for clip, dead in zip(
            load.numbers(site, "clip_noise_fraction"),
            load.numbers(site, "dead_fraction"),
            strict=False,
        )
        if clip is not None and dead is not None
    ]
    heads = {
        stream: shown.site_values(arm, precision, "head_in", "relative_error", stream)
        for stream in view.STREAMS
    }
    codes = [x for x in everywhere("levels_used") if x is not None]
    return [
        tables.plain_cell("spec", precision.name),
        *(
            tables.value_cell(name, causes.count(name) if causes else None, "d")
            for name in CAUSES
        ),
        _mean("clip_fraction", everywhere, ".1e"),
        _mean("dead_fraction", everywhere, ".0%"),
        _mean("sqnr_db", everywhere, ".1f"),
        _mean("bulk_sqnr_db", everywhere, ".1f"),
        tables.value_cell("levels_used", min(codes, default=None)),
        *(
            tables.number_cell(
                f"relative_error_{stream}", head[0] if head else Estimate(), ".1e"
            )
            for stream, head in heads.items()
        ),
    ]


CAUSES = ("clipping", "dead", "rounding")


def _mean(
    field: str, everywhere: Callable[[str], list[float | None]], form: str
) -> Cell:
    values = [x for x in everywhere(field) if x is not None]
    return tables.value_cell(field, statistics.fmean(values) if values else None, form)


def structure_table(shown: View) -> Table:
    """Who is heavy-tailed: a channel, a token, or every value."""

    def cells(arm: str, run: Run) -> list[Cell]:
        stream = load.child(run.statistics, "sites", "attn_norm_in")
        loss = tables.value_cell("loss", shown.full_loss(arm).value, ".3f")
        return [loss, *_summaries(stream, STRUCTURE)]

    return Table(
        name="structure",
        title="What the stream looks like",
        caption=(
            "The attention norm's input of the full-precision model on held-out "
            "tokens, over layers; first seed. A pooled γ with a small γ within tokens "
            "is the work of a few tokens, with a small γ of channels the work of a few "
            "channels (He et al.: 1 when all channels are alike). Tokens that are all "
            "alike have a share and a cosine near 1, which γ does not show. Negentropy "
            "is 0 for a Gaussian."
        ),
        header=("Arm", "Loss, nats", *(title for title, _, _ in STRUCTURE.values())),
        lines=_of_first_runs(shown, cells),
    )


def weights_table(shown: View) -> Table:
    """How Gaussian the weights are, and how far from the isometries they started as."""

    def over_matrices(run: Run) -> Record:
        matrices = load.child(run.statistics, "weights")
        return {
            field: [
                value
                for name in matrices
                for value in load.numbers(load.child(matrices, name), field)
                if value is not None
            ]
            for field in WEIGHTS
        }

    return Table(
        name="weights",
        title="What the weights look like",
        caption=(
            "Over the matrices of all blocks at the end of training, first seed; α is "
            "the mean squared singular value, so that a scaled isometry deviates by 0 "
            "(lemma 4)."
        ),
        header=("Arm", *(title for title, _, _ in WEIGHTS.values())),
        lines=_of_first_runs(
            shown, lambda _, run: _summaries(over_matrices(run), WEIGHTS)
        ),
    )


def _of_first_runs(shown: View, cells: Callable[[str, Run], list[Cell]]) -> list[Line]:
    """A line an arm, of its first seed's run."""
    return [
        Line(cells=[tables.arm_cell(arm), *cells(arm, run)], arm=arm)
        for arm in shown.arms
        for run in shown.runs(arm)[:1]
    ]


def _summaries(
    record: Record,
    columns: Mapping[str, tuple[str, Callable[[Sequence[float]], float], str]],
) -> list[Cell]:
    cells = []
    for field, (_, summarize, form) in columns.items():
        values = [v for v in load.numbers(record, field) if v is not None]
        value = summarize(values) if values else None
        cells.append(tables.value_cell(field, value, form))
    return cells


def weights_cost_table(shown: View) -> Table:
    """Does it matter that weights are quantized too (appendix E.5)?"""
    lines = []
    for arm in shown.arms:
        for run in shown.runs(arm):
            losses = {
                (load.text(r, "spec"), load.text(r, "stream")): load.numbers(
                    r, "losses"
                )
                for r in run.losses
                if view.setting_of(r) == shown.setting
            }
            for (spec, stream), alone in losses.items():
                for width in WEIGHT_WIDTHS:
                    both = losses.get((f"{width}{spec}", stream))
                    if spec and spec.startswith("A") and both:
                        cells = _difference_cells(spec, width, stream, alone, both)
                        first = [
                            tables.arm_cell(arm),
                            tables.plain_cell("seed", str(run.seed)),
                        ]
                        lines.append(Line(cells=[*first, *cells], arm=arm))
    return Table(
        name="weights_cost",
        title="What quantized weights add to quantized activations",
        caption=(
            "Loss with both quantized less loss with activations alone, paired over "
            "held-out sequences, with a 95 % interval. The paper (appendix E.5) finds "
            "that A8, W8A8 and W16A8 are the same; intervals without 0 say where they "
            "are not."
        ),
        header=("Arm", "Seed", "Setting", "Placement", "Difference, nats", "Differs"),
        lines=lines,
    )


def _difference_cells(
    spec: str,
    width: str,
    stream: str | None,
    alone: list[float | None],
    both: list[float | None],
) -> list[Cell]:
    named = [
        tables.plain_cell("spec", f"{width}{spec} − {spec}"),
        tables.plain_cell("stream", view.STREAMS.get(stream or "", tables.MISSING)),
    ]
    a, b = (np.asarray(side, np.float64) for side in (alone, both))
    if a.shape != b.shape or not np.isfinite(a - b).all():
        missing = (
            tables.plain_cell(key, tables.NOT_FINITE, "bad")
            for key in ("difference", "differs")
        )
        return [*named, *missing]
    lo, hi = bootstrap.paired_interval(a, b)
    mean = float(np.mean(b - a))
    text = f"{tables.signed(mean, 4)} [{tables.signed(lo, 4)}, {tables.signed(hi, 4)}]"
    differs = "no" if lo <= 0.0 <= hi else "yes"
    data = {"difference": mean, "difference_lo": lo, "difference_hi": hi}
    return [*named, Cell(text=text, data=data), tables.plain_cell("differs", differs)]
