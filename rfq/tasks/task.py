"""A multiple-choice task: documents to requests, log-likelihoods to accuracies.

A request is a pair (context, continuation) of texts. A choice's score is the sum of the
log-probabilities of its continuation's tokens, and the highest score is the answer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from rfq.errors import InputError

# One row of a data set, in the columns that Hugging Face gives it.
Document = Mapping[str, Any]
Request = tuple[str, str]
Metric = Literal["acc", "acc_norm"]


class Example(NamedTuple):
    """The question of a document.

    Attributes:
        requests: one pair for each choice, in order.
        choices: the texts whose lengths normalize the scores.
        gold: index of the right choice.
    """

    requests: list[Request]
    choices: list[str]
    gold: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """A row of `rfq.tasks.TASKS`.

    Attributes:
        example: document -> what it asks.
        metrics: what lm-evaluation-harness reports of the task.
    """

    example: Callable[[Document], Example]
    metrics: tuple[Metric, ...]

    @property
    def primary(self) -> Metric:
        """The metric of the paper's tables: acc_norm where there is one (D55)."""
        return self.metrics[-1]


class Correct(NamedTuple):
    """Per document 1.0 where the answer is right, float64 [N].

    Attributes:
        acc: highest log-likelihood.
        acc_norm: highest log-likelihood per character of the choice.
        acc_bytes: the same per UTF-8 byte.
    """

    acc: np.ndarray
    acc_norm: np.ndarray
    acc_bytes: np.ndarray


def examples(
    name: str, task: MultipleChoice, documents: Sequence[Document]
) -> list[Example]:
    """Read what each document asks.

    Raises:
        InputError: a document lacks a column or holds what cannot be read; the sentence
            gives the task's name, the document's number and what it has.
    """
    asked = []
    for number, document in enumerate(documents, start=1):
        try:
            example = task.example(document)
            if not 0 <= example.gold < len(example.choices):
                raise ValueError(f"the answer is choice {example.gold + 1}")
        except KeyError as error:
            raise InputError(
                f"task {name!r}: document {number} has no column {error}; it has "
                f"{sorted(document)}"
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"task {name!r}: document {number} cannot be read ({error}); it is "
                f"{dict(document)!r}"
            ) from error
        asked.append(example)
    return asked


def correct(
    asked: Sequence[Example], loglikelihoods: Sequence[Sequence[float]]
) -> Correct:
    """Tell which documents are answered rightly; of equal scores the first is chosen.

    Args:
        asked: as `examples` reads the documents.
        loglikelihoods: log-likelihoods of each document's requests, in order.
    """
    lengths = {
        "acc": lambda choice: 1.0,
        "acc_norm": len,
        "acc_bytes": lambda choice: len(choice.encode()),
    }

    def right(length: Callable[[str], float]) -> np.ndarray:
        is_right = np.zeros(len(asked))
        for i, (e, scores) in enumerate(zip(asked, loglikelihoods, strict=True)):
            assert len(scores) == len(e.choices), (i, scores)
            # An empty choice has the log-likelihood 0, and numpy.argmax lets 0 / 0 win.
            with np.errstate(divide="ignore", invalid="ignore"):
                per_unit = np.asarray(scores, np.float64) / list(map(length, e.choices))
            is_right[i] = np.argmax(per_unit) == e.gold
        return is_right

    return Correct(**{name: right(length) for name, length in lengths.items()})
