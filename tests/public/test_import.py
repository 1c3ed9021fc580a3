"""Public checkpoints in and out: bit for bit, and one sentence for what is wrong."""

import hashlib
import json
import pathlib
import re
import zipfile

import gguf
import ml_dtypes  # noqa: F401  # Names bfloat16 for numpy.
import numpy as np
import pytest
from safetensors import numpy as safetensors

from rfq import cli, imported
from rfq.data import tokenize
from rfq.errors import InputError
from rfq.public import gguf_file
from tests import tiny
from tests.public import checkpoints

SEQ_LEN = 16


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> str:
    return str(tiny.write_text(tmp_path_factory.mktemp("text") / "text.jsonl"))


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    given = checkpoints.config()
    return checkpoints.write(tmp_path / "hf", given, checkpoints.weights(given))


def imports(source, out, text, **options):
    return imported.run(str(source), out, data=text, seq_len=SEQ_LEN, **options)


def digests(folder: pathlib.Path) -> dict[str, str]:
    """{tensor: sha256 of its type, shape and bytes} of a directory's tensors."""
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, array in safetensors.load_file(path).items():
            told = f"{array.dtype} {array.shape}".encode() + array.tobytes()
            found[name] = hashlib.sha256(told).hexdigest()
    return found


# --- In and out ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "dtype", "num_shards"),
    [
        ({}, "bfloat16", 1),
        ({"tie_word_embeddings": True, "head_dim": 4}, "float16", 3),
        pytest.param(
            {"model_type": "qwen2", "use_sliding_window": False},
            *("float32", 2),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model_type": "mistral", "sliding_window": None},
            *("float32", 1),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["llama", "tied, 3 shards", "qwen2, 2 shards", "mistral"],
)
def test_a_checkpoint_comes_back_bit_for_bit(
    tmp_path, text, changes, dtype, num_shards
):
    given = checkpoints.config(**changes)
    arrays = checkpoints.weights(given, dtype=dtype)
    there = checkpoints.write(tmp_path / "hf", given, arrays, num_shards=num_shards)
    experiment = imports(there, tmp_path / "run", text)
    imported.export(experiment, tmp_path / "run", tmp_path / "again")
    assert digests(tmp_path / "again") == digests(there)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: config[name] for name in given} == {
        **given,
        "architectures": config["architectures"],
    }
    assert config["torch_dtype"] == dtype
    tokenizer = tmp_path / "again" / "tokenizer.json"
    assert tokenizer.read_bytes() == checkpoints.tokenizer()


@pytest.mark.slow
def test_what_is_exported_is_imported_as_the_same_run(tmp_path, source, text):
    first = imports(source, tmp_path / "run", text)
    imported.export(first, tmp_path / "run", tmp_path / "again")
    second = imports(tmp_path / "again", tmp_path / "second", text)
    assert second.origin == first.origin
    assert second.model == first.model
    # One number more or less is another run.
    arrays = safetensors.load_file(source / "model.safetensors")
    arrays["model.norm.weight"][3] += 1.0
    safetensors.save_file(arrays, source / "model.safetensors")
    third = imports(source, tmp_path / "third", text)
    assert third.origin.digest != first.origin.digest


