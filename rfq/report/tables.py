"""Every table of the report, as data; written as markdown, CSV and HTML.

A table's text is rounded for people, its CSV holds the numbers of the rows in full.
What is not in the rows is "missing" in both, never a zero.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence

from rfq.report import counterparts, load, view
from rfq.report.evidence import Evidence, Facts
from rfq.report.load import Record
from rfq.report.paper import Paper
from rfq.report.view import Estimate, Precision, View

MISSING = "missing"
NOT_FINITE = "not finite"

Value = str | float | int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What a reader sees, and the named numbers that the CSV gets.

    Attributes:
        mark: "" | "best" | "missing" | "bad" | "quiet": how the page sets it.
        title: what the page shows under a pointer, if anything.
    """

    text: str
    data: Mapping[str, Value]
    mark: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table. Lines of one `group` stand together; `arm` colors it."""

    cells: Sequence[Cell]
    group: str = ""
    arm: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table: `name` is its file's name, `header` one title a column.

    Attributes:
        stands_for: what of the paper's it shows, as in `paper.ITEMS`.
        is_printed: whether the numbers are the paper's and not ours.
    """

    name: str
    title: str
    caption: str
    header: Sequence[str]
    lines: Sequence[Line]
    stands_for: Sequence[str] = ()
    is_printed: bool = False


def plain_cell(key: str, value: str, mark: str = "") -> Cell:
    """A text that is its own number."""
    return Cell(text=value, data={key: value}, mark=mark)


def value_cell(key: str, value: float | None, form: str = "g") -> Cell:
    """One number, or that it is missing."""
    if value is None:
        return Cell(text=MISSING, data={key: MISSING}, mark="missing")
    return Cell(text=format(value, form).replace("-", "−"), data={key: value})


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign; a rounded zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def kurtosis_text(value: float) -> str:
    """Two decimals below 100, none above; a rounded zero has no sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def count_text(value: float) -> str:
    """A count for people: 0.82 M, 12.3 k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def estimate_cell(
    key: str,
    found: Estimate,
    write: Callable[[float], str],
    *,
    compact: bool = False,
    mark: str = "",
) -> Cell:
    """A mean with its interval, or its standard deviation over several seeds.

    Where `compact`, what goes with the mean is in the tooltip and not in the cell.
    """
    if found.value is None:
        word, mark = (NOT_FINITE, "bad") if found.not_finite else (MISSING, "missing")
        return Cell(text=word, data={key: word}, mark=mark)
    mean, around = write(found.value), ""
    data: dict[str, Value] = {key: found.value}
    if found.spread is not None:
        around = f" ± {write(found.spread)}"
        data |= {f"{key}_sd": found.spread, f"{key}_seeds": found.num_seeds}
    if found.lo is not None and found.hi is not None:
        around = f" [{write(found.lo)}, {write(found.hi)}]"
        data |= {f"{key}_lo": found.lo, f"{key}_hi": found.hi}
    title = f"{mean}{around}" if compact and around else ""
    text = mean if compact else f"{mean}{around}"
    if found.not_finite:
        text, mark = f"{text}; a seed {NOT_FINITE}", "bad"
        data[f"{key}_left_out"] = f"a seed, {NOT_FINITE}"
    return Cell(text=text, data=data, mark=mark, title=title)


def number_cell(key: str, found: Estimate, form: str) -> Cell:
    """An estimate in one format."""
    return estimate_cell(key, found, lambda x: format(x, form).replace("-", "−"))


def increase_cell(key: str, found: Estimate, *, best: bool = False) -> Cell:
    """An increase of loss with its interval."""
    return estimate_cell(key, found, signed, mark="best" if best else "")


def kurtosis_cell(key: str, found: Estimate, *, compact: bool = False) -> Cell:
    """A kurtosis, never without the loss beside it."""
    return estimate_cell(key, found, kurtosis_text, compact=compact)


def arm_cell(arm: str) -> Cell:
    """An arm's name as a reader sees it."""
    return Cell(text=view.arm_label(arm), data={"arm": arm})


def counterpart_cell(arm: str | None) -> Cell:
    """Our arm beside one of the paper's, or that there is none."""
    if arm is None:
        return Cell(text=MISSING, data={"arm": None}, mark="missing")
    return arm_cell(arm)


