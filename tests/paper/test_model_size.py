"""Appendix D: 24 layers of width 768, 32,000 pieces, "194 million parameters"."""

import math

import jax

from rfq import params as params_lib
from rfq.model import transformer
from rfq.model.config import ModelConfig, num_params

PAPER = ModelConfig()  # The defaults are the paper's.


def test_the_defaults_are_appendix_d():
    sizes = (PAPER.num_layers, PAPER.width, PAPER.num_heads, PAPER.mlp_width)
    assert sizes == (24, 768, 12, 3072)
    assert (PAPER.vocab_size, PAPER.seq_len, PAPER.head_width) == (32_000, 512, 64)
    assert (PAPER.beta, PAPER.skip) == (1.1, "residual_free")


def test_the_paper_has_194_million_parameters():
    # 12 * 768^2 * 24 + 32,000 * 768: the embedding is tied and the MLP is ungated,
    # or it would be 219.0 M and more. The gains are (2 * 24 + 1) * 768.
    shapes = transformer.shapes(PAPER)
    rows = jax.tree.leaves(
        params_lib.axes(shapes),
        is_leaf=lambda row: isinstance(row, params_lib.ParamAxes),
    )
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    without_gains = sum(
        size for size, row in zip(sizes, rows, strict=True) if row.kind != "gain"
    )
    assert without_gains == 194_445_312
    assert sum(sizes) == num_params(PAPER) == 194_482_944
