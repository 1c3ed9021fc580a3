"""Requests and scores of the eight tasks are lm-evaluation-harness', to the byte.

The digests are of what a recording model was asked by lm_eval 0.4.13 on these documents
(`python -m tests.tasks.recorded [DIR]` prints them); `test_harness.py` asks it again
where the package is installed.
"""

import hashlib
import json

import pytest

from rfq import tasks
from rfq.data import benchmarks
from rfq.errors import InputError
from rfq.tasks import commonsense
from tests.tasks.documents import DOCUMENTS

BY_HAND = {
    "arc_c": "b8942b54c1da44108d6387be3949fc1e36c3126e86606c49451b4463a6eb8d21",
    "arc_e": "be5673d1e558642e0cc34685fea74f92a75892b4cf02535feff1fa703eab56b1",
    "boolq": "f395a3784f85b1b2c88549b3b63c4cd88bc9a57083c1011aa66aa74dd0c9d501",
    "hellaswag": "38bb9b1fe40ba3761ef6dc4642fab894bcac483ff9ebf7bb735ef46bb790cd50",
    "openbookqa": "dbacbb4f5fd4e451d34a0e0e4c06a1aea78260720cfbee9daddb84ba59ffca6c",
    "piqa": "f9c9edbce0771e8722caeb26d678a39c33432a10fbe269b878e21a23ee2fe60a",
    "social_iqa": "e516e7040a61430e5ce8d17e96a90a224d98a7b2d76557c302b03288c0f3916c",
    "winogrande": "4939210593bb4d60322ccab64ea19a082203528338078d8bfd1ecde3cacfcb49",
}
# Of the validation splits, all documents.
PUBLISHED = {
    "arc_c": "213977d9a5d030fb304d5ef466d5334def9454c891a6f66545ec67ac879bded1",
    "arc_e": "730c1049d1f04486132342d3131bc7df38e1c37701df64c067084da2c29487a6",
    "boolq": "e31c332a96bbf18b0dbb16d3ed834637e328e059d73f4e117ac31340a1a603ea",
    "hellaswag": "25d81f609e30df02a8c7eae5e5d7a0546e2217f5738af27bad76d20e2302471f",
    "openbookqa": "beb75c37398317bacdbb9c470ba41306cf84d092869fd542f8227b8fc560ec4d",
    "piqa": "f18d1e118d41cb2b784387d8aefd462475e63bb8f4dfcfcd2117c6ab6533e0a8",
    "social_iqa": "cca8253bf050bdaf74b0450890655b683bdcb938122e8483767ea89474acbac3",
    "winogrande": "81d7ef704344a6bfc1e567edc611a38e2d030f273e453e24fa8a0631cfe182a7",
}


def digest(requests: list[list[tuple[str, str]]]) -> str:
    return hashlib.sha256(json.dumps(requests).encode()).hexdigest()


@pytest.mark.parametrize("task", BY_HAND)
def test_requests_of_awkward_documents_are_the_harness(task):
    assert len(DOCUMENTS[task]) >= 20
    assert digest(tasks.build_requests(task, DOCUMENTS[task])) == BY_HAND[task]


@pytest.mark.parametrize("task", PUBLISHED)
def test_requests_of_the_published_validation_sets_are_the_harness(task, tasks_dir):
    split, documents = benchmarks.load(tasks_dir, task)
    assert split == "validation"
    assert digest(tasks.build_requests(task, documents)) == PUBLISHED[task]


def test_every_task_of_the_paper_has_a_data_set():
    assert set(commonsense.TASKS) == set(benchmarks.DATASETS) == set(BY_HAND)


def test_both_forms_of_boolq_ask_the_same():
    given = DOCUMENTS["boolq"]
    original = [{**d, "answer": bool(d["label"])} for d in given]
    for document in original:
        del document["label"]
    scores = [[-1.0, -2.0]] * len(given)
    assert tasks.build_requests("boolq", given) == tasks.build_requests(
        "boolq", original
    )
    assert tasks.score("boolq", given, scores) == tasks.score("boolq", original, scores)


# --- Scores -------------------------------------------------------------------------

TWO = {"goal": "g", "sol1": "yes", "sol2": "certainly it is", "label": 1}


def test_length_decides_between_acc_and_acc_norm():
    # Per character -2/3 against -3/15.
    found = tasks.score("piqa", [TWO], [[-2.0, -3.0]])
    assert found == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 1.0}


def test_acc_norm_counts_characters_and_acc_bytes_counts_bytes():
    # "日本" has 2 characters in 6 bytes: -1/2 against -1.2/3, but -1/6 against -1.2/3.
    document = {**TWO, "sol1": "日本", "sol2": "abc"}
    found = tasks.score("piqa", [document], [[-1.0, -1.2]])
    assert found == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 0.0}


def test_of_equal_scores_the_first_is_chosen():
    first, second = {**TWO, "sol2": "yes", "label": 0}, {**TWO, "sol2": "yes"}
    found = tasks.score("piqa", [first, second], [[-1.0, -1.0]] * 2)
    assert found == {"acc": 0.5, "acc_norm": 0.5, "acc_bytes": 0.5}


def test_tasks_without_acc_norm_report_none():
    found = tasks.score("boolq", DOCUMENTS["boolq"][:1], [[-1.0, -2.0]])
    assert set(found) == {"acc", "acc_bytes"}


def test_an_unknown_task_and_a_foreign_document_are_refused():
    with pytest.raises(InputError, match="choose from \\['arc_c'"):
        tasks.build_requests("arc", [])
    with pytest.raises(InputError, match="document 1 has no column 'sol2'"):
        tasks.build_requests("piqa", [{"goal": "g", "sol1": "s", "label": 0}])
    with pytest.raises(InputError, match="the answer is choice 3"):
        tasks.build_requests("piqa", [{**TWO, "label": 2}])
