"""Walk the first hour of three new users in a fresh clone, and say what broke.

    python -m tests.smoke.first_hour                 every path, of the last commit
    python -m tests.smoke.first_hour --revision REV  an older commit, for comparison
    python -m tests.smoke.first_hour --users trainer

The trainer sets rfq up, trains an arm and a text of their own, and makes mistakes. The
importer installs the core alone into another project and uses the optimizers, the
statistics and the quantizers there. The reviewer checks the theory, plans the paper's
runs and builds the report. Every step is a shell command with the exit status and the
words that it must show. A step fails too if it prints a traceback. The script prints
one line a step and exits with status 1 if any step failed.

It needs git, a Python 3.11 or later, and a package index or a folder of wheels that pip
is told to use (PIP_NO_INDEX, PIP_FIND_LINKS).
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 1200.0  # A step that takes longer has hung.

CONFIG = """
import dataclasses

from rfq import experiment, optim


def config():
    base = experiment.load("configs/demo/residual_adamw.py")
    model = dataclasses.replace(base.model, num_layers=2)
    return dataclasses.replace(
        base,
        arm="mine",
        model=model,
        optimizer=optim.SoapConfig(learning_rate=3e-3),
    )
"""

# A text as a person has it: paragraphs of several documents, and blank lines.
TEXT = """
import json, lzma
with lzma.open("rfq/data/embedded/sotu.jsonl.xz", "rt", encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for _, line in zip(range(40), file)]
open("mine.txt", "w", encoding="utf-8").write("\\n\\n".join(texts)[:900_000])
"""

FOREIGN = """
import jax
import jax.numpy as jnp
import optax

from rfq import optim, quant, stats

key = jax.random.key(0)
params = {
    "embedding": jax.random.normal(key, (50_257, 16)),
    "dense": {"kernel": jax.random.normal(key, (16, 32)), "bias": jnp.zeros(32)},
    "layers": {"kernel": jnp.ones((3, 16, 16)), "bias": jnp.zeros((3, 16))},
    "activation": None,  # What Equinox leaves in place of a function.
}
for make in (optim.kl_shampoo, optim.kl_soap, optim.soap, optim.shampoo, optim.muon):
    optimizer = make(1e-3)
    state = optimizer.init(params)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert nbytes < 2**26, f"{make.__name__} keeps {nbytes / 2**30:.1f} GiB of state"
    step = jax.jit(
        lambda p, s, tx=optimizer: tx.update(jax.tree.map(jnp.ones_like, p), s, p),
        donate_argnums=1,
    )
    updates, state = step(params, state)
    optax.apply_updates(params, updates)
optax.inject_hyperparams(optim.kl_shampoo)(learning_rate=1e-3).init(params)
print(optim.describe(params))

