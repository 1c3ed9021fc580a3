"""Small public checkpoints with random weights, as `transformers` writes them."""

import json
import pathlib

import numpy as np
import tokenizers
from safetensors import numpy as safetensors

from rfq.public import families, tensors

# As LLaMA has them: more queries than keys, a gated MLP of an odd ratio, a padded
# vocabulary.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 264,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def config(**changes) -> dict:
    return {**CONFIG, **changes}


def weights(given: dict, *, dtype: str = "float32", seed: int = 0) -> dict:
    """{name: array} of what the config asks for."""
    rng = np.random.default_rng(seed)
    model = families.to_model(given, "the example", seq_len=None)
    return {
        name: rng.normal(0.3, 0.5, place.shape).astype(np.dtype(dtype))
        for name, place in tensors.places(model).items()
    }


def tokenizer() -> bytes:
    """A tokenizer.json of 260 ids: unk, bos, eos, the bytes and one pair."""
    specials = ["<unk>", "<s>", "</s>"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = [*specials, *letters, "th"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("t", "h")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(specials)
    return made.to_str().encode()


def write(
    folder: pathlib.Path, given: dict, arrays: dict, *, num_shards: int = 1
) -> pathlib.Path:
    """A Hugging Face directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "tokenizer.json").write_bytes(tokenizer())
    if num_shards == 1:
        safetensors.save_file(arrays, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(arrays.items())[shard::num_shards])
        safetensors.save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
