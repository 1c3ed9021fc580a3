"""The paper's own numbers and the words of the report, which are data files."""

import functools
import importlib.resources
import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class PaperKurtosis(NamedTuple):
    """A value of excess kurtosis that the paper states."""

    arm: str
    layer: int
    excess_kurtosis: float
    where: str


class PaperRow(NamedTuple):
    """One row of Tables 1 to 4: accuracies are fractions by task, with "avg"."""

    arm: str
    spec: str
    act_bits: int | None
    scores: Mapping[str, float]


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

    def scores(
        self, arm: str | None, spec: str, table: str = ""
    ) -> Mapping[str, float]:
        """Return the accuracies of a row; empty where the paper has no such row."""
        tables = [self.tables[table]] if table else self.tables.values()
        rows = (row for found in tables for row in found)
        kept = (row.scores for row in rows if (row.arm, row.spec) == (arm, spec))
        return next(kept, {})


def _text(name: str) -> str:
    return importlib.resources.files("rfq.report").joinpath(name).read_text("utf-8")


@functools.cache
def words() -> Mapping[str, Any]:
    """Read texts.toml: the words of claims, tables, figures and the paper's items."""
    return tomllib.loads(_text("texts.toml"))


@functools.cache
def load() -> Paper:
    """Read the numbers that ship with the package (arXiv:2605.25880, CC BY 4.0)."""
    data = json.loads(_text("paper_tables.json"))
    names = (*data["tasks"], "avg")

    def row(r: Mapping[str, Any]) -> PaperRow:
        scores = {name: r[name] for name in names}
        return PaperRow(r["arm"], r["spec"], r["act_bits"], scores)

    return Paper(
        source=data["source"],
        url=data["url"],
        license=data["license"],
        changes=data["changes"],
        num_params=data["setting"]["num_params"],
        num_layers=data["setting"]["num_layers"],
        num_steps=data["setting"]["num_steps"],
        tasks=tuple(data["tasks"]),
        chance=data["chance"]["avg"],
        kurtosis=tuple(PaperKurtosis(**entry) for entry in data["kurtosis"]),
        costs=tuple(PaperCost(**entry) for entry in data["costs"]),
        titles=data["table_titles"],
        tables={name: [row(r) for r in rows] for name, rows in data["tables"].items()},
    )