def _full_precision(
    shown: View, arm: str, precision: Precision, *, prefix: str = ""
) -> list[Cell]:
    """Both placements' increases of an FP row: none for the reference itself."""
    cells = []
    for stream in view.STREAMS:
        key = f"{prefix}loss_increase_{stream}"
        found = shown.increase(arm, precision, stream)
        if precision == shown.reference and found.value is not None:
            cells.append(Cell(text="reference", data={key: 0.0}, mark="quiet"))
        else:
            cells.append(increase_cell(key, found))
    return cells


def _lowest(shown: View, precision: Precision, stream: str) -> str | None:
    """The arm whose interval lies below that of every other arm that trained."""
    found = {
        arm: (increase.lo, increase.hi)
        for arm in shown.arms
        if shown.status(arm) in ("ok", "above bigram")
        and (increase := shown.increase(arm, precision, stream)).lo is not None
        and increase.hi is not None
        and not increase.not_finite
    }
    for arm, (_, hi) in found.items():
        others = [lo for other, (lo, _) in found.items() if other != arm]
        if others and hi < min(others):
            return arm
    return None


def main_table(shown: View) -> Table:
    """The shape of the paper's Table 1, with held-out loss in place of accuracy."""
    lines = []
    for precision in shown.precisions:
        lowest = {s: _lowest(shown, precision, s) for s in view.STREAMS}
        for arm in shown.arms:
            cells = [plain_cell("precision", precision.label), arm_cell(arm)]
            for stream in view.STREAMS:
                found = shown.loss(arm, precision, stream)
                cells.append(number_cell(f"loss_{stream}", found, ".3f"))
            if precision.name == "FP":
                cells += _full_precision(shown, arm, precision)
                loss = shown.loss(arm, precision)
                exact = Cell(text="exact", data={"sqnr_db": "exact"}, mark="quiet")
                absent = number_cell("sqnr_db", loss, "")
                cells.append(absent if loss.value is None else exact)
            else:
                for stream in view.STREAMS:
                    found = shown.increase(arm, precision, stream)
                    key = f"loss_increase_{stream}"
                    cells.append(increase_cell(key, found, best=arm == lowest[stream]))
                distortion = shown.distortion(arm, precision, "sqnr_db")
                cells.append(number_cell("sqnr_db", distortion, ".1f"))
            # Loss and increase side by side within a placement.
            order = (0, 1, 2, 4, 3, 5, 6)
            lines.append(
                Line(cells=[cells[i] for i in order], group=precision.label, arm=arm)
            )
    suffix = "" if shown.setting in _first(shown) else f"_{_slug(shown.setting)}"
    return Table(
        name=f"main{suffix}",
        title="Held-out loss by precision and arm",
        caption=(
            "Held-out loss in nats a token, and its increase against float32 with a "
            "95 % interval (paired bootstrap over sequences; with several seeds the "
            "hull of their intervals, and mean ± standard deviation for the loss). "
            "Branch: only the norm sees the quantized stream. In place: the skip "
            "carries it too. Residual-free blocks have no skip, so their two "
            "placements are equal by construction. Bold: an increase whose interval "
            "lies below every other trained arm's. SQNR: mean over sites, of "
            "full-precision tensors, so of no placement. Taps "
            f"{shown.setting.taps or MISSING}, calibration "
            f"{shown.setting.calibrator or MISSING}."
        ),
        header=(
            "Precision",
            "Arm",
            "Loss, branch",
            "Increase, branch",
            "Loss, in place",
            "Increase, in place",
            "SQNR, dB",
        ),
        lines=lines,
    )


def _first(shown: View) -> list[view.Setting]:
    return view.settings(shown.results)[:1]


def _slug(setting: view.Setting) -> str:
    return "_".join(part or MISSING for part in setting)


STATUS_TEXT: Mapping[str, str] = {
    "ok": "below bigram",
    "above bigram": "above bigram",
    "stuck": "stuck near unigram",
    "not finite": "not finite",
    "unfinished": "unfinished",
    "missing": "missing",
}


def _config_number(shown: View, arm: str, *path: str) -> Estimate:
    *parents, field = path
    records = [
        load.child(run.config, "experiment", *parents) for run in shown.runs(arm)
    ]
    return estimate_of(records, field)


