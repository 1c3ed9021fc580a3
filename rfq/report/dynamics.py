"""Tables over training: losses at equal cost, value ranges, and what a step costs."""

from collections.abc import Sequence

from rfq.report import counterparts, curves, load, tables, view
from rfq.report.evidence import Evidence
from rfq.report.paper import Paper, PaperCost
from rfq.report.tables import Cell, Line, Table
from rfq.report.view import Estimate, View


def equal_cost_table(shown: View, paper: Paper) -> Table:
    """Figure 3 as data: each arm's losses at the steps and seconds that all reached."""
    evidence = Evidence(shown=shown, paper=paper)
    trained = [arm for arm in shown.arms if evidence.trained(arm)]
    ends = [
        curves.ends(run) for arm in trained for run in shown.runs(arm) if run.metrics
    ]
    limits = {
        at: min((x for end in ends if (x := end[i]) is not None), default=None)
        for i, at in enumerate(("step", "seconds"))
    }
    lines = []
    for arm in shown.arms:
        training = {
            at: view.estimate(
                [
                    {"loss": curves.loss_at(run, at=at, limit=limit)}
                    for run in shown.runs(arm)
                    if limit is not None
                ],
                "loss",
            )
            for at, limit in limits.items()
        }
        heldout = _heldout(shown, arm, limits["step"])
        lines.append(
            Line(
                arm=arm,
                cells=[
                    tables.arm_cell(arm),
                    tables.value_cell("beta", evidence.facts[arm].beta),
                    tables.number_cell("loss_at_steps", training["step"], ".3f"),
                    tables.number_cell("heldout_at_steps", heldout, ".3f"),
                    tables.number_cell("loss_at_seconds", training["seconds"], ".3f"),
                    tables.number_cell("loss", shown.full_loss(arm), ".3f"),
                ],
            )
        )
    steps, seconds = (
        tables.MISSING if limit is None else f"{limit:,.0f}"
        for limit in limits.values()
    )
    return Table(
        name="equal_cost",
        title="Losses at equal steps and at equal wall time",
        caption=(
            f"After the {steps} steps and the {seconds} seconds of training that all "
            "trained arms reached: running mean of the training loss, and the last "
            "held-out loss measured by then; mean over seeds ± standard deviation. β "
            "is the base of the attention temperature, 1 for none. At equal seconds a "
            "slow arm is less far in its schedule, which ends with the run."
        ),
        header=(
            "Arm",
            "β",
            "Training, equal steps",
            "Held out, equal steps",
            "Training, equal seconds",
            "Held out, at the end",
        ),
        lines=lines,
        stands_for=("Figure 3 left",),
    )


def _heldout(shown: View, arm: str, limit: float | None) -> Estimate:
    """The last loss measured by a step, of each run."""
    known = [
        [
            m
            for m in run.measures
            if (step := load.number(m, "step")) is not None
            and limit is not None
            and step <= limit
        ]
        for run in shown.runs(arm)
    ]
    return view.estimate([measures[-1] for measures in known if measures], "loss")


def ranges_table(shown: View) -> Table:
    """The extremes of the stream by layer at every measured step (appendix E.2)."""
    lines, depth = [], 1
    for arm in shown.arms:
        for run in shown.runs(arm)[:1]:
            for measure in run.measures:
                pairs = view.layer_ranges(measure, "attn_norm_in")
                depth = max(depth, len(pairs))
                if pairs:
                    cells = [
                        tables.arm_cell(arm),
                        tables.value_cell("step", load.number(measure, "step")),
                        tables.value_cell("loss", load.number(measure, "loss"), ".3f"),
                        *(_range(i, lo, hi) for i, (lo, hi) in enumerate(pairs, 1)),
                    ]
                    lines.append(Line(cells=cells, group=arm, arm=arm))
    return Table(
        name="ranges",
        title="Value ranges by layer and step",
        caption=(
            "Smallest and largest value of the attention norm's input on held-out "
            "tokens: what a min-max grid has to cover. First seed. Runs recorded "
            "before ranges were have no line here."
        ),
        header=("Arm", "Step", "Loss, nats", *(f"L{i + 1}" for i in range(depth))),
        lines=lines,
    )


