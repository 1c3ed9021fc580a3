"""The decoder's shape, and the names of the activations that a tap can reach."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rfq import params as params_lib
from rfq.errors import InputError, check_fields
from rfq.model import layers
from rfq.quant import grid

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
# and the SA/MLP", 4 L tensors. "norms" reads it to the letter: the final norm is a
# normalization layer, too (D121). "full" covers every operand of a matrix product with
# weights or of attention, so that the network can run on integers.
TAP_SETS: Mapping[str, tuple[str, ...]] = {
    "paper": ("attn_norm_in", "attn_in", "mlp_norm_in", "mlp_in"),
    "norms": ("attn_norm_in", "attn_in", "mlp_norm_in", "mlp_in", "final_norm_in"),
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
    "w_mlp_gate": "mlp_in",
    "w_down": "mlp_hidden",
    "embedding": "head_in",
    "unembedding": "head_in",
}

# The parameter that turns features into logits.
HEADS: Mapping[str, str] = {"tied": "embedding", "untied": "unembedding"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and numerics of the decoder. Defaults are appendix D of the paper.

    There, the MLP is ungated with two matrices and the embedding is tied to the head:
    the only reading under which appendix D's sizes give its 194 M parameters.
    """

    num_layers: int = 24  # L, the number of blocks.
    width: int = 768  # D, the width of the stream.
    num_heads: int = 12  # H heads, each D / H wide.
    # Heads of keys and values, each shared by as many queries; None is num_heads.
    num_kv_heads: int | None = None
    mlp_ratio: float = 4  # F / D, the MLP's hidden width over the stream's.
    vocab_size: int = 32_000  # V, which must be the tokenizer's and the padding.
    # Rows at the end of the vocabulary that no token has, as public models have them.
    vocab_padding: int = 0
    seq_len: int = 512  # T, which must divide the window length of the data.
    # How a sublayer joins the stream: "residual" adds to it (equation 1),
    # "residual_free" replaces it (equation 2), "weighted" adds to `init.skip_weight`
    # times it.
    skip: Literal[*layers.SKIPS] = "residual_free"  # pyright: ignore
    # A norm has a gain and no bias; "single_scale_norm" has one gain for all channels
    # (SSNorm of Outlier-Safe Pre-Training, arXiv 2506.19697).
    norm: Literal[*layers.NORMS] = "rms_norm"  # pyright: ignore
    norm_eps: float = 1e-6  # Added to a norm's mean square.
    # "gelu" of h W_up, or h W_up times "swiglu"'s silu or "geglu"'s GELU of h W_gate.
    mlp: Literal[*layers.MLPS] = "gelu"  # pyright: ignore
    # "qkv" adds a bias to queries, keys and values, before their rotation.
    biases: Literal["none", "qkv"] = "none"
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
    # The head is the embedding ("tied") or has weights of its own ("untied").
    head: Literal[*HEADS] = "tied"  # pyright: ignore
    rope_base: float = 10_000.0  # Slowest rotation of RoPE, positions per radian.
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # For activations.
    # "xla" runs anywhere; "cudnn" is flash attention on NVIDIA GPUs, bfloat16 only;
    # "auto" is "cudnn" where it runs, see `attention_on`.
    attention: Literal["auto", "xla", "cudnn"] = "xla"
    # What the backward pass computes again: "none" keeps all activations; "block" keeps
    # each block's input and runs the block again; "products" also keeps what matrix
    # products are needed for, and runs norms, activations and softmax again.
    remat: Literal["none", "block", "products"] = "block"
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
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def mlp_width(self) -> int:
        """F, the hidden width of the MLP."""
        return round(self.mlp_ratio * self.width)

    @property
    def num_tokens(self) -> int:
        """Ids that a tokenizer may give: the vocabulary without its padding."""
        return self.vocab_size - self.vocab_padding

    @property
    def gain_width(self) -> int:
        """Gains of one norm: one a channel, or one."""
        return 1 if layers.NORMS[self.norm].one_gain else self.width

    def __post_init__(self):
        if isinstance(self.remat, bool):  # As recorded runs and older configs have it.
            object.__setattr__(self, "remat", "block" if self.remat else "none")
        check_fields(self, "model")
        for name in (
            "num_layers", "width", "num_heads", "vocab_size", "seq_len", "scan_unroll",
            "loss_chunks",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}={getattr(self, name)} must be >= 1")
        if self.width % self.num_heads:
            raise InputError(
                f"model.width={self.width} must be a multiple of "
                f"model.num_heads={self.num_heads}"
            )
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise InputError(
                f"model.num_kv_heads={self.num_kv_heads} must divide "
                f"model.num_heads={self.num_heads}, or be None"
            )
        if self.attention_kind == "shaped" and self.kv_heads != self.num_heads:
            raise InputError(
                "model.attention_kind='shaped' passes each head's own values on, so "
                f"model.num_kv_heads={self.num_kv_heads} must be None"
            )
        ratio = f"model.mlp_ratio={self.mlp_ratio}"
        if not 0 < self.mlp_ratio < math.inf:
            raise InputError(f"{ratio} must be > 0")
        if not math.isclose(self.mlp_ratio * self.width, self.mlp_width, rel_tol=1e-9):
            raise InputError(
                f"{ratio} times model.width={self.width} must be a whole number, the "
                f"hidden width of the MLP; give {self.mlp_width / self.width!r} for "
                f"{self.mlp_width}"
            )
        if not 0 <= self.vocab_padding < self.vocab_size:
            raise InputError(
                f"model.vocab_padding={self.vocab_padding} must be from 0 to "
                f"model.vocab_size={self.vocab_size}, and less"
            )
        if not 0 < self.norm_eps < math.inf:
            raise InputError(f"model.norm_eps={self.norm_eps} must be > 0")
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