activations = {"layer_0": jax.random.normal(key, (4, 64, 16))}
print(float(stats.excess_kurtosis(activations["layer_0"])))
print(float(stats.negentropy(activations["layer_0"])))
print(stats.describe(activations))
rounded = quant.fake_quantize(activations["layer_0"], 8)
assert rounded.shape == (4, 64, 16)
quant.quantize(params, 8)
print("the foreign project is content")
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a user, and what must be seen of it."""

    what: str
    command: str
    status: int = 0
    says: Sequence[str] = ()
    activated: bool = False  # Runs after `source .venv/bin/activate`.
    where: str = "."  # Relative to the clone; "/" is elsewhere.


def trainer(clone: pathlib.Path) -> Iterator[Step]:
    """Set up, train an arm and a text of one's own, and make mistakes."""
    yield Step(
        what="set up, fresh shell", command="bash launch/setup.sh", says=["setup"]
    )
    yield Step(what="rfq --help", command=".venv/bin/rfq --help", says=["demo"])
    yield Step(
        what="set up again, activated",
        command="bash launch/setup.sh && rfq --help >/dev/null && echo still here",
        activated=True,
        says=["still here"],
    )
    scripts = sorted(path.name for path in (clone / "launch").glob("*.sh"))
    for name in scripts:
        yield Step(
            what=f"{name} --help, activated, from elsewhere",
            command=f"bash {clone}/launch/{name} --help",
            activated=True,
            where="/",
            says=["usage"],
        )
    sweep = (
        "bash launch/sweep.sh configs/demo/residual_adamw.py --out runs/rates "
        "--over optimizer.learning-rate 1e-3 -- --train.num-steps 4 "
        "--schedule.warmup-steps 1 "
        "--model.num-layers 1"
    )
    (clone / "mine.py").write_text(CONFIG)
    (clone / "make_text.py").write_text(TEXT)
    yield Step(
        what="prepare the embedded corpus",
        command="rfq prepare embedded --out data/embedded",
        activated=True,
    )
    yield Step(what="a sweep, activated", command=sweep, activated=True)
    yield Step(
        what="the environment survived",
        command=".venv/bin/python -c 'import rfq.cli' && echo alive",
        says=["alive"],
    )
    yield Step(
        what="train an arm of one's own",
        command="rfq train mine.py --out runs/mine --train.num-steps 20 "
        "--schedule.warmup-steps 2",
        activated=True,
        says=["loss", "rfq quantize runs/mine"],
    )
    yield Step(
        what="report what is not quantized",
        command="rfq report runs/mine --out runs/early",
        activated=True,
        says=["report.html"],
    )
    yield Step(
        what="quantize it",
        command='rfq quantize runs/mine --specs "FP W8A8 W4A4"',
        activated=True,
    )
    yield Step(
        what="evaluate it from another directory",
        command=f"rfq evaluate {clone}/runs/mine",
        activated=True,
        where="/",
    )
    yield Step(
        what="report it",
        command="rfq report runs/mine --out runs/page",
        activated=True,
        says=["report.html"],
    )
    yield Step(
        what="a text of one's own",
        command="python make_text.py && "
        "rfq prepare tokenizer mine.txt --vocab-size 400 --out mine.model && "
        "rfq prepare mine.txt --out data/mine --tokenizer mine.model",
        activated=True,
        says=["heldout"],
    )
    yield Step(what="look at it", command="rfq inspect data/mine", activated=True)
    yield Step(
        what="train on it, quantize and report",
        command="rfq train mine.py --out runs/text --train.num-steps 8 "
        "--schedule.warmup-steps 2 "
        "--data.dir data/mine --data.tokenizer mine.model "
        "--model.vocab-size 400 && rfq quantize runs/text --specs 'FP W8A8' && "
        "rfq report runs/text --out runs/text-page",
        activated=True,
        says=["report.html"],
    )
    yield from _mistakes(clone)


def _mistakes(clone: pathlib.Path) -> Iterator[Step]:
    """Yield what people get wrong: one sentence each and status 2."""
    (clone / "syntax.py").write_text("def config(:\n")
    (clone / "lacks.py").write_text("import no_such_module\n")
    (clone / "typed.py").write_text(
        CONFIG.replace("num_layers=2", 'width="96"')  # A string, not a number.
    )
    train = "rfq train configs/demo/residual_adamw.py --out runs/wrong"
    mistakes = [
        ("a syntax error", "rfq train syntax.py --out runs/wrong", ["syntax.py", "1"]),
        ("a failing import", "rfq train lacks.py --out runs/wrong", ["no_such_module"]),
        ("a wrong type", "rfq train typed.py --out runs/wrong", ["width", "96"]),
        ("a misspelt option", f"{train} --train.num-step 8", ["num-steps"]),
        ("a misspelt command", "rfq trian mine.py", ["train"]),
        (
            "a misspelt config",
            "rfq train configs/demo/residual_adam.py --out runs/w",
            ["residual_adamw"],
        ),
        (
            "another optimizer's field",
            f"{train} --optimizer muon --optimizer.b2 0.9",
            ["b2"],
        ),
        ("rfq bench alone", "rfq bench", ["rfq bench optim"]),
        ("a run that is not there", "rfq evaluate runs/nothing", ["runs/nothing"]),
    ]
    for what, command, says in mistakes:
        yield Step(what=what, command=command, status=2, says=says, activated=True)