def estimate_of(records: Sequence[Record], field: str) -> Estimate:
    """Mean over seeds without the spread, for what does not vary by chance."""
    found = view.estimate(records, field)
    return found._replace(spread=None)


def _count(key: str, found: Estimate) -> Cell:
    return estimate_cell(key, found, count_text)


def _size(rows: Sequence[Record]) -> Cell:
    layers, width = (estimate_of(rows, name).value for name in ("num_layers", "width"))
    if layers is None or width is None:
        return Cell(
            text=MISSING, data={"num_layers": None, "width": None}, mark="missing"
        )
    return Cell(
        text=f"{layers:.0f} × {width:.0f}",
        data={"num_layers": int(layers), "width": int(width)},
    )


# Where arms begin to differ at a small size, and where the paper's headline stands.
GLANCE_SPECS = ("W8A8", "W8A6", "W8A4")


def glance_table(shown: View) -> Table:
    """The result in one line an arm: loss, kurtosis, and what few bits cost."""
    specs = [name for name in GLANCE_SPECS if shown.precision(name) is not None]
    lines = []
    for arm in shown.arms:
        cells = [
            arm_cell(arm),
            number_cell("loss", shown.full_loss(arm), ".3f"),
            kurtosis_cell("excess_kurtosis", shown.block_kurtosis(arm)),
        ]
        for name in specs:
            found = {
                stream: shown.increase(arm, shown.precision(name), stream)
                for stream in view.STREAMS
            }
            both = [increase_cell(f"{name}_{s}", e) for s, e in found.items()]
            short = [
                cell.text if e.value is None or e.not_finite else signed(e.value)
                for cell, e in zip(both, found.values(), strict=True)
            ]
            mark = next((cell.mark for cell in both if cell.mark), "")
            data = {key: value for cell in both for key, value in cell.data.items()}
            text = short[0] if mark and short[0] == short[1] else " / ".join(short)
            cells.append(Cell(text=text, data=data, mark=mark))
        lines.append(Line(cells=cells, arm=arm))
    floors = ", ".join(
        f"{name} {MISSING if value is None else format(value, '.3f')}"
        for name in ("unigram", "bigram")
        for value in [shown.floor(name)]
    )
    return Table(
        name="glance",
        title="At a glance",
        caption=(
            "Loss: held out, full precision, nats a token (floors: "
            f"{floors}). Kurtosis: largest excess kurtosis over layers at the "
            "attention norm's input; 0 is Gaussian. WnAm: increase of the loss with "
            "the stream's quantizer in the branch / in place."
        ),
        header=("Arm", "Loss", "Kurtosis", *specs),
        lines=lines,
    )


def _kind(facts: Facts) -> Mapping[str, str | None]:
    """What an arm is, which its name need not say."""
    return {
        "skip": facts.skip and facts.skip.replace("_", "-"),
        "optimizer": facts.optimizer and view.arm_label(facts.optimizer),
        "norm": facts.norm and facts.norm.replace("_", " "),
    }


def arms_table(shown: View, paper: Paper) -> Table:
    """What each arm is, how far it got, and its kurtosis beside its loss."""
    evidence = Evidence(shown=shown, paper=paper)
    lines = []
    for arm in shown.arms:
        rows = shown.rows(arm, shown.reference)
        status = shown.status(arm)
        seconds = estimate_of([run.done for run in shown.runs(arm)], "seconds")
        bad = status not in ("ok", "above bigram")
        lines.append(
            Line(
                arm=arm,
                cells=[
                    arm_cell(arm),
                    number_cell("loss", shown.full_loss(arm), ".3f"),
                    number_cell(
                        "bits_per_byte", view.estimate(rows, "bits_per_byte"), ".3f"
                    ),
                    plain_cell("status", STATUS_TEXT[status], "bad" if bad else ""),
                    kurtosis_cell("excess_kurtosis", shown.block_kurtosis(arm)),
                    kurtosis_cell(
                        "final_norm_excess_kurtosis", shown.final_kurtosis(arm)
                    ),
                    number_cell(
                        "learning_rate",
                        _config_number(shown, arm, "optimizer", "learning_rate"),
                        ".3g",
                    ),
                    _size(rows),
                    *(
                        plain_cell(key, word or MISSING, "" if word else "missing")
                        for key, word in _kind(evidence.facts[arm]).items()
                    ),
                    _count("num_params", estimate_of(rows, "num_params")),
                    _count("num_steps", estimate_of(rows, "num_steps")),
                    _count("tokens_seen", estimate_of(rows, "tokens_seen")),
                    number_cell("train_seconds", seconds, ",.0f"),
                ],
            )
        )
    return Table(
        name="arms",
        title="The arms: loss and kurtosis, side by side",
        caption=(
            "Full precision, at the end of training. Kurtosis, blocks: largest excess "
            "kurtosis over layers at the attention norm's input (0 for a Gaussian). "
            "A model that learnt little has kurtosis near 0 too: read it beside the "
            "loss. ± is the standard deviation over seeds."
        ),
        header=(
            "Arm",
            "Held-out loss, nats",
            "Bits a byte",
            "Against the floors",
            "Kurtosis, blocks",
            "Kurtosis, final norm",
            "Peak rate",
            "Layers × width",
            "Connection",
            "Optimizer",
            "Norm",
            "Parameters",
            "Steps",
            "Tokens",
            "Seconds trained",
        ),
        lines=lines,
    )


