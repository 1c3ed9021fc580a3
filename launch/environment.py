"""Makes the virtual environment that launch/setup.sh --help explains."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOCKS = {"run": "requirements.lock", "dev": "requirements-dev.lock"}
# Written last into an environment: what it was made from. It marks it as ours, too.
STATE = "rfq-setup-state"


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr)


def fail(text: str) -> None:
    sys.exit(f"launch/setup.sh: {text}")


def accelerator(folders: list[str]) -> list[str]:
    """jax, its plug-in and their parts as requirements; empty without a plug-in."""
    found = importlib.metadata.distributions(path=folders[::-1])
    versions = {dist.name.lower(): dist.version for dist in found if dist.name}
    pins = [f"{name}=={version}" for name, version in sorted(versions.items())]
    plugged = any(re.match("libtpu|jax[-_](cuda|rocm|metal|oneapi)", p) for p in pins)
    ours = re.compile("(jax|jaxlib|libtpu)[-_=]|nvidia")
    return [pin for pin in pins if plugged and ours.match(pin)]


def survey(target: pathlib.Path, extra: str) -> tuple[dict, dict]:
    """Return what the environment was made from, and what it should be made from."""
    try:
        state = json.loads((target / STATE).read_text())
        (target / "bin" / "python").stat()
    except (OSError, ValueError):
        state = {}
    system = os.environ.get("RFQ_SYSTEM_PYTHON") or state.get("system", "0")
    if system not in ("0", "1"):
        fail(f"RFQ_SYSTEM_PYTHON={system} is neither 0 nor 1")
    borrowed = state.get("borrowed")
    if os.environ.get("PYTHON") or system != state.get("system"):
        borrowed = sys.path[1:] if system == "1" or accelerator(sys.path[1:]) else []
    wanted = [ROOT / name for name in ("pyproject.toml", *LOCKS.values())]
    wanted = hashlib.sha256(b"".join([bytes(ROOT), *(p.read_bytes() for p in wanted)]))
    return state, {
        # An interpreter is told by its standard library, which its environments share.
        "python": os.path.realpath(os.__file__),
        "target": str(target),
        "system": system,
        "borrowed": borrowed,
        "wanted": wanted.hexdigest(),
        "extra": "dev" if "dev" in (extra, state.get("extra")) else "run",
    }


def build(new: pathlib.Path, old: pathlib.Path | None, made: dict, lock: int) -> None:
    """Make an environment, as a copy of the old one where only packages change."""

    def run(*words: str) -> None:
        # What outlives this process, such as pip, keeps the lock.
        command = [str(new / "bin" / "python"), "-P", "-m", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, pass_fds=[lock])

    packages = pathlib.Path(sysconfig.get_path("purelib", "venv", {"base": str(new)}))
    if old is not None:
        shutil.copytree(old, new, symlinks=True, ignore=lambda *_: [STATE])
    else:
        venv.create(new, symlinks=True, prompt=pathlib.Path(made["target"]).name)
        lines = [f"import site; site.addsitedir({p!r})\n" for p in made["borrowed"]]
        (packages / "zz-borrowed.pth").write_text("".join(lines))
    if made["system"] == "1":  # What `pip install --editable .` leaves, and a trial.
        (packages / "rfq-source.pth").write_text(f"{ROOT}\n")
        script = new / "bin" / "rfq"
        script.write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -P -m rfq "$@"\n')
        script.chmod(0o755)
        return run("rfq", "--version")
    if old is None:
        run("ensurepip", "--default-pip")
    pip = ("pip", "install", "-qq", "--disable-pip-version-check")
    pins = accelerator([str(packages), *made["borrowed"]])
    if pins:
        say(f"keeping {' '.join(pins)}")
        run(*pip, *pins, "--editable", f"{ROOT}[{made['extra']}]")
    else:
        run(*pip, "--requirement", str(ROOT / LOCKS[made["extra"]]))
        run(*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def replace(target: pathlib.Path, extra: str, lock: int) -> None:
    """Make a new environment beside the old one, then give it that one's place."""
    new, old = (pathlib.Path(f"{target}.rfq-{name}") for name in ("new", "old"))
    if not target.exists() and (new / STATE).exists():
        new.rename(target)  # A set-up was killed just before it did.
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    state, made = survey(target, extra)
    if state == made:
        return
    if target.exists() and not (target / STATE).exists():
        fail(f"{target} is not of its making; remove it or name a place: RFQ_VENV=DIR")
    fixed = ("python", "target", "system", "borrowed")
    update = made["system"] == "0" and all(state.get(k) == made[k] for k in fixed)
    say(f"{'updating' if update else 'making'} {target}, which takes a minute or two")
    try:
        build(new, target if update else None, made, lock)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(new, ignore_errors=True)
        what = error if isinstance(error, OSError) else f"{error.cmd[3]} failed"
        fail(f"{what}, as is said above; launch/setup.sh --help says what it needs")
    # Programs name the place of their environment, which is about to be another one.
    for file in (new / "pyvenv.cfg", *new.glob("bin/*")):
        if file.is_file() and not file.is_symlink() and bytes(new) in file.read_bytes():
            file.write_bytes(file.read_bytes().replace(bytes(new), bytes(target)))
    (new / STATE).write_text(json.dumps(made))
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def main(extra: str, target: pathlib.Path) -> None:
    state, made = survey(target, extra)
    if state != made or list(target.parent.glob(f"{target.name}.rfq-*")):
        if os.path.realpath(sys.prefix) == os.path.realpath(target):
            # What is replaced must not be what runs this.
            os.environ.pop("PYTHON", None)
            os.execv(sys._base_executable, [sys._base_executable, *sys.argv])
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(f"{target}.lock", os.O_WRONLY | os.O_CREAT)
        except OSError as error:
            fail(f"{target} cannot be made ({error}); name another place: RFQ_VENV=DIR")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        replace(target, extra, lock)
    say(f"{target} is up to date")
    print(target / "bin")


if __name__ == "__main__":
    try:
        place = os.path.abspath(ROOT / (os.environ.get("RFQ_VENV") or ".venv"))
        main("dev" if "--dev" in sys.argv else "run", pathlib.Path(place))
    except KeyboardInterrupt:
        sys.exit(130)
