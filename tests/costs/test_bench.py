"""`rfq bench`: what it reports, and how it reads a compiled program."""

import json

import jax
import jax.numpy as jnp
import pytest

from rfq import cli, optim
from rfq.costs import bench, bench_quantize, bench_train, peer
from rfq.errors import InputError
from rfq.model import init as init_lib
from rfq.model import transformer
from tests import tiny


@pytest.fixture
def quickly(monkeypatch):
    """Compiles little, and without optimizing: only what is reported matters."""

    def init(config, model, key):
        return jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype),
            transformer.shapes(model),
        )

    monkeypatch.setattr(init_lib, "init", init)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield monkeypatch
    jax.config.update("jax_disable_most_optimizations", before)


def experiment(**changes):
    base = tiny.experiment("no data are read", **changes)
    return tiny.with_fields(base, "model", num_layers=1)


def measured(rows, what):
    return {
        (row["optimizer"], row["num_devices"]): row
        for row in rows
        if row["what"] == what
    }


TIMES = ("median_ms", "p99_ms", "mean_ms", "compile_seconds")


@pytest.mark.slow
def test_optimizers_are_measured_beside_adamw(quickly, tmp_path, capsys):
    quickly.setattr(jax, "device_count", lambda: 1)
    path = tmp_path / "new" / "rows.jsonl"
    householder = optim.KLShampooConfig(
        precondition_frequency=3, decomposition="householder"
    )
    given = experiment(optimizer=householder)
    rows = bench.run_optim(
        given, optimizers=["kl_shampoo"], num_steps=4, json_path=path
    )
    steps, updates = measured(rows, "step"), measured(rows, "update")
    # AdamW is there unasked, and has no matrices of its own.
    assert set(steps) == {("adamw", 1), ("kl_shampoo", 1)}
    assert set(updates) == {("kl_shampoo", 1)}
    for row in steps.values():
        assert all(row[name] > 0 for name in TIMES)
        assert row["median_ms"] <= row["p99_ms"]
        # Whole periods of the experiment's own KL-Shampoo.
        assert row["num_steps"] == 6
        assert row["collective_bytes"] == 0
    adamw, kl = steps["adamw", 1], steps["kl_shampoo", 1]
    assert adamw["median_ratio"] == adamw["mean_ratio"] == 1
    assert kl["mean_ratio"] == pytest.approx(kl["mean_ms"] / adamw["mean_ms"])
    assert kl["flops"] > adamw["flops"] > 0
    assert kl["state_bytes"] > adamw["state_bytes"] > 0
    update = updates["kl_shampoo", 1]
    # Four 16 x 16 and two 16 x 64 matrices.
    assert update["floor_flops"] == 4 * 6 * 16 * 16 * 32 + 2 * 6 * 16 * 64 * 80
    assert 0 < update["floor_gflops_per_second"] < update["gflops_per_second"]
    assert update["gemm_fraction"] > 0
    # The file holds the rows, each of which says what they were measured on.
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert {"config_fingerprint", "commit", "versions", "device"} <= set(rows[0])
    said = capsys.readouterr().out
    assert "times AdamW's" in said
    assert said.count("kl_shampoo") == 2


@pytest.mark.slow
@pytest.mark.mesh
def test_eight_devices_share_the_state_and_talk(quickly):
    rows = bench.run_optim(
        experiment(), optimizers=["muon"], num_steps=1, json_path=None
    )
    steps = measured(rows, "step")
    assert set(steps) == {("adamw", 1), ("muon", 1), ("adamw", 8), ("muon", 8)}
    assert steps["muon", 8]["state_bytes"] < steps["muon", 1]["state_bytes"]
    assert steps["adamw", 8]["state_bytes"] == steps["adamw", 1]["state_bytes"]
    gradients = 4 * sum(leaf.size for leaf in bench._matrices(experiment()).values())
    # Data parallel: every gradient is summed. Muon gathers its directions as well.
    assert steps["adamw", 8]["collectives"]["all-reduce"] > gradients
    assert steps["muon", 8]["collectives"]["all-gather"] > gradients
    assert "all-gather" not in steps["adamw", 8]["collectives"]


