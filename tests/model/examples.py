"""A small decoder with random weights, and its variants.

Made in numpy: jax would compile a program for every shape that it draws.
"""

import dataclasses
import functools

import jax
import numpy as np

from rfq.model import init, layers, transformer
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig

CONFIG = ModelConfig(
    num_layers=3,
    width=12,
    num_heads=3,
    mlp_ratio=2,
    vocab_size=29,
    seq_len=10,
    beta=1.3,
    compute_dtype="float32",
    remat="none",
    loss_chunks=1,
)
# Everything that a model may have beside the paper's parts.
RIVALS = {
    "norm": "single_scale_norm",
    "attention_gate": "head",
    "embedding": "projected",
    "first_layer": 0,
}
# The block of LLaMA and Qwen2. Three heads share one key in the smaller sizes here.
LLAMA = {
    "num_kv_heads": 1,
    "mlp": "swiglu",
    "mlp_ratio": 5 / 3,
    "biases": "qkv",
    "head": "untied",
    "norm_eps": 1e-2,
    "vocab_padding": 3,
}
SKIPS = tuple(layers.SKIPS)
STREAMS = tuple(layers.STREAMS)


def config(**changes) -> ModelConfig:
    return dataclasses.replace(CONFIG, **changes)


def params(model: ModelConfig, *, seed: int = 0):
    """Gaussian weights so large that every part of the block matters; gains near 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        is_gain = "norm" in jax.tree_util.keystr(path)
        return 1.0 + 0.3 * noise if is_gain else 1.5 * noise / model.width**0.5

    return jax.tree_util.tree_map_with_path(draw, transformer.shapes(model))


def batch(model: ModelConfig, *, seed: int = 1, size: int = 2) -> np.ndarray:
    """Token ids [B, T + 1]."""
    rng = np.random.default_rng(seed)
    shape = (size, model.seq_len + 1)
    return rng.integers(0, model.vocab_size, shape).astype(np.int32)


def keep(x, state):
    """A tap whose record is the activation itself."""
    del state
    return x, x


def equations(jaxpr):
    """All equations of a jaxpr, those of inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


# As deep and wide as the paper's claims about initialization need to show.
INITIALIZED = ModelConfig(
    num_layers=12,
    width=128,
    num_heads=2,
    vocab_size=64,
    seq_len=32,
    skip="residual_free",
    beta=1.0,
    compute_dtype="float32",
    remat="none",
    loss_chunks=1,
)


@functools.cache
def initialized(config: InitConfig, *, seed: int = 0):
    """Draws `INITIALIZED`, once per session; operation by operation, so that recipes
    share what they compile."""
    return jax.device_get(init.init(config, INITIALIZED, key=jax.random.key(seed)))