def importer(clone: pathlib.Path) -> Iterator[Step]:
    """Install the core alone and use it in another project."""
    (clone / "foreign.py").write_text(FOREIGN)
    python = sys._base_executable  # type: ignore[attr-defined]
    yield Step(
        what="install the core",
        command=f"{python} -m venv --clear foreign && "
        "foreign/bin/python -m pip install -q --disable-pip-version-check . && "
        "du -sm foreign && foreign/bin/python -m pip list --format=freeze | wc -l",
    )
    yield Step(
        what="the core brings no tools of experiments",
        command="! foreign/bin/python -c 'import grain' 2>/dev/null && "
        "! foreign/bin/python -c 'import tensorflow_datasets' 2>/dev/null && "
        "! foreign/bin/python -c 'import matplotlib' 2>/dev/null",
    )
    yield Step(
        what="optimizers, statistics and quantizers",
        command=f"{clone}/foreign/bin/python {clone}/foreign.py",
        where="/",
        says=["content"],
    )
    yield Step(
        what="a command whose extra is missing",
        command="foreign/bin/rfq train configs/demo/residual_adamw.py --out runs/x",
        status=2,
        says=["pip install"],
    )


def reviewer(clone: pathlib.Path) -> Iterator[Step]:
    """Check the theory, plan the paper's runs, and read the report."""
    del clone
    yield Step(
        what="set up, fresh shell", command="bash launch/setup.sh", says=["setup"]
    )
    yield Step(
        what="the theory",
        command="rfq theory --out runs/theory",
        activated=True,
        says=["80"],
    )
    yield Step(
        what="plan a run of the paper",
        command="rfq train configs/paper/residual_free_kl_shampoo.py --dry-run",
        activated=True,
        says=["parameters"],
    )
    yield Step(
        what="report recorded rows and the theory",
        command="rfq report configs/results/demo.jsonl runs/theory --out runs/page",
        activated=True,
        says=["report.html"],
    )


USERS = {"trainer": trainer, "importer": importer, "reviewer": reviewer}


def environment() -> dict[str, str]:
    """Return the variables of a fresh shell: no environment active, no jax settings."""
    given = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RFQ_", "JAX_", "XLA_", "PYTEST_"))
        and name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHON")
    }
    active = os.path.dirname(sys.executable) if sys.prefix != sys.base_prefix else None
    folders = [f for f in given.get("PATH", "").split(os.pathsep) if f != active]
    base = os.path.dirname(sys._base_executable)  # type: ignore[attr-defined]
    return given | {"PATH": os.pathsep.join([base, *folders]), "COLUMNS": "100"}


def failure(step: Step, clone: pathlib.Path) -> str | None:
    """Run a step; return why it failed, or None."""
    activate = f"source {clone}/.venv/bin/activate && " if step.activated else ""
    done = subprocess.run(
        ["bash", "-c", activate + step.command],
        cwd=clone / step.where,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    missing = [word for word in step.says if word not in done.stdout]
    reasons = []
    if done.returncode != step.status:
        reasons.append(f"status {done.returncode}, not {step.status}")
    if "Traceback (most recent call last)" in done.stdout:
        reasons.append("a traceback")
    if missing:
        reasons.append(f"does not say {', '.join(map(repr, missing))}")
    if not reasons:
        return None
    tail = textwrap.indent("\n".join(done.stdout.splitlines()[-12:]), "      | ")
    return f"{'; '.join(reasons)}\n{tail}"


def walk(users: Sequence[str], clone: pathlib.Path) -> int:
    """Walk the users' paths in a clone, print each step, and count the failures."""
    failures = steps = 0
    for user in users:
        print(f"{user}:", flush=True)
        for step in USERS[user](clone):
            if step.activated and not (clone / ".venv/bin/rfq").exists():
                again = failure(Step(what="", command="bash launch/setup.sh"), clone)
                print(f"  the environment is gone: {again or 'made again'}", flush=True)
            start = time.monotonic()
            reason = failure(step, clone)
            steps += 1
            failures += reason is not None
            verdict = "ok" if reason is None else f"FAILED: {reason}"
            seconds = time.monotonic() - start
            print(f"  {seconds:6.1f} s  {step.what}: {verdict}", flush=True)
    print(f"{steps - failures} passed, {failures} failed")
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Clone, walk and clean up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--revision", default="HEAD", help="the commit to try")
    parser.add_argument("--users", nargs="+", choices=USERS, default=list(USERS))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rfq-first-hour-") as folder:
        clone = pathlib.Path(folder) / "rfq"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        revision = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", given.revision],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        subprocess.run(
            ["git", "-C", str(clone), "checkout", "-q", revision], check=True
        )
        print(f"commit {revision[:12]}, Python {sys.version.split()[0]}")
        return 1 if walk(given.users, clone) else 0


if __name__ == "__main__":
    sys.exit(main())
