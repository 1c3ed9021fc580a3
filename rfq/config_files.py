"""Config files: how they are found, run, and what is said of those that are wrong.

A config file is a Python module with a function `config() -> Experiment`, or with
`arms(scale) -> Sequence[Experiment]` for a family that is compared at one of `SCALES`,
or with `continued(run: Experiment) -> Experiment` for what goes on from another run and
takes from it what it does not replace.
Those that come with rfq are known by their names, such as demo/residual_adamw.
`rfq.experiment.load` is what makes an experiment of one.
"""

import contextlib
import importlib.util
import os
import pathlib
import traceback
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from rfq.errors import InputError, nearest

# Sizes of a family of arms: minutes on two CPU cores, one GPU, the paper's.
Scale = Literal["demo", "small", "paper"]
SCALES: tuple[str, ...] = typing.get_args(Scale)

# The configs that come with rfq, in a checkout and in an installed package.
_OWN = pathlib.Path(__file__).parent / "configs"


def exists(name: str | pathlib.Path) -> bool:
    """Return True for what `find` finds."""
    try:
        return bool(find(name))
    except InputError:
        return False


def find(name: str | pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Find the config files that a name stands for.

    Args:
        name: a Python file, anywhere; the name of a config that comes with rfq, such as
            demo/residual_adamw; or a folder, such as demo, for all that are in it.

    Raises:
        InputError: there is no such file.
    """
    path = pathlib.Path(name)
    for place in (path, _OWN / path, _OWN / f"{path}.py"):
        if place.is_file():
            return (place,)
        inside = sorted(place.glob("*.py"))
        if inside:
            return tuple(inside)
    files = (each.relative_to(_OWN).with_suffix("") for each in _OWN.rglob("*.py"))
    own = [each.as_posix() for each in files if len(each.parts) > 1]
    raise InputError(
        f"config {str(name)!r} is not a file, nor one that comes with rfq; give a "
        "Python file with a function config() -> Experiment, or a name such as "
        f"demo/residual_adamw{nearest(str(name), own)}"
    )


def one(name: str | pathlib.Path) -> pathlib.Path:
    """Return the one config file that a name stands for.

    Raises:
        InputError: there is none, or a folder of them.
    """
    path, *others = find(name)
    if others:
        raise InputError(
            f"config {str(name)!r} is a folder of {1 + len(others)}; give one of them, "
            f"such as {path}"
        )
    return path


def is_family(name: str | pathlib.Path) -> bool:
    """Return True for a config file with `arms(scale)`.

    Raises:
        InputError: there is no such file.
    """
    path = one(name)
    with _said_of(path):
        return hasattr(_module(path), "arms")


def run(
    path: pathlib.Path, scale: str | None, source: Any | None = None
) -> tuple[Any, ...]:
    """Run a file's `arms(scale)`, or its `config()` where `scale` is None.

    A file with `continued(run)` gets the experiment of the run that is the source.

    Raises:
        InputError: the file has no such function, or anything in it is wrong.
    """
    with _said_of(path):
        module = _module(path)
        if source is not None and hasattr(module, "continued"):
            return (module.continued(source),)
        if scale is None:
            _require(path, module, "config")
            return (module.config(),)
        _require(path, module, "arms")
        return tuple(module.arms(scale))


def _module(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"rfq_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"config {str(path)!r} is not a Python file (*.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _said_of(path: pathlib.Path) -> Iterator[None]:
    """Turn what is wrong in a config file into an InputError with its line.

    What a person writes there may raise anything; the line is the last one of the file
    that the traceback passes through.
    """
    try:
        yield
    except SyntaxError as error:
        where = error.filename or str(path)
        raise InputError(
            f"config {where!r} line {error.lineno}: {error.msg}"
        ) from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.abspath(frame.filename) == os.path.abspath(path)
        ]
        if not lines:  # It is in another file, and says so.
            raise
        what = f"{error}" if isinstance(error, InputError) else _one_line(error)
        raise InputError(f"config {str(path)!r} line {lines[-1]}: {what}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _require(path: pathlib.Path, module: types.ModuleType, function: str) -> None:
    """Raise an InputError about a config file that has no such function."""
    if hasattr(module, function):
        return
    if hasattr(module, "arms"):
        raise InputError(
            f"config {str(path)!r} is a family of arms; say how large, with --scale "
            f"{', '.join(SCALES[:-1])} or {SCALES[-1]}"
        )
    if hasattr(module, "continued"):
        raise InputError(
            f"config {str(path)!r} goes on from another run; say from which, with "
            "rfq train and --from RUN"
        )
    if hasattr(module, "config"):
        raise InputError(
            f"config {str(path)!r} is one experiment, no family of arms(scale); leave "
            "--scale out"
        )
    raise InputError(f"config {str(path)!r} has no function config() -> Experiment")
