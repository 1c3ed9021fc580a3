"""lm-evaluation-harness, where it is installed, agrees with ours: texts and numbers."""

import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="not run: needs the extra lm-eval")

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from rfq import tasks
from rfq.data import benchmarks
from rfq.errors import InputError
from rfq.tasks import ask, harness
from tests import tiny
from tests.tasks import recorded
from tests.tasks.documents import DOCUMENTS

FEW = {name: rows[:6] for name, rows in DOCUMENTS.items()}


@pytest.fixture(autouse=True)
def _programs(monkeypatch, tmp_path):
    tiny.quick(monkeypatch)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def run_dir(tmp_path_factory) -> pathlib.Path:
    return tiny.trained(tmp_path_factory)


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


@pytest.fixture
def published(tasks_dir) -> dict[str, list[dict]]:
    """20 documents of each published set."""
    found = {name: benchmarks.load(tasks_dir, name).documents for name in FEW}
    return {name: rows[:: len(rows) // 20][:20] for name, rows in found.items()}


def assert_asked_and_scored_alike(
    documents: dict[str, list[dict]], folder: pathlib.Path
) -> None:
    model = recorded.Recording()
    said = recorded.evaluate(model, documents, folder)["results"]
    for name, rows in documents.items():
        requests = tasks.build_requests(name, rows)
        assert model.asked[f"local_{name}"] == requests
        answers = [
            [recorded.md5_loglikelihood(*pair) for pair in pairs] for pairs in requests
        ]
        ours, theirs = tasks.score(name, rows, answers), said[f"local_{name}"]
        for metric in tasks.TASKS[name].metrics:
            assert ours[metric] == theirs[f"{metric},none"]


@pytest.mark.slow
def test_the_harness_asks_what_we_ask_and_scores_as_we_score(tmp_path):
    assert_asked_and_scored_alike(DOCUMENTS, tmp_path)


@pytest.mark.slow
def test_the_harness_asks_what_we_ask_of_published_documents(published, tmp_path):
    assert_asked_and_scored_alike(published, tmp_path)


def assert_a_run_scores_alike(
    documents: dict[str, list[dict]],
    spec: str,
    run_dir: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    for name, rows in documents.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    model = harness.Harness(str(run_dir), spec=spec)
    (folder / "theirs").mkdir()
    theirs = recorded.evaluate(model, documents, folder / "theirs")
    given = tiny.with_fields(
        model._experiment, "tasks", names=("all",), specs=(spec,), dir=str(folder)
    )
    own = tiny.copied(run_dir, folder)
    row = ask.run(given, own)[0]
    items = tiny.rows(own / "quantize" / "items" / row["items"])
    for name in documents:
        found = theirs["results"][f"local_{name}"]
        for metric in tasks.TASKS[name].metrics:
            assert row["scores"][name][metric] == found[f"{metric},none"]
        samples = sorted(
            theirs["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"]
        )
        mine = [item for item in items if item["task"] == name]
        for item, sample in zip(mine, samples, strict=True):
            scores = [float(answer[0][0]) for answer in sample["resps"]]
            np.testing.assert_allclose(
                item["loglikelihoods"], scores, rtol=0, atol=1e-4
            )


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["FP", "W8A8"])
def test_a_run_scores_the_same_under_the_harness(tmp_path, run_dir, spec):
    assert_a_run_scores_alike(FEW, spec, run_dir, tmp_path)


@pytest.mark.slow
def test_a_run_scores_published_documents_the_same(tmp_path, run_dir, published):
    assert_a_run_scores_alike(published, "FP", run_dir, tmp_path)


def test_texts_are_tokenized_as_the_harness_does(run_dir):
    model = harness.Harness(str(run_dir))
    pairs = [
        pair
        for name in ("winogrande", "openbookqa", "hellaswag")
        for pairs in tasks.build_requests(name, FEW[name])
        for pair in pairs
    ]
    requests = asked("loglikelihood", *pairs, ("", " word"), ("two  ", "words"))
    ours = model.loglikelihood(requests)
    theirs = TemplateLM.loglikelihood(model, requests, disable_tqdm=True)
    np.testing.assert_allclose([o[0] for o in ours], [t[0] for t in theirs], atol=1e-4)
    assert [o[1] for o in ours] == [t[1] for t in theirs]


def test_rolling_scores_every_token_once(run_dir):
    model = harness.Harness(str(run_dir))
    text = "the union of the states shall meet"
    (rolled,) = model.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    size, ids = model.max_length, model.tok_encode(text, add_special_tokens=False)
    from lm_eval.utils import get_rolling_token_windows

    windows = get_rolling_token_windows(ids, model.eot_token_id, size, 1)
    parts = model._loglikelihood_tokens(
        [
            (("", ""), inputs[: len(inputs) + 1 - len(new)], new)
            for inputs, new in windows
        ]
    )
    assert len(parts) > 2
    # Windows of at most 16 float32 numbers.
    np.testing.assert_allclose(rolled, sum(part[0] for part in parts), atol=1e-4)


def test_generation_stops_where_it_is_told(run_dir):
    model = harness.Harness(str(run_dir))
    free = {"until": [], "max_gen_toks": 8}
    (whole,) = model.generate_until(asked("generate_until", ("the un", free)))
    stop = {**free, "until": [whole[2]]}
    (cut,) = model.generate_until(asked("generate_until", ("the un", stop)))
    assert cut == whole[: whole.index(whole[2])]
    with pytest.raises(InputError, match="num_beams=4"):
        wish = {"until": [], "num_beams": 4}
        model.generate_until(asked("generate_until", ("the", wish)))


def test_it_is_registered():
    from lm_eval.api.registry import get_model

    assert get_model("rfq") is harness.Harness
