"""Sizes follow from the config, and impossible ones are refused by name."""

import dataclasses
import math
import types

import hypothesis
import hypothesis.strategies as st
import jax
import pytest

from rfq import params as params_lib
from rfq.errors import InputError
from rfq.model import config as config_lib
from rfq.model import transformer
from rfq.model.config import BLOCK_SITES, SITES, TAP_SETS, ModelConfig
from tests.model import examples


def sizes(model):
    """Number of parameters of each kind, counted on the declared shapes."""
    shapes = transformer.shapes(model)
    rows = params_lib.axes(shapes)
    counted = dict.fromkeys(
        ("matrix", "projection", "embedding", "gain", "bias", "constant"), 0
    )
    jax.tree.map(
        lambda leaf, row: counted.update(
            {row.kind: counted[row.kind] + math.prod(leaf.shape)}
        ),
        shapes,
        rows,
    )
    return counted


@hypothesis.given(
    num_layers=st.integers(1, 5),
    num_heads=st.integers(1, 4),
    half_head=st.integers(1, 4),
    mlp_ratio=st.integers(1, 5),
    vocab_size=st.integers(1, 50),
    others=st.sampled_from(
        [
            {},
            {**examples.RIVALS},
            {"attention_kind": "shaped"},
            {"attention_kind": "decaying", "skip": "weighted"},
            {"num_kv_heads": 1, "mlp": "swiglu", "biases": "qkv", "head": "untied"},
        ]
    ),
)
@hypothesis.settings(max_examples=8)
def test_formulas_count_what_the_model_declares(
    num_layers, num_heads, half_head, mlp_ratio, vocab_size, others
):
    model = ModelConfig(
        num_layers=num_layers,
        width=2 * half_head * num_heads,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        vocab_size=vocab_size,
        seq_len=4,
        loss_chunks=1,
        **others,
    )
    counted = sizes(model)
    # Constants are not trained.
    trained = sum(counted.values()) - counted["constant"]
    assert config_lib.num_params(model) == trained
    lookup = model.vocab_size * model.width if model.head == "untied" else 0
    multiplied = trained - counted["gain"] - counted["bias"] - lookup
    # Both products of attention, causal half, forward and twice backward: 3 * 2 * T D.
    attention = 6 * num_layers * model.seq_len * model.width
    assert config_lib.flops_per_token(model) == 6 * multiplied + attention


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"num_layers": 0}, ["model.num_layers=0"]),
        ({"vocab_size": -1}, ["model.vocab_size=-1"]),
        ({"scan_unroll": 0}, ["model.scan_unroll=0"]),
        ({"width": 100, "num_heads": 12}, ["model.width=100", "model.num_heads=12"]),
        ({"width": 36, "num_heads": 12}, ["model.width", "even"]),
        ({"seq_len": 100}, ["model.seq_len=100", "model.loss_chunks=16"]),
        ({"beta": 0.0}, ["model.beta=0.0"]),
        ({"beta": math.nan}, ["model.beta=nan"]),
        ({"rope_base": -1.0}, ["model.rope_base=-1.0"]),
        ({"num_kv_heads": 5}, ["model.num_kv_heads=5", "model.num_heads=12"]),
        ({"num_kv_heads": 0}, ["model.num_kv_heads=0", "None"]),
        (
            {"num_kv_heads": 6, "attention_kind": "shaped"},
            ["'shaped'", "model.num_kv_heads=6"],
        ),
        ({"mlp_ratio": 0}, ["model.mlp_ratio=0", "> 0"]),
        ({"mlp_ratio": 2.6667}, ["model.mlp_ratio=2.6667", "2048"]),
        ({"mlp": "relu"}, ["model.mlp='relu'", "swiglu"]),
        ({"vocab_padding": 32_000}, ["model.vocab_padding=32000"]),
        ({"norm_eps": 0.0}, ["model.norm_eps=0.0"]),
        ({"skip": "resfree"}, ["model.skip='resfree'", "residual_free"]),
        ({"norm": "batch_norm"}, ["model.norm='batch_norm'", "rms_norm"]),
        ({"attention_gate": "element"}, ["model.attention_gate='element'", "head"]),
        ({"embedding": "tied"}, ["model.embedding='tied'", "projected"]),
        ({"first_layer": 2}, ["model.first_layer=2", "[0, 1]"]),
        ({"compute_dtype": "float16"}, ["model.compute_dtype", "bfloat16"]),
        ({"attention_scale": "none"}, ["model.attention_scale", "head_width"]),
        (
            {"attention": "cudnn", "compute_dtype": "float32"},
            ["model.attention='cudnn'", "model.compute_dtype"],
        ),
    ],
)
def test_impossible_models_are_refused_by_field(fields, names):
    with pytest.raises(InputError) as caught:
        ModelConfig(**fields)
    assert all(name in str(caught.value) for name in names), caught.value


def test_the_paper_quantizes_four_tensors_a_block():
    # Appendix D: "inputs to the normalization layers and the SA/MLP".
    assert TAP_SETS["paper"] == ("attn_norm_in", "attn_in", "mlp_norm_in", "mlp_in")
    assert all(set(sites) <= set(SITES) for sites in TAP_SETS.values())
    assert set(BLOCK_SITES) < set(TAP_SETS["full"])


@pytest.mark.parametrize(
    ("device", "change", "attention"),
    [
        ({"device_kind": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}, {}, 1),
        ({"device_kind": "NVIDIA V100", "compute_capability": "7.0"}, {}, 0),
        ({"device_kind": "TPU v5"}, {}, 0),
        ({"device_kind": "cpu"}, {}, 0),
        ({"device_kind": "NVIDIA H100"}, {"compute_dtype": "float32"}, 0),
        ({"device_kind": "NVIDIA H100"}, {"width": 1536, "num_heads": 6}, 0),
    ],
)
def test_automatic_attention_is_fused_where_cudnn_can(device, change, attention):
    model = config_lib.ModelConfig(attention="auto", **change)
    found = config_lib.attention_on(model, types.SimpleNamespace(**device))
    assert found.attention == ("xla", "cudnn")[attention]
    asked = dataclasses.replace(model, attention="xla")
    assert config_lib.attention_on(asked, types.SimpleNamespace(**device)) == asked
