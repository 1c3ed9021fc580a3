"""The contents of a prepared directory, for a person and as JSON."""

import pathlib
from typing import Any

import numpy as np

from rfq.data import floors, pipeline, tokenize
from rfq.data import manifest as manifest_lib
from rfq.data.manifest import Manifest, Split
from rfq.data.tokenize import Tokenizer

_BAR = 40  # Characters of the longest bar.
_TEXT = 400  # Characters shown of a sample.


def describe(
    directory: str | pathlib.Path,
    *,
    tokenizer: Tokenizer | None = None,
    num_samples: int = 1,
) -> dict[str, Any]:
    """Collect counts, lengths and some decoded windows of a prepared directory.

    Args:
        directory: the `out` of `prepare`.
        tokenizer: the tokenizer that decodes the samples; None takes the one that the
            manifest names, and leaves the texts out where that is a file.
        num_samples: windows of each split, at random places, the same in every call.

    Returns:
        JSON: "recipe" and counts as in the manifest, "floors" as `floors.read` has
        them, and "splits" by name with
        "num_documents", "num_tokens", "num_bytes", "num_windows", "num_shards",
        "tokens_per_byte", "lengths" as {"2^k": documents of 2^k .. 2^(k+1) - 1 tokens}
        and "samples" as [{"window", "ids", "text"}].

    Raises:
        InputError: as `manifest.load`, or another tokenizer than the data's.
    """
    directory = pathlib.Path(directory)
    manifest = manifest_lib.load(directory)
    if tokenizer is None and manifest.recipe.tokenizer in tokenize.TOKENIZERS:
        tokenizer = tokenize.load(manifest.recipe.tokenizer)
    if tokenizer is not None:
        manifest_lib.check(
            manifest,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
    row = manifest_lib.as_dict(manifest)
    row["splits"] = {
        name: {
            "num_documents": part.num_documents,
            "num_tokens": part.num_tokens,
            "num_bytes": part.num_bytes,
            "num_windows": part.num_windows,
            "num_dropped_tokens": part.num_dropped_tokens,
            "num_shards": len(part.shards),
            "tokens_per_byte": part.tokens_per_byte,
            "lengths": _lengths(part),
            "samples": _samples(directory, manifest, name, tokenizer, num_samples),
        }
        for name, part in manifest.splits.items()
    }
    row["floors"] = floors.read(directory)
    return row


def _lengths(part: Split) -> dict[str, int]:
    return {f"2^{k}": count for k, count in enumerate(part.lengths)}


def _samples(
    directory: pathlib.Path,
    manifest: Manifest,
    name: str,
    tokenizer: Tokenizer | None,
    num_samples: int,
) -> list[dict[str, Any]]:
    window_len = manifest.recipe.window_len
    sequences = pipeline.Sequences(directory, manifest, name, window_len)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(sequences), min(num_samples, len(sequences)), False)
    samples = []
    for index in sorted(map(int, chosen)):
        ids = sequences[index]
        text = None if tokenizer is None else tokenizer.decode(ids)
        samples.append({"window": index, "ids": ids.tolist(), "text": text})
    return samples


def render(row: dict[str, Any]) -> str:
    """Write the same for a person: a few lines and a bar chart for each split."""
    recipe = row["recipe"]
    lines = [
        f"source {recipe['source']}, tokenizer {recipe['tokenizer']} "
        f"(fingerprint {recipe['tokenizer_fingerprint'][:12]}, "
        f"{recipe['vocab_size']:,} ids as {row['dtype']}), windows of "
        f"{recipe['window_len']:,} tokens, documents with {recipe['boundary']}",
        f"left out: {row['num_empty_documents']:,} empty documents, "
        f"{row['num_duplicates']:,} duplicates",
        "n-gram floors of the held-out loss: " + _floors(row["floors"]),
    ]
    for name, part in row["splits"].items():
        lines += [
            "",
            f"{name}: {part['num_documents']:,} documents, {part['num_tokens']:,} "
            f"tokens, {part['num_bytes']:,} bytes of text, {part['num_windows']:,} "
            f"windows in {part['num_shards']:,} shards; "
            f"{part['num_dropped_tokens']:,} tokens at the ends fill no window",
            *_chart(part["lengths"]),
        ]
        for sample in part["samples"]:
            text = sample["text"]
            shown = (
                "(give --tokenizer to decode)" if text is None else repr(text[:_TEXT])
            )
            lines.append(f"  window {sample['window']}: {shown}")
    return "\n".join(lines)


def _floors(found: dict[str, float] | None) -> str:
    if found is None:
        return "not computed; `rfq inspect DIR --floors` adds them"
    said = (f"{name} {nats:.3f}" for name, nats in found.items())
    return ", ".join(said) + " nats a token"


def _chart(lengths: dict[str, int]) -> list[str]:
    most = max(lengths.values())
    return [
        f"  {f'{1 << k:,}':>10} tokens and up {count:10,} "
        f"{'#' * round(_BAR * count / most)}".rstrip()
        for k, count in enumerate(lengths.values())
        if count
    ]
