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