def test_a_bad_request_is_one_sentence(capsys, tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        "from tests import tiny\n\n\ndef config():\n    return tiny.experiment('no')\n"
    )
    argv = ["bench", "optim", str(path)]
    assert cli.main([*argv, "--optimizers", "adam"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rfq: --optimizers='adam' is unknown") and "soap" in error
    assert error.count("\n") == 1
    with pytest.raises(InputError, match="--steps=0 must be"):
        bench.run_optim(experiment(), optimizers=[], num_steps=0, json_path=None)
    assert cli.main(["bench", "optmi"]) == 2
    assert "'bench optim'" in capsys.readouterr().err


def test_the_command_explains_itself(capsys):
    assert cli.main(["bench"]) == 2
    assert "`rfq bench train`, `rfq bench optim`" in capsys.readouterr().err
    assert cli.main(["bench", "optim", "--help"]) == 0
    assert "Example: rfq bench optim demo/" in capsys.readouterr().out


def test_the_command_passes_on_what_was_said(monkeypatch, tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        "from tests import tiny\n\n\ndef config():\n    return tiny.experiment('no')\n"
    )
    seen = {}

    def run(experiment, **rest):
        seen.update(rest, width=experiment.model.width)
        return []

    monkeypatch.setattr(bench, "run_optim", run)
    words = "--optimizers muon soap --steps 7 --json out.jsonl --model.width 32"
    assert cli.main(["bench", "optim", str(path), *words.split()]) == 0
    assert seen.pop("json_path").name == "out.jsonl"
    assert seen == {"optimizers": ("muon", "soap"), "num_steps": 7, "width": 32}


def test_the_work_of_a_rotated_step_is_the_floor():
    for name in ("kl_shampoo", "kl_soap", "soap"):
        assert bench.WORK[name].step(3, 7) == 6 * 3 * 7 * (3 + 7)
    assert set(bench.WORK) <= set(optim.OPTIMIZERS)


@pytest.mark.slow
def test_programs_of_a_sweep_are_measured_beside_a_plain_pass(
    quickly, tmp_path, capsys
):
    path = tmp_path / "rows.jsonl"
    given = tiny.with_fields(experiment(), "quantize", streams=("branch",))
    rows = bench_quantize.run_quantize(given, num_rounds=2, json_path=path)
    found = {row["program"]: row for row in rows}
    assert set(found) == {
        "score", "score paper branch", "calibrate paper", "distort paper",
        "diverge paper branch", "measure moments", "measure channels",
        "measure tokens", "measure histogram", "measure range",
        "measure everything",
    }  # fmt: skip
    assert found["score"]["ratio"] == 1.0
    assert all(row["median_ms"] > 0 and row["ratio"] > 0 for row in rows)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert "x plain" in capsys.readouterr().out
    with pytest.raises(InputError, match="--rounds=0"):
        bench_quantize.run_quantize(given, num_rounds=0, json_path=None)


# A peer that knows the words and computes nothing.
WORDS = """
import json, sys
sizes = json.loads(sys.stdin.readline())
assert sizes["num_layers"] == 1 and sizes["batch_size"] == 8
told = {"torch": "2", "gemm_gflops_per_second": 7.0, "num_parameters": 1}
print(json.dumps(told), flush=True)
for line in sys.stdin:
    assert line.strip() in ("forward", "gradients", "step")
    print(0.0, flush=True)
"""


def test_a_step_is_measured_beside_its_products_and_a_peer(
    quickly, tmp_path, capsys, monkeypatch
):
    program = tmp_path / "peer.py"
    program.write_text(WORDS)
    monkeypatch.setattr(peer, "PROGRAM", program)
    path = tmp_path / "rows.jsonl"
    given = tiny.with_fields(experiment(), "train", batch_size=8)
    rows = bench_train.run(given, num_rounds=2, with_peer=True, json_path=path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    found = {(row["program"], row["call"]): row for row in rows}
    programs = ("rfq", "torch eager", "torch compiled")
    assert set(found) == {(p, c) for p in programs for c in peer.CALLS}
    for (program, call), row in found.items():
        assert (row["ratio"] == 1) == (program == "rfq")
        assert row["floor_ms"] == pytest.approx(
            found["rfq", "forward"]["floor_ms"] * (1 if call == "forward" else 3)
        )
        assert row["gemm_fraction"] == pytest.approx(row["floor_ms"] / row["median_ms"])
    # Four 16 x 16 and two 16 x 64 matrices, and the head.
    flops = 2 * 8 * given.model.seq_len * (4 * 16 * 16 + 2 * 16 * 64 + 16 * 259)
    forward = found["rfq", "forward"]
    rate = flops / forward["floor_ms"] / 1e6
    assert forward["gemm_gflops_per_second"] == pytest.approx(rate)
    assert found["torch eager", "step"]["gemm_gflops_per_second"] == 7
    assert "a step of rfq, ms: forward" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    program = tmp_path / "peer.py"
    program.write_text("import no_such_torch")
    monkeypatch.setattr(peer, "PROGRAM", program)
    with pytest.raises(InputError, match="No module named 'no_such_torch'"):
        peer.Peer(experiment(), compiled=False)
    free = tiny.with_fields(experiment(), "model", skip="residual_free")
    with pytest.raises(InputError, match="skip residual, or leave"):
        peer.Peer(free, compiled=False)
    monkeypatch.setattr(peer, "PROGRAM", tmp_path / "none.py")
    with pytest.raises(InputError, match="of a checkout, which no"):
        peer.Peer(experiment(), compiled=False)
