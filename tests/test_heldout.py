import math

import jax
import numpy as np
import pytest

from rfq import heldout, sharding
from rfq.data import pipeline
from rfq.errors import InputError
from rfq.stats import central
from tests import tiny

SEQ_LEN = tiny.SEQ_LEN


@pytest.fixture
def experiment(tmp_path_factory):
    return tiny.experiment(tiny.data(tmp_path_factory))


def _length(experiment, split="heldout"):
    return len(pipeline.open_split(experiment.data.dir, split, SEQ_LEN))


def _indices(experiment, num_sequences, batch_size):
    return heldout.choose(
        experiment, "heldout", num_tokens=num_sequences * SEQ_LEN, batch_size=batch_size
    )[1]


def test_sequences_are_spread_evenly_over_the_split(experiment):
    chosen = _indices(experiment, 64, 8)
    assert chosen.shape == (8, 8)
    flat = chosen.ravel()
    assert len(set(flat)) == 64
    gaps = np.diff(flat)
    assert flat[0] == 0
    assert set(gaps) <= {_length(experiment) // 64, _length(experiment) // 64 + 1}


def test_the_same_number_of_sequences_is_the_same_sequences(experiment):
    # Scores do not depend on how many fit on a device at once.
    np.testing.assert_array_equal(
        _indices(experiment, 64, 8).ravel(), _indices(experiment, 64, 32).ravel()
    )


def test_a_split_never_gives_more_than_it_has_and_no_partial_batch(experiment):
    length = _length(experiment)
    assert _indices(experiment, 10**6, length).size == length
    assert _indices(experiment, 10**6, 7).size == length // 7 * 7
    assert _indices(experiment, 31, 8).size == 24
    # 24.9 sequences of tokens are 24 sequences.
    chosen = heldout.choose(
        experiment, "heldout", num_tokens=25 * SEQ_LEN - 1, batch_size=1
    )[1]
    assert chosen.size == 24


@pytest.mark.parametrize(("num_sequences", "batch_size"), [(7, 8), (10**6, 10**5)])
def test_a_split_that_does_not_fill_a_batch_is_a_sentence(
    experiment, num_sequences, batch_size
):
    with pytest.raises(InputError) as caught:
        _indices(experiment, num_sequences, batch_size)
    message = str(caught.value)
    assert "split 'heldout'" in message
    assert f"batch of {batch_size};" in message
    assert f"has {_length(experiment)} sequences" in message


@pytest.mark.mesh
def test_batches_hold_the_chosen_sequences_on_every_device(experiment):
    mesh = sharding.make_mesh(8)
    batches = heldout.batches(
        experiment, "heldout", num_tokens=32 * SEQ_LEN, batch_size=16, mesh=mesh
    )
    sequences, chosen = heldout.choose(
        experiment, "heldout", num_tokens=32 * SEQ_LEN, batch_size=16
    )
    assert heldout.num_tokens(batches) == 32 * SEQ_LEN
    for batch, indices in zip(batches, chosen, strict=True):
        assert len(batch.addressable_shards) == 8
        np.testing.assert_array_equal(batch, [sequences[i] for i in indices])


def test_a_process_reads_its_own_rows_only(experiment, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding, "to_global", lambda local, mesh: local)
    shares = []
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(
            heldout.batches(
                experiment,
                "heldout",
                num_tokens=32 * SEQ_LEN,
                batch_size=16,
                mesh=None,  # type: ignore[arg-type]
            )
        )
    monkeypatch.undo()
    whole = heldout.batches(
        experiment,
        "heldout",
        num_tokens=32 * SEQ_LEN,
        batch_size=16,
        mesh=sharding.make_mesh(1),
    )
    for first, second, batch in zip(*shares, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second]), batch)


def test_losses_are_float64_in_order_and_all_dispatched_before_one_is_read(
    monkeypatch,
):
    events = []

    def score(batch):
        events.append("dispatch")
        return np.float32(batch)

    def device_get(values):
        events.append("read")
        return values

    monkeypatch.setattr(jax, "device_get", device_get)
    losses = heldout.losses(score, [[0.1, 0.2], [0.3, 0.4]])
    assert events == ["dispatch", "dispatch", "read"]
    assert losses.dtype == np.float64
    np.testing.assert_array_equal(losses, np.float32([0.1, 0.2, 0.3, 0.4]))


def test_a_uniform_guess_over_bytes_costs_8_bits_a_byte():
    assert heldout.bits_per_byte(math.log(256), 1.0) == pytest.approx(8.0, rel=1e-15)
    # Two tokens a byte, each a fair coin: 2 bits a byte.
    assert heldout.bits_per_byte(math.log(2), 2.0) == pytest.approx(2.0, rel=1e-15)


@jax.jit
def _records(x):
    """One batch's records as a step returns them: float32, a leading layer axis."""
    return {
        "block": {"moments": jax.vmap(central.moments)(x)},
        "final": {"moments": central.moments(x[-1])},
    }


def test_merging_over_batches_is_pooling_and_stays_in_float64():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 1.0, (2, n)).astype(np.float32) for n in (64, 9, 301)]
    merged = heldout.merge(_records(batch) for batch in batches)
    x = np.concatenate(batches, axis=1).astype(np.float64)
    central = x - x.mean(axis=1, keepdims=True)
    kurtosis = (central**4).mean(axis=1) / (central**2).mean(axis=1) ** 2 - 3
    described = heldout.describe(merged["block"])
    assert merged["block"]["moments"].m4.dtype == np.float64
    # Within a batch the sums are float32: 2**-24 per term, a few hundred terms.
    np.testing.assert_allclose(described["excess_kurtosis"], kurtosis, atol=1e-4)
    np.testing.assert_allclose(described["mean"], x.mean(axis=1), rtol=1e-5)
    rms = np.sqrt((x**2).mean(axis=1))
    np.testing.assert_allclose(described["rms"], rms, rtol=1e-5)
    # A site without a layer axis is described by lists too, of one entry.
    final = heldout.describe(merged["final"])
    assert final.keys() == described.keys()
    assert [len(values) for values in final.values()] == [1, 1, 1]
    np.testing.assert_allclose(final["mean"][0], described["mean"][1], rtol=1e-6)


def test_a_seed_draws_without_replacement_and_none_is_even(experiment):
    def chosen(seed):
        return heldout.choose(
            experiment, "heldout", num_tokens=24 * SEQ_LEN, batch_size=8, seed=seed
        )[1]

    for seed in (0, 1):
        np.testing.assert_array_equal(chosen(seed), chosen(seed))
        assert np.unique(chosen(seed)).size == 24
    assert not np.array_equal(np.sort(chosen(0), None), np.sort(chosen(1), None))
    assert np.all(np.diff(chosen(None).ravel()) > 0)
