"""What lm-evaluation-harness asks of documents: a model that records and answers.

Needs the extra lm-eval; `python -m tests.tasks.recorded [DIR]` prints the digests that
`test_commonsense.py` holds, of the hand-made documents or of the files in DIR.
"""

import hashlib
import json
import pathlib
import sys
import tempfile

import lm_eval
import lm_eval.tasks
import yaml
from lm_eval.api.model import LM

import rfq.tasks
from rfq.data import benchmarks
from tests.tasks.documents import DOCUMENTS

# Ours -> the harness's task file, and the split that it scores.
FILES = {
    "arc_c": ("arc/arc_challenge.yaml", "test"),
    "arc_e": ("arc/arc_easy.yaml", "test"),
    "boolq": ("super_glue/boolq/default.yaml", "validation"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test"),
    "piqa": ("piqa/piqa.yaml", "validation"),
    "social_iqa": ("siqa/siqa.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
}


def md5_loglikelihood(context: str, continuation: str) -> float:
    """A number that looks like a log-likelihood and depends on every byte."""
    digest = hashlib.md5(f"{context}\0{continuation}".encode()).digest()
    return -int.from_bytes(digest[:6], "big") / 2.0**44


class Recording(LM):
    """Answers by md5 and keeps what it was asked, by task and document."""

    def __init__(self):
        super().__init__()
        self.asked: dict[str, list[list[tuple[str, str]]]] = {}

    def loglikelihood(self, requests):
        for request in sorted(requests, key=lambda r: (r.task_name, r.doc_id, r.idx)):
            documents = self.asked.setdefault(request.task_name, [])
            documents += [[]] * (request.doc_id + 1 - len(documents))
            documents[request.doc_id] = [*documents[request.doc_id], request.args]
        return [(md5_loglikelihood(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


def evaluate(model: LM, documents: dict[str, list[dict]], folder: pathlib.Path) -> dict:
    """Runs the harness on documents in local files, and returns all it says."""
    tasks = pathlib.Path(lm_eval.tasks.__file__).parent
    for name, rows in documents.items():
        data = folder / f"{name}.jsonl"
        if name == "boolq":  # SuperGLUE's column.
            rows = [
                {**row, "label": int(row.get("label", row.get("answer")))}
                for row in rows
            ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file, split = FILES[name]
        override = {
            "include": str(tasks / file),
            "task": f"local_{name}",
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(data)}},
            "training_split": None,
            "validation_split": None,
            "test_split": None,
            f"{split}_split": split,
            "fewshot_split": split,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(override))
    return lm_eval.simple_evaluate(
        model=model,
        tasks=[f"local_{name}" for name in documents],
        task_manager=lm_eval.tasks.TaskManager(
            include_path=str(folder), include_defaults=False
        ),
        bootstrap_iters=0,
        log_samples=True,
    )


def main(directory: str | None) -> None:
    """Prints the digests, and where ours differ."""
    documents = DOCUMENTS
    if directory:
        documents = {n: benchmarks.load(directory, n).documents for n in FILES}
    model = Recording()
    with tempfile.TemporaryDirectory() as folder:
        evaluate(model, documents, pathlib.Path(folder))
    for name in documents:
        asked = model.asked[f"local_{name}"]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        same = asked == rfq.tasks.build_requests(name, documents[name])
        print(f'    "{name}": "{digest}",  # {"same" if same else "DIFFERENT"}')


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
