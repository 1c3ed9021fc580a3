"""Questions which of four endings continues held-out text: they need no download.

The right choice is the text itself. The wrong choices disturb its words: from a
shuffle, which a bigram model notices, to one word of the corpus in another's place.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rfq.errors import InputError, lookup
from rfq.tasks.task import Document, Example, MultipleChoice

NUM_CHOICES = 4

# Words of a choice, and of the context in front of it.
_CHOICE_WORDS, _CONTEXT_WORDS = 6, 20

# A place is given up after so many draws without a new wrong choice ("no, no, no").
_MAX_DRAWS = 20


def _example(document: Document) -> Example:
    context, choices = document["context"], list(document["choices"])
    requests = [(context, f" {choice}") for choice in choices]
    return Example(requests, choices, int(document["label"]))


_CLOZE = MultipleChoice(example=_example, metrics=("acc", "acc_norm"))

# (right words, all words of the corpus, generator) -> wrong words.
_Disturb = Callable[[list[str], np.ndarray, np.random.Generator], list[str]]


def _shuffled(right: list[str], corpus: np.ndarray, rng) -> list[str]:
    del corpus
    return [right[place] for place in rng.permutation(len(right))]


def _swapped(right: list[str], corpus: np.ndarray, rng) -> list[str]:
    del corpus
    place = int(rng.integers(len(right) - 1))
    return [*right[:place], right[place + 1], right[place], *right[place + 2 :]]


def _replaced(right: list[str], corpus: np.ndarray, rng) -> list[str]:
    place, other = int(rng.integers(len(right))), str(rng.choice(corpus))
    return [*right[:place], other, *right[place + 1 :]]


_LEVELS: Mapping[str, _Disturb] = {
    "cloze_easy": _shuffled,
    "cloze_medium": _swapped,
    "cloze_hard": _replaced,
}
TASKS: Mapping[str, MultipleChoice] = dict.fromkeys(_LEVELS, _CLOZE)


def documents(
    texts: Sequence[str], task_name: str, *, num_items: int, seed: int
) -> list[Document]:
    """Make the items of a level from texts, the same ones for the same arguments.

    Every item stands at a place of its own; the wrong choices of "cloze_easy" are the
    right one's words shuffled, of "cloze_medium" two neighbors swapped, of "cloze_hard"
    one word replaced by another of the texts, drawn as often as it occurs.

    Args:
        texts: held-out documents.
        task_name: a row of `TASKS`.
        num_items: the most items; there are fewer if the texts have fewer places.
        seed: seed of all draws.

    Returns:
        Items with `context`, `choices` and `label`, the index of the right choice.

    Raises:
        InputError: there is no place for an item.
    """
    disturb = lookup(_LEVELS, task_name, "task")
    words = [text.split() for text in texts]
    corpus = np.array([word for document in words for word in document])
    places = [
        (document, start)
        for document in words
        for start in range(
            _CONTEXT_WORDS, len(document) - _CHOICE_WORDS + 1, _CHOICE_WORDS
        )
    ]
    rng = np.random.default_rng(seed)
    items: list[Document] = []
    for index in rng.permutation(len(places)):
        if len(items) == num_items:
            break
        document, start = places[index]
        right = document[start : start + _CHOICE_WORDS]
        drawn = [disturb(right, corpus, rng) for _ in range(_MAX_DRAWS)]
        choices = list(dict.fromkeys(" ".join(choice) for choice in [right, *drawn]))
        if len(choices) >= NUM_CHOICES:
            order = rng.permutation(NUM_CHOICES)
            items.append(
                {
                    "context": " ".join(document[start - _CONTEXT_WORDS : start]),
                    "choices": [choices[place] for place in order],
                    "label": int(np.flatnonzero(order == 0)[0]),
                }
            )
    if not items:
        raise InputError(
            f"task {task_name!r} finds no place for a question in the held-out text, "
            f"which needs documents of {_CONTEXT_WORDS + _CHOICE_WORDS} words; prepare "
            "more text"
        )
    return items
