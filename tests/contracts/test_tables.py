"""What every row of the model's tables promises, tested the day the row is added.

Other tables have contracts beside their laws: `NORMS` in tests/model/test_layers.py,
`RECIPES` in tests/model/test_init.py, `STATISTICS` in tests/test_taps.py, `SCHEMES` in
tests/quant/test_grid.py, `SOURCES` in tests/data/test_sources.py, `OPTIMIZERS` here.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import cli, experiment, optim, taps
from rfq import params as params_lib
from rfq.errors import InputError
from rfq.experiment import LogConfig
from rfq.model import cache as cache_lib
from rfq.model import init, layers, transformer
from rfq.model.config import BLOCK_SITES, SITES, TAP_SETS, ModelConfig
from rfq.model.init import InitConfig
from tests.model import examples

DEMO = pathlib.Path(__file__).parents[2] / "configs" / "demo" / "residual_adamw.py"

# (section, config, field, table) of every choice that a table offers.
CHOICES = (
    ("model", ModelConfig, "skip", layers.SKIPS),
    ("model", ModelConfig, "norm", layers.NORMS),
    ("model", ModelConfig, "attention_kind", layers.ATTENTION_KINDS),
    ("init", InitConfig, "recipe", init.RECIPES),
    ("init", InitConfig, "qk_pair", init.QK_PAIRS),
    ("init", InitConfig, "soft_layers", init.SOFT_LAYERS),
    ("init", InitConfig, "vo_pair", init.VO_PAIRS),
    ("init", InitConfig, "mlp_scale", init.MLP_SCALES),
    ("init", InitConfig, "w_down", init.MLP_PAIRS),
)
ROWS = [(*choice[:3], name) for choice in CHOICES for name in choice[3]]


@pytest.mark.parametrize(("section", "config", "field", "name"), ROWS)
def test_a_config_takes_every_name_and_no_other(section, config, field, name):
    assert getattr(config(**{field: name}), field) == name
    with pytest.raises(InputError, match=f"{section}.{field}='no {name}'.*'{name}'"):
        config(**{field: f"no {name}"})


def test_help_lists_every_name(capsys):
    assert cli.main(["train", str(DEMO), "--help"]) == 0
    said = "".join(capsys.readouterr().out.split())
    for section, _, field, table in CHOICES:
        option = f"--{section}.{field}".replace("_", "-")
        assert f"{option}{{{','.join(table)}}}" in said, option


@pytest.mark.parametrize("name", sorted(taps.STATISTICS))
def test_a_run_can_log_every_statistic(name):
    assert LogConfig(statistics=(name,)).statistics == (name,)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_a_run_remembers_every_optimizer(name):
    base = experiment.load(DEMO)
    given = dataclasses.replace(base, optimizer=optim.OPTIMIZERS[name]())
    assert experiment.from_dict(experiment.to_dict(given)) == given


# --- Connections and sites -----------------------------------------------------------


LEAVES = [
    (name, leaf, axes)
    for table, axes in (
        (layers.SKIPS, ("layer",)),
        (layers.ATTENTION_KINDS, ("layer", "heads")),
    )
    for name, row in table.items()
    for leaf in row.leaves
]


@pytest.mark.parametrize(("name", "leaf", "axes"), LEAVES)
def test_what_a_row_takes_is_in_the_table_of_parameters(name, leaf, axes):
    assert params_lib.TABLE[leaf].logical == axes, name


@pytest.mark.parametrize("kind", sorted(layers.ATTENTION_KINDS))
def test_a_kind_of_attention_never_sees_later_tokens_and_decodes_as_it_trains(kind):
    B, T, H, K = 2, 6, 3, 4
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, T, H, K)).astype(np.float32) for _ in range(3))
    mix, leaves, _ = layers.ATTENTION_KINDS[kind]
    numbers = [jnp.asarray(rng.standard_normal(H), jnp.float32) for _ in leaves]
    scale = jnp.float32(0.7)

    def mixed(v):
        def attend(q, slope_H):
            return layers.causal_attention(q, k, v, scale, "xla", slope_H)

        return mix(attend, q, v, *numbers)

    slope = jax.jacobian(lambda v: mixed(v).sum(axis=(0, 2, 3)))(v)  # [T, B, T, H, K]
    influence_TT = np.abs(slope).sum(axis=(1, 3, 4))
    assert np.all(np.triu(influence_TT, 1) == 0.0)
    assert np.all(np.diagonal(influence_TT) > 0.0)

    cache = cache_lib.Cache(
        *(jnp.zeros((B, T, H, K)) for _ in range(2)), jnp.zeros(B, int)
    )
    for start, stop in ((0, 4), (4, 6)):
        new = slice(start, stop)
        cache = cache_lib.extended(cache, k[:, new], v[:, new])

        def attend(q, slope_H, cache=cache):
            return layers.cached_attention(q, cache, scale, slope_H)

        heads = mix(attend, q[:, new], v[:, new], *numbers)
        np.testing.assert_allclose(heads, mixed(v)[:, new], atol=2e-6)


@functools.cache
def traced(skip):
    """(logits, records) of the example's model at every site, and d loss / d params."""
    model = examples.config(skip=skip)
    params, batch = examples.params(model), examples.batch(model)
    seams = transformer.Seams(taps.Taps(examples.keep, SITES))

    def losses(params):
        found, records = transformer.token_losses(params, batch, model, seams)
        return jnp.mean(found), records

    (loss, records), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    return model, loss, records, grads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("skip", sorted(layers.SKIPS))
def test_a_connection_passes_the_sublayer_on(skip, dtype):
    rng = np.random.default_rng(0)
    x, update = (jnp.asarray(rng.standard_normal((2, 3, 8)), dtype) for _ in range(2))
    join, leaves = layers.SKIPS[skip]
    numbers = [jnp.float32(0.5)] * len(leaves)
    joined, pull = jax.vjp(lambda u: join(x, u, *numbers), update)
    assert (joined.shape, joined.dtype) == (x.shape, x.dtype)
    (slope,) = pull(jnp.ones_like(joined))
    assert bool(jnp.all(jnp.isfinite(joined)) & jnp.all(slope != 0))


@pytest.mark.parametrize("skip", sorted(layers.SKIPS))
def test_a_model_with_it_trains_all_of_its_matrices(skip):
    _, loss, _, grads = traced(skip)
    assert np.isfinite(loss)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(g))
        if params_lib.TABLE[params_lib.leaf_name(path)].kind == "matrix":
            assert np.all(np.any(g != 0, axis=tuple(range(1, g.ndim)))), path


@pytest.mark.parametrize("site", SITES)
def test_a_site_is_met_once_a_layer_and_what_a_tap_does_there_counts(site):
    model, _, records, _ = traced("residual_free")
    lead = (model.num_layers,) if site in BLOCK_SITES else ()
    B, T = 2, model.seq_len
    assert records[site].shape[: len(lead) + 2] == (*lead, B, T)
    assert site in TAP_SETS["full"] or site == "final_norm_in"

    params, batch = examples.params(model), examples.batch(model)
    silent = transformer.Seams(taps.Taps(lambda x, state: (0.0 * x, None), (site,)))
    with jax.disable_jit():
        loss = transformer.token_losses(params, batch, model, silent)[0].mean()
    assert abs(loss - traced("residual_free")[1]) > 1e-3