def kurtosis_table(shown: View, *, sites: Sequence[str], name: str) -> Table:
    """Excess kurtosis by site and layer at the end of training."""
    found = {
        (site, arm): view.by_layer(shown.ends(arm), site, "excess_kurtosis")
        for site in sites
        for arm in shown.arms
    }
    depth = max(map(len, found.values()), default=0)
    lines = []
    for site in sites:
        once = site in view.FINAL_SITES
        for arm in shown.arms:
            label = view.FINAL_SITES[site] if once else view.BLOCK_SITES[site]
            cells = [
                Cell(text=f"{label} ({site})", data={"site": site}),
                arm_cell(arm),
                number_cell("loss", shown.full_loss(arm), ".3f"),
            ]
            for layer in range(max(depth, 1)):
                key = f"layer_{layer + 1}"
                if once and layer:
                    cells.append(Cell(text="", data={key: ""}, mark="quiet"))
                else:
                    mean = next(iter(found[site, arm][layer : layer + 1]), Estimate())
                    cells.append(kurtosis_cell(key, mean, compact=True))
            lines.append(Line(cells=cells, group=site, arm=arm))
    return Table(
        name=name,
        title="Excess kurtosis by site and layer",
        caption=(
            "Pooled excess kurtosis of the full-precision model at the end of "
            "training, mean over seeds; a site of the whole model has one value, in "
            "the first column. 0 is Gaussian."
        ),
        header=(
            "Site",
            "Arm",
            "Loss, nats",
            *(f"L{i + 1}" for i in range(max(depth, 1))),
        ),
        lines=lines,
    )


def matched_point(shown: View, arm: str, target: float) -> Record | None:
    """The first measured step of the first seed whose held-out loss is <= target."""
    for run in shown.runs(arm)[:1]:
        for measure in run.measures:
            loss = load.number(measure, "loss")
            if loss is not None and loss <= target:
                return measure
    return None


def matched_loss(shown: View) -> float | None:
    """The highest final held-out loss among arms that trained: all of them pass it."""
    ends = [
        loss
        for arm in shown.arms
        if shown.status(arm) in ("ok", "above bigram")
        for end in shown.ends(arm)[:1]
        if (loss := load.number(end, "loss")) is not None
    ]
    return max(ends) if len(ends) > 1 else None


def matched_table(shown: View) -> Table:
    """Kurtosis of each arm when it first reached the loss that all arms reached."""
    target = matched_loss(shown)
    lines = []
    for arm in shown.arms:
        found = None if target is None else matched_point(shown, arm, target)
        point = found or {}
        peak = view.peak_kurtosis(point, ("attn_norm_in",))
        everywhere = view.paper_peak(point)
        final = view.peak_kurtosis(point, ("final_norm_in",))
        lines.append(
            Line(
                arm=arm,
                cells=[
                    arm_cell(arm),
                    _count("step", view.estimate([point], "step")),
                    number_cell("loss", view.estimate([point], "loss"), ".3f"),
                    kurtosis_cell("attn_norm_in", Estimate(peak)),
                    kurtosis_cell("paper_sites", Estimate(everywhere)),
                    kurtosis_cell("final_norm_in", Estimate(final)),
                ],
            )
        )
    reached = MISSING if target is None else f"{target:.3f} nats"
    return Table(
        name="matched_loss",
        title="Kurtosis at matched loss",
        caption=(
            "The first measured step at which each arm's held-out loss is at most that "
            f"of the arm that learnt least ({reached}); first seed. At equal steps an "
            "arm that learnt less looks more Gaussian for that reason alone."
        ),
        header=(
            "Arm",
            "Step",
            "Held-out loss, nats",
            "Attention norm's input",
            "The paper's four sites",
            "Final norm's input",
        ),
        lines=lines,
    )