def _range(layer: int, lo: float | None, hi: float | None) -> Cell:
    keys = (f"layer_{layer}_lo", f"layer_{layer}_hi")
    if lo is None or hi is None:
        data = dict.fromkeys(keys, tables.MISSING)
        return Cell(text=tables.MISSING, data=data, mark="missing")
    text = f"{lo:.3g} … {hi:.3g}".replace("-", "−")
    return Cell(text=text, data=dict(zip(keys, (lo, hi), strict=True)))


# What ratios of speed are to.
_BASE = "residual_adamw"


def costs_table(shown: View, paper: Paper) -> Table:
    """Steps a second and bytes of each arm, beside the paper's (appendix D)."""
    printed = {cost.arm: cost for cost in paper.costs}
    ours = counterparts.ours(shown, paper)
    theirs = {arm: each for each, arm in ours.items()}
    speeds = {arm: shown.speed(arm) for arm in shown.arms}
    base = speeds.get(ours.get(_BASE, ""))
    pairs = [(arm, theirs.get(arm)) for arm in shown.arms]
    pairs += [(None, each) for each in printed if each not in ours]
    return Table(
        name="costs",
        title="Speed and memory",
        caption=(
            "Median over logged steps, mean over seeds; ratios are to residual AdamW. "
            "State: parameters and optimizer on one device. Peak: most bytes that one "
            "device held, where it counts them and no earlier arm of the same process "
            "held more. The paper: one of four H100, which have 80 GB as a rule."
        ),
        header=(
            "Arm",
            "Steps/s",
            "Ratio",
            "State, MB",
            "Peak, MB",
            "Paper: arm",
            "Paper: steps/s",
            "Paper: ratio",
            "Paper: MB",
        ),
        lines=[
            Line(
                arm=arm,
                cells=[
                    tables.counterpart_cell(arm),
                    tables.value_cell("steps_per_second", speeds.get(arm or ""), ".3g"),
                    tables.value_cell(
                        "speed_ratio", _ratio(speeds.get(arm or ""), base), ".2f"
                    ),
                    *(_megabytes(shown, arm or "", name) for name in ("state", "peak")),
                    *_paper_cells(printed.get(each or ""), printed[_BASE]),
                ],
            )
            for arm, each in pairs
        ],
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value / base


def _megabytes(shown: View, arm: str, name: str) -> Cell:
    found = shown.memory(arm, f"{name}_bytes")
    return tables.value_cell(
        f"{name}_mb", None if found is None else found / 1e6, ",.1f"
    )


def _paper_cells(cost: PaperCost | None, base: PaperCost) -> Sequence[Cell]:
    if cost is None:
        return [Cell(text="not in the paper", data={}, mark="quiet")] * 4
    speed = cost.steps_per_second
    return [
        tables.plain_cell("paper_arm", view.arm_label(cost.arm)),
        tables.value_cell("paper_steps_per_second", speed, ".3g"),
        tables.value_cell("paper_speed_ratio", speed / base.steps_per_second, ".2f"),
        tables.value_cell("paper_mb", cost.memory_mb, ",.0f"),
    ]


def calibrators_table(shown: View) -> Table:
    """Increase of loss by calibrator, where there are several."""
    views = {
        setting.calibrator or tables.MISSING: view.of(shown.results, setting)
        for setting in view.settings(shown.results)
        if setting.taps == shown.setting.taps
    }
    lines = []
    for precision in shown.precisions if len(views) > 1 else ():
        if precision.act_bits is None:
            continue
        for arm in shown.arms:
            found = {
                name: each.increase(arm, each.precision(precision.name), "branch")
                for name, each in views.items()
            }
            known = [e.value for e in found.values() if e.value is not None]
            if len(known) > 1:
                cells = [
                    tables.increase_cell(name, e, best=e.value == min(known))
                    for name, e in found.items()
                ]
                first = [
                    tables.plain_cell("precision", precision.name),
                    tables.arm_cell(arm),
                ]
                lines.append(
                    Line(cells=[*first, *cells], group=precision.name, arm=arm)
                )
    return Table(
        name="calibrators",
        title="How the range is chosen",
        caption=(
            "Increase of held-out loss, nats, branch placement, by calibrator; several "
            "draws of calibration tokens count as seeds do. Bold: the least of a line. "
            "The paper's is min-max."
        ),
        header=("Precision", "Arm", *views),
        lines=lines,
    )