@pytest.mark.slow
def test_an_imported_run_is_a_run(tmp_path, source, text, capsys, monkeypatch):
    tiny.quick(monkeypatch)
    run_dir = str(tmp_path / "run")
    words = ["--out", run_dir, "--data", text, "--seq-len", str(SEQ_LEN)]
    assert cli.main(["import", str(source), *words]) == 0
    assert "llama, 2 layers of width 16" in capsys.readouterr().out
    tokens = ["--calibration-tokens", "256", "--eval-tokens", "256"]
    specs = ["--specs", "FP", "W8A8"]
    assert cli.main(["quantize", run_dir, *specs, *tokens]) == 0
    full, rounded, *_ = tiny.rows(tmp_path / "run" / "quantize" / "rows.jsonl")
    assert (full["num_steps"], full["tokens_seen"]) == (0, 0)
    assert full["loss"] > 0 and abs(rounded["loss_increase"]) < 0.1
    assert cli.main(["generate", run_dir, "the union", "--max-new-tokens", "3"]) == 0
    assert "the union" in capsys.readouterr().out
    assert cli.main(["report", run_dir, "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_paper_s_model_has_no_public_equivalent(tmp_path):
    experiment = tiny.experiment(tmp_path)
    with pytest.raises(InputError, match=r"model\.mlp='gelu' has no public equivalent"):
        imported.export(experiment, tmp_path / "run", tmp_path / "out")
    free = tiny.with_fields(experiment, "model", skip="residual_free")
    with pytest.raises(InputError, match=r"model\.skip='residual_free'"):
        imported.export(free, tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- What is wrong -------------------------------------------------------------------


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    safetensors.save_file(change(safetensors.load_file(path)), path)


def renamed(arrays):
    return {n.replace("q_proj", "query"): x for n, x in arrays.items()}


def rounded(arrays):
    w = "model.layers.1.mlp.up_proj.weight"
    return {**arrays, w: np.zeros(arrays[w].shape, np.int8)}


def turned(arrays):
    w = "model.layers.1.mlp.up_proj.weight"
    return {**arrays, w: np.ascontiguousarray(arrays[w].T)}


def broken(arrays):
    return {**arrays, "model.norm.weight": np.full(16, np.nan, np.float32)}


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def escape(folder):
    path = folder / "model.safetensors.index.json"
    path.write_text(
        json.dumps({"weight_map": {"lm_head.weight": "../evil.safetensors"}})
    )


def lose_a_shard(folder):
    names = dict.fromkeys(safetensors.load_file(folder / "model.safetensors"), "a.st")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": names})
    )


def pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


FAULTS = {
    "truncated": (truncate, "not a whole safetensors file"),
    "renamed": (lambda f: change_tensors(f, renamed), "lacks the tensor .*q_proj"),
    "missing": (
        lambda f: change_tensors(f, lambda a: dict(list(a.items())[1:])),
        "lacks the tensor",
    ),
    "surplus": (
        lambda f: change_tensors(f, lambda a: {**a, "x": np.zeros(2)}),
        "holds the tensor 'x'",
    ),
    "wrong type": (lambda f: change_tensors(f, rounded), "has type I8"),
    "turned": (lambda f: change_tensors(f, turned), r"shape \[16, 24\] .* \[24, 16\]"),
    "not finite": (lambda f: change_tensors(f, broken), "not finite"),
    "another depth": (lambda f: change_config(f, num_hidden_layers=3), "lacks .*2"),
    "another width": (lambda f: change_config(f, hidden_size=32), "shape"),
    "tied": (
        lambda f: change_config(f, tie_word_embeddings=True),
        "holds the tensor 'lm_head",
    ),
    "no number": (lambda f: change_config(f, vocab_size="many"), "vocab_size='many'"),
    "few ids": (lambda f: change_config(f, vocab_size=200), "shape"),
    "an unknown family": (lambda f: change_config(f, model_type="gpt2"), "gpt2.*norms"),
    "no family": (lambda f: change_config(f, model_type="lama"), "did you mean llama"),
    "windows": (
        lambda f: change_config(f, model_type="mistral", sliding_window=4096),
        "sliding_window=4096",
    ),
    "biases": (lambda f: change_config(f, attention_bias=True), "attention_bias=True"),
    "scaled rotations": (
        lambda f: change_config(f, rope_scaling={"rope_type": "llama3"}),
        "rope_type='llama3'",
    ),
    "an activation": (
        lambda f: change_config(f, hidden_act="relu"),
        "hidden_act='relu'",
    ),
    "wide heads": (lambda f: change_config(f, head_dim=8), "head_dim=8"),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot be read"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "has no model"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "--tokenizer"),
    "another tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "not a tokenizer.json",
    ),
    "a path that escapes": (escape, "no plain name of a file"),
    "a lost shard": (lose_a_shard, "a.st is missing"),
    "a pickle": (pickle, "reading a pickle runs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_nothing_is_written(
    tmp_path, source, text, fault, capsys
):
    spoil, words = FAULTS[fault]
    spoil(source)
    out = tmp_path / "run"
    options = ["--out", str(out), "--data", text, "--seq-len", "16"]
    assert cli.main(["import", str(source), *options]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert re.search(words, said), said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "does not exist"),
        ("weights.bin", "reading a pickle"),
        ("notes.txt", "cannot be imported"),
        ("m.gguf", "not a whole .gguf"),
        ("m.whl", "not a whole wheel"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, text, name, words):
    path = tmp_path / name
    if name != "nowhere":
        path.write_bytes(b"no")
    with pytest.raises(InputError, match=words):
        imports(path, tmp_path / "run", text)
    assert not (tmp_path / "run").exists()


def test_a_full_directory_and_missing_text_are_refused(tmp_path, source, text):
    with pytest.raises(InputError, match="is not empty"):
        imports(source, source, text)
    with pytest.raises(InputError, match="matches no file"):
        imports(source, tmp_path / "run", str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(InputError, match="longer than the context"):
        imported.run(str(source), tmp_path / "run", data=text, seq_len=65)
    assert not (tmp_path / "run").exists()


def test_the_hub_is_asked_by_name_and_its_silence_is_one_sentence(
    tmp_path, source, text, monkeypatch
):
    import huggingface_hub

    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name == "someone/model":
            return str(source)
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    experiment = imports("someone/model", tmp_path / "run", text)
    assert experiment.arm == "model"
    assert not [pattern for pattern in asked[0][1] if "bin" in pattern]
    with pytest.raises(InputError, match=r"cannot be fetched .*no route to host\)"):
        imports("someone/other", tmp_path / "other", text)


# --- .gguf ---------------------------------------------------------------------------


def write_gguf(path: pathlib.Path, given: dict, arrays: dict) -> pathlib.Path:
    """The checkpoint as llama.cpp would have it, in float32."""
    family = given["model_type"]
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(given["num_hidden_layers"])
    writer.add_context_length(given["max_position_embeddings"])
    writer.add_embedding_length(given["hidden_size"])
    writer.add_feed_forward_length(given["intermediate_size"])
    writer.add_head_count(given["num_attention_heads"])
    writer.add_head_count_kv(given["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(given["rms_norm_eps"])
    writer.add_rope_freq_base(given["rope_theta"])
    vocab = json.loads(checkpoints.tokenizer())["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([3] * 3 + [1] * (len(pieces) - 3))
    writer.add_token_merges(["t h"])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, given["num_hidden_layers"])
    for name, x in arrays.items():
        heads = {
            "q_proj.weight": given["num_attention_heads"],
            "k_proj.weight": given["num_key_value_heads"],
        }.get(name.split("self_attn.")[-1])
        if family == "llama" and heads:  # As its converter permutes them.
            halves = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:])
            x = halves.swapaxes(1, 2).reshape(x.shape)
        own = table.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(own, np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "family", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)]
)
def test_a_gguf_and_a_wheel_hold_the_same_model(tmp_path, text, family):
    given = checkpoints.config(model_type=family)
    arrays = checkpoints.weights(given)
    there = checkpoints.write(tmp_path / "hf", given, arrays)
    file = write_gguf(tmp_path / "small.gguf", given, arrays)
    with zipfile.ZipFile(tmp_path / "small.whl", "w") as wheel:
        wheel.write(file, "../../evil/small.gguf")
    expected = imports(there, tmp_path / "run", text)
    for number, path in enumerate((file, tmp_path / "small.whl")):
        run_dir = tmp_path / f"run-{number}"
        found = imports(path, run_dir, text)
        assert found.origin == expected.origin
        assert (found.model, found.arm) == (expected.model, "small")
        ours, theirs = (
            tokenize.load(str(folder / "tokenizer.json")).encode("the thé 12")
            for folder in (run_dir, there)
        )
        np.testing.assert_array_equal(ours, theirs)
    assert not (tmp_path.parent / "evil").exists()
    # Half of a file.
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"not a whole \.gguf file"):
        imports(file, tmp_path / "half", text)


@pytest.mark.parametrize("pre", [{}, {"tokenizer.ggml.pre": "deepseek-llm"}], ids=str)
def test_a_cut_of_text_that_is_not_known_is_not_guessed(pre):
    tokens = {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": []}
    fields = {"tokenizer.ggml.model": "gpt2", **tokens, **pre}
    with pytest.raises(InputError, match="the cut of text by the tokenizer of it"):
        gguf_file._tokenizer(fields, "it")


@pytest.mark.slow
def test_a_real_model_knows_its_capitals(smollm2, tmp_path, monkeypatch, capsys):
    tiny.quick(monkeypatch)
    run_dir = str(tmp_path / "run")
    assert cli.main(["import", smollm2, "--out", run_dir]) == 0
    assert "134,515,008 parameters" in capsys.readouterr().out
    prompt = "The capital of France is"
    assert cli.main(["generate", run_dir, prompt, "--max-new-tokens", "3"]) == 0
    assert "The capital of France is Paris." in capsys.readouterr().out