# Weight width -> the paper's tables of it, the complete one last.
PAPER_TABLES: Mapping[int | None, Sequence[str]] = {
    8: ("Table 1", "Table 2"),
    16: ("Table 3",),
    None: ("Table 4",),
}


def _paper_table_of(precision: Precision) -> str:
    """The table of the paper with that weight width."""
    return {None: "table4", 16: "table3"}.get(precision.weight_bits, "table2")


def beside_table(shown: View, paper: Paper, *, weight_bits: int | None) -> Table:
    """Our loss increase and the paper's change of accuracy, row by row."""
    paper_arms = list(dict.fromkeys(row.arm for row in paper.tables["table2"]))
    ours = counterparts.ours(shown, paper)
    quantized = [
        p for p in shown.precisions if p.name != "FP" and p.weight_bits == weight_bits
    ]
    reference = [shown.reference] if shown.reference else []
    lines = []
    for precision in [*reference, *quantized]:
        table = _paper_table_of(precision)
        for theirs in paper_arms:
            arm = ours.get(theirs)
            loss = shown.loss(arm, precision, "branch") if arm else Estimate()
            cells = [
                plain_cell("precision", precision.name),
                counterpart_cell(arm),
                number_cell("our_loss", loss, ".3f"),
            ]
            if precision == shown.reference and arm:
                cells += _full_precision(shown, arm, precision, prefix="our_")
            else:
                for stream in view.STREAMS:
                    found = (
                        shown.increase(arm, precision, stream) if arm else Estimate()
                    )
                    cells.append(increase_cell(f"our_loss_increase_{stream}", found))
            cells.append(plain_cell("paper_arm", view.arm_label(theirs)))
            cells += _paper_cells(paper, table, theirs, precision.name)
            lines.append(Line(cells=cells, group=precision.name, arm=arm))
    kind = "a" if weight_bits is None else f"w{weight_bits}"
    weights = "weights FP" if weight_bits is None else f"{weight_bits}-bit weights"
    return Table(
        name=f"beside_the_paper_{kind}",
        title=f"Ours beside the paper's, {weights}",
        caption=(
            "Ours: held-out loss and its increase, nats a token (up is worse). The "
            "paper's numbers: average zero-shot accuracy on eight tasks of its models "
            f"of {paper.num_params / 1e6:.0f} M parameters, and its change from BF16 "
            "(down is worse). The units differ; compare the order of arms and where "
            "each begins to fall, not the sizes. The paper gives one seed and does not "
            "say which placement it used. Ours is the arm of that connection, "
            "optimizer, initialization and norm whose config comes nearest."
        ),
        header=(
            "Precision",
            "Arm",
            "Ours: loss, branch",
            "Ours: increase, branch",
            "Ours: increase, in place",
            "Paper: arm",
            "Paper: accuracy",
            "Paper: change",
        ),
        lines=lines,
        stands_for=PAPER_TABLES.get(weight_bits, ()),
    )


def _paper_cells(paper: Paper, table: str, arm: str, spec: str) -> list[Cell]:
    theirs, full = (paper.accuracy(table, arm, name) for name in (spec, "FP"))
    if theirs is None or full is None:
        absent = Cell(text="not in the paper", data={}, mark="quiet")
        return [absent, absent]
    change = Cell(
        text=signed(theirs - full),
        data={"paper_accuracy_change": round(theirs - full, 6)},
    )
    if spec == "FP":
        change = Cell(text="reference", data={}, mark="quiet")
    return [Cell(text=f"{theirs:.3f}", data={"paper_accuracy": theirs}), change]


