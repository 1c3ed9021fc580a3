"""A synthetic compare directory: the shapes of real files, deterministic numbers.

The numbers follow what small models do (a residual AdamW arm with heavy tails, a
placement that matters), so that pages made from it are worth looking at.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable

import numpy as np
import pytest

from rfq import report
from rfq.report import load

MEAN = 1.5
CENTER, SCALE = 1.2, 1.7  # Of the bins.
ACT_BITS = (16, 12, 10, 8, 6, 4)
EDGES = np.concatenate(
    [np.linspace(-40, -8, 33), np.linspace(-7.75, 7.75, 63), np.linspace(8, 40, 33)]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """The made-up outcome of one arm: what its files are drawn from."""

    loss: float
    kurtosis: float
    final_kurtosis: float
    branch: float
    in_place: float
    sqnr_gap_db: float
    rate: float
    seconds: float


ARMS: dict[str, Arm] = {
    "residual_adamw": Arm(
        loss=3.34,
        kurtosis=14.9,
        final_kurtosis=9.0,
        branch=0.28,
        in_place=0.80,
        sqnr_gap_db=-7.5,
        rate=1e-2,
        seconds=80.0,
    ),
    "residual_kl_shampoo": Arm(
        loss=3.21,
        kurtosis=0.35,
        final_kurtosis=1.4,
        branch=0.11,
        in_place=0.29,
        sqnr_gap_db=-1.2,
        rate=3e-3,
        seconds=96.0,
    ),
    "residual_free_kl_shampoo": Arm(
        loss=3.51,
        kurtosis=0.28,
        final_kurtosis=1.1,
        branch=0.42,
        in_place=0.42,
        sqnr_gap_db=-0.4,
        rate=1e-3,
        seconds=97.0,
    ),
    "residual_free_muon": Arm(
        loss=3.47,
        kurtosis=0.20,
        final_kurtosis=2.0,
        branch=0.29,
        in_place=0.29,
        sqnr_gap_db=-0.3,
        rate=3e-3,
        seconds=79.0,
    ),
}


def _dump(path: pathlib.Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _rows(name: str, arm: Arm, seed: int, rng: np.random.Generator) -> list[dict]:
    loss = arm.loss + 0.02 * float(rng.standard_normal())
    common = {
        "arm": name,
        "seed": seed,
        "num_layers": 6,
        "width": 64,
        "calibrator": "min_max",
        "taps": "paper",
        "num_params": 328_448,
        "num_steps": 800,
        "tokens_seen": 819_200,
        "compute_dtype": "float32",
        "calibration_tokens": 4096,
        "eval_tokens": 65_536,
        "config_fingerprint": f"{abs(hash_of(name)):08x}",
        "commit": "29eb8e0",
        "device": "cpu",
        "versions": {"jax": "0.10.2", "rfq": "0.1.0"},
        "excess_kurtosis": arm.kurtosis,
        "final_norm_excess_kurtosis": arm.final_kurtosis,
        "seconds": 12.5,
    }
    full = {
        **common,
        "spec": "FP",
        "weight_bits": None,
        "act_bits": None,
        "loss": loss,
        "loss_increase": 0.0,
        "loss_increase_lo": 0.0,
        "loss_increase_hi": 0.0,
        "bits_per_byte": loss / math.log(2) / 2.2,
        "sqnr_db": None,
        "nmse": None,
    }
    as_trained = {
        **full,
        "compute_dtype": "bfloat16",
        "loss": loss + 0.0011,
        "loss_increase": 0.0011,
        "loss_increase_lo": 0.0004,
        "loss_increase_hi": 0.0018,
    }
    # The drivers evaluate FP in both placements too, with the same result.
    rows = [
        {**row, "stream": stream}
        for stream in ("branch", "in_place")
        for row in (as_trained, full)
    ]
    for weight_bits in (8, None):
        for bits in ACT_BITS:
            for stream in ("branch", "in_place"):
                at_four = getattr(arm, stream)
                increase = at_four * 4.0 ** -(bits - 4) + (
                    0.0004 if weight_bits else 0.0
                )
                half = 0.06 * increase + 0.0005
                sqnr = 6.02 * bits - 9.0 + arm.sqnr_gap_db
                rows.append(
                    {
                        **common,
                        "spec": f"W{weight_bits}A{bits}" if weight_bits else f"A{bits}",
                        "weight_bits": weight_bits,
                        "act_bits": bits,
                        "stream": stream,
                        "loss": loss + increase,
                        "loss_increase": increase,
                        "loss_increase_lo": increase - half,
                        "loss_increase_hi": increase + half,
                        "bits_per_byte": (loss + increase) / math.log(2) / 2.2,
                        "sqnr_db": sqnr,
                        "nmse": 10 ** (-sqnr / 10),
                    }
                )
    return rows


def hash_of(name: str) -> int:
    """A hash that does not change between processes."""
    return sum((i + 1) * ord(letter) for i, letter in enumerate(name)) * 7919 % 2**32


def _sites(arm: Arm, progress: float) -> dict:
    shape = np.linspace(1.0, 0.4, 6)
    scale = {"attn_norm_in": 1.0, "attn_in": 0.8, "mlp_norm_in": 0.7, "mlp_in": 0.6}
    sites = {
        site: {
            "excess_kurtosis": (part * arm.kurtosis * progress * shape).tolist(),
            "negentropy": (0.002 * part * arm.kurtosis * progress * shape).tolist(),
            "rms": [1.0] * 6,
            "mean": [0.0] * 6,
            "range_lo": (-4.0 - part * arm.kurtosis * progress * shape).tolist(),
            "range_hi": [4.0] * 6,
        }
        for site, part in scale.items()
    }
    counts = 1e5 * np.diff([statistics.NormalDist().cdf(x) for x in EDGES])
    sites["attn_norm_in"] |= {
        "counts": [counts.round().tolist()] * 6,
        "center": [0.0] * 6,
        "scale": [1.0] * 6,
    }
    # GELU's own tails, whatever the arm.
    sites["mlp_hidden"] = {**sites["mlp_in"], "excess_kurtosis": [3.1] * 6}
    sites["final_norm_in"] = {
        "excess_kurtosis": [arm.final_kurtosis * progress],
        "rms": [1.0],
        "mean": [0.0],
    }
    return sites


def _histograms(arm: Arm, rng: np.random.Generator) -> dict:
    # A normal with a few wide entries: pooled kurtosis grows with their share.
    wide = 0.004 if arm.kurtosis > 5 else 0.0001
    x = rng.standard_normal(200_000)
    x[: int(wide * x.size)] *= 5.0
    x = (x - x.mean()) / x.std()
    # An activation of mean MEAN and standard deviation 2, binned around CENTER.
    rms = math.hypot(2.0, MEAN)
    counts = np.histogram((2.0 * x + MEAN - CENTER) / SCALE, EDGES)[0].tolist()
    return {
        "unit": "(x - center) / scale",
        "edges": EDGES.tolist(),
        "sites": {
            "attn_norm_in": {
                "counts": [counts] * 6,
                "center": [CENTER] * 6,
                "scale": [SCALE] * 6,
                "excess_kurtosis": [arm.kurtosis] * 6,
                "rms": [rms] * 6,
                "mean": [MEAN] * 6,
            }
        },
    }


def _quantized_sites(arm: Arm) -> list[dict]:
    """What quantization does by site and layer; the error doubles with every layer."""
    records = []
    for bits in ACT_BITS:
        for stream in ("branch", "in_place"):
            sqnr = (6.02 * bits - 9 + arm.sqnr_gap_db + np.linspace(0, 2, 6)).tolist()
            error = getattr(arm, stream) * 4.0 ** -(bits - 4) / 64
            sites = {
                site: {
                    "sqnr_db": sqnr,
                    "nmse": [0.01] * 6,
                    "relative_error": [error * 2**layer for layer in range(6)],
                }
                for site in ("attn_norm_in", "attn_in", "mlp_norm_in", "mlp_in")
            }
            sites["head_in"] = {"relative_error": [error * 2**6]}
            records.append(
                {
                    "spec": f"W8A{bits}",
                    "stream": stream,
                    "taps": "paper",
                    "calibrator": "min_max",
                    "sites": sites,
                }
            )
    return records


def write(
    directory: pathlib.Path,
    *,
    arms: dict[str, Arm] | None = None,
    seeds: tuple[int, ...] = (0,),
    steps: int = 800,
) -> pathlib.Path:
    """Writes what `rfq compare` writes, for made-up outcomes."""
    arms = ARMS if arms is None else arms
    every = []
    for name, arm in arms.items():
        for seed in seeds:
            rng = np.random.default_rng([seed, hash_of(name)])
            home = directory / "arms" / name / f"seed-{seed}"
            rows = _rows(name, arm, seed, rng)
            every += rows
            logged = range(10, steps + 1, 10)
            curve = {
                s: arm.loss + (6.2 - arm.loss) * math.exp(-5.0 * s / steps)
                for s in logged
            }
            _dump(
                home / "metrics.jsonl",
                [
                    {
                        "step": s,
                        "loss": curve[s] + 0.06 * float(rng.standard_normal()),
                        "learning_rate": arm.rate,
                        "grad_norm": 1.0,
                        "tokens_per_second": 819_200 / arm.seconds,
                    }
                    for s in logged
                ],
            )
            measured = range(0, steps + 1, 100)
            _dump(
                home / "measures.jsonl",
                [
                    {
                        "step": s,
                        "loss": arm.loss
                        + (6.2 - arm.loss) * math.exp(-5.0 * s / steps),
                        "num_tokens": 4096,
                        "edges": EDGES.tolist(),
                        "sites": _sites(arm, s / steps),
                    }
                    for s in measured
                ],
            )
            _dump(home / "quantize" / "sites.jsonl", _quantized_sites(arm))
            (home / "quantize" / "statistics.json").write_text(
                json.dumps(_histograms(arm, rng))
            )
            config = {
                "experiment": {
                    "model": {
                        "skip": "residual_free" if "free" in name else "residual",
                        "num_layers": 6,
                        "width": 64,
                        "seq_len": 64,
                    },
                    "optimizer": {
                        "name": name.replace("residual_", "").replace("free_", ""),
                        "learning_rate": arm.rate,
                    },
                    "train": {"batch_size": 16, "num_steps": steps},
                },
                "fingerprint": f"{hash_of(name):08x}",
                "commit": "29eb8e0",
                "versions": {"jax": "0.10.2"},
                "device": "cpu",
            }
            (home / "config.json").write_text(json.dumps(config))
            (home / "done.json").write_text(
                json.dumps(
                    {
                        "num_steps": steps,
                        "loss": arm.loss,
                        "seconds": arm.seconds,
                        "state_bytes": 3_942_144,
                        "peak_bytes": None,
                    }
                )
            )
    _dump(directory / "rows.jsonl", every)
    (directory / "context.json").write_text(
        json.dumps(
            {
                "floors": {"unigram": 5.301, "bigram": 3.702},
                "data": {
                    "source": "embedded",
                    "tokenizer": "embedded-512",
                    "vocab_size": 512,
                    "splits": {"train": {"documents": 239, "tokens": 5_535_689}},
                },
                "arms": list(ARMS),
            }
        )
    )
    return directory


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Makes a synthetic directory, by default four arms and one seed."""

    def made(**kwargs) -> pathlib.Path:
        return write(tmp_path / "demo", **kwargs)

    return made


@pytest.fixture
def arms() -> dict[str, Arm]:
    """The made-up outcomes, to be changed with dataclasses.replace."""
    return dict(ARMS)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with its report written: two seeds; read it, do not change it."""
    directory = write(tmp_path_factory.mktemp("rendered") / "demo", seeds=(0, 1))
    report.run(load.load(directory))
    return directory
