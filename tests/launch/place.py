"""Copies of launch/ whose set-up finds programs that a test has written."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).parents[2]

# Says how it was called, and fails where it is told to.
TOOL = """#!/bin/bash
[ "${1:-}" != -c ] || exec echo 4711  # What a shell asks of Python: a free port.
echo "${0##*/} $*" >>"${CALLS:-/dev/null}"
[ "${FAILING:-}" != "${0##*/} ${1:-}" ]
"""
# The same, then ends as the plan of its process says for this start.
_NUMBER = "${RFQ_PROCESS_ID:+ [$RFQ_PROCESS_ID/$RFQ_NUM_PROCESSES]}"
RFQ = f"""{TOOL.replace("$*", "$*" + _NUMBER)}
[ $? = 0 ] || exit 1
id="${{RFQ_PROCESS_ID:-0}}"
echo "hello from $id$XLA_FLAGS"
echo >>"$PLANS.$id.starts"
trap 'exit 75' TERM USR1
eval "$(sed -n "$(wc -l <"$PLANS.$id.starts")p" "$PLANS.$id" 2>/dev/null)"
"""
# Gives every task its variables and the highest status, as srun does.
SRUN = """#!/bin/bash
echo "srun $*" >>"$CALLS"
shift
"$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$CALLS"
[ "$1" = requeue ] || echo "   JobState=${JOB_STATE:-RUNNING} Reason=None"
"""
GCLOUD = """#!/bin/bash
echo gcloud >>"$CALLS"
printf '<%s>' "$@" >>"$CALLS"
"""
TOOLS = ("ruff", "basedpyright", "lint-imports", "python")


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def repository(folder: pathlib.Path, programs: Mapping[str, str]) -> pathlib.Path:
    """A copy of launch/ and configs/ whose set-up only says where the programs are."""
    for name in ("launch", "configs", ".ci"):
        shutil.copytree(ROOT / name, folder / name)
    bin_ = folder / ".venv" / "bin"
    setup = f"set -e\n{TOOL}echo {shlex.quote(str(bin_))}\n"
    write(folder / "launch" / "setup.sh", setup)
    for name, text in programs.items():
        write(bin_ / name, text)
    return folder


def of_this_checkout(folder: pathlib.Path, module: str = "rfq") -> pathlib.Path:
    """The same, with the Python that runs this and a module of this checkout as rfq."""
    start = f"#!/bin/bash\nexport PYTHONPATH={shlex.quote(str(ROOT))}\nexec "
    start += shlex.quote(sys.executable)
    programs = {"python": f'{start} "$@"\n', "rfq": f'{start} -m {module} "$@"\n'}
    return repository(folder, programs)


class Place:
    """A repository of launch scripts over tools that pretend.

    `rfq` logs how it was called and ends as it is told; srun, scontrol and gcloud do
    what the real ones are documented to do, as far as scripts see.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = repository(folder, {"rfq": RFQ, **dict.fromkeys(TOOLS, TOOL)})
        self.calls = folder / "calls"
        self.calls.touch()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("gcloud", GCLOUD)):
            write(folder / "bin" / name, text)

    def plan(self, process: int, *ends: str) -> None:
        """What a process of rfq does in its first, second ... start."""
        self.folder.joinpath(f"plans.{process}").write_text("\n".join(ends) + "\n")

    def start(self, script: str, *args: str, **env: str) -> subprocess.Popen[str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RFQ_", "SLURM_", "XLA_", "JAX_"))
        }
        paths = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "PLANS": str(self.folder / "plans"),
        }
        return subprocess.Popen(
            ["bash", str(self.folder / "launch" / script), *args],
            cwd=self.folder,
            env={**kept, **paths, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *args: str, **env: str) -> tuple[int, str, str]:
        process = self.start(script, *args, **env)
        out, said = process.communicate(timeout=60)
        return process.returncode, out, said

    def called(self) -> list[str]:
        """The calls of programs; set-up's are one more."""
        return [call for call in self.all_called() if not call.startswith("setup.sh")]

    def all_called(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def wait_for(self, num_calls: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.called()) < num_calls:
            assert time.monotonic() < deadline, self.called()
            time.sleep(0.02)
