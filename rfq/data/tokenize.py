"""Tokenizers: text to token ids and back, with a fingerprint that data carry."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sentencepiece

from rfq.data import files
from rfq.errors import InputError

EMBEDDED_MODEL = pathlib.Path(__file__).parent / "embedded" / "tokenizer.model"

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
_NUM_SPECIAL = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Two functions between text and token ids, and what identifies them.

    No function adds a special id; a caller who wants one puts `bos_id` in front.

    Attributes:
        name: a short name without a directory.
        fingerprint: sha256 of everything that decides the ids, hexadecimal.
        vocab_size: ids are 0..vocab_size - 1.
        bos_id: begins a document.
        eos_id: ends a generated text.
        encode_batch: texts to int32 arrays, in parallel.
        decode: ids to text; special ids but unk vanish, broken UTF-8 is replaced.
    """

    name: str
    fingerprint: str
    vocab_size: int
    bos_id: int
    eos_id: int
    encode_batch: Callable[[Sequence[str]], list[np.ndarray]]
    decode: Callable[[Sequence[int] | np.ndarray], str]

    def encode(self, text: str) -> np.ndarray:
        """Encode one text to an int32 array."""
        return self.encode_batch([text])[0]


def load(spec: str) -> Tokenizer:
    """Make a tokenizer of `TOKENIZERS`, or of a file.

    A file is a SentencePiece .model, as LlamaTokenizer has it, or, if its name ends in
    .json, a tokenizer.json of the `tokenizers` library (the extra of that name).

    Raises:
        InputError: the file is missing, of another kind, or has no bos or eos.
    """
    if spec in TOKENIZERS:
        return TOKENIZERS[spec]()
    path = pathlib.Path(spec)
    if not path.is_file():
        raise InputError(
            f"tokenizer {spec!r} is neither one of {sorted(TOKENIZERS)} nor a file; "
            "give a SentencePiece .model or a tokenizer.json file"
        )
    make = _json if path.suffix == ".json" else _sentencepiece
    return make(path, path.name)


def _embedded() -> Tokenizer:
    return _sentencepiece(EMBEDDED_MODEL, "embedded")


def _bytes() -> Tokenizer:
    """Encode UTF-8 bytes after the three special ids, as SentencePiece falls back."""
    return Tokenizer(
        name="byte",
        fingerprint=hashlib.sha256(b"rfq byte tokenizer 1").hexdigest(),
        vocab_size=_NUM_SPECIAL + 256,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        encode_batch=_encode_bytes,
        decode=_decode_bytes,
    )


# A new kind of tokenizer is one function that returns a Tokenizer, and one line here.
TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "embedded": _embedded,
    "byte": _bytes,
}


def _encode_bytes(texts: Sequence[str]) -> list[np.ndarray]:
    arrays = (np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts)
    return [array.astype(np.int32) + _NUM_SPECIAL for array in arrays]


def _decode_bytes(ids: Sequence[int] | np.ndarray) -> str:
    array = np.asarray(ids, np.int64)
    data = array[array >= _NUM_SPECIAL] - _NUM_SPECIAL
    return data.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def _sentencepiece(path: pathlib.Path, name: str) -> Tokenizer:
    model = _read(path)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise _not_a_model(path) from error
    if not model:
        raise _not_a_model(path)
    if processor.bos_id() < 0 or processor.eos_id() < 0:
        raise InputError(
            f"tokenizer {path} has no bos or no eos piece; train it with both, as "
            "LlamaTokenizer has them"
        )
    num_threads = os.cpu_count() or 1

    def encode_batch(texts: Sequence[str]) -> list[np.ndarray]:
        batch = processor.encode(list(texts), out_type=int, num_threads=num_threads)
        return [np.array(ids, np.int32) for ids in batch]

    def decode(ids: Sequence[int] | np.ndarray) -> str:
        return processor.decode(np.asarray(ids).tolist())

    return Tokenizer(
        name=name,
        fingerprint=hashlib.sha256(model).hexdigest(),
        vocab_size=processor.vocab_size(),
        bos_id=processor.bos_id(),
        eos_id=processor.eos_id(),
        encode_batch=encode_batch,
        decode=decode,
    )


# Names of special tokens in tokenizer.json files, the first that exists is taken: of
# Llama 1 and 2, Llama 3, Gemma, GPT-2 and BERT.
_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|endoftext|>", "[CLS]")
_EOS = ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|endoftext|>", "[SEP]")


def _json(path: pathlib.Path, name: str) -> Tokenizer:
    content = _read(path)
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            f"tokenizer file {path} needs the library tokenizers; install it with pip "
            "install 'rfq[tokenizers]'"
        ) from error
    try:
        model = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # The library raises no narrower type.
        raise InputError(
            f"tokenizer file {path} is not a tokenizer.json ({error}); give one as the "
            "tokenizers library writes it"
        ) from error
    # Texts are neither cut nor padded, and "<s>" in a text is three characters.
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    ids = model.get_vocab(with_added_tokens=True)
    bos, eos = (
        next((ids[name] for name in names if name in ids), None)
        for names in (_BOS, _EOS)
    )
    if bos is None or eos is None:
        raise InputError(
            f"tokenizer {path} has no bos or no eos token; it needs one of "
            f"{', '.join(_BOS)} and one of {', '.join(_EOS)}"
        )

    def encode_batch(texts: Sequence[str]) -> list[np.ndarray]:
        batch = model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in batch]

    def decode(ids: Sequence[int] | np.ndarray) -> str:
        return model.decode(np.asarray(ids).tolist())

    return Tokenizer(
        name=name,
        fingerprint=hashlib.sha256(content).hexdigest(),
        vocab_size=max(ids.values()) + 1,
        bos_id=bos,
        eos_id=eos,
        encode_batch=encode_batch,
        decode=decode,
    )


def _read(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as file:
            return files.whole(path, file, files.MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(
            f"tokenizer file {path} cannot be read ({error.strerror}); check its "
            "permissions"
        ) from error


def _not_a_model(path: pathlib.Path) -> InputError:
    return InputError(
        f"tokenizer file {path} is not a SentencePiece model; give a .model file as "
        "sentencepiece or LlamaTokenizer writes it"
    )
