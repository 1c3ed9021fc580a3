"""A .gguf file, in the words of a Hugging Face directory.

llama.cpp stores the weights of many families in one file, many of them quantized, with
names, a config and a tokenizer of its own. They are put back here: the names, the
rows of W_Q and W_K of LLaMA, which it pairs for interleaved rotations, and the
tokenizer, as the tokenizer.json of the `tokenizers` library.
"""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rfq.errors import InputError, lookup
from rfq.public.tensors import NAMES, Tensor

# Field of a config.json -> key behind the architecture's name.
_FIELDS: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
    "head_dim": "attention.key_length",
    "num_local_experts": "expert_count",
}
# Architecture -> whether W_Q and W_K are in interleaved pairs.
_INTERLEAVED: Mapping[str, bool] = {"llama": True, "qwen2": False}

_DIGITS_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# `tokenizer.ggml.pre` -> how text is cut before pairs are merged: at each digit, or by
# an expression; "" leaves the cut to GPT-2's own.
_CUTS: Mapping[str, str] = {
    "gpt-2": "",
    "smollm": "digits",
    "llama-bpe": _DIGITS_3,
    "qwen2": _DIGITS_3.replace("{1,3}", ""),
}


def read(
    path: pathlib.Path, where: str
) -> tuple[dict[str, Any], dict[str, Tensor], Callable[[], bytes]]:
    """Open a .gguf file; its tensors stay on disk.

    Args:
        path: The file.
        where: What it is called in messages.

    Returns:
        What its config.json would say, {name in a Hugging Face checkpoint: tensor}, and
        () -> its tokenizer.json.

    Raises:
        InputError: the file is no whole .gguf file, of another architecture, or the
            library gguf is not installed.
    """
    gguf = _library()
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # The library raises many types for a damaged file.
        raise InputError(
            f"{where} is not a whole .gguf file ({error}); fetch it again"
        ) from error
    architecture = lookup(
        {name: name for name in _INTERLEAVED},
        str(fields.get("general.architecture")),
        f"the architecture of {where}",
    )
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    config: dict[str, Any] = {
        "model_type": architecture,
        "rope_scaling": None if scaling == "none" else {"rope_type": scaling},
        "tie_word_embeddings": "output.weight" not in theirs,
        "vocab_size": int(theirs["token_embd.weight"].shape[1])
        if "token_embd.weight" in theirs
        else None,
    }
    for field, key in _FIELDS.items():
        if (value := fields.get(f"{architecture}.{key}")) is not None:
            config[field] = value
    config["rms_norm_eps"] = _shortest(config.get("rms_norm_eps", 1e-6))
    if not config.get("num_local_experts"):
        config.pop("num_local_experts", None)
    names = _names(gguf, int(config.get("num_hidden_layers") or 0))
    heads = {
        "self_attn.q_proj.weight": config.get("num_attention_heads"),
        "self_attn.k_proj.weight": config.get("num_key_value_heads"),
    }
    interleaved = _INTERLEAVED[architecture]
    tensors = {}
    for own, tensor in theirs.items():
        name = names.get(own, str(own))
        count = next((n for end, n in heads.items() if name.endswith(end)), None)
        tensors[name] = Tensor(
            tuple(int(size) for size in reversed(tensor.shape)),
            "float32",  # What dequantizing gives.
            _reader(gguf, tensor, count if interleaved else None),
        )
    return config, tensors, lambda: _tokenizer(fields, where)


def _names(gguf: Any, num_layers: int) -> dict[str, str]:
    """Return {llama.cpp's name: Hugging Face's name}, by the library's own table."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, num_layers)
    wanted = {
        pattern.format(layer)
        for pattern in NAMES.values()
        for layer in range(num_layers)
    }
    found = {n: table.get_name(n, try_suffixes=(".weight", ".bias")) for n in wanted}
    return {own: name for name, own in found.items() if own}


def _reader(gguf: Any, tensor: Any, heads: int | None) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if heads is None:
            return x
        pairs = x.reshape(heads, x.shape[0] // heads // 2, 2, x.shape[1])
        return pairs.swapaxes(1, 2).reshape(x.shape)

    return read


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05, not 9.99...e-06."""
    return float(str(np.float32(value)))


def _tokenizer(fields: Mapping[str, Any], where: str) -> bytes:
    """Make the tokenizer.json of byte-level pairs and their merges."""
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InputError(
            f"{where} has a tokenizer of kind {kind!r}, and rfq rebuilds 'gpt2' "
            "(byte-level pairs) alone; give its tokenizer.json or .model with "
            "--tokenizer"
        )
    cut = lookup(
        _CUTS,
        str(fields.get("tokenizer.ggml.pre")),
        f"the cut of text by the tokenizer of {where}",
    )
    try:
        library = importlib.import_module("tokenizers")
    except ImportError as error:
        raise _missing("tokenizers") from error
    pre = library.pre_tokenizers
    first = {
        "": [],
        "digits": [pre.Digits(individual_digits=True)],
    }.get(cut, [pre.Split(library.Regex(cut), "isolated")])
    level = pre.ByteLevel(add_prefix_space=False, use_regex=cut in ("", "digits"))
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    made = library.Tokenizer(
        library.models.BPE(
            {token: at for at, token in enumerate(tokens)},
            merges,
            ignore_merges=fields.get("tokenizer.ggml.pre") == "llama-bpe",
        )
    )
    made.pre_tokenizer = pre.Sequence([*first, level])
    made.decoder = library.decoders.ByteLevel()
    if fields.get("tokenizer.ggml.pre") == "qwen2":
        made.normalizer = library.normalizers.NFC()
    kinds = fields.get("tokenizer.ggml.token_type", [])
    control = [t for t, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL]
    made.add_special_tokens(control)
    return made.to_str().encode()


_CONTROL = 3  # The library's `TokenType.CONTROL`.


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise _missing("gguf") from error


def _missing(library: str) -> InputError:
    return InputError(
        f"a .gguf file needs the library {library}; install it with pip install "
        "'rfq[import]'"
    )
