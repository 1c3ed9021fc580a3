"""Made-up runs, written as runs write them: what verdicts are tried on."""

import dataclasses
import itertools
import json
import math
import pathlib

from rfq.report import arms as arms_lib
from rfq.report import load, view

BITS = (16, 12, 10, 8, 6, 4)
FLOORS = {"unigram": 5.3, "bigram": 3.7}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """The made-up outcome of an arm, by the name that its files give it.

    Attributes:
        kurtosis: of the stream at each measured step, largest over layers.
        shape: of the kurtosis over layers at the end.
        lost: increase of loss at 4 activation bits; a quarter for each bit more.
        in_place: the same in place, None for no difference.
        at: increases at single settings, in both placements; NaN for one that is not
            finite, None for no row.
        speed: training steps a second.
        curve: training loss at each logged step.
        accuracy: change of the mean accuracy at a setting.
        taps, calibrator, methods: those with which tasks were evaluated.
        diverged: no row, and a note that training failed.
        losses: of quantized sequences, as in losses.jsonl.
    """

    loss: float = 3.0
    kurtosis: tuple[float, ...] = (0.0, 0.1, 0.2)
    shape: tuple[float, ...] = (1.0, 0.8, 0.6, 0.5)
    negentropy: float = 0.01
    lost: float = 0.2
    in_place: float | None = None
    at: dict = dataclasses.field(default_factory=dict)
    w8: float = 0.0
    sqnr: float = 0.0
    relative_error: float = 0.1
    recipe: str | None = None
    w_down: str = "plain"
    vo_pair: str = "transpose"
    norm: str = "rms_norm"
    beta: float = 1.0
    layers: int = 4
    num_params: float | None = 54e6
    width: int = 512
    diverged: bool = False
    rate: float = 1e-3
    isometry: float = 0.3
    update_rms: float | None = 0.1
    speed: float = 4.0
    memory: float = 81e9
    curve: tuple[float, ...] = (4.0, 3.5, 3.0)
    device: str = "1 gpu device(s)"
    accuracy: dict = dataclasses.field(default_factory=dict)
    taps: str = "paper"
    calibrator: str = "min_max"
    methods: str = "none"
    model: dict = dataclasses.field(default_factory=dict)
    train: dict = dataclasses.field(default_factory=dict)
    qat: dict = dataclasses.field(default_factory=dict)
    losses: tuple[dict, ...] = ()


def _plays(name: str) -> tuple[str, str]:
    skip = "residual_free" if name.startswith("residual_free") else "residual"
    rest = name.removeprefix(skip)
    return skip, next(o for o in (*arms_lib.SPECTRAL, "adamw", "sign_gd") if o in rest)


def _increase(made: Made, spec: str, bits: int, stream: str) -> float | None:
    at_four = made.lost
    if stream == "in_place" and made.in_place is not None:
        at_four = made.in_place
    smooth = at_four * 4.0 ** (4 - bits) + (made.w8 if spec[0] == "W" else 0.0)
    return made.at.get(spec, smooth)


def _measured(increase: float) -> dict:
    if math.isnan(increase):
        return {"loss_increase": None, "nonfinite": ["loss_increase"]}
    return {
        "loss_increase": increase,
        "loss_increase_lo": 0.95 * increase,
        "loss_increase_hi": 1.05 * increase,
    }


def _rows(name: str, made: Made) -> list[dict]:
    if made.diverged:
        return []
    common = {
        "arm": name,
        "seed": 0,
        "device": made.device,
        "taps": "paper",
        "calibrator": "min_max",
        "excess_kurtosis": made.kurtosis[-1],
        "num_params": made.num_params,
    }
    rows = [{**common, "spec": "FP", "compute_dtype": "float32", "loss": made.loss}]
    widths = {"W8": 8, "W16": 16, "": None}
    specs = [(f"{w}A{b}", widths[w], b) for w, b in itertools.product(widths, BITS)]
    for spec, weight, bits in (*specs, ("W4A4", 4, 4)):
        for stream in ("branch", "in_place"):
            increase = _increase(made, spec, bits, stream)
            if increase is None:
                continue
            sqnr = 6.0 * bits + made.sqnr
            rows.append(
                {
                    **common,
                    "spec": spec,
                    "weight_bits": weight,
                    "act_bits": bits,
                    "stream": stream,
                    **_measured(increase),
                    "sqnr_db": sqnr,
                    "bulk_sqnr_db": sqnr,
                    "nmse": 10 ** (-sqnr / 10),
                    "relative_error": made.relative_error,
                }
            )
    return rows


