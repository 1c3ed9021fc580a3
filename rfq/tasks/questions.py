"""The tasks that a model is asked, and the scores of its answers.

Documents become requests, and requests tokens, once; every setting and every arm with
the same tokenizer then answers the same questions.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from rfq import tasks as tasks_lib
from rfq.data import benchmarks, pipeline, tokenize
from rfq.errors import lookup
from rfq.experiment import Experiment
from rfq.stats import bootstrap
from rfq.tasks import cloze, commonsense, scoring
from rfq.tasks import task as task_lib
from rfq.tasks.task import Example

# Names for several tasks.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(commonsense.TASKS),
    "cloze": tuple(cloze.TASKS),
}

# The task that the second average leaves out: a collapsed model answers it with one
# word and scores .38 or .62, depending on the word (D56).
_CONSTANT = "boolq"


class Asked(NamedTuple):
    """One task's questions.

    Attributes:
        split: split of the published data set, or "heldout" for cloze tasks.
        examples: what each document asks.
        spans: the tokenized requests of all of them, in order.
    """

    split: str
    examples: list[Example]
    spans: list[scoring.Span]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """All questions, laid out for the compiled steps.

    Attributes:
        tasks: {name: its questions}, in the order of the answers.
        plan: all requests.
        digest: names the questions: tasks, requests and right answers.
        seq_len: longest input.
    """

    tasks: Mapping[str, Asked]
    plan: scoring.Plan
    digest: str
    seq_len: int

    def loglikelihoods(self, answers: scoring.Answers) -> dict[str, list[list[float]]]:
        """Return each document's log-likelihoods, by task."""
        left = iter(answers.loglikelihood.tolist())
        return {
            name: [[next(left) for _ in example.requests] for example in asked.examples]
            for name, asked in self.tasks.items()
        }


def names(given: Sequence[str]) -> tuple[str, ...]:
    """List the tasks behind names of tasks and of `GROUPS`.

    Raises:
        InputError: an unknown name.
    """
    single = {name: (name,) for name in tasks_lib.TASKS}
    groups = [lookup({**GROUPS, **single}, name, "--tasks") for name in given]
    return tuple(dict.fromkeys(name for group in groups for name in group))


def load(experiment: Experiment, mesh: Mesh) -> Questions:
    """Read, tokenize and lay out the tasks of `experiment.tasks`.

    Raises:
        InputError: a task's file is missing or wrong, or the held-out text too short.
    """
    config, tokenizer = experiment.tasks, tokenize.load(experiment.data.tokenizer)
    tasks = {name: _asked(name, experiment, tokenizer) for name in names(config.names)}
    spans = [span for asked in tasks.values() for span in asked.spans]
    described = [
        (name, asked.split, [(e.requests, e.gold) for e in asked.examples])
        for name, asked in tasks.items()
    ]
    return Questions(
        tasks=tasks,
        plan=lay_out(experiment, spans, mesh),
        digest=hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12],
        seq_len=experiment.model.seq_len,
    )


def lay_out(
    experiment: Experiment, spans: Sequence[scoring.Span], mesh: Mesh
) -> scoring.Plan:
    """Put requests in batches of as many tokens as those of the held-out text."""
    config, seq_len = experiment.quantize, experiment.model.seq_len
    return scoring.plan(
        spans, seq_len=seq_len, batch_tokens=config.batch_size * seq_len, mesh=mesh
    )


def check(experiment: Experiment) -> None:
    """Raise an InputError where `load` would for a name or a file, before training."""
    for name in names(experiment.tasks.names):
        if name not in cloze.TASKS:
            _, documents = benchmarks.load(experiment.tasks.dir, name)
            task_lib.examples(name, tasks_lib.TASKS[name], documents)


def _asked(name: str, experiment: Experiment, tokenizer: tokenize.Tokenizer) -> Asked:
    config = experiment.tasks
    if name in cloze.TASKS:
        texts = pipeline.texts(experiment.data.dir, "heldout", tokenizer)
        documents = cloze.documents(texts, name, num_items=config.cloze_items, seed=0)
        split = "heldout"
    else:
        split, documents = benchmarks.load(config.dir, name)
        documents = _spread(documents, config.max_documents)
    examples = task_lib.examples(name, tasks_lib.TASKS[name], documents)
    requests = [request for example in examples for request in example.requests]
    return Asked(split, examples, scoring.encode(requests, tokenizer))


