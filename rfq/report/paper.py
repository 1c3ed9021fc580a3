"""The paper's own numbers and the words of the report, which are data files."""

import functools
import importlib.resources
import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Paper(NamedTuple):
    """The numbers of arXiv:2605.25880 (CC BY 4.0): paper_tables.json.

    Attributes:
        setting: The size of its models and of their training.
        tasks: The names of its eight tasks.
        chance: The accuracy of guessing by task, with "avg".
        kurtosis: The values that it states: arm, layer, excess_kurtosis and where.
        costs: What an arm took on one of four H100 (appendix D, "Hardware").
        tables: Tables 1 to 4: lines of arm, spec, act_bits and accuracies by task,
            which are fractions, with "avg".
    """

    source: str
    url: str
    license: str
    changes: str
    setting: Mapping[str, int]
    metric: str
    tasks: Sequence[str]
    table_titles: Mapping[str, str]
    chance: Mapping[str, float]
    kurtosis: Sequence[Mapping[str, Any]]
    costs: Sequence[Mapping[str, Any]]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm of which a number is printed."""
        parts = (*self.tables.values(), self.kurtosis, self.costs)
        return tuple(dict.fromkeys(entry["arm"] for part in parts for entry in part))

    def scores(
        self, arm: str | None, spec: str, table: str = ""
    ) -> Mapping[str, float]:
        """Return the accuracies of a row; empty where the paper has no such row."""
        tables = [self.tables[table]] if table else self.tables.values()
        rows = (row for found in tables for row in found)
        return next((r for r in rows if (r["arm"], r["spec"]) == (arm, spec)), {})


def _text(name: str) -> str:
    return importlib.resources.files("rfq.report").joinpath(name).read_text("utf-8")


@functools.cache
def words() -> Mapping[str, Any]:
    """Read texts.toml: the words of claims, tables, figures and the paper's items."""
    return tomllib.loads(_text("texts.toml"))


@functools.cache
def load() -> Paper:
    """Read the numbers that ship with the package."""
    return Paper(**json.loads(_text("paper_tables.json")))