def _run(name: str, made: Made) -> dict:
    skip, optimizer = _plays(name)
    recipe = made.recipe or ("orthogonal" if skip == "residual_free" else "gpt2")

    def site(kurtosis: float) -> dict:
        return {
            "excess_kurtosis": [kurtosis * part for part in made.shape],
            "negentropy": [made.negentropy] * len(made.shape),
        }

    measures = [
        {
            "step": 100 * index,
            "loss": made.loss + len(made.kurtosis) - 1 - index,
            "sites": {where: site(kurtosis) for where in view.PAPER_SITES},
        }
        for index, kurtosis in enumerate(made.kurtosis)
    ]
    metrics = [
        {
            "step": 10 * index,
            "loss": loss,
            "seconds": 10 * index / made.speed,
            "tokens_per_second": 1024 * made.speed,
            "learning_rate": made.rate,
            "optim/update_rms": made.update_rms,
        }
        for index, loss in enumerate(made.curve, start=1)
    ]
    matrices = ("w_q", "w_v", "w_o", "w_up", "w_down")
    # Sequences 0 to 31 are hard in every arm, so that pairs tell what means do not.
    losses = [
        made.loss + (1.0 if i < 32 else -1.0) + 0.001 * (i % 3) for i in range(64)
    ]
    model = {
        "skip": skip,
        "norm": made.norm,
        "beta": made.beta,
        "num_layers": made.layers,
        "width": made.width,
        "seq_len": 64,
        **made.model,
    }
    return dict(
        config={
            "experiment": {
                "model": model,
                "init": {
                    "recipe": recipe,
                    "w_down": made.w_down,
                    "vo_pair": made.vo_pair,
                },
                "optimizer": {"name": optimizer, "learning_rate": made.rate},
                "train": {"batch_size": 16, **made.train},
                "qat": made.qat,
            }
        },
        metrics=metrics,
        measures=measures,
        losses=[
            {"spec": "FP", "compute_dtype": "float32", "losses": losses},
            *made.losses,
        ],
        tasks=[
            {
                "spec": spec,
                "stream": stream,
                "taps": made.taps,
                "calibrator": made.calibrator,
                "methods": made.methods,
                "scores": {"piqa": {"primary": "acc", "acc": 0.5}},
                "avg_change": change,
                "avg_change_lo": change - 0.005,
                "avg_change_hi": change + 0.005,
            }
            for spec, change in made.accuracy.items()
            for stream in ("branch", "in_place")
        ],
        statistics={
            "weights": {
                matrix: {"isometry_deviation": [made.isometry]} for matrix in matrices
            }
        },
        done={"num_steps": 30, "peak_bytes": made.memory},
        failed={"message": "the loss is not finite"} if made.diverged else {},
    )


def _dump(path: pathlib.Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write(home: pathlib.Path, arms: dict[str, Made], theory=()) -> pathlib.Path:
    """Writes a compare directory of made-up arms."""
    _dump(home / "rows.jsonl", [r for name, m in arms.items() for r in _rows(name, m)])
    _dump(home / "context.json", [{"floors": FLOORS, "arms": list(arms)}])
    if theory:
        _dump(home / "theory.jsonl", theory)
    for name, made in arms.items():
        run, folder = _run(name, made), home / "arms" / name / "seed-0"
        for kind in ("config", "done", "failed"):
            if run[kind]:
                _dump(folder / f"{kind}.json", [run[kind]])
        for kind in ("metrics", "measures"):
            _dump(folder / f"{kind}.jsonl", run[kind])
        for kind in ("losses", "tasks"):
            _dump(folder / "quantize" / f"{kind}.jsonl", run[kind])
        _dump(folder / "quantize" / "statistics.json", [run["statistics"]])
    return home


# The four arms of the demo and SOAP, in which the paper's story holds.
STORY = {
    "residual_adamw": Made(kurtosis=(0.0, 20.0, 40.0), loss=2.9, lost=0.8, sqnr=-9.0),
    "residual_kl_shampoo": Made(
        kurtosis=(0.0, 2.0, 5.0), loss=2.9, lost=0.5, sqnr=-5.0
    ),
    "residual_free_kl_shampoo": Made(curve=(4.0, 3.2, 2.8)),
    "residual_free_soap": Made(curve=(4.0, 3.3, 2.9), speed=4.0),
    "residual_free_muon": Made(curve=(4.0, 3.4, 3.0), speed=4.0),
}
KL, SOAP, MUON = list(STORY)[2:]
ADAMW, RESIDUAL_KL = list(STORY)[:2]
FREE = (KL, SOAP, MUON)


def story(home: pathlib.Path, theory=(), **changes) -> load.Results:
    """Writes STORY with arms changed, added, or taken out by None."""
    arms = {}
    for name in dict.fromkeys((*STORY, *changes)):
        change = changes.get(name, {})
        if change is not None:
            arms[name] = dataclasses.replace(STORY.get(name, Made()), **change)
    return load.read([write(home, arms, theory)], home)


def every_free(**change) -> dict:
    return {arm: change for arm in FREE}


def eight(**fields) -> dict:
    """Eight arms whose increase at each setting grows with their number."""
    names = [f"residual_{o}" for o in ("adamw", "muon", "soap", "kl_shampoo")]
    names += [name.replace("residual_", "residual_free_") for name in names]
    return {
        name: {"lost": 0.1 + 0.05 * i, **{k: value(i) for k, value in fields.items()}}
        for i, name in enumerate(names)
    }


RIVALS = {
    "residual_gated_adamw": {"model": {"attention_gate": "head"}},
    "residual_penalty_adamw": {"train": {"penalty_weight": 0.01}},
    "residual_outlier_safe_muon": {
        "model": {"norm": "single_scale_norm", "embedding": "projected"}
    },
}


def rivals(changed: str = "", **change) -> dict:
    """Every rival, worse than the residual-free arms, with one changed."""
    return {
        name: {"lost": 0.5, **fix, **(change if name == changed else {})}
        for name, fix in RIVALS.items()
    }


def hot(**change) -> dict:
    """A deep arm and its twin with a temperature."""
    twin = {"beta": 1.1, "layers": 12, **change}
    return {MUON: {"layers": 12}, "residual_free_muon_beta": twin}