def paper_table(paper: Paper, name: str) -> Table:
    """One of the paper's Tables 1 to 4, as printed."""
    lines = []
    order = {row.spec: i for i, row in reversed(list(enumerate(paper.tables[name])))}
    for row in sorted(paper.tables[name], key=lambda r: order[r.spec]):
        label = "BF16" if row.spec == "FP" else row.spec
        cells = [plain_cell("precision", label), arm_cell(row.arm)]
        for task, score in zip(
            (*paper.tasks, "avg"), (*row.scores, row.avg), strict=True
        ):
            cells.append(Cell(text=f"{score:.3f}", data={task: score}))
        lines.append(Line(cells=cells, group=label, arm=row.arm))
    return Table(
        name=f"paper_{name}",
        title=f"The paper's {paper.titles[name]}",
        caption=(
            f"The paper's numbers, not ours: zero-shot accuracy of models of "
            f"{paper.num_params / 1e6:.0f} M parameters after {paper.num_steps:,} "
            f"steps. {paper.source}, {paper.license}."
        ),
        header=("Precision", "Arm", *paper.tasks, "average"),
        lines=lines,
        stands_for=(f"Table {name.removeprefix('table')}",),
        is_printed=True,
    )


def same_depth(layer: int, paper_layers: int, num_layers: int) -> int:
    """Our layer, counted from 1, at the relative depth of the paper's `layer`."""
    return min(num_layers, max(1, round(layer / paper_layers * num_layers)))


def paper_kurtosis_table(shown: View, paper: Paper) -> Table:
    """The kurtosis that the paper states, and ours at the same relative depth."""
    arms = counterparts.ours(shown, paper)
    lines = []
    for entry in paper.kurtosis:
        arm = arms.get(entry.arm)
        found = view.by_layer(
            shown.ends(arm) if arm else [], "attn_norm_in", "excess_kurtosis"
        )
        depth = len(found)
        layer = same_depth(entry.layer, paper.num_layers, depth) if depth else None
        ours = Estimate() if layer is None else found[layer - 1]
        loss = shown.full_loss(arm) if arm else Estimate()
        where = Cell(text=MISSING, data={"our_layer": None}, mark="missing")
        if layer is not None:
            where = Cell(text=f"layer {layer} of {depth}", data={"our_layer": layer})
        lines.append(
            Line(
                arm=arm,
                cells=[
                    counterpart_cell(arm),
                    plain_cell("paper_arm", view.arm_label(entry.arm)),
                    Cell(
                        text=f"layer {entry.layer} of {paper.num_layers} "
                        f"({entry.where})",
                        data={"paper_layer": entry.layer},
                    ),
                    Cell(
                        text=f"{entry.excess_kurtosis:,g}",
                        data={"paper_excess_kurtosis": entry.excess_kurtosis},
                    ),
                    where,
                    kurtosis_cell("our_excess_kurtosis", ours),
                    number_cell("our_loss", loss, ".3f"),
                ],
            )
        )
    return Table(
        name="paper_kurtosis",
        title="Kurtosis that the paper states, and ours",
        caption=(
            f"The paper's values are after {paper.num_steps:,} steps; it does not say "
            "which tensor of the layer they are of. Ours: the attention norm's input "
            "at the end of training, at the same relative depth, mean over seeds."
        ),
        header=(
            "Arm",
            "Paper: arm",
            "Paper: where",
            "Paper: excess kurtosis",
            "Ours: where",
            "Ours: excess kurtosis",
            "Ours: loss, nats",
        ),
        lines=lines,
    )


def markdown(table: Table) -> str:
    """The table in GitHub's markdown, with its title and caption."""
    head = "| " + " | ".join(table.header) + " |"
    rule = "|" + "---|" * len(table.header)
    body = [
        "| "
        + " | ".join(
            f"**{cell.text}**" if cell.mark == "best" else cell.text.replace("|", "\\|")
            for cell in line.cells
        )
        + " |"
        for line in table.lines
    ]
    return "\n".join(
        [f"### {table.title}", "", table.caption, "", head, rule, *body, ""]
    )


def comma_separated(table: Table) -> str:
    """The table's numbers in full, one named column each."""
    records = []
    for line in table.lines:
        record: dict[str, Value] = {}
        for cell in line.cells:
            record |= cell.data
        records.append(record)
    columns = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        cells = [record.get(name) for name in columns]
        writer.writerow([MISSING if cell is None else cell for cell in cells])
    return out.getvalue()