def _spread(documents: Sequence[Any], at_most: int | None) -> Sequence[Any]:
    """Take documents at equal distances, for files may be sorted by subject."""
    if at_most is None or at_most >= len(documents):
        return documents
    return [documents[i * len(documents) // at_most] for i in range(at_most)]


# --- Scores of the answers ----------------------------------------------------------


def summarize(
    questions: Questions, answers: scoring.Answers, full: scoring.Answers
) -> dict[str, Any]:
    """Return the fields of a row: accuracies as the paper's tables have them, and more.

    Args:
        questions: what was asked.
        answers: answers under the setting of the row.
        full: answers of the same model in float32, for the changes.

    Returns:
        {task: its primary accuracy}, a fraction; `avg` of the eight and `avg_se`,
        `avg_without_boolq`, `avg_change` against full precision with its interval,
        `avg_chance`, and `avg_collapsed`, what two constant models reach; None where
        not all eight were asked. `scores` has all metrics of every task with standard
        errors, the change and its interval, and what was counted.
    """
    ours, theirs = _correct(questions, answers), _correct(questions, full)
    scores = {}
    primary, change = {}, {}
    for name, asked in questions.tasks.items():
        task = tasks_lib.TASKS[name]
        right = ours[name]._asdict()
        primary[name] = right[task.primary]
        change[name] = primary[name] - theirs[name]._asdict()[task.primary]
        lo, hi = bootstrap.stratified_interval([change[name]])
        most = max(len(example.choices) for example in asked.examples)
        constant = np.bincount([e.gold for e in asked.examples], minlength=most)
        scores[name] = {
            "split": asked.split,
            "num_documents": len(asked.examples),
            "primary": task.primary,
            "se": _standard_error(primary[name]),
            **{
                field: value
                for metric in (*task.metrics, "acc_bytes")
                for field, value in (
                    (metric, float(np.mean(right[metric]))),
                    (f"{metric}_se", _standard_error(right[metric])),
                )
            },
            "change": float(np.mean(change[name])),
            "change_lo": lo,
            "change_hi": hi,
            "chance": float(np.mean([1 / len(e.choices) for e in asked.examples])),
            "constant_lo": float(constant.min() / constant.sum()),
            "constant_hi": float(constant.max() / constant.sum()),
            "num_truncated": sum(
                s.is_truncated(questions.seq_len) for s in asked.spans
            ),
            "num_windowed": sum(s.is_windowed(questions.seq_len) for s in asked.spans),
            "num_moved": sum(span.moved for span in asked.spans),
        }
    return {
        **{name: float(np.mean(right)) for name, right in primary.items()},
        **_averages(scores, primary, change),
        "scores": scores,
    }


def _averages(
    scores: Mapping[str, Mapping[str, Any]],
    primary: Mapping[str, np.ndarray],
    change: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    eight = tuple(commonsense.TASKS)
    if not set(eight) <= set(primary):
        return dict.fromkeys(_AVERAGES)
    mean = {name: float(np.mean(primary[name])) for name in eight}
    others = [name for name in eight if name != _CONSTANT]
    errors = [_standard_error(primary[name]) for name in eight]
    chance = [scores[name]["chance"] for name in others]
    lo, hi = bootstrap.stratified_interval([change[name] for name in eight])
    return dict(
        zip(
            _AVERAGES,
            (
                float(np.mean(list(mean.values()))),
                float(np.linalg.norm(errors) / len(errors)),
                float(np.mean([mean[name] for name in others])),
                float(np.mean([np.mean(change[name]) for name in eight])),
                lo,
                hi,
                float(np.mean([scores[name]["chance"] for name in eight])),
                [
                    float(np.mean([*chance, scores[_CONSTANT][end]]))
                    for end in ("constant_lo", "constant_hi")
                ],
            ),
            strict=True,
        )
    )


_AVERAGES = (
    "avg",
    "avg_se",
    "avg_without_boolq",
    "avg_change",
    "avg_change_lo",
    "avg_change_hi",
    "avg_chance",
    "avg_collapsed",
)


def items(questions: Questions, answers: scoring.Answers) -> list[dict[str, Any]]:
    """Return what was answered to every document, for JSON lines."""
    scores_of, right = questions.loglikelihoods(answers), _correct(questions, answers)
    return [
        {
            "task": name,
            "document": number,
            "gold": example.gold,
            "loglikelihoods": scores,
            **{metric: bool(values[number]) for metric, values in metrics.items()},
        }
        for name, asked in questions.tasks.items()
        for metrics in [right[name]._asdict()]
        for number, (example, scores) in enumerate(
            zip(asked.examples, scores_of[name], strict=True)
        )
    ]


def _correct(
    questions: Questions, answers: scoring.Answers
) -> dict[str, task_lib.Correct]:
    loglikelihoods = questions.loglikelihoods(answers)
    return {
        name: task_lib.correct(asked.examples, loglikelihoods[name])
        for name, asked in questions.tasks.items()
    }


def _standard_error(right: np.ndarray) -> float:
    """Compute a mean's standard error as lm-eval does: sample deviation / sqrt(n)."""
    return float(np.std(right, ddof=1) / np.sqrt(right.size)) if right.size > 1 else 0.0