def rolled(config: ModelConfig) -> ModelConfig:
    """Run layers in a loop: unrolling gains time in the backward pass alone.

    On CPU a forward pass of the demo takes 62 ms rolled and 95 ms unrolled, and its
    programs compile in half the time.
    """
    return dataclasses.replace(config, scan_unroll=1)


def in_float32(config: ModelConfig) -> ModelConfig:
    """Return the model that quantized rows are scored on (D9)."""
    # cuDNN's attention has no float32.
    return dataclasses.replace(config, compute_dtype="float32", attention="xla")


def unfolded(config: ModelConfig) -> ModelConfig:
    """Return the model whose head has another matrix than the lookup, as it may need.

    Gains and rotations fold into the head. A projected embedding has a matrix for that.
    """
    untied = config.embedding == "plain"
    return dataclasses.replace(config, head="untied") if untied else config


def check_methods(spec: str, methods: Sequence[str], model: ModelConfig) -> None:
    """Refuse methods of a quantization setting for which a model has no exact form.

    Args:
        spec: The setting, for the message.
        methods: Rows of `quant.spec.METHODS`.
        model: The model.

    Raises:
        InputError: "rotate" meets a norm that rotations do not pass, or "smooth" one
            without a gain for each channel.
    """
    norm = layers.NORMS[model.norm]
    if "rotate" in methods and not norm.turns:
        raise InputError(
            f"quantization {spec!r} cannot rotate a model with model.norm="
            f"{model.norm!r}, which subtracts the mean over the channels, and a "
            "rotation moves that mean; leave out +rotate"
        )
    if "smooth" in methods and norm.one_gain:
        raise InputError(
            f"quantization {spec!r} cannot smooth a model with model.norm="
            f"{model.norm!r}, which has no gain for each channel that could hold the "
            "scales; leave out +smooth"
        )


def attention_on(config: ModelConfig, device: Any) -> ModelConfig:
    """Decide model.attention="auto" for a device: "cudnn" where it runs, else "xla".

    cuDNN's fused attention takes bfloat16 and heads of up to 128, a multiple of 8, on
    NVIDIA GPUs from Ampere on.
    """
    if config.attention != "auto":
        return config
    fused = (
        "NVIDIA" in device.device_kind
        and float(getattr(device, "compute_capability", 8.0)) >= 8.0
        and config.compute_dtype == "bfloat16"
        and config.head_width <= 128
        and config.head_width % 8 == 0
    )
    return dataclasses.replace(config, attention="cudnn" if fused else "xla")


def site_width(config: ModelConfig, site: str) -> int:
    """Count the values along the last axis of a site's activation."""
    if site in ("q", "k", "v", "attn_out"):
        return config.head_width
    return config.mlp_width if site == "mlp_hidden" else config.width


def num_params(config: ModelConfig) -> int:
    """Count the trained parameters: 12 D^2 L + V D at F = 4 D, plus the norm gains.

    A gate adds H D a layer, a projected embedding 2 D^2, shaped attention 3 H a layer,
    a gated MLP D F a layer, an untied head V D.
    """
    c = config
    of_heads = c.num_heads * sum(
        params_lib.TABLE[name].kind == "gain"
        for name in layers.ATTENTION_KINDS[c.attention_kind].leaves
    )
    if c.biases == "qkv":
        of_heads += (c.num_heads + 2 * c.kv_heads) * c.head_width
    gains = (2 * c.num_layers + 1) * c.gain_width
    lookup = c.vocab_size * c.width if c.head == "untied" else 0
    return _matmul_weights(c) + gains + of_heads * c.num_layers + lookup


def flops_per_token(config: ModelConfig) -> int:
    """Count floating-point operations per trained token, forward and backward.

    6 N for the N weights that multiply (head included, lookup free) plus the causal
    half of attention, 6 L T D.
    """
    c = config
    return 6 * _matmul_weights(c) + 6 * c.num_layers * c.seq_len * c.width


def _matmul_weights(config: ModelConfig) -> int:
    c = config
    of_heads = 2 * (c.num_heads + c.kv_heads) * c.head_width
    of_mlp = (2 + len(layers.MLPS[c.mlp].leaves)) * c.mlp_width
    block = c.width * (of_heads + of_mlp)
    if c.attention_gate == "head":
        block += c.width * c.num_heads
    projections = 2 * c.width**2 if c.embedding == "projected" else 0
    return c.num_layers * block + c.vocab_size * c.width + projections


def check_groups(
    config: ModelConfig, tap_set: str, what: str, granularity: str
) -> None:
    """Check that groups of a site's values have whole numbers at every site.

    Args:
        config: The model.
        tap_set: A row of `TAP_SETS`.
        what: Where the granularity was given, for the message.
        granularity: What shares a grid, such as "per_group_16".

    Raises:
        InputError: The groups do not divide the values of a site.
    """
    size = grid.group_size(granularity) or 1
    for site in sorted(TAP_SETS[tap_set]):
        if site_width(config, site) % size:
            raise InputError(
                f"{what}={granularity!r} does not divide the "
                f"{site_width(config, site)} values of site {site!r}; choose a divisor"
            )
