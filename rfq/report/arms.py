"""What an arm is and what became of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from rfq.report.estimates import Estimate
from rfq.report.load import Record, Run
from rfq.report.paper import words

# Updates that orthogonalize or whiten a matrix, and those that look at each entry.
SPECTRAL = ("kl_shampoo", "kl_soap", "muon", "shampoo", "soap", "spectral_gd")
SIGN_LIKE = ("adamw", "sign_gd")

# Cures of the heavy tails of residual models at their source: arXiv 2506.19697,
# 2505.06708 and 2511.23225.
RIVALS = (
    "single-scale norm and projected embedding",
    "gated attention",
    "activation penalty",
)

# A run is stuck when it has covered less than this part of the way from the unigram
# to the bigram cross-entropy; runs that never left the plateau end within 10 % of it.
STUCK_FRACTION = 0.1

Status = Literal["ok", "above bigram", "stuck", "not finite", "unfinished", "missing"]


def arm_label(arm: str) -> str:
    """Write `residual_free_kl_shampoo` as "residual-free KL-Shampoo"."""
    connection, rest = "", arm
    for prefix in ("residual_free", "residual"):
        if arm == prefix or arm.startswith(prefix + "_"):
            connection, rest = prefix.replace("_", "-"), arm[len(prefix) + 1 :]
            break
    said = words()["names"]
    text = " ".join(said.get(word, word) for word in rest.split("_") if word)
    return f"{connection} {text.replace('KL Shampoo', 'KL-Shampoo')}".strip() or arm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """What an arm is and what became of it; None where no file tells.

    Attributes:
        recipe: The initialization, "orthogonal" or a Gaussian one.
        vo_pair: How it draws W_V and W_O: "transpose" as the paper writes it, or
            "independent".
        accelerated: Whether the arm ran on something else than a CPU.
        rival: Another cure of heavy tails than the paper's, or several.
        rest: All else that the config fixes, without the learning rates, the seed and
            the temperature: arms that share it differ in nothing else.
        loss: The held-out loss in full precision, nats a token.
        kurtosis: The largest excess kurtosis over layers of the stream, at the end.
    """

    name: str
    skip: str | None
    optimizer: str | None
    recipe: str | None
    w_down: str | None
    vo_pair: str | None
    norm: str | None
    beta: float | None
    num_layers: int | None
    width: int | None
    num_params: float | None
    accelerated: bool | None
    learning_rate: float | None
    rival: str | None
    rest: str
    loss: Estimate
    kurtosis: Estimate
    status: Status

    @property
    def label(self) -> str:
        """The arm and its learning rate."""
        rate = self.learning_rate
        return arm_label(self.name) + ("" if rate is None else f" at {rate:g}")

    @property
    def part(self) -> tuple[str | None, str | None]:
        """The part that the arm plays: its connection and optimizer."""
        return self.skip, self.optimizer

    @property
    def plain(self) -> bool:
        """Whether the arm has the paper's norm and no other cure."""
        return self.rival is None and self.norm in (None, "rms_norm")

    @property
    def trained(self) -> bool:
        """Whether the arm ended with a loss that means something."""
        return self.status in ("ok", "above bigram")

    @property
    def failed(self) -> bool:
        """Whether the arm ended at word frequencies, or did not end."""
        return self.status in ("stuck", "not finite")


def told(
    name: str,
    skip: str | None,
    config: Record,
    runs: Sequence[Record],
    row: Record,
    **outcome: Any,
) -> Arm:
    """Put together what runs and rows tell of an arm.

    Args:
        name: The arm.
        skip: Its connection.
        config: Its config.
        runs: What config.json of each of its runs says.
        row: The fields that its rows repeat.
        outcome: The fields loss, kurtosis and status.
    """
    devices = [row.get("device"), *(run.get("device") for run in runs)]
    device = next((found for found in devices if found is not None), None)
    model, init, optimizer = (config.get(k, {}) for k in ("model", "init", "optimizer"))
    named = name.removeprefix(f"{skip}_")
    guess = next((each for each in (*SPECTRAL, *SIGN_LIKE) if each in named), None)
    return Arm(
        name=name,
        skip=skip,
        optimizer=optimizer.get("name") or row.get("optimizer") or guess,
        recipe=init.get("recipe"),
        w_down=init.get("w_down"),
        vo_pair=init.get("vo_pair"),
        norm=model.get("norm"),
        beta=model.get("beta"),
        num_layers=model.get("num_layers") or row.get("num_layers"),
        width=model.get("width") or row.get("width"),
        num_params=row.get("num_params") or _num_params(model),
        accelerated=None if device is None else "cpu" not in device,
        learning_rate=optimizer.get("learning_rate"),
        rival=_rival(config),
        rest=_rest(config),
        **outcome,
    )


def status(
    loss: Estimate, runs: Sequence[Run], *, diverged: bool, floors: Record
) -> Status:
    """Say what a reader must know before the arm's numbers."""
    if loss.not_finite or diverged or any(run.failed for run in runs):
        return "not finite"
    if loss.value is None:
        return "unfinished" if runs else "missing"
    unigram, bigram = floors.get("unigram"), floors.get("bigram")
    if unigram is None or bigram is None:
        return "ok"
    if loss.value > unigram - STUCK_FRACTION * (unigram - bigram):
        return "stuck"
    return "above bigram" if loss.value > bigram else "ok"


def _num_params(model: Record) -> float | None:
    """Return the weights of a config, but for the few of norms and cures."""
    fields = ("num_layers", "width", "mlp_ratio", "vocab_size")
    known = [value for name in fields if (value := model.get(name))]
    if len(known) < len(fields):
        return None
    layers, width, ratio, vocab = known
    return layers * (4 + 2 * ratio) * width**2 + vocab * width


def _rival(config: Record) -> str | None:
    """Name one of RIVALS, a part of one, or another cure."""
    model, train, qat = (config.get(k, {}) for k in ("model", "train", "qat"))
    if qat.get("spec", "FP") != "FP":
        return "training through rounding"
    if model.get("attention_gate") not in (None, "none"):
        return "gated attention"
    if train.get("penalty_weight"):
        return "activation penalty"
    norm = model.get("norm") == "single_scale_norm"
    embedding = model.get("embedding") == "projected"
    found = ["single-scale norm"] * norm + ["projected embedding"] * embedding
    return " and ".join(found) or None


def _rest(config: Record) -> str:
    """Write the factors of an experiment but rates, seed, temperature and logs."""
    free = {"learning_rate", "other_learning_rate", "beta"}
    sections = ("model", "init", "optimizer", "schedule", "train", "qat")
    kept = {
        section: sorted(
            (key, value)
            for key, value in config.get(section, {}).items()
            if key not in free
        )
        for section in sections
    }
    return str(kept)
