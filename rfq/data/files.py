"""Files from elsewhere, packed or not, read without trusting what they say of sizes.

Memory is bounded by what is read, never by a number in a header. A stream is unpacked
as it is read, in steps of at most a megabyte; what must be held whole, a document or a
file of a task, is refused once it is longer than a bound that stands here.
"""

import gzip
import io
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TypeAlias

import pyarrow

from rfq.errors import InputError

# The most UTF-8 bytes of one unpacked document or line, which is held at once.
MAX_DOCUMENT_BYTES = 1 << 26

# The most unpacked bytes of a file that is held whole: a tokenizer, or a task's
# documents.
MAX_FILE_BYTES = 1 << 28

# The memory for unpacking xz: a dictionary of 256 MiB and the decoder's own memory.
# `xz -9` makes dictionaries of 64 MiB. zstd itself stops at 128 MiB, zlib at 32 KiB.
_XZ_BYTES = (1 << 28) + (1 << 20)
_STEP_BYTES = 1 << 16
_MB = 1 << 20

Opener: TypeAlias = Callable[[io.BufferedReader], io.BufferedIOBase]

# What zlib, lzma, pyarrow and the file system raise.
DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, pyarrow.ArrowException)


class _Xz(io.RawIOBase):
    """A stream like `lzma.LZMAFile`, which would take any memory a header asks for."""

    def __init__(self, raw: IO[bytes]):
        self._raw = raw
        self._decoder = _xz_decoder()

    def readable(self) -> bool:
        """Return True, because `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer) -> int:
        """Unpack the next bytes into `buffer`; 0 at the end of the last stream."""
        while True:
            if self._decoder.eof:
                rest = self._after_stream()
                if not rest:
                    return 0
                self._decoder = _xz_decoder()
            else:
                rest = b""
                if self._decoder.needs_input:
                    rest = self._raw.read(_STEP_BYTES)
                    if not rest:
                        raise EOFError("the file ends within a stream")
            data = self._decoder.decompress(rest, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _after_stream(self) -> bytes:
        """Return what follows a stream and its padding of zeros; empty at the end."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        while not rest:
            read = self._raw.read(_STEP_BYTES)
            if not read:
                break
            rest = read.lstrip(b"\0")
        return rest


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_BYTES)


def _open_zstd(raw: io.BufferedReader) -> io.BufferedIOBase:
    return io.BufferedReader(pyarrow.input_stream(raw, compression="zstd"))


# Suffix of a packed file -> what unpacks it as a stream.
OPENERS: Mapping[str, Opener] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lambda raw: io.BufferedReader(_Xz(raw)),
    ".zst": _open_zstd,
}


def lines(path: pathlib.Path, file: io.BufferedIOBase) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each line, from 1, and the line with its end.

    Raises:
        InputError: the file is damaged, or a line has over `MAX_DOCUMENT_BYTES`.
    """
    number = 0
    while True:
        try:
            line = file.readline(MAX_DOCUMENT_BYTES + 1)
        except DAMAGED as error:
            raise damaged(path, error) from error
        if not line:
            return
        number += 1
        if len(line) > MAX_DOCUMENT_BYTES:
            raise too_long(f"{path}, line {number}")
        yield number, line


def whole(
    where: pathlib.Path | str, file: IO[bytes] | io.BufferedIOBase, limit: int
) -> bytes:
    """Read a stream to its end.

    Raises:
        InputError: the stream is damaged, or unpacks to more than `limit` bytes.
    """
    try:
        data = file.read(limit + 1)
    except DAMAGED as error:
        raise damaged(where, error) from error
    if len(data) > limit:
        raise too_long(where, limit)
    return data


def too_long(where: pathlib.Path | str, limit: int | None = None) -> InputError:
    """Make the error about more bytes than are held at once."""
    limit = MAX_DOCUMENT_BYTES if limit is None else limit
    return InputError(
        f"{where} unpacks to more than {limit // _MB} MiB, the most that is held in "
        "memory at once; divide it, or check what the file is"
    )


def not_utf8(where: str, error: UnicodeDecodeError) -> InputError:
    """Make the error about text in another encoding."""
    return InputError(
        f"{where} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); convert "
        "the file to UTF-8 first"
    )


def damaged(where: pathlib.Path | str, error: Exception) -> InputError:
    """Make the error about a file that a reader refused."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"{where} cannot be read ({first_line}); the file is damaged, protected or not "
        "of the kind its name says"
    )
