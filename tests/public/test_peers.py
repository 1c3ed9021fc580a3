"""Imported models compute what `transformers` computes: logits, and what they say."""

import json

import jax
import numpy as np
import pytest

from rfq import imported, runs, sharding, steps
from rfq.model import transformer
from rfq.tasks import decode
from tests import tiny
from tests.public import checkpoints

SEQ_LEN, NUM_NEW = 64, 50

FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama, tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama, one key": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama, gelu": ("LlamaConfig", "LlamaForCausalLM", {"hidden_act": "gelu"}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"num_key_value_heads": 4}),
    "qwen2, tied": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def peers():
    reason = "not run: needs the extra torch-peers"
    torch = pytest.importorskip("torch", reason=reason)
    return torch, pytest.importorskip("transformers", reason=reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shards"),
    [*((name, 1) for name in FAMILIES), ("llama", 3), ("qwen2, tied", 3)],
)
def test_an_imported_model_is_that_of_transformers(
    peers, name, shards, tmp_path, monkeypatch
):
    torch, transformers = peers
    tiny.quick(monkeypatch)
    config, architecture, changes = FAMILIES[name]
    given = {**checkpoints.CONFIG, "hidden_size": 32, **changes}
    given = {k: v for k, v in given.items() if k not in ("architectures", "model_type")}
    torch.manual_seed(0)
    theirs = getattr(transformers, architecture)(
        getattr(transformers, config)(**given, bos_token_id=1, eos_token_id=2)
    ).eval()
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            is_norm = "norm" in parameter_name
            parameter.normal_(1.0 if is_norm else 0.0, 0.3)
    there = tmp_path / "hf"
    theirs.save_pretrained(there, max_shard_size="5GB" if shards == 1 else "20KB")
    assert len(list(there.glob("*.safetensors"))) >= shards
    (there / "tokenizer.json").write_bytes(checkpoints.tokenizer())

    text = str(tiny.write_text(tmp_path / "text.jsonl"))
    run_dir = tmp_path / "run"
    experiment = imported.run(str(there), run_dir, data=text, seq_len=SEQ_LEN)
    model = experiment.model
    mesh = sharding.make_mesh(config=experiment.sharding)
    compiled = steps.compile_quant(experiment, mesh, "paper")
    params = runs.final_params(experiment, run_dir, compiled.params)

    rng = np.random.default_rng(0)
    tokens = rng.integers(3, model.num_tokens, (2, 40)).astype(np.int32)
    with jax.default_matmul_precision("highest"):
        ours, _ = jax.jit(transformer.apply, static_argnums=2)(params, tokens, model)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    error = np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max()
    assert error < 1e-4
    # The logits tell positions and tokens apart, or nothing would be compared.
    assert expected.std(axis=1).mean() > 0.1

    prompt = tokens[0, :8]
    (said,) = decode.generate(
        decode.Model(params, model, transformer.PLAIN, {}),
        [prompt],
        max_new_tokens=NUM_NEW,
        sampling=decode.Sampling(),
        is_done=lambda number, new: False,
    )
    with torch.no_grad():
        whole = theirs.generate(
            torch.tensor(prompt[None]).long(),
            max_new_tokens=NUM_NEW,
            min_new_tokens=NUM_NEW,
            do_sample=False,
            suppress_tokens=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    np.testing.assert_array_equal(said, whole[0, len(prompt) :].numpy())
    assert len(np.unique(said)) > 3

    # And back: transformers reads what rfq writes, every number of it.
    imported.export(experiment, run_dir, tmp_path / "again")
    again = getattr(transformers, architecture).from_pretrained(tmp_path / "again")
    for (own, a), (other, b) in zip(
        theirs.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert own == other and torch.equal(a, b), own
    with torch.no_grad():
        logits = again(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_array_equal(logits, expected)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["max_position_embeddings"] == given["max_position_embeddings"]
