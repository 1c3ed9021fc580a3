"""Scores of a trained model on tasks that have right answers."""

from collections.abc import Mapping, Sequence

from rfq.errors import lookup
from rfq.tasks import cloze, commonsense
from rfq.tasks import task as task_lib
from rfq.tasks.task import Document, MultipleChoice, Request

__all__ = ["TASKS", "build_requests", "score"]

# The paper's tasks in the order of its columns, then what needs no download. A new task
# is a function of a document, and one line in one of the two.
TASKS: Mapping[str, MultipleChoice] = {**commonsense.TASKS, **cloze.TASKS}


def build_requests(
    task_name: str, documents: Sequence[Document]
) -> list[list[Request]]:
    """Build each document's (context, continuation) pairs, in the order of its choices.

    Args:
        task_name: a row of `TASKS`.
        documents: rows in the columns of the Hugging Face data set.

    Raises:
        InputError: an unknown task, or a document without the task's columns.

    Examples:
        >>> from rfq import tasks
        >>> document = {"goal": "Open", "sol1": "Turn.", "sol2": "Sing.", "label": 0}
        >>> (pairs,) = tasks.build_requests("piqa", [document])
        >>> [continuation for context, continuation in pairs]
        [' Turn.', ' Sing.']
    """
    task = lookup(TASKS, task_name, "task")
    return [
        example.requests for example in task_lib.examples(task_name, task, documents)
    ]


def score(
    task_name: str,
    documents: Sequence[Document],
    loglikelihoods: Sequence[Sequence[float]],
) -> dict[str, float]:
    """Compute accuracies over documents: the task's metrics, and acc_bytes.

    Args:
        task_name: a row of `TASKS`.
        documents: rows in the columns of the Hugging Face data set.
        loglikelihoods: log-likelihoods of each document's requests, in order.

    Raises:
        InputError: as `build_requests`.

    Examples:
        >>> from rfq import tasks
        >>> document = {"goal": "Open", "sol1": "Turn.", "sol2": "Sing.", "label": 0}
        >>> tasks.score("piqa", [document], [[-3.0, -5.0]])["acc"]
        1.0
    """
    task = lookup(TASKS, task_name, "task")
    right = task_lib.correct(
        task_lib.examples(task_name, task, documents), loglikelihoods
    )
    means = {name: float(values.mean()) for name, values in right._asdict().items()}
    return {name: means[name] for name in (*task.metrics, "acc_bytes")}
