import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rfq.data import (
    manifest,
    packing,
    parts,
    pipeline,
    prepare,
    sources,
    split,
    tokenize,
)
from rfq.errors import InputError
from tests.data import corpora

BYTE = tokenize.load("byte")


def _files(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _streams(texts, settings):
    """The ids of each split by definition, for a source of a single part."""
    streams = {name: [] for name in split.SPLITS}
    for index, text in enumerate(texts):
        name = split.split_of(sources.Document(str(index), text), **settings)
        if text.strip():
            streams[name] += [1, *(3 + byte for byte in text.encode())]
    return streams


@hypothesis.given(
    lengths=st.lists(st.integers(0, 90), max_size=30),
    window_len=st.sampled_from([1, 2, 12]),
)
@hypothesis.settings(max_examples=15)
def test_every_token_but_the_first_is_a_target_once(
    tmp_path_factory, lengths, window_len
):
    """At any seq_len that divides window_len, in order; the dropped end is counted."""
    folder = tmp_path_factory.mktemp("prepare")
    # Thirty fixed documents in front, so that no split stays without a window.
    lengths = [20] * 30 + lengths
    texts = ["é" * (n // 2) + "b" * (n % 2) for n in lengths]
    source = corpora.write_jsonl(folder / "x.jsonl", texts)
    settings = {"calibration_fraction": 0.3, "heldout_fraction": 0.3}
    made = prepare.prepare(
        str(source), folder / "out", tokenizer=BYTE, window_len=window_len, **settings
    )
    assert made.num_empty_documents == lengths.count(0)
    streams = _streams(texts, settings)
    for name, stream in streams.items():
        part = made.splits[name]
        assert part.num_tokens == len(stream)
        kept = len(stream) - part.num_dropped_tokens
        assert 0 <= part.num_dropped_tokens < window_len
        for seq_len in {1, window_len}:
            sequences = pipeline.open_split(folder / "out", name, seq_len)
            targets = np.concatenate([s[1:] for s in sequences])
            inputs = np.concatenate([s[:-1] for s in sequences])
            chex.assert_trees_all_equal(targets, np.array(stream[1:kept], np.int32))
            chex.assert_trees_all_equal(inputs, np.array(stream[: kept - 1], np.int32))


def test_documents_in_are_documents_accounted_for_in_every_part(tmp_path):
    texts = [*corpora.texts(120), "", " \n", "é" * 50]
    source = corpora.write_jsonl(tmp_path / "x.jsonl", texts)
    made = prepare.prepare(
        str(source),
        tmp_path / "out",
        tokenizer=BYTE,
        window_len=16,
        calibration_fraction=0.2,
        heldout_fraction=0.2,
        part_bytes=5000,
    )
    parts = made.splits.values()
    assert len(made.splits["train"].shards) > 1
    assert made.num_empty_documents == 2
    assert sum(p.num_documents for p in parts) + 2 == len(texts)
    in_bytes = sum(len(text.encode()) for text in texts if text.strip())
    assert sum(p.num_bytes for p in parts) == in_bytes
    # A byte tokenizer makes one token of each byte, and one bos per document.
    assert sum(p.num_tokens for p in parts) == in_bytes + len(texts) - 2
    for part in parts:
        kept = sum(shard.num_windows * 16 + 1 for shard in part.shards)
        assert kept + part.num_dropped_tokens == part.num_tokens


def test_tokens_per_byte_turns_nats_per_token_into_bits_per_byte(tmp_path):
    """A uniform model of 2**8 tokens, one per byte and bos, is near 8 bits a byte."""
    heldout = manifest.load(corpora.prepared(tmp_path)).splits["heldout"]
    bits = math.log(256) / math.log(2) * heldout.tokens_per_byte
    expected = 8 * (heldout.num_bytes + heldout.num_documents) / heldout.num_bytes
    assert bits == pytest.approx(expected)


def test_output_is_the_same_bytes_wherever_it_is_made(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    one = corpora.prepared(tmp_path)
    other = corpora.prepared(tmp_path / "elsewhere")
    assert _files(one) == _files(other)
    assert {path.name for path in tmp_path.iterdir()} == {
        "data",
        "data.jsonl",
        "elsewhere",
    }


def test_preparing_again_does_nothing(tmp_path):
    out = corpora.prepared(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert corpora.prepared(tmp_path) == out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("changed", ["window_len", "part_bytes", "heldout_fraction"])
def test_another_recipe_does_not_overwrite(tmp_path, changed):
    corpora.prepared(tmp_path)
    value = {"window_len": 16, "part_bytes": 10_000, "heldout_fraction": 0.3}[changed]
    with pytest.raises(InputError) as caught:
        corpora.prepared(tmp_path, **{changed: value})
    corpora.assert_one_sentence(caught, changed, "choose another")


def test_another_source_or_tokenizer_does_not_overwrite(tmp_path):
    out = corpora.prepared(tmp_path)
    with pytest.raises(InputError) as caught:
        corpora.prepared(tmp_path, num_documents=121)
    corpora.assert_one_sentence(caught, "another source_fingerprint", str(out))
    with pytest.raises(InputError) as caught:
        prepare.prepare(
            str(tmp_path / "data.jsonl"), out, tokenizer=tokenize.load("embedded")
        )
    corpora.assert_one_sentence(caught, "tokenizer_fingerprint", str(out))


def test_an_unfinished_run_leaves_nothing_that_counts(tmp_path):
    """What a killed run leaves is not the directory, and the next run clears it."""
    leftover = tmp_path / ".data.partial"
    leftover.mkdir()
    (leftover / "train-00000.array_record").write_bytes(b"half")
    out = corpora.prepared(tmp_path)
    manifest.verify(out)
    assert not leftover.exists()


def test_a_killed_run_leaves_no_directory_and_a_later_one_goes_on(
    tmp_path, monkeypatch
):
    corpora.write_jsonl(tmp_path / "x.jsonl", corpora.texts(120))
    (tmp_path / "whole").mkdir()
    whole = corpora.prepared(tmp_path / "whole", "x")
    program = (
        "import os, sys, pathlib\n"
        "from rfq.data import parts\n"
        "from tests.data import corpora\n"
        "write, left = parts.Work._write_shard, [6]\n"
        "def dying(self, path, windows):\n"
        "    left[0] -= 1\n"
        "    os._exit(9) if left[0] == 0 else None\n"
        "    return write(self, path, windows)\n"
        "parts.Work._write_shard = dying\n"
        "corpora.prepared(pathlib.Path(sys.argv[1]), 'x')\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert run.returncode == 9
    assert not (tmp_path / "x").exists() and (tmp_path / ".x.partial").exists()
    written = []
    original = parts.Work._write_shard

    def noting(self, path, windows):
        written.append(path.name)
        return original(self, path, windows)

    monkeypatch.setattr(parts.Work, "_write_shard", noting)
    assert _files(corpora.prepared(tmp_path, "x")) == _files(whole)
    # Three shards a part: of the second the kill left two shards and no record.
    assert "train-00000-000.array_record" not in written
    assert "train-00000-001.array_record" in written


def test_a_bad_document_leaves_nothing(tmp_path):
    path = corpora.write_jsonl(tmp_path / "x.jsonl", corpora.texts(50))
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(InputError) as caught:
        prepare.prepare(
            str(path), tmp_path / "out", tokenizer=BYTE, window_len=8, part_bytes=500
        )
    corpora.assert_one_sentence(caught, "line 51")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("use", ["file", "other files"])
def test_an_out_that_is_in_use_is_refused_and_kept(tmp_path, use):
    out = tmp_path / "data"
    if use == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    with pytest.raises(InputError) as caught:
        corpora.prepared(tmp_path)
    corpora.assert_one_sentence(caught, str(out), "choose")
    kept = out if use == "file" else out / "thesis.tex"
    assert kept.read_text() == "precious"


def test_an_empty_out_directory_is_used(tmp_path):
    (tmp_path / "data").mkdir()
    manifest.load(corpora.prepared(tmp_path))


def test_an_unwritable_out_is_refused(tmp_path):
    """A path below a file cannot be made by anybody, root included."""
    corpora.write_jsonl(tmp_path / "x.jsonl", corpora.texts(50))
    with pytest.raises(InputError) as caught:
        prepare.prepare(
            str(tmp_path / "x.jsonl"),
            tmp_path / "x.jsonl" / "below" / "out",
            tokenizer=BYTE,
            window_len=8,
        )
    corpora.assert_one_sentence(caught, "out", "cannot be written")


def _no_file_above_1_kb():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def test_a_full_disk_is_one_sentence_and_leaves_no_directory(tmp_path):
    corpora.write_jsonl(tmp_path / "x.jsonl", corpora.texts(50))
    program = (
        "import sys\n"
        "from rfq.data import prepare, tokenize\n"
        "from rfq.errors import InputError\n"
        "try:\n"
        "    prepare.prepare(sys.argv[1], sys.argv[2], window_len=8,\n"
        "        tokenizer=tokenize.load('byte'), calibration_fraction=.2)\n"
        "except InputError as error:\n"
        "    sys.exit(f'caught {error}')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.jsonl", tmp_path / "out"],
        preexec_fn=_no_file_above_1_kb,
        capture_output=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert b"caught" in run.stderr and b"cannot be written" in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_split_without_a_window_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        corpora.prepared(tmp_path, num_documents=3)
    corpora.assert_one_sentence(caught, "split", "--window-len 32", "more text")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "options", "advice"),
    [
        ("\n".join(corpora.texts(200)), {}, "--documents line"),
        ("\n\n".join(corpora.texts(200)), {"documents": "file"}, "blank-line"),
        (
            "\n\n".join(corpora.texts(200)),
            {},
            "--calibration-fraction 0.25 --heldout-fraction 0.25",
        ),
    ],
)
def test_what_is_advised_for_too_little_text_helps(tmp_path, text, options, advice):
    """The advice is followed to the letter, and ends in prepared data."""
    (tmp_path / "x.txt").write_text(text)

    def attempt(**options):
        return prepare.prepare(
            str(tmp_path / "x.txt"),
            tmp_path / "out",
            tokenizer=BYTE,
            **{"window_len": 1500, **options},
        )

    with pytest.raises(InputError) as caught:
        attempt(**options)
    corpora.assert_one_sentence(caught, "x.txt", "documents", advice)
    said = str(caught.value)
    for _ in range(2):
        # Every option that the sentence names, but the last, a shorter window.
        for name, value in re.findall(r"--(\S+) ([^\s,]+)", said):
            if name != "window-len":
                is_number = name.endswith("fraction")
                options[name.replace("-", "_")] = float(value) if is_number else value
        try:
            attempt(**options)
        except InputError as error:
            said = str(error)
    manifest.verify(tmp_path / "out")


def test_the_division_is_part_of_the_recipe_and_old_data_keep_theirs(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join(corpora.texts(300)))
    settings = {"tokenizer": BYTE, "window_len": 32, "calibration_fraction": 0.2}
    source, out = str(tmp_path / "x.txt"), tmp_path / "out"
    made = prepare.prepare(source, out, documents="line", **settings)
    assert sum(part.num_documents for part in made.splits.values()) == 300
    assert manifest.load(out).recipe.documents == "line"
    with pytest.raises(InputError) as caught:
        prepare.prepare(source, out, documents="file", **settings)
    corpora.assert_one_sentence(caught, "another documents")
    # Fields that are younger than the format are not written at their defaults.
    text = (corpora.prepared(tmp_path) / manifest.FILE_NAME).read_text()
    assert not {"documents", "text_field"} & set(json.loads(text)["recipe"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_len", 0),
        ("part_bytes", 0),
        ("heldout_fraction", 0.0),
        ("calibration_fraction", 0.9),
        ("calibration_fraction", -0.1),
        ("heldout_fraction", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, field, value):
    with pytest.raises(InputError) as caught:
        corpora.prepared(tmp_path, **{field: value})
    corpora.assert_one_sentence(caught, f"{field}={value}")


def test_progress_moves_to_its_end(tmp_path):
    source = tmp_path / "x.jsonl"
    # Two megabytes, so that there is a middle.
    corpora.write_jsonl(source, (text * 700 for text in corpora.texts(60)))
    seen = []

    @contextlib.contextmanager
    def progress(description, total):
        class Bar:
            def update(self, done, note=""):
                seen.append((done, note))

        assert description == "prepare, MB" and total == source.stat().st_size // 10**6
        yield Bar()
        assert seen[-1][0] == total

    prepare.prepare(
        str(source), tmp_path / "out", tokenizer=BYTE, window_len=512, progress=progress
    )
    places = [done for done, _ in seen]
    assert len(set(places)) > 1 and places == sorted(places)
    assert all("tokens/s" in note for _, note in seen)


def test_wide_vocabularies_are_stored_in_32_bits(tmp_path):
    wide = dataclasses.replace(
        BYTE,
        vocab_size=70_000,
        encode_batch=lambda texts: [ids + 69_000 for ids in BYTE.encode_batch(texts)],
    )
    source = corpora.write_jsonl(tmp_path / "x.jsonl", corpora.texts(120))
    made = prepare.prepare(str(source), tmp_path / "out", tokenizer=wide, window_len=8)
    assert made.dtype == "int32"
    ids = pipeline.windows(tmp_path / "out", "train")
    assert ids.max() > 69_000 and ids.dtype == np.int32


def test_no_path_of_this_machine_is_written(tmp_path):
    out = corpora.prepared(tmp_path)
    text = (out / manifest.FILE_NAME).read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["recipe"]["source"] == "data.jsonl"


def _prepared_shard(folder, source, shard, **settings):
    return prepare.prepare(
        str(source),
        folder / "out",
        tokenizer=BYTE,
        window_len=32,
        calibration_fraction=0.2,
        heldout_fraction=0.2,
        part_bytes=3000,
        shard=shard,
        **settings,
    )


@pytest.fixture
def many_files(tmp_path):
    """Files of different sizes: units of one and of several files, and long ones."""
    folder = tmp_path / "many"
    folder.mkdir()
    texts = corpora.texts(200)
    for number in range(12):
        chosen = texts[number * number : (number + 1) ** 2]
        corpora.write_jsonl(folder / f"{number:02d}.jsonl", chosen)
    return folder


@pytest.mark.parametrize("count", [2, 3])
def test_shards_of_many_machines_make_what_one_makes(tmp_path, many_files, count):
    (tmp_path / "alone").mkdir()
    _prepared_shard(tmp_path / "alone", many_files, (0, 1))
    for index in range(count - 1, 0, -1):
        assert _prepared_shard(tmp_path, many_files, (index, count)) is None
        assert not (tmp_path / "out").exists()
    made = _prepared_shard(tmp_path, many_files, (0, count))
    assert made == manifest.verify(tmp_path / "out")
    assert _files(tmp_path / "out") == _files(tmp_path / "alone" / "out")
    # Whoever comes later finds it made.
    assert _prepared_shard(tmp_path, many_files, (1, count)) == made
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "many", "out"}


def test_units_depend_on_sizes_alone(many_files):
    pieces = sources.open_source(str(many_files)).pieces
    units = parts._units(pieces, 3000)
    assert [piece for unit in units for piece in unit] == list(pieces)
    for unit in units[:-1]:
        sizes = [piece.num_bytes for piece in unit]
        assert sum(sizes) >= 3000 > sum(sizes[:-1])


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_an_impossible_shard_is_refused(tmp_path, many_files, shard):
    with pytest.raises(InputError) as caught:
        _prepared_shard(tmp_path, many_files, shard)
    corpora.assert_one_sentence(caught, "shard=", "0 <= i < n")


def test_an_unfinished_run_of_another_recipe_is_not_mixed_in(tmp_path, many_files):
    _prepared_shard(tmp_path, many_files, (0, 2))
    with pytest.raises(InputError) as caught:
        _prepared_shard(tmp_path, many_files, (1, 2), boundary="eos")
    corpora.assert_one_sentence(caught, "another boundary", ".out.partial")
    # Nor is it thrown away by who would do all of it in another way.
    with pytest.raises(InputError):
        _prepared_shard(tmp_path, many_files, (0, 1), boundary="eos")
    assert list((tmp_path / ".out.partial").glob("train-*"))
    _prepared_shard(tmp_path, many_files, (1, 2))
    manifest.verify(tmp_path / "out")


def test_a_shard_that_was_cut_in_the_hidden_directory_is_made_again(
    tmp_path, many_files
):
    (tmp_path / "alone").mkdir()
    _prepared_shard(tmp_path / "alone", many_files, (0, 1))
    _prepared_shard(tmp_path, many_files, (0, 2))
    victim = next((tmp_path / ".out.partial").glob("train-*.array_record"))
    victim.write_bytes(victim.read_bytes()[:-1])
    _prepared_shard(tmp_path, many_files, (1, 2))
    assert not (tmp_path / "out").exists()
    _prepared_shard(tmp_path, many_files, (0, 2))
    assert _files(tmp_path / "out") == _files(tmp_path / "alone" / "out")


@pytest.mark.parametrize("count", [1, 2])
def test_of_equal_texts_only_the_first_is_taken(tmp_path, count):
    """Over the ends of files and units, whoever writes them; empty ones are empty."""
    texts = [f"{text} {i}" for i, text in enumerate(corpora.texts(150))]
    # The second file repeats half of the first and goes on, the third repeats alone.
    first, half, new = texts[:120], texts[:60], texts[120:]
    files = {
        "many": [first, [*half, *new, "", ""], [*half[:30], *half[:30]]],
        "single": [first, [*[""] * 60, *new]],  # Names of documents are their places.
    }
    for name, rows in files.items():
        (tmp_path / name).mkdir()
        for number, row in enumerate(rows):
            corpora.write_jsonl(tmp_path / name / f"{number}.jsonl", row)
    once = _prepared_shard(tmp_path, tmp_path / "single", (0, 1))
    (tmp_path / "out").rename(tmp_path / "once")
    for index in range(count):
        made = _prepared_shard(tmp_path, tmp_path / "many", (index, count), dedup=True)
    assert made.num_duplicates == 60 + 60
    assert made.num_empty_documents == 2
    for name, part in made.splits.items():
        assert part.num_documents == once.splits[name].num_documents
        assert part.num_tokens == once.splits[name].num_tokens


@pytest.mark.parametrize("boundary", sorted(packing.BOUNDARIES))
def test_boundaries_stand_between_documents(tmp_path, boundary):
    begins, ends = packing.BOUNDARIES[boundary]
    made = _prepared_shard(
        tmp_path, corpora.write_jsonl(tmp_path / "x.jsonl", corpora.texts(60)), (0, 1),
        boundary=boundary,
    )  # fmt: skip
    ids = pipeline.windows(tmp_path / "out", "train")[0]
    special = ids[ids < 3].tolist()
    expected = [1] * begins + [2] * ends
    assert special[: len(expected) * 1] == expected[: len(special)]
    assert (ids[0] == 1) == begins
    if begins and ends:
        place = int(np.argmax(ids == 2))
        assert ids[place + 1] == 1
    per_document = begins + ends
    for part in made.splits.values():
        assert part.num_tokens == part.num_bytes + per_document * part.num_documents


def test_lengths_count_every_document_once(tmp_path):
    texts = ["a" * (n - 1) for n in (1, 2, 3, 4, 7, 8, 100)] + corpora.texts(100)
    source = corpora.write_jsonl(tmp_path / "x.jsonl", texts)
    made = _prepared_shard(tmp_path, source, (0, 1))
    for name, part in made.splits.items():
        assert sum(part.lengths) == part.num_documents, name
    counts = np.zeros(8, int)
    for text in texts:
        if text:  # One bos and a token a byte.
            counts[(1 + len(text)).bit_length() - 1] += 1
    rows = (part.lengths for part in made.splits.values())
    columns = itertools.zip_longest(*rows, fillvalue=0)
    found = np.array([sum(column) for column in columns])
    np.testing.assert_array_equal(found, np.trim_zeros(counts, "b"))


def test_a_document_of_ten_megabytes_is_one_document(tmp_path):
    texts = [*corpora.texts(100), "0123456789 " * 1_000_000]
    source = corpora.write_jsonl(tmp_path / "x.jsonl", texts)
    made = prepare.prepare(
        str(source), tmp_path / "out", tokenizer=BYTE, window_len=1024,
        calibration_fraction=.2, heldout_fraction=.3,
    )  # fmt: skip
    assert sum(part.num_documents for part in made.splits.values()) == 101
    assert sum(part.num_tokens for part in made.splits.values()) > 11_000_000


_PREPARE = """
import pathlib, sys
from rfq.data import prepare, tokenize
index, count = map(int, sys.argv[3:])
prepare.prepare(sys.argv[1], sys.argv[2], tokenizer=tokenize.load("byte"),
                window_len=256, part_bytes=150_000, dedup=True, shard=(index, count))
"""


def _phase(partial) -> str:
    """What a killed process was at, by what it left."""
    if not partial.exists():
        return "before or after all parts"
    names = [path.name for path in (partial / "parts").iterdir()]
    if any(".array_record." in name for name in names):
        return "writing a shard"
    if any(".json." in name for name in names):
        return "writing a record"
    parts = [name for name in names if name[0].isdigit()]
    if not parts:
        return "finding duplicates"
    shards = len(list(partial.glob("*.array_record")))
    return "between shards" if shards > 3 * len(parts) else "reading and tokenizing"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "num_kills"), [(1, 10), (3, 8)])
def test_kills_at_random_moments_change_no_byte(
    tmp_path, record_property, count, num_kills
):
    """Processes that share a preparation are killed, and the same commands go on."""
    texts = [text * 40 for text in corpora.texts(400)]
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(20):
        chosen = [f"{number} {text}" for text in texts[number * 20 : number * 20 + 20]]
        corpora.write_jsonl(folder / f"{number:02d}.jsonl", chosen)
    command = [sys.executable, "-c", _PREPARE, str(folder)]
    subprocess.run([*command, str(tmp_path / "whole"), "0", "1"], check=True)
    rng = random.Random(count)
    partial, phases = tmp_path / ".x.partial", []

    def records() -> int:
        return len(list((partial / "parts").glob("[0-9]*.json")))

    def start() -> list[subprocess.Popen]:
        return [
            subprocess.Popen([*command, str(tmp_path / "x"), str(index), str(count)])
            for index in range(count)
        ]

    def end(processes: list[subprocess.Popen]) -> None:
        assert [process.wait() for process in processes] == [0] * count
        assert _files(tmp_path / "x") == _files(tmp_path / "whole")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"many", "whole", "x"}

    while len(phases) < num_kills:
        # From the first trace of work on, at most about two parts further.
        wanted, deadline = records() + rng.randrange(3), time.monotonic() + 60
        processes = start()
        while time.monotonic() < deadline and processes[0].poll() is None:
            if records() >= wanted:
                break
        rng.shuffle(processes)
        for process in processes:
            time.sleep(rng.random() * 0.05 + (1.0 if rng.random() < 0.1 else 0.0))
            process.kill()
            if process.wait() != 0:  # Else it had ended before.
                assert process.returncode == -signal.SIGKILL
                phases.append(_phase(partial))
        if (tmp_path / "x").exists():
            # Killed after all was published, records may be left; a call clears them.
            end(start())
            shutil.rmtree(tmp_path / "x")
    record_property("phases", phases)
    end(start())
    # When a kill hits is luck; that most hit unfinished work is not.
    assert sum(phase != "before or after all parts" for phase in phases) >= 3


def test_a_source_that_cannot_be_read_for_a_while_costs_nothing(
    tmp_path, many_files, monkeypatch
):
    """As on a network disk: what is finished stays, and the same command goes on."""
    original, opened = pathlib.Path.open, []

    def failing(self, *arguments, **options):
        if self.name == "11.jsonl" and not opened.append(self) and len(opened) == 1:
            raise OSError(5, "Input/output error")
        return original(self, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", failing)
    with pytest.raises(InputError) as caught:
        _prepared_shard(tmp_path, many_files, (0, 1))
    corpora.assert_one_sentence(caught, "11.jsonl cannot be read")
    assert list((tmp_path / ".out.partial").glob("train-*"))
    assert _prepared_shard(tmp_path, many_files, (0, 1)) is not None
