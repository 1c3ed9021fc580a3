"""Families of public decoders: their config.json as a `ModelConfig`, and back.

A family is a block that `rfq.model` has. What another model has instead is refused by
the field that says so, because the weights would fit and the numbers would be wrong.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rfq.errors import InputError, lookup, nearest
from rfq.model.config import ModelConfig

Config = Mapping[str, Any]


class Family(NamedTuple):
    """A row of `FAMILIES`.

    Attributes:
        architecture: The name of its class in `transformers`.
        biases: `model.biases`.
        needed: Field -> the values under which it is the block of `rfq.model`; a
            field that is missing or null passes.
    """

    architecture: str
    biases: str
    needed: Mapping[str, tuple[Any, ...]]


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        "none",
        {"attention_bias": (False,), "mlp_bias": (False,)},
    ),
    "mistral": Family("MistralForCausalLM", "none", {"sliding_window": ()}),
    "qwen2": Family("Qwen2ForCausalLM", "qkv", {"use_sliding_window": (False,)}),
}

# Families that people will try, and the part that `rfq.model` has not.
_OTHERS: Mapping[str, str] = {
    "gpt2": "norms with a bias and learned positions",
    "gpt_neox": "attention beside the MLP, and rotates a part of each head",
    "gemma": "gains that are added to 1, and a scaled lookup",
    "phi": "attention beside the MLP, and rotates a part of each head",
    "qwen3": "norms on queries and keys",
}

# `hidden_act` of a config.json -> `model.mlp`; every family here is gated.
_ACTIVATIONS: Mapping[str, str] = {"silu": "swiglu", "gelu": "geglu"}


def family_of(config: Config, where: str) -> str:
    """Return the row of `FAMILIES` that a config.json names.

    Raises:
        InputError: it names another, or none.
    """
    name = config.get("model_type")
    if name in FAMILIES:
        return str(name)
    has = _OTHERS.get(str(name))
    raise InputError(
        f"{where} is of the family model_type={name!r}"
        + (f", which has {has}" if has else ", which rfq's decoder is not known to be")
        + f"; rfq imports {', '.join(sorted(FAMILIES))}{nearest(str(name), FAMILIES)}"
    )


def to_model(config: Config, where: str, *, seq_len: int | None) -> ModelConfig:
    """Make the model of a config.json, with float32 activations.

    Args:
        config: The parsed file.
        where: Its path, for messages.
        seq_len: Tokens of a sequence; None is 512, or all of a shorter context.

    Raises:
        InputError: a field is missing, of another type, or asks for something else
            than `rfq.model` computes.
    """
    row = FAMILIES[family_of(config, where)]
    for field, accepted in row.needed.items():
        _require(config, where, field, accepted)
    for field in ("quantization_config", "num_local_experts"):
        _require(config, where, field, ())
    _require(config, where, "partial_rotary_factor", (1, 1.0))
    if {*(config.get("layer_types") or ())} - {"full_attention"}:
        raise InputError(
            f"{where} has layer_types={config['layer_types']!r}, and every layer of "
            "rfq's decoder attends to all positions; import a model without windows"
        )
    width, heads = (
        _count(config, where, name) for name in ("hidden_size", "num_attention_heads")
    )
    if width % heads == 0:
        _require(config, where, "head_dim", (width // heads,))
    context = context_of(config, where)
    if seq_len is not None and seq_len > context:
        raise InputError(
            f"--seq-len {seq_len} is longer than the context of {where}, "
            f"max_position_embeddings={context}; give at most that"
        )
    length = seq_len or min(512, context)
    act = lookup(_ACTIVATIONS, str(config.get("hidden_act", "silu")), "hidden_act")
    tied = config.get("tie_word_embeddings", False)
    return ModelConfig(
        num_layers=_count(config, where, "num_hidden_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=_count(config, where, "num_key_value_heads", heads),
        mlp_ratio=_count(config, where, "intermediate_size") / width,
        vocab_size=_count(config, where, "vocab_size"),
        seq_len=length,
        skip="residual",
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        mlp=act,
        biases=row.biases,  # pyright: ignore
        beta=1.0,
        head="tied" if tied else "untied",
        rope_base=_rope_base(config, where),
        compute_dtype="float32",
        remat="none",
        loss_chunks=math.gcd(16, length),
    )


def context_of(config: Config, where: str) -> int:
    """Return the most tokens that a model has been trained on at once."""
    return _count(config, where, "max_position_embeddings", 2048)


def to_config(
    model: ModelConfig, family: str, dtype: str, context: int
) -> dict[str, Any]:
    """Make the config.json of a model, for `transformers`.

    Raises:
        InputError: the model has a part that the family has not.
    """
    row = lookup(FAMILIES, family, "family")
    kept = dict(
        skip="residual", norm="rms_norm", beta=1.0, attention_scale="head_width",
        attention_kind="softmax", attention_gate="none", embedding="plain",
        biases=row.biases,
    )  # fmt: skip
    for field, value in kept.items():
        if (own := getattr(model, field)) != value:
            raise InputError(
                f"model.{field}={own!r} has no public equivalent: {row.architecture} "
                f"has {value!r}; its numbers stay with rfq"
            )
    acts = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    if model.mlp not in acts:
        raise InputError(
            f"model.mlp={model.mlp!r} has no public equivalent: the MLP of "
            f"{row.architecture} is gated; its numbers stay with rfq"
        )
    return {
        "architectures": [row.architecture],
        "model_type": family,
        "hidden_size": model.width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "intermediate_size": model.mlp_width,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": context,
        "hidden_act": acts[model.mlp],
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "tie_word_embeddings": model.head == "tied",
        "torch_dtype": dtype,
        **{name: value[0] for name, value in row.needed.items() if value},
        **({"sliding_window": None} if family == "mistral" else {}),
    }


def _count(config: Config, where: str, field: str, default: int | None = None) -> int:
    value = config.get(field)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(
            f"{where} has {field}={value!r}, where a whole number from 1 belongs; give "
            "the config.json that came with the tensors"
        )
    return value


def _require(config: Config, where: str, field: str, accepted: tuple) -> None:
    value = config.get(field)
    if value is not None and value not in accepted:
        wanted = " or ".join(map(repr, accepted)) or "null"
        raise InputError(
            f"{where} has {field}={value!r}, and rfq's decoder has the equations of "
            f"{field}={wanted} alone; import another model"
        )


def _rope_base(config: Config, where: str) -> float:
    """Read the base of the rotation; older and newer files have it in other places."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(
            f"{where} scales its rotations (rope_type={kind!r}), and rfq's decoder has "
            "plain ones; import another model"
        )
    _require(rope, where, "partial_rotary_factor", (1, 1.0))
    base = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise InputError(f"{where} has rope_theta={base!r}, which is no number")
    return float(base)
