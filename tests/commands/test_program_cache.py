"""Compiled programs on disk: where, how many, and what happens when that fails."""

import json
import os
import pathlib
import resource
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rfq.commands import program_cache

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
# Runs a command and prints how many programs were compiled, and how many were found.
COUNT = """
import collections, json, sys
from jax import monitoring
counts = collections.Counter()
monitoring.register_event_listener(lambda event, **_: counts.update([event]))
from rfq import cli
status = cli.main(sys.argv[1:])
events = ("cache_misses", "cache_hits")
print(json.dumps([counts[f"/jax/compilation_cache/{event}"] for event in events]))
sys.exit(status)
"""


@pytest.fixture
def fresh(monkeypatch):
    """jax as a command finds it, with no place for programs; restored behind it."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compiled() -> float:
    """Compile a program, or find it; jax itself does not know that it is the same."""

    def of_ours(x):
        return jnp.sum(x * 3.25)

    return float(jax.jit(of_ours)(jnp.arange(4.0)))


def programs(kept: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in kept.glob("*of_ours*")}


def test_the_place_is_the_users_or_the_one_that_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert program_cache.directory({}) == pathlib.Path("/home/me/.cache/rfq")
    named = {"XDG_CACHE_HOME": "/caches"}
    assert program_cache.directory(named) == pathlib.Path("/caches/rfq")
    place = program_cache.directory({**named, "RFQ_CACHE": "~/programs"})
    assert place == pathlib.Path("/home/me/programs")
    for off in ("", "off"):
        assert program_cache.directory({**named, "RFQ_CACHE": off}) is None


def test_what_jax_was_told_stays(fresh, tmp_path):
    fresh.setenv("RFQ_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    program_cache.start()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")


def test_programs_not_used_for_longest_go_first(tmp_path):
    for number, name in enumerate(("old", "used", "new")):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    os.utime(tmp_path / "used-cache", (9, 1))
    (tmp_path / "not ours").write_bytes(bytes(1000))
    left = lambda: {path.name for path in tmp_path.iterdir()}  # noqa: E731
    program_cache.shrink(tmp_path, 300)
    assert left() == {"old-cache", "used-cache", "new-cache", "not ours"}
    program_cache.shrink(tmp_path, 299)
    assert left() == {"used-cache", "new-cache", "not ours"}
    program_cache.shrink(tmp_path, 100)
    assert left() == {"used-cache", "not ours"}
    program_cache.shrink(tmp_path / "nowhere", 0)


def test_a_program_that_was_cut_short_is_written_again(fresh, tmp_path, capsys):
    fresh.setenv("RFQ_CACHE", str(tmp_path))
    shown = []
    warnings.showwarning = lambda message, *rest: shown.append(message)
    program_cache.start()
    value = compiled()
    whole = programs(tmp_path)
    (name,) = whole
    (tmp_path / name).write_bytes(whole[name][:100])
    assert compiled() == value
    assert len(programs(tmp_path)[name]) > 100
    assert not shown
    said = capsys.readouterr()
    assert said.out == said.err == ""
    # Any other warning is shown as before.
    warnings.warn("of others", stacklevel=1)
    assert [str(message) for message in shown] == ["of others"]


@pytest.mark.parametrize("full", [True, False])
def test_what_cannot_be_kept_is_one_sentence(fresh, tmp_path, capsys, full):
    """The disk is full, or the directory cannot be made (root may write anywhere)."""
    kept = tmp_path / "kept"
    if not full:
        kept.write_text("a file")
    fresh.setenv("RFQ_CACHE", str(kept))
    program_cache.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        assert compiled() == 3.25 * 6
        assert float(jax.jit(lambda x: x - 2)(jnp.float32(3))) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr()
    text = f"compiled programs cannot be kept in {str(kept)!r} ("
    assert said.out.startswith(text) and said.out.count("\n") == 1
    assert "RFQ_CACHE" in said.out and said.err == ""


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_changes_no_bit(
    config, tmp_path, one_device_env
):
    env = {k: v for k, v in one_device_env.items() if "CACHE" not in k}
    env |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "caches")}
    losses = []

    def compiled_and_found(out: str, **more: str) -> list[int]:
        words = ("train", config, "--out", str(tmp_path / out))
        ended = subprocess.run(
            [sys.executable, "-c", COUNT, *words],
            cwd=ROOT,
            env={**env, **more},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0 and ended.stderr == ""
        rows = (tmp_path / out / "metrics.jsonl").read_text()
        losses.append([json.loads(row)["loss"] for row in rows.splitlines()])
        return json.loads(ended.stdout.splitlines()[-1])

    misses, hits = compiled_and_found("cold")
    assert misses > 20 and hits < 5
    assert compiled_and_found("warm") == [0, misses + hits]
    assert compiled_and_found("off", RFQ_CACHE="off") == [0, 0]
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) > 3
