"""The eight tasks of the paper's tables, as lm-evaluation-harness 0.4.13 asks them.

They are asked zero-shot: every pair of texts equals, byte for byte, what the harness'
task files make of the document. The columns are those of the data sets on the Hugging
Face hub.
"""

import re
from collections.abc import Mapping

from rfq.tasks.task import Document, Example, MultipleChoice


def _labelled(context: str, choices: list[str], gold: int) -> Example:
    """Make one context; the continuations are the choices after a space."""
    return Example([(context, f" {choice}") for choice in choices], choices, gold)


def _lettered(context: str, document: Document, answer: str) -> Example:
    """Read choices as {"text": [...], "label": [...]}: labels are A to E or 1 to 5."""
    choices = document["choices"]
    return _labelled(
        context, list(choices["text"]), list(choices["label"]).index(answer)
    )


def _arc(document: Document) -> Example:
    context = f"Question: {document['question']}\nAnswer:"
    return _lettered(context, document, document["answerKey"])


def _boolq(document: Document) -> Example:
    """Read the answer, called `label` by SuperGLUE and `answer` by the original set."""
    context = f"{document['passage']}\nQuestion: {document['question']}?\nAnswer:"
    answer = document["label" if "label" in document else "answer"]
    return _labelled(context, ["no", "yes"], int(answer))


def _hellaswag(document: Document) -> Example:
    ctx = f"{document['ctx_a']} {document['ctx_b'].capitalize()}"
    return _labelled(
        _without_wikihow(f"{document['activity_label']}: {ctx}"),
        [_without_wikihow(ending) for ending in document["endings"]],
        int(document["label"]),
    )


def _without_wikihow(text: str) -> str:
    """Remove the marks of HellaSwag's WikiHow part."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _openbookqa(document: Document) -> Example:
    return _lettered(
        document["question_stem"], document, document["answerKey"].lstrip()
    )


def _piqa(document: Document) -> Example:
    context = f"Question: {document['goal']}\nAnswer:"
    return _labelled(
        context, [document["sol1"], document["sol2"]], int(document["label"])
    )


def _social_iqa(document: Document) -> Example:
    context = f"Q: {document['context']} {document['question']}\nA:"
    choices = [document[f"answer{letter}"] for letter in "ABC"]
    return _labelled(context, choices, int(document["label"]) - 1)


def _winogrande(document: Document) -> Example:
    """Make two contexts and one continuation (Trinh and Le 2018)."""
    before, after = document["sentence"].split("_", 1)
    contexts = [before + document[f"option{number}"] for number in (1, 2)]
    requests = [(context, f" {after.strip()}") for context in contexts]
    return Example(requests, contexts, {"1": 0, "2": 1}[document["answer"]])


_BOTH = ("acc", "acc_norm")

# In the order of the paper's columns.
TASKS: Mapping[str, MultipleChoice] = {
    "arc_c": MultipleChoice(example=_arc, metrics=_BOTH),
    "arc_e": MultipleChoice(example=_arc, metrics=_BOTH),
    "boolq": MultipleChoice(example=_boolq, metrics=("acc",)),
    "hellaswag": MultipleChoice(example=_hellaswag, metrics=_BOTH),
    "openbookqa": MultipleChoice(example=_openbookqa, metrics=_BOTH),
    "piqa": MultipleChoice(example=_piqa, metrics=_BOTH),
    "social_iqa": MultipleChoice(example=_social_iqa, metrics=("acc",)),
    "winogrande": MultipleChoice(example=_winogrande, metrics=("acc",)),
}
