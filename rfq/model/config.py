"""The decoder's shape, and the names of the activations that a tap can reach."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from rfq import params as params_lib
from rfq.errors import InputError, check_fields
from rfq.model import layers

# Activations named in every block, in the order in which the forward pass meets them.
BLOCK_SITES: tuple[str, ...] = (
    "attn_norm_in",
    "attn_in",
    "q",
    "k",
    "v",
    "attn_out",
    "mlp_norm_in",
    "mlp_in",
    "mlp_hidden",
)
# Activations that exist once, after the last block.
MODEL_SITES: tuple[str, ...] = ("final_norm_in", "head_in")
SITES: tuple[str, ...] = BLOCK_SITES + MODEL_SITES

# Which sites are quantized. "paper" is appendix D: "inputs to the normalization layers
# and the SA/MLP", 4 L tensors. "full" covers every operand of a matrix product with
# weights or of attention, so that the network can run on integers.
TAP_SETS: Mapping[str, tuple[str, ...]] = {
    "paper": ("attn_norm_in", "attn_in", "mlp_norm_in", "mlp_in"),
    "full": (*BLOCK_SITES, "head_in"),
}

# Each site behind a norm, and the norm's gain: its RMS is known without data.
NORMALIZED_SITES: Mapping[str, str] = {
    "attn_in": "attn_norm",
    "mlp_in": "mlp_norm",
    "head_in": "final_norm",
}

# The site whose activation meets each weight: a product on integers needs both grids.
FED_BY: Mapping[str, str] = {
    "w_q": "attn_in",
    "w_k": "attn_in",
    "w_v": "attn_in",
    "w_gate": "attn_in",
    "w_o": "attn_out",
    "w_up": "mlp_in",
    "w_down": "mlp_hidden",
    "embedding": "head_in",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and numerics of the decoder. Defaults are appendix D of the paper.

    The MLP is ungated with two matrices and the embedding is tied to the head: the
    only reading under which appendix D's sizes give its 194 M parameters.
    """

    num_layers: int = 24  # L, the number of blocks.
    width: int = 768  # D, the width of the stream.
    num_heads: int = 12  # H heads, each D / H wide.
    mlp_ratio: int = 4  # F / D, the MLP's hidden width over the stream's.
    vocab_size: int = 32_000  # V, which must be the tokenizer's.
    seq_len: int = 512  # T, which must divide the window length of the data.
    # How a sublayer joins the stream: "residual" adds to it (equation 1),
    # "residual_free" replaces it (equation 2), "weighted" adds to `init.skip_weight`
    # times it.
    skip: Literal[*layers.SKIPS] = "residual_free"  # pyright: ignore
    # A norm has a gain and no bias; "single_scale_norm" has one gain for all channels
    # (SSNorm of Outlier-Safe Pre-Training, arXiv 2506.19697).
    norm: Literal[*layers.NORMS] = "rms_norm"  # pyright: ignore
    # The attention temperature is tau_l = beta ** -l (section 4 iii).
    beta: float = 1.1
    first_layer: Literal[0, 1] = 1  # The l of the first block.
    # q.k is divided by sqrt(K) per head ("head_width") or, as the paper writes it for
    # a single head, by sqrt(D) ("width").
    attention_scale: Literal["head_width", "width"] = "head_width"
    # How a head mixes the values: by "softmax", "decaying" (softmax with a logit bias
    # in the heads of `init.soft_layers`) or "shaped" (with a skip inside attention).
    attention_kind: Literal[*layers.ATTENTION_KINDS] = "softmax"  # pyright: ignore
    # "head" multiplies each head's mix by a sigmoid of what attention reads, see
    # `layers.head_gate`.
    attention_gate: Literal["none", "head"] = "none"
    # "projected" puts a learned D x D matrix behind the lookup and one before the tied
    # head (EmbProj of Outlier-Safe Pre-Training); both fold into the embedding.
    embedding: Literal["plain", "projected"] = "plain"
    rope_base: float = 10_000.0  # Slowest rotation of RoPE, positions per radian.
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # For activations.
    # "xla" runs anywhere; "cudnn" is flash attention on NVIDIA GPUs, bfloat16 only.
    attention: Literal["xla", "cudnn"] = "xla"
    # Recompute each block in the backward pass instead of keeping its activations.
    remat: bool = True
    # Blocks per iteration of the layer scan: 1 compiles fastest, num_layers runs
    # fastest on CPU.
    scan_unroll: int = 1
    # Slices of the sequence over which the [B, T, V] logits are formed one at a time.
    loss_chunks: int = 16

    @property
    def head_width(self) -> int:
        """K = D / H."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """F, the hidden width of the MLP."""
        return self.mlp_ratio * self.width

    @property
    def gain_width(self) -> int:
        """Gains of one norm: one a channel, or one."""
        return 1 if layers.NORMS[self.norm].one_gain else self.width

    def __post_init__(self):
        check_fields(self, "model")
        for name in (
            "num_layers", "width", "num_heads", "mlp_ratio", "vocab_size", "seq_len",
            "scan_unroll", "loss_chunks",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}={getattr(self, name)} must be >= 1")
        if self.width % self.num_heads:
            raise InputError(
                f"model.width={self.width} must be a multiple of "
                f"model.num_heads={self.num_heads}"
            )
        if self.head_width % 2:
            raise InputError(
                f"model.width / model.num_heads = {self.head_width} must be even: "
                "rotary embeddings turn pairs of coordinates"
            )
        if self.seq_len % self.loss_chunks:
            raise InputError(
                f"model.seq_len={self.seq_len} must be a multiple of "
                f"model.loss_chunks={self.loss_chunks}"
            )
        if not self.beta > 0:
            raise InputError(
                f"model.beta={self.beta} must be > 0 (1 turns the temperature off)"
            )
        if not self.rope_base > 0:
            raise InputError(f"model.rope_base={self.rope_base} must be > 0")
        if self.attention == "cudnn" and self.compute_dtype != "bfloat16":
            raise InputError(
                f"model.attention='cudnn' needs model.compute_dtype='bfloat16', not "
                f"{self.compute_dtype!r}; use model.attention='xla'"
            )


def site_width(config: ModelConfig, site: str) -> int:
    """Count the values along the last axis of a site's activation."""
    if site in ("q", "k", "v", "attn_out"):
        return config.head_width
    return config.mlp_width if site == "mlp_hidden" else config.width


def num_params(config: ModelConfig) -> int:
    """Count the trained parameters: 12 D^2 L + V D at F = 4 D, plus the norm gains.

    A gate adds H D a layer, a projected embedding 2 D^2, shaped attention 3 H a layer.
    """
    c = config
    of_heads = sum(
        params_lib.TABLE[name].kind == "gain"
        for name in layers.ATTENTION_KINDS[c.attention_kind].leaves
    )
    gains = (2 * c.num_layers + 1) * c.gain_width
    return _matmul_weights(c) + gains + of_heads * c.num_layers * c.num_heads


def flops_per_token(config: ModelConfig) -> int:
    """Count floating-point operations per trained token, forward and backward.

    6 N for the N weights that multiply (head included, lookup free) plus the causal
    half of attention, 6 L T D.
    """
    c = config
    return 6 * _matmul_weights(c) + 6 * c.num_layers * c.seq_len * c.width


def _matmul_weights(config: ModelConfig) -> int:
    c = config
    block = 4 * c.width**2 + 2 * c.width * c.mlp_width
    if c.attention_gate == "head":
        block += c.width * c.num_heads
    projections = 2 * c.width**2 if c.embedding == "projected" else 0
    return c.num_layers * block + c.vocab_size * c.width + projections
