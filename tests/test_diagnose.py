"""What is said of a model before training is true of it, and verdicts follow."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import cli, diagnose, experiment, metrics, taps
from rfq.diagnose import Found, Thresholds
from rfq.model import layers, transformer
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig, alpha_qk_for
from tests.model import examples

DEEP = pathlib.Path(__file__).parents[1] / "configs" / "deep"


@pytest.mark.parametrize("kind", sorted(layers.ATTENTION_KINDS))
def test_attention_is_what_the_model_multiplies_its_values_with(kind):
    model = examples.config(attention_kind=kind, first_layer=0)
    params = examples.params(model)
    seams = transformer.Seams(taps.Taps(examples.keep, ("q", "k", "v", "attn_out")))
    with jax.disable_jit():
        _, seen = transformer.features(
            params, examples.batch(model)[:, :-1], model, seams
        )
    taus = diagnose._taus(model)
    np.testing.assert_allclose(taus, [1.0, 1 / 1.3, 1 / 1.69], rtol=1e-6)
    for layer in range(model.num_layers):
        block = jax.tree.map(lambda leaf, at=layer: leaf[at], params["blocks"])
        a_BTHS = diagnose._attention(
            model, seen["q"][layer], seen["k"][layer], block, taus[layer]
        )
        mixed = jnp.einsum("bths,bshk->bthk", a_BTHS, seen["v"][layer])
        np.testing.assert_allclose(mixed, seen["attn_out"][layer], atol=1e-4)


def test_tokens_that_are_one_and_tokens_that_are_apart():
    same = jnp.broadcast_to(jnp.arange(1.0, 5.0)[None, None, None], (1, 1, 3, 4))
    cosine, rank, share = diagnose._alike(same)
    np.testing.assert_allclose([cosine[0], rank[0], share[0]], [1, 1 / 3, 1], rtol=1e-6)
    apart = 2.0 * jnp.eye(4)[None, None, :3]
    cosine, rank, share = diagnose._alike(apart)
    np.testing.assert_allclose([cosine[0], rank[0], share[0]], [0, 1, 1 / 3], atol=1e-6)


def test_masses_and_entropy_of_known_attention():
    # Head 0 is the identity; head 1 gives all earlier tokens and itself the same.
    uniform = np.tril(np.ones((3, 3))) / np.arange(1, 4)[:, None]
    a_LBTHS = jnp.asarray(np.stack([np.eye(3), uniform])).swapaxes(0, 1)[None, None]
    diagonal, softest, entropy = diagnose._mixing(a_LBTHS)
    mean = (1 + 1 / 2 + 1 / 3) / 3
    np.testing.assert_allclose(diagonal, [(1 + mean) / 2], rtol=1e-6)
    np.testing.assert_allclose(softest, [1 - mean], rtol=1e-6)
    expected = (0 + np.log(2) + np.log(3)) / 3 / 2
    np.testing.assert_allclose(entropy, [expected], rtol=1e-6)


def test_the_jacobian_is_that_of_the_model():
    model = examples.config(skip="residual", num_layers=2)
    params = examples.params(model)
    sites = ("attn_norm_in", "final_norm_in")
    seams = transformer.Seams(taps.Taps(examples.keep, sites))
    tokens_1T, key = examples.batch(model)[:1, :-1], jax.random.key(0)
    lo, hi = jax.jit(lambda p: diagnose._jacobian(p, tokens_1T, model, seams, key))(
        params
    )

    def last(lookup_TD):
        own = dataclasses.replace(model, vocab_size=model.seq_len)
        found = {**params, "embedding": lookup_TD}
        at = jnp.arange(model.seq_len)[None]
        return transformer.features(found, at, own, seams)[1]["final_norm_in"][0]

    lookup = params["embedding"][tokens_1T[0]]
    whole = jax.jit(jax.jacfwd(last))(lookup)  # [T, D, S, D]
    u = jax.random.normal(key, (model.width,))
    along = np.asarray(whole @ (u / jnp.linalg.norm(u)), np.float64)
    along *= np.sqrt(np.mean(lookup**2)) / np.sqrt(np.mean(last(lookup) ** 2))
    s = np.linalg.svd(along.reshape(-1, model.seq_len), compute_uv=False)
    np.testing.assert_allclose([lo[1], hi[1]], [s[-1], s[0]], rtol=1e-3)


def test_gradients_of_a_layer_are_one_vector():
    grads = {"a": jnp.asarray([[3.0, 0.0], [1.0, 0.0]]), "b": jnp.asarray([4.0, 0.0])}
    np.testing.assert_allclose(diagnose._norms(grads), [5.0, 1.0])


def found(**changes) -> Found:
    same = dict.fromkeys(Found._fields, np.full(4, 0.1))
    same["diagonal_mass"] = np.full(4, 0.6)
    same["softest_mass"] = np.asarray([0.7, 0.1, 0.1, 0.1])
    return Found(**{**same, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "healthy"),
        ({"token_cosine": np.asarray([0.1, 0.2, 0.6, 0.9])}, "collapses at layer 3"),
        ({"token_cosine": np.asarray([0.1, np.nan, 0.1, 0.1])}, "collapses at layer 2"),
        (
            {"diagonal_mass": np.full(4, 0.99), "softest_mass": np.full(4, 0.01)},
            "starts as the identity",
        ),
        ({"diagonal_mass": np.full(4, 0.99)}, "healthy"),
        ({"softest_mass": np.full(4, 0.01)}, "healthy"),
    ],
    ids=str,
)
def test_the_verdict_follows_from_the_numbers(changes, said):
    assert diagnose.verdict(found(**changes)) == said


def test_thresholds_are_data():
    given = found(token_cosine=np.full(4, 0.3))
    assert diagnose.verdict(given) == "healthy"
    assert diagnose.verdict(given, Thresholds(cosine=0.2)) == "collapses at layer 1"


def test_a_limit_is_where_it_tells_endings_apart():
    def row(cosine, ended):
        measured = found(token_cosine=np.asarray([0.01, cosine, 0.0, 0.0]))
        lists = {name: list(map(float, v)) for name, v in diagnose._items(measured)}
        return {"ended": ended, **lists}

    stayed = diagnose.STAYED
    apart = [row(c, diagnose.LEARNED) for c in (0.05, 0.1, 0.2)]
    alike = [row(c, stayed) for c in (0.5, 0.7, 0.9)]
    assert diagnose.cosine_limit(apart + alike) == pytest.approx(0.35)
    # One that stays although it starts apart moves nothing, and counts as missed.
    odd = row(0.02, stayed)
    assert diagnose.cosine_limit([*apart, *alike, odd]) == pytest.approx(0.35)
    table = diagnose.confusion([*apart, *alike, odd, row(0.9, "")])
    assert table == {
        ("healthy", diagnose.LEARNED): 3,
        ("collapses", stayed): 3,
        ("healthy", stayed): 1,
    }
    every = Thresholds(cosine=0.01)
    assert diagnose.confusion(apart, every) == {("collapses", diagnose.LEARNED): 3}


def test_what_is_measured_is_written_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnose, "measure", lambda arm: found())
    arm = experiment.Experiment(arm="mine", model=ModelConfig(num_layers=4))
    (row,) = diagnose.run([(arm, None)], out=tmp_path)
    assert row == metrics.read(tmp_path / "diagnose.jsonl")[0]
    assert [len(row[name]) for name in Found._fields] == [4] * len(Found._fields)
    assert (row["verdict"], row["ended"], row["loss"]) == ("healthy", "", None)
    assert "runs:" not in capsys.readouterr().out
    for suffix in ("png", "svg"):
        assert (tmp_path / f"mine-seed-0.{suffix}").stat().st_size > 1000


def test_what_became_of_a_run_stands_beside_its_verdict(tmp_path, monkeypatch, capsys):
    apart = dict.fromkeys(range(4), found())
    apart[1] = found(token_cosine=np.full(4, 0.9))
    monkeypatch.setattr(diagnose, "measure", lambda arm: apart[arm.seed])
    monkeypatch.setattr(diagnose.floors, "add", lambda directory: {"unigram": 5.0})
    models = []
    for seed, loss in enumerate((3.2, 4.8, float("nan"), 3.2)):
        run_dir = tmp_path / str(seed)
        run_dir.mkdir()
        metrics.rewrite(run_dir / "measures.jsonl", [{"loss": 6.0}, {"loss": loss}])
        if seed < 3:
            metrics.rewrite(run_dir / "done.json", [{"seconds": 1.0}])
        model = ModelConfig(num_layers=4)
        arm = experiment.Experiment(arm="mine", model=model, seed=seed)
        models.append((arm, run_dir))
    rows = diagnose.run(models, out=None)
    stayed = "stayed at the unigrams' loss"
    assert [row["ended"] for row in rows] == [
        *("learned", stayed, stayed),
        "has not come to its end",
    ]
    said = capsys.readouterr().out
    for line in (
        "mine seed 0: healthy; it learned: 3.200 nats, unigrams 5.000",
        "mine seed 1: collapses at layer 1; it stayed at the unigrams' loss: 4.800",
        "1 of 4 runs: collapses, then stayed at the unigrams' loss",
        "1 of 4 runs: healthy, then learned",
        "mine seed 3: healthy; it has not come to its end",
        "1 of 4 runs: healthy, then stayed at the unigrams' loss",
        # Cosines of .1 learned and stayed, .9 stayed.
        "tells these 3 endings apart best is 0.500; verdicts use 0.4",
    ):
        assert line in said


@pytest.mark.parametrize("path", sorted(DEEP.glob("*.py")), ids=lambda path: path.stem)
def test_a_deep_arm_is_called_by_its_file_and_says_its_depth(path):
    arm = experiment.load(path)
    assert arm.arm == path.stem
    assert arm.model.num_layers == (24 if path.stem.endswith("_24") else 12)
    assert experiment.from_dict(experiment.to_dict(arm)) == arm


@pytest.mark.slow
def test_recipes_that_train_are_healthy_and_recipes_that_do_not_are_named(
    tmp_path, capsys
):
    arm = str(DEEP / "residual_free_kl_shampoo.py")
    assert cli.main(["diagnose", arm, "--out", str(tmp_path)]) == 0
    assert "residual_free_kl_shampoo seed 0: healthy\n" in capsys.readouterr().out
    (row,) = metrics.read(tmp_path / "diagnose.jsonl")
    assert row["num_layers"] == 12
    for name in Found._fields:
        assert len(row[name]) == 12
        assert np.all(np.isfinite(row[name]))

    base = experiment.load(DEEP / "residual_free_kl_shampoo.py")
    width = base.model.head_width
    # The demo's recipe at 12 layers, which stays at the unigrams' loss; and sharp heads
    # alone, which train to the bigrams' and mix nothing.
    for init, said in (
        (InitConfig(alpha_qk=alpha_qk_for(5.0, width), w_down="centered"), "collapses"),
        (
            InitConfig(alpha_qk=alpha_qk_for(12.0, width), w_down="looks_linear"),
            "starts as the identity",
        ),
    ):
        measured = diagnose.measure(dataclasses.replace(base, init=init))
        assert diagnose.verdict(measured).startswith(said)
