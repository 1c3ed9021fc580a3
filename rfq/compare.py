"""The main job: train every arm, quantize it, put all rows in one table.

    OUT/arms/<arm>/seed-<s>/    a run directory each, see `runs`
    OUT/context.json            the floors and what the data are
    OUT/rows.jsonl              the rows of all arms and seeds
    OUT/report.html, tables/, figures/

Every stage is skipped where it is finished and resumed where it is not.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from rfq import distributed, metrics, ptq, report, runs, train
from rfq.data import floors as floors_lib
from rfq.data.manifest import Manifest
from rfq.errors import Diverged, InputError
from rfq.experiment import Experiment
from rfq.tasks import ask, questions


def run(arms: Sequence[Experiment], out: pathlib.Path) -> pathlib.Path:
    """Train, quantize and report all arms; an arm with another seed is another arm.

    An arm that diverges is left in the report as diverged; the others go on.

    Returns:
        The path of the report.

    Raises:
        InputError: an arm cannot run; nothing is trained then.
        Diverged: at the end, if any arm did.
    """
    run_dirs = [run_directory(out, arm) for arm in arms]
    for number, (arm, run_dir) in enumerate(zip(arms, run_dirs, strict=True)):
        if run_dir in run_dirs[:number]:
            raise InputError(
                f"arm {arm.arm!r} with seed {arm.seed} is given twice; give each "
                "config its own arm name and each seed once"
            )
    with runs.alone_in(out):
        return _run(arms, run_dirs, out)


def _run(
    arms: Sequence[Experiment], run_dirs: Sequence[pathlib.Path], out: pathlib.Path
) -> pathlib.Path:
    """Run all stages; `run_dirs` are those of the arms."""
    # Check everything that a person can get wrong before the first compilation.
    manifests = [runs.check(arm) for arm in arms]
    for arm in arms:
        questions.check(arm)
    for arm, manifest in zip(arms, manifests, strict=True):
        if manifest != manifests[0]:
            raise InputError(
                f"arms {arms[0].arm!r} and {arm.arm!r} use different data, "
                f"{arms[0].data.dir!r} and {arm.data.dir!r}; losses on them cannot be "
                "compared"
            )
    for arm, run_dir in zip(arms, run_dirs, strict=True):
        runs.claim(arm, run_dir)
    context = _context(out, arms, manifests[0])

    diverged: list[str] = []
    rows = []
    for arm, run_dir in zip(arms, run_dirs, strict=True):
        try:
            train.run(arm, run_dir)
        except Diverged as error:
            diverged.append(f"{arm.arm} seed {arm.seed}: {error}")
            metrics.say(diverged[-1])
            continue
        rows += ptq.run(arm, run_dir)
        if arm.tasks.names:
            ask.run(arm, run_dir)
        metrics.rewrite(out / "rows.jsonl", rows)
        # Another arm has other shapes, so this arm's compiled programs are useless to
        # it.
        jax.clear_caches()
    metrics.rewrite(out / "rows.jsonl", rows)
    context["seconds"] = sum(map(runs.train_seconds, run_dirs)) + sum(
        row["seconds"] for row in rows
    )
    metrics.write_text(out / "context.json", json.dumps(context, indent=1) + "\n")
    page = publish([out], out)
    if diverged:
        raise Diverged("; ".join(diverged))
    return page


def publish(directories: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Write the report of directories to `out`, from process 0, and print its result.

    Returns:
        The path of the report, on all processes once it is there.

    Raises:
        InputError: as `report.read` and `report.run`.
    """

    def write() -> str:
        results = report.read(directories, out)
        page = report.run(results)
        metrics.say(report.summary(results))
        metrics.say(f"report: {page}")
        return str(page)

    return pathlib.Path(distributed.broadcast("report", write))


def run_directory(out: pathlib.Path, experiment: Experiment) -> pathlib.Path:
    """Say where one arm and seed live below a compare directory."""
    return out / "arms" / experiment.arm / f"seed-{experiment.seed}"


def _context(
    out: pathlib.Path, arms: Sequence[Experiment], manifest: Manifest
) -> dict[str, Any]:
    """Write what the arms share: the data, and what n-grams of them reach.

    Counting n-grams is the slow part and is done once per data set.
    """
    path = out / "context.json"
    fingerprint = runs.data_fingerprint(arms[0])
    written = json.loads(path.read_text()) if path.exists() else {}
    same_data = written.get("data_fingerprint") == fingerprint
    splits = {
        name: {
            "documents": part.num_documents,
            "tokens": part.num_tokens,
            "bytes": part.num_bytes,
        }
        for name, part in manifest.splits.items()
    }
    context = {
        "arms": list(dict.fromkeys(arm.arm for arm in arms)),
        "data_fingerprint": fingerprint,
        "data": {
            "source": manifest.recipe.source,
            "tokenizer": manifest.recipe.tokenizer,
            "vocab_size": manifest.recipe.vocab_size,
            "splits": splits,
        },
        "floors": (
            written["floors"]
            if same_data and "trigram" in written["floors"]
            else floors(arms[0])
        ),
    }
    metrics.write_text(path, json.dumps(context, indent=1) + "\n")
    return context


def floors(experiment: Experiment) -> dict[str, float]:
    """Return the held-out loss of n-gram models, nats a token, by their names.

    They lie beside the data, or are computed where the data are older.
    """
    directory = experiment.data.dir
    return floors_lib.read(directory) or floors_lib.compute(directory)
