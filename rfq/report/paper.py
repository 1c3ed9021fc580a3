"""The paper's own numbers, and nothing computed from them but differences."""

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class PaperKurtosis(NamedTuple):
    """A value of excess kurtosis that the paper states."""

    arm: str
    layer: int
    excess_kurtosis: float
    where: str


class PaperRow(NamedTuple):
    """One row of Tables 1 to 4: accuracies are fractions, `scores` in task order."""

    arm: str
    spec: str
    weight_bits: int | None
    act_bits: int | None
    scores: tuple[float, ...]
    avg: float


class PaperCost(NamedTuple):
    """What an arm took on one of four H100 (appendix D, "Hardware")."""

    arm: str
    steps_per_second: float
    memory_mb: float


class Paper(NamedTuple):
    """paper_tables.json, typed."""

    source: str
    url: str
    license: str
    changes: str
    num_params: int
    num_layers: int
    num_steps: int
    tasks: tuple[str, ...]
    chance: float
    kurtosis: tuple[PaperKurtosis, ...]
    costs: tuple[PaperCost, ...]
    titles: Mapping[str, str]
    tables: Mapping[str, Sequence[PaperRow]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm of which a number is printed."""
        parts = (*self.tables.values(), self.kurtosis, self.costs)
        return tuple(dict.fromkeys(entry.arm for part in parts for entry in part))

    def accuracy(self, table: str, arm: str, spec: str) -> float | None:
        """The average accuracy of a row, or None where the paper has no such row."""
        rows = self.tables[table]
        return next((r.avg for r in rows if (r.arm, r.spec) == (arm, spec)), None)


class Item(NamedTuple):
    """A table or figure of the paper, or a part of one, that a report may show.

    Attributes:
        shows: what it is of.
        needs: what a report lacks that does not show it.
    """

    shows: str
    needs: str


_BITS = "over two activation widths"
ITEMS: Mapping[str, Item] = {
    "Table 1": Item("accuracy, main text", "rows at 8-bit weights"),
    "Table 2": Item("accuracy, 8-bit weights", "rows at 8-bit weights"),
    "Table 3": Item("accuracy, 16-bit weights", "rows at 16-bit weights"),
    "Table 4": Item("accuracy, activations alone", "rows of activations alone"),
    "Figure 1 left": Item("accuracy, 8-bit weights", f"rows at W8, {_BITS}"),
    "Figure 1 middle": Item("SQNR", f"rows at W8, {_BITS}"),
    "Figure 1 right": Item("kurtosis by layer", "a finished run's measures"),
    "Figure 3 left": Item("loss by optimizer", "metrics.jsonl"),
    "Figure 3 middle": Item("attention temperature", "arms that differ in β alone"),
    "Figure 3 right": Item("kurtosis over training", "measures.jsonl"),
    "Figure 4": Item("histograms, layer 16", "statistics.json"),
    "Figure 5": Item("kurtosis, negentropy by optimizer", "measures.jsonl"),
    "Figure 6": Item("histograms by optimizer", "counts in measures.jsonl"),
    "Figure 7": Item("histograms, layer 8", "counts in measures.jsonl"),
    "Figure 8": Item("histograms, layer 16", "counts in measures.jsonl"),
    "Figure 9": Item("histograms, layer 22", "counts in measures.jsonl"),
    "Figure 10": Item("accuracy, 8-bit weights", f"rows at W8, {_BITS}"),
    "Figure 11 left": Item("distortion, 8-bit weights", f"rows at W8, {_BITS}"),
    "Figure 11 right": Item("kurtosis, negentropy by layer", "a finished run"),
    "Figure 12": Item("accuracy, 16-bit weights", f"rows at W16, {_BITS}"),
    "Figure 13 left": Item("distortion, 16-bit weights", f"rows at W16, {_BITS}"),
    "Figure 13 right": Item("kurtosis, negentropy by layer", "a finished run"),
    "Figure 14": Item("accuracy, activations alone", f"rows of A, {_BITS}"),
    "Figure 15 left": Item("distortion, activations alone", f"rows of A, {_BITS}"),
    "Figure 15 right": Item("kurtosis, negentropy by layer", "a finished run"),
}


@functools.cache
def load() -> Paper:
    """Reads the numbers that ship with the package (arXiv:2605.25880, CC BY 4.0)."""
    source = importlib.resources.files("rfq.report").joinpath("paper_tables.json")
    data = json.loads(source.read_text(encoding="utf-8"))
    tasks = tuple(data["tasks"])

    def row(r: dict) -> PaperRow:
        scores = tuple(r[task] for task in tasks)
        bits = (r["weight_bits"], r["act_bits"])
        return PaperRow(r["arm"], r["spec"], *bits, scores, r["avg"])

    return Paper(
        source=data["source"],
        url=data["url"],
        license=data["license"],
        changes=data["changes"],
        num_params=data["setting"]["num_params"],
        num_layers=data["setting"]["num_layers"],
        num_steps=data["setting"]["num_steps"],
        tasks=tasks,
        chance=data["chance"]["avg"],
        kurtosis=tuple(PaperKurtosis(**entry) for entry in data["kurtosis"]),
        costs=tuple(PaperCost(**entry) for entry in data["costs"]),
        titles=data["table_titles"],
        tables={name: [row(r) for r in rows] for name, rows in data["tables"].items()},
    )
