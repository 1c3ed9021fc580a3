"""Cloze items are the corpus's own words, disturbed as the level says."""

import collections

import pytest

from rfq.errors import InputError
from rfq.tasks import cloze

TEXTS = [" ".join(f"w{t}.{i}" for i in range(400)) for t in range(3)]


def items(level: str, **changes) -> list:
    return cloze.documents(TEXTS, level, **{"num_items": 40, "seed": 0, **changes})


@pytest.mark.parametrize("level", cloze.TASKS)
def test_the_right_choice_goes_on_where_the_context_ends(level):
    found = items(level)
    assert len(found) == 40
    for item in found:
        right = item["choices"][item["label"]]
        assert any(f"{item['context']} {right}" in text for text in TEXTS)
        assert len(set(item["choices"])) == cloze.NUM_CHOICES


@pytest.mark.parametrize("level", cloze.TASKS)
def test_wrong_choices_differ_as_the_level_says(level):
    for item in items(level):
        right = item["choices"][item["label"]].split()
        for choice in item["choices"]:
            words = choice.split()
            differ = sum(a != b for a, b in zip(words, right, strict=True))
            if words == right:
                continue
            same_words = collections.Counter(words) == collections.Counter(right)
            assert same_words == (level != "cloze_hard")
            if level == "cloze_medium":
                assert differ == 2
            if level == "cloze_hard":
                assert differ == 1


def test_items_are_the_same_every_time_and_the_answer_is_anywhere():
    found = items("cloze_easy")
    assert found == items("cloze_easy")
    assert found != items("cloze_easy", seed=1)
    assert {item["label"] for item in found} == {0, 1, 2, 3}


def test_text_without_room_for_an_item_is_refused():
    with pytest.raises(InputError, match="needs documents of 26 words"):
        cloze.documents(["too short"], "cloze_easy", num_items=4, seed=0)
