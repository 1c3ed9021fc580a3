"""The launch scripts, over an environment that stands in for set-up's."""

import pathlib
import shlex
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[2]


def repository(folder: pathlib.Path, module: str = "rfq") -> pathlib.Path:
    """A copy of launch/ and configs/ whose rfq is a module of this checkout.

    Set-up does nothing there: it would install into an environment.
    """
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "launch" / "setup.sh").write_text("exit 0\n")
    bin_ = folder / ".venv" / "bin"
    bin_.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    path = f"export PYTHONPATH={shlex.quote(str(ROOT))}"
    for name, words in (("python", ""), ("rfq", f"-m {module}")):
        script = bin_ / name
        script.write_text(f'#!/bin/bash\n{path}\nexec {python} {words} "$@"\n')
        script.chmod(0o755)
    return folder
