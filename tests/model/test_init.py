"""Realised identities of every recipe, and independence of everything drawn."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from rfq import params as params_lib
from rfq.errors import InputError
from rfq.model import init, layers, transformer
from rfq.model.init import InitConfig
from tests.model import examples
from tests.oracles import decoder

MODEL = examples.INITIALIZED
L, D, H, K = MODEL.num_layers, MODEL.width, MODEL.num_heads, MODEL.head_width
F, V = MODEL.mlp_width, MODEL.vocab_size

# The factors of a float32 QR of 512 rows are orthogonal to a few 1e-7; the products
# below are taken in float64.
EXACT = 5e-6


def blocks(**options):
    """Weights of all layers, float64."""
    drawn = examples.initialized(InitConfig(**options))["blocks"]
    return {name: w.astype(np.float64) for name, w in drawn.items()}


def assert_is(scale, gram, size):
    """Every matrix of a stack is scale times the identity."""
    expected = np.broadcast_to(scale * np.eye(size), gram.shape)
    np.testing.assert_allclose(gram, expected, atol=EXACT * scale)


def _orthogonal():
    """All combinations; every pair of choices meets in the half that is not slow."""
    choices = (
        ("transpose", "independent"),
        ("gram", "suo_sqrt", "suo"),
        ("plain", "centered"),
    )
    for index in np.ndindex(2, 3, 2):
        values = [choice[i] for choice, i in zip(choices, index, strict=True)]
        options = dict(zip(("vo_pair", "mlp_scale", "w_down"), values, strict=True))
        marks = pytest.mark.slow if sum(index) % 2 else ()
        yield pytest.param(options, id="-".join(values), marks=marks)


@pytest.mark.parametrize("options", list(_orthogonal()))
def test_the_orthogonal_recipe_satisfies_its_identities(options):
    # Section 4 (i) with alpha_qk .9, alpha_vo 3, alpha_u = alpha_d = 1.5.
    w = blocks(**options)
    # Per head W_Q = W_K and W_Q^T W_K = alpha_qk I.
    np.testing.assert_array_equal(w["w_q"], w["w_k"])
    assert_is(0.9, np.einsum("ldhk,ldhj->lhkj", w["w_q"], w["w_k"]), K)
    # W_V W_O = alpha_vo I, or alpha_vo times an orthogonal matrix that is not I.
    v, o = w["w_v"].reshape(L, D, D), w["w_o"].reshape(L, D, D)
    assert_is(3.0, v @ v.swapaxes(1, 2), D)
    assert_is(3.0, o @ o.swapaxes(1, 2), D)
    if options["vo_pair"] == "transpose":
        assert_is(3.0, v @ o, D)
    else:
        # |trace| of a Haar matrix is about 1, against D.
        assert np.all(np.abs(np.trace(v @ o, axis1=1, axis2=2)) < 3.0 * 6.0)
    # W_U W_U^T and W_D^T W_D under the three readings (D15).
    gram_u, gram_d = {
        "gram": (1.5, 1.5),
        "suo_sqrt": (1.5 * F / D, 1.5),
        "suo": (1.5**2 * F / D, 1.5**2),
    }[options["mlp_scale"]]
    assert_is(gram_u, w["w_up"] @ w["w_up"].swapaxes(1, 2), D)
    assert_is(gram_d, w["w_down"].swapaxes(1, 2) @ w["w_down"], D)
    # D20: a hidden vector with all entries equal is mapped to 0, or to anything.
    sums = np.abs(w["w_down"].sum(axis=1)).max()
    assert sums < EXACT * math.sqrt(F) if options["w_down"] == "centered" else sums > 1


def test_a_mirrored_mlp_starts_as_a_multiple_of_the_identity():
    w = blocks(w_down="looks_linear")
    up, down = w["w_up"], w["w_down"]
    # W_U = [A, -A], W_D = [A^T; -A^T]: the grams are the paper's, and W_D is centred.
    np.testing.assert_array_equal(up[..., : F // 2], -up[..., F // 2 :])
    np.testing.assert_array_equal(down, up.swapaxes(1, 2))
    assert_is(1.5, up @ up.swapaxes(1, 2), D)
    assert_is(1.5, down.swapaxes(1, 2) @ down, D)
    assert np.all(down.sum(axis=1) == 0.0)
    # GELU(z) - GELU(-z) = z: the MLP is (1.5 * 1.5)^(1/2) / 2 = .75 of its input.
    x = np.random.default_rng(0).standard_normal((7, D))
    y = decoder.gelu(x @ up[0]) @ down[0]
    np.testing.assert_allclose(y, 0.75 * x, atol=EXACT)


def test_another_scale_of_the_mirrored_mlp_is_its_gram():
    w = blocks(w_down="looks_linear", mlp_scale="suo_sqrt", alpha_d=0.7)
    assert_is(1.5 * F / D, w["w_up"] @ w["w_up"].swapaxes(1, 2), D)
    assert_is(0.7, w["w_down"].swapaxes(1, 2) @ w["w_down"], D)


def test_heads_of_one_haar_matrix_are_an_isometry_together():
    w = blocks(qk_pair="tied_haar", alpha_qk=0.9)
    np.testing.assert_array_equal(w["w_q"], w["w_k"])
    whole = w["w_q"].reshape(L, D, H * K)
    assert_is(0.9, whole.swapaxes(1, 2) @ whole, D)
    # Heads that are drawn apart are not: their Grams off the diagonal blocks are not 0.
    apart = blocks()["w_q"].reshape(L, D, H * K)
    squares = np.linalg.svd(apart[0], compute_uv=False) ** 2 / 0.9
    assert squares.min() < 0.1 and squares.max() > 1.7  # Two heads: 1 +- cos.


def test_the_svd_pair_is_the_best_approximation_of_its_matrix():
    # W_Q W_K^T is the best approximation of rank K of alpha (Z + b I).
    config = InitConfig(qk_pair="svd", qk_identity=0.3, alpha_qk=2.0)
    w = {n: x.astype(np.float64) for n, x in initialized_blocks(config).items()}
    q, k = w["w_q"][3, :, 1], w["w_k"][3, :, 1]
    both = [m.T @ m for m in (q, k)]
    s = np.diagonal(both[0])
    assert np.all(np.diff(s) <= 1e-5)
    for gram in both:
        np.testing.assert_allclose(gram, np.diag(s), atol=EXACT * s[0])
    # The matrix that was drawn: W_Q W_K^T has its largest singular values and vectors.
    key = jax.random.fold_in(init.key_for(jax.random.key(0), "w_qk"), 3)
    edge = math.sqrt(3 / D)
    z = jax.random.uniform(
        jax.random.fold_in(key, 1), (D, D), minval=-edge, maxval=edge
    )
    a = 2.0 * (np.asarray(z, np.float64) + 0.3 * np.eye(D))
    np.testing.assert_allclose(s, np.linalg.svd(a, compute_uv=False)[:K], rtol=1e-5)
    np.testing.assert_allclose(a @ k, q * s, atol=EXACT * s[0] ** 1.5)
    assert abs(np.var(z) * D - 1.0) < 0.02


def initialized_blocks(config):
    return examples.initialized(config)["blocks"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda layer, head: 0.9 * math.sqrt(K)),
        ({"sharpness": (3.0, 5.0)}, lambda layer, head: (3.0, 5.0)[head]),
        (
            {"sharpness": tuple(range(1, 2 * L + 1))},
            lambda layer, head: 2 * layer + head + 1,
        ),
        (
            {"soft_layers": "first", "soft_logit": 1.5},
            lambda layer, head: 1.5 if (layer, head) == (0, 0) else 0.9 * math.sqrt(K),
        ),
        (
            {"soft_layers": "thirds", "sharpness": (7.0, 9.0)},
            lambda layer, head: 2.0 if layer % 4 == head == 0 else (7.0, 9.0)[head],
        ),
        (
            {"soft_layers": "every_fourth", "qk_pair": "tied_haar"},
            lambda layer, head: 2.0 if layer % 4 == head == 0 else 0.9 * math.sqrt(K),
        ),
    ],
    ids=("plain", "by_head", "by_layer_and_head", "first", "thirds", "every_fourth"),
)
def test_every_head_starts_as_sharp_as_it_is_told(options, expected):
    # The diagonal logit of a unit token: sum of W_Q * W_K over D, over sqrt(K).
    w = blocks(**options)
    logits = np.einsum("ldhk,ldhk->lh", w["w_q"], w["w_k"]) / math.sqrt(K)
    told = [[expected(layer, head) for head in range(H)] for layer in range(L)]
    np.testing.assert_allclose(logits, told, rtol=EXACT)


@pytest.mark.parametrize("recipe", ["orthogonal", "gpt2"])
def test_a_decaying_head_starts_without_queries(recipe):
    model = dataclasses.replace(
        MODEL, num_layers=6, attention_kind="decaying", skip="weighted"
    )
    config = InitConfig(
        recipe=recipe, soft_layers="thirds", head_decay=0.5, skip_weight=0.25
    )
    w = init.init(config, model, key=jax.random.key(0))["blocks"]
    soft = np.zeros((6, H), bool)
    soft[[0, 2, 4], 0] = True
    np.testing.assert_array_equal(w["head_decay"], 0.5 * soft)
    np.testing.assert_array_equal(w["skip_weight"], np.full(6, 0.25))
    np.testing.assert_array_equal(np.any(w["w_q"] != 0, axis=(1, 3)), ~soft)
    assert np.all(np.any(w["w_k"] != 0, axis=(1, 3)))  # Or W_Q would never move.


def test_shaped_attention_starts_without_queries_and_with_weights_of_one():
    model = dataclasses.replace(MODEL, num_layers=2, attention_kind="shaped")
    w = init.init(InitConfig(), model, key=jax.random.key(0))["blocks"]
    assert not np.any(w["w_q"]) and np.any(w["w_k"])
    for name in layers.ATTENTION_KINDS["shaped"].leaves:
        np.testing.assert_array_equal(w[name], np.ones((2, H)))


@pytest.mark.parametrize(
    ("options", "sizes", "names"),
    [
        ({"sharpness": (1.0,) * 3}, {}, ["3 numbers", "give 2", "or 24"]),
        ({"w_down": "centered"}, {"mlp_ratio": 1}, ["'centered'", "mlp_ratio >= 2"]),
        ({"w_down": "looks_linear"}, {"mlp_ratio": 1}, ["'looks_linear'", "not 1"]),
        ({}, {"num_kv_heads": 1}, ["'orthogonal'", "model.num_kv_heads=1", "gpt2"]),
        ({}, {"mlp": "geglu"}, ["'orthogonal'", "model.mlp='geglu'", "gpt2"]),
        ({}, {"mlp_ratio": 0.5}, ["'orthogonal'", "mlp_ratio >= 1"]),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_refused(options, sizes, names):
    with pytest.raises(InputError) as caught:
        init.check(InitConfig(**options), dataclasses.replace(MODEL, **sizes))
    assert all(name in str(caught.value) for name in names), caught.value


@pytest.mark.parametrize(
    ("recipe", "std"),
    [
        ("gpt2", lambda name, fan_in, fan_out: 0.02),
        ("xavier", lambda name, fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
        ("kaiming", lambda name, fan_in, fan_out: math.sqrt(2 / fan_in)),
    ],
)
def test_gaussian_recipes_have_their_standard_deviations(recipe, std):
    fans = dict.fromkeys(("w_q", "w_k", "w_v", "w_o"), (D, D))
    fans |= {"w_up": (D, F), "w_down": (F, D)}
    for name, w in blocks(recipe=recipe).items():
        if name not in fans:
            continue
        expected = std(name, *fans[name])
        if recipe == "gpt2" and name in ("w_o", "w_down"):
            expected /= math.sqrt(2 * L)
        # The deviation of n normals is off by 1 / sqrt(2 n), their mean by
        # 1 / sqrt(n), their fourth moment by sqrt(24 / n): four of each.
        n = w.size
        np.testing.assert_allclose(w.std(), expected, rtol=4 / math.sqrt(2 * n))
        assert abs(w.mean()) < 4 * expected / math.sqrt(n)
        fourth = ((w / w.std()) ** 4).mean() - 3.0
        assert abs(fourth) < 4 * math.sqrt(24 / n)


@pytest.mark.parametrize("recipe", sorted(init.RECIPES))
def test_every_recipe_fills_the_declared_tree(recipe):
    drawn = examples.initialized(InitConfig(recipe=recipe, embedding_std=0.3))
    declared = transformer.shapes(MODEL)
    jax.tree.map(
        lambda x, leaf: np.testing.assert_equal(
            (x.shape, x.dtype), (leaf.shape, leaf.dtype)
        ),
        drawn,
        declared,
    )
    n = V * D
    np.testing.assert_allclose(drawn["embedding"].std(), 0.3, rtol=4 / math.sqrt(2 * n))
    for name in ("attn_norm", "mlp_norm"):
        np.testing.assert_array_equal(drawn["blocks"][name], 1.0)
    np.testing.assert_array_equal(drawn["final_norm"], 1.0)


@pytest.mark.parametrize("recipe", sorted(init.RECIPES))
def test_nothing_is_drawn_twice(recipe):
    drawn = blocks(recipe=recipe, vo_pair="independent")
    tied = {"w_k"} if recipe == "orthogonal" else set()
    matrices = [
        w.reshape(L, D, H, K).transpose(0, 2, 1, 3).reshape(L * H, -1)
        if name in ("w_q", "w_k", "w_v")
        else w.reshape(L, -1)
        for name, w in drawn.items()
        if params_lib.TABLE[name].kind == "matrix" and name not in tied
    ]
    # Every layer and head against every other, over the entries that both have.
    rows = [row / np.linalg.norm(row[: D * K]) for m in matrices for row in m]
    short = np.stack([row[: D * K] for row in rows])
    cosines = short @ short.T - np.eye(len(rows))
    # Of n = 8192 entries: standard deviation 1 / sqrt(n) = .011, 5,000 pairs.
    assert np.abs(cosines).max() < 6 / math.sqrt(D * K)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"vo_pair": "independent"}, ["w_o"]),
        ({"w_down": "centered"}, ["w_down"]),
        ({"alpha_qk": 0.5}, ["w_k", "w_q"]),
        ({"alpha_vo": 1.0}, ["w_o", "w_v"]),
        ({"alpha_u": 1.0}, ["w_up"]),
        ({"alpha_d": 1.0}, ["w_down"]),
        ({"embedding_std": 1.0}, ["embedding"]),
    ],
    ids=str,
)
def test_another_choice_moves_only_its_own_parameters(change, moved):
    before, after = (
        {**tree.pop("blocks"), **tree}
        for tree in (
            dict(examples.initialized(InitConfig())),
            dict(examples.initialized(InitConfig(**change))),
        )
    )
    found = [name for name in before if not np.array_equal(before[name], after[name])]
    assert sorted(found) == moved


def test_the_seed_moves_every_drawn_parameter():
    one, two = (examples.initialized(InitConfig(), seed=seed) for seed in (0, 1))
    for name, w in one["blocks"].items():
        same = np.array_equal(w, two["blocks"][name])
        assert same == (params_lib.TABLE[name].kind == "gain"), name
    assert not np.array_equal(one["embedding"], two["embedding"])


@pytest.mark.slow
def test_rivals_start_as_the_model_without_them():
    plain, rivals = (
        init.init(InitConfig(), model, key=jax.random.key(0))
        for model in (examples.CONFIG, examples.config(**examples.RIVALS))
    )
    # Nothing else moves but the number of gains.
    for name, w in plain["blocks"].items():
        if params_lib.TABLE[name].kind == "matrix":
            np.testing.assert_array_equal(rivals["blocks"][name], w, err_msg=name)
    np.testing.assert_array_equal(rivals["embedding"], plain["embedding"])
    assert rivals["final_norm"] == 1.0 and np.all(rivals["blocks"]["attn_norm"] == 1.0)
    # A rotation and its inverse, and gates at one half.
    np.testing.assert_array_equal(rivals["w_unembed"], rivals["w_embed"].T)
    turned = np.asarray(rivals["w_embed"] @ rivals["w_unembed"], np.float64)
    np.testing.assert_allclose(turned, np.eye(len(turned)), atol=EXACT)
    assert not rivals["blocks"]["w_gate"].any()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["orthogonal", "kaiming"])
def test_adding_layers_and_tokens_moves_no_parameter(recipe):
    config = InitConfig(recipe=recipe)
    small, large = (
        init.init(
            config,
            examples.config(num_layers=num_layers, width=12, vocab_size=vocab_size),
            key=jax.random.key(0),
        )
        for num_layers, vocab_size in ((2, 16), (5, 32))
    )
    for name, w in small["blocks"].items():
        np.testing.assert_array_equal(w, large["blocks"][name][:2], err_msg=name)


def test_keys_of_names_and_layers_are_distinct():
    # The law behind the test above, without drawing: prefixes agree, nothing repeats.
    def keys(num_layers):
        model = examples.config(num_layers=num_layers)
        return np.concatenate(
            [
                init._per_layer(name, model, jax.random.key(0), jax.random.key_data)
                for name in params_lib.TABLE
            ],
            axis=1,
        )

    two, five = keys(2), keys(5)
    np.testing.assert_array_equal(two, five[:2])
    assert len(np.unique(five.reshape(-1, 2), axis=0)) == 5 * len(params_lib.TABLE)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"recipe": "ortho"}, "init.recipe='ortho'"),
        ({"vo_pair": "tied"}, "init.vo_pair='tied'"),
        ({"mlp_scale": "big"}, "init.mlp_scale='big'"),
        ({"w_down": "zero"}, "init.w_down='zero'"),
        ({"alpha_qk": 0.0}, "init.alpha_qk=0.0"),
        ({"embedding_std": -1.0}, "init.embedding_std=-1.0"),
        ({"alpha_d": math.nan}, "init.alpha_d=nan"),
        ({"qk_pair": "free"}, "init.qk_pair='free'"),
        ({"soft_layers": "all"}, "init.soft_layers='all'"),
        ({"soft_logit": 0.0}, "init.soft_logit=0.0"),
        ({"sharpness": (1.0, -1.0)}, "init.sharpness=(1.0, -1.0)"),
        ({"head_decay": -1.0}, "init.head_decay=-1.0"),
        ({"skip_weight": math.inf}, "init.skip_weight=inf"),
    ],
)
def test_impossible_initializations_are_refused_by_field(fields, name):
    with pytest.raises(InputError) as caught:
        InitConfig(**fields)
    assert name in str(caught.value)
