"""DRIVER of `rfq diagnose`: what a config's model does to tokens before training.

MEASURES      column -> what is said of each layer at initialization
CALLS         verdict -> the test that gives it, the first that holds
OUT/diagnose.jsonl              a row for each model
OUT/ARM-seed-SEED.png, .svg     its figure

It needs neither data nor training: the model gets sequences of distinct random tokens.
Of a run that is finished it also says how training ended, and of several how often the
verdict was right.
"""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq import metrics, runs, taps
from rfq.data import floors
from rfq.experiment import Experiment
from rfq.model import init, layers, transformer
from rfq.model.config import ModelConfig
from rfq.report import render, style
from rfq.types import Array, Params, Record, SiteState

# Sequences that are looked at, and positions that are nudged for the Jacobian.
NUM_SEQUENCES, NUM_NUDGES = 4, 64


# On the device while it is measured, float64 on the host afterwards.
Numbers = np.ndarray | Array


class Found(NamedTuple):
    """The measured numbers, one for each of the L blocks, first one first.

    Attributes:
        token_cosine: mean cosine between two tokens of a sequence behind the block.
        token_rank: effective number of directions that the tokens behind it span, over
            the largest that there can be, min(T, D): (sum s^2)^2 / sum s^4 of the
            singular values of the tokens at unit length.
        mean_share: share of their energy in the mean over the tokens of a sequence.
        diagonal_mass: weight of a token on itself in attention, mean over heads.
        softest_mass: weight on earlier tokens, of the head that has most of it.
        entropy: entropy of a token's attention, nats, mean over heads.
        gradient_norm: norm of the loss's gradient by the block's matrices.
        jacobian_max, jacobian_min: extremes of the singular values of the map from the
            embedding to the stream behind the block, both at unit RMS, on the subspace
            that nudges each position along one direction.
    """

    token_cosine: Numbers
    token_rank: Numbers
    mean_share: Numbers
    diagonal_mass: Numbers
    softest_mass: Numbers
    entropy: Numbers
    gradient_norm: Numbers
    jacobian_max: Numbers
    jacobian_min: Numbers


# Column of the table -> heading and format.
MEASURES: Mapping[str, tuple[str, str]] = {
    "token_cosine": ("cosine", ".3f"),
    "token_rank": ("rank", ".3f"),
    "mean_share": ("mean share", ".3f"),
    "diagonal_mass": ("diagonal", ".3f"),
    "softest_mass": ("softest", ".3f"),
    "entropy": ("entropy", ".3f"),
    "gradient_norm": ("gradient", ".2e"),
    "jacobian_max": ("largest", ".2e"),
    "jacobian_min": ("smallest", ".2e"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The limits of the verdicts, first values from few runs (D110).

    Attributes:
        cosine: tokens more alike than this have collapsed.
        diagonal: attention above this, in every layer, is the identity.
        softest: a head that gives earlier tokens this much mixes.
        plateau: a run that ends less than this below the unigrams' loss, in nats, has
            learned nothing of its context.
    """

    cosine: float = 0.4
    diagonal: float = 0.9
    softest: float = 0.2
    plateau: float = 0.3


def _collapse(found: Found, limits: Thresholds) -> str:
    """Name the first block behind which the tokens of a sequence are one."""
    behind = np.flatnonzero(~(found.token_cosine <= limits.cosine))
    return f"collapses at layer {behind[0] + 1}" if behind.size else ""


def _identity(found: Found, limits: Thresholds) -> str:
    """Say whether no head of any layer mixes tokens."""
    sharp = np.all(found.diagonal_mass > limits.diagonal)
    mixes = np.any(found.softest_mass > limits.softest)
    return "starts as the identity" if sharp and not mixes else ""


# The calls are tried in this order; a model that none of them names is healthy.
CALLS: Sequence[Callable[[Found, Thresholds], str]] = (_collapse, _identity)


def verdict(found: Found, limits: Thresholds = Thresholds()) -> str:
    """Name what will go wrong, or return "healthy"."""
    said = (call(found, limits) for call in CALLS)
    return next((text for text in said if text), "healthy")


# --- Measures -------------------------------------------------------------------------


def measure(experiment: Experiment) -> Found:
    """Draw the model of an experiment and measure every block.

    Models of one shape are compiled once.
    """
    model = dataclasses.replace(
        experiment.model,
        compute_dtype="float32",
        attention="xla",
        remat="none",
        scan_unroll=1,
    )
    params_key, key = jax.random.split(jax.random.key(experiment.seed))
    params = jax.jit(init.init, static_argnums=(0, 1))(
        experiment.init, model, key=params_key
    )
    return Found(
        *(np.asarray(leaf, np.float64) for leaf in _measured(params, key, model))
    )


@functools.partial(jax.jit, static_argnums=2)
def _measured(params: Params, key: Array, model: ModelConfig) -> Found:
    tokens_key, nudge_key = jax.random.split(key)
    batch = _tokens(model, tokens_key)
    keep = transformer.Seams(taps.Taps(_keep, ("attn_norm_in", "final_norm_in")))
    seen = transformer.Seams(taps.Taps(_keep, (*keep.taps.sites, "q", "k")))

    def loss(params: Params) -> tuple[Array, dict[str, Record]]:
        losses_BT, records = transformer.token_losses(params, batch, model, seen)
        return jnp.mean(losses_BT), records

    grads, records = jax.grad(loss, has_aux=True)(params)
    behind_LBTD = _behind(records)
    attention_LBTHS = jax.vmap(lambda *of: _attention(model, *of))(
        records["q"], records["k"], params["blocks"], _taus(model)
    )
    smallest, largest = _jacobian(params, batch[:1, :-1], model, keep, nudge_key)
    return Found(
        *_alike(behind_LBTD),
        *_mixing(attention_LBTHS),
        _norms(grads["blocks"]),
        largest,
        smallest,
    )


def _keep(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Return a tap whose record is the activation."""
    del state
    return x, x


def _tokens(model: ModelConfig, key: Array) -> Array:
    """Draw token ids [B, T + 1], distinct within a sequence where there are enough."""
    length, size = model.seq_len + 1, model.vocab_size

    def draw(key: Array) -> Array:
        return jax.random.choice(key, size, (length,), replace=length > size)

    return jax.vmap(draw)(jax.random.split(key, NUM_SEQUENCES)).astype(jnp.int32)


def _taus(model: ModelConfig) -> Array:
    layer_L = model.first_layer + jnp.arange(model.num_layers, dtype=jnp.float32)
    return jnp.float32(model.beta) ** -layer_L


def _behind(records: Mapping[str, Record]) -> Array:
    """Stack the stream behind each block, [L, ...]."""
    into_L, last = records["attn_norm_in"], records["final_norm_in"]
    return jnp.concatenate([into_L[1:], last[None]])


def _alike(x_LBTD: Array) -> tuple[Array, Array, Array]:
    """Measure cosine, rank and mean share of each layer's tokens."""
    T, D = x_LBTD.shape[2:]
    mean = jnp.mean(x_LBTD, axis=2)
    energy = jnp.mean(jnp.sum(x_LBTD**2, axis=-1), axis=2)
    share = jnp.sum(mean**2, axis=-1) / energy
    unit = x_LBTD / jnp.linalg.norm(x_LBTD, axis=-1, keepdims=True)
    gram = jnp.einsum("lbtd,lbsd->lbts", unit, unit)  # Its trace is T.
    cosine = (jnp.sum(gram, axis=(2, 3)) - T) / (T * (T - 1))
    rank = T**2 / jnp.sum(gram**2, axis=(2, 3)) / min(T, D)
    return jnp.mean(cosine, axis=1), jnp.mean(rank, axis=1), jnp.mean(share, axis=1)


def _attention(
    model: ModelConfig, q_BTHK: Array, k_BTHK: Array, block: Params, tau: Array
) -> Array:
    """Compute what one layer's heads multiply the values with, [B, T, H, S].

    The model's attention mixes one-hot values, so that its result is its matrix. Heads
    get zeros behind their width, or the values do, because all must be equally wide.
    """
    divisor = model.head_width if model.attention_scale == "head_width" else model.width
    kind = layers.ATTENTION_KINDS[model.attention_kind]
    B, T, H, K = k_BTHK.shape
    width = max(T, K)
    eye_BTHS = jnp.broadcast_to(jnp.eye(T, width)[None, :, None], (B, T, H, width))
    scale = tau / math.sqrt(divisor)

    def wide(x_BTHK: Array) -> Array:
        return jnp.pad(x_BTHK, ((0, 0), (0, 0), (0, 0), (0, width - K)))

    def attend(q_BTHK: Array, slope_H: Array | None) -> Array:
        q, k = wide(q_BTHK), wide(k_BTHK)
        return layers.causal_attention(q, k, eye_BTHS, scale, "xla", slope_H)

    mixed = kind.mix(attend, q_BTHK, eye_BTHS, *(block[name] for name in kind.leaves))
    return mixed[..., :T]


def _mixing(a_LBTHS: Array) -> tuple[Array, Array, Array]:
    """Measure diagonal mass, the softest head's mass on others, entropy by layer."""
    T = a_LBTHS.shape[2]
    diagonal_LBHT = jnp.einsum("lbtht->lbht", a_LBTHS)
    off_LBH = (jnp.sum(jnp.abs(a_LBTHS), axis=(2, 4))) / T - jnp.mean(
        jnp.abs(diagonal_LBHT), axis=-1
    )
    plogp = jax.scipy.special.xlogy(jnp.abs(a_LBTHS), jnp.abs(a_LBTHS))
    return (
        jnp.mean(diagonal_LBHT, axis=(1, 2, 3)),
        jnp.max(jnp.mean(off_LBH, axis=1), axis=-1),
        -jnp.mean(jnp.sum(plogp, axis=-1), axis=(1, 2, 3)),
    )


def _norms(grads: Params) -> Array:
    """Compute the gradient's norm in each layer, all of its parameters together."""
    squares = [jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in grads.values()]
    return jnp.sqrt(sum(squares))


def _jacobian(
    params: Params,
    tokens_1T: Array,
    model: ModelConfig,
    seams: transformer.Seams,
    key: Array,
) -> tuple[Array, Array]:
    """Measure the extreme singular values of the map to the stream behind each block.

    On the span of e_t u^T for one random direction u and some positions t. The Gram
    matrix of the answers [D T] has their squares as eigenvalues; float32 resolves a
    thousandth of the largest.
    """
    T, D = tokens_1T.shape[1], model.width
    u_D = jax.random.normal(key, (D,))
    u_D /= jnp.linalg.norm(u_D)
    positions = np.unique(np.linspace(0, T - 1, min(T, NUM_NUDGES)).astype(int))
    # A row of the lookup is a position, so that a nudge of it is one of the position.
    lookup_TD = params["embedding"][tokens_1T[0]]
    scale = jnp.sqrt(jnp.mean(lookup_TD**2))
    own = dataclasses.replace(model, vocab_size=T, vocab_padding=0, head="tied")

    def streams(lookup_TD: Array) -> Array:
        nudged = {**params, "embedding": lookup_TD}
        _, records = transformer.features(nudged, jnp.arange(T)[None], own, seams)
        x_LTD = _behind(records)[:, 0]
        rms_L = jnp.sqrt(jnp.mean(jax.lax.stop_gradient(x_LTD) ** 2, axis=(1, 2)))
        return x_LTD / rms_L[:, None, None]

    def answer(position: Array) -> Array:
        nudge = jnp.zeros((T, D)).at[position].set(scale * u_D)
        return jax.jvp(streams, (lookup_TD,), (nudge,))[1]

    answers_NLTD = jax.vmap(answer)(jnp.asarray(positions))
    gram_LNN = jnp.einsum("nltd,mltd->lnm", answers_NLTD, answers_NLTD)
    squares = jnp.maximum(jnp.linalg.eigvalsh(gram_LNN), 0.0)
    return jnp.sqrt(squares[:, 0]), jnp.sqrt(squares[:, -1])


# --- What is said and written ---------------------------------------------------------


# How `outcome` calls a run.
LEARNED, STAYED = "learned", "stayed at the unigrams' loss"

# An experiment, with its run directory if it was trained.
Subject = tuple[Experiment, pathlib.Path | None]


def run(
    models: Sequence[Subject],
    *,
    out: pathlib.Path | None,
) -> list[dict[str, Any]]:
    """Measure each model, print its table and its verdict, and compare it with its run.

    Args:
        models: what is measured, one after another.
        out: directory for the rows, diagnose.jsonl, and a figure each; None for none.

    Returns:
        a row for each model: a list over the layers for each measure, the verdict, and
        `ended`, see `outcome`; that is "" where there is no run.

    Raises:
        InputError: a run is finished and its data are not there.
    """
    rows = []
    for experiment, run_dir in models:
        measured = measure(experiment)
        rows.append(row(experiment, measured, run_dir))
        _say(measured, rows[-1])
        if out is not None:
            metrics.make_directory(out)
            metrics.rewrite(out / "diagnose.jsonl", rows)
            for path in render.write_files(_figure(experiment, measured), out):
                metrics.say(f"figure: {path}")
    if out is not None:
        metrics.say(f"rows: {out / 'diagnose.jsonl'}")
    counts = confusion(rows)
    for (said, ended), count in sorted(counts.items()):
        metrics.say(f"{count} of {counts.total()} runs: {said}, then {ended}")
    endings = [row for row in rows if row["ended"] in (LEARNED, STAYED)]
    if {row["ended"] for row in endings} == {LEARNED, STAYED}:
        metrics.say(
            f"the limit of the cosine that tells these {len(endings)} endings apart "
            f"best is {cosine_limit(endings):.3f}; verdicts use {Thresholds().cosine}"
        )
    return rows


def confusion(
    rows: Sequence[Mapping[str, Any]], limits: Thresholds = Thresholds()
) -> collections.Counter[tuple[str, str]]:
    """Count {(verdict without its layer, how the run ended)} of the rows of runs."""
    return collections.Counter(
        (kind(verdict(_found(row), limits)), row["ended"])
        for row in rows
        if row["ended"]
    )


def cosine_limit(rows: Sequence[Mapping[str, Any]]) -> float:
    """Choose the limit of the cosine from runs: what tells their two endings best.

    All rows are of runs that learned or stayed, and some are of each kind.
    It has the smallest sum of two shares: of runs that learned and are called
    collapsed, and of runs that did not and are not called so. Limits lie half-way
    between two neighboring largest cosines; of several, the one in the widest gap.
    """
    peaks = np.asarray([np.max(_found(row).token_cosine) for row in rows])
    stayed = np.asarray([row["ended"] != LEARNED for row in rows])
    sorted_peaks = np.unique(peaks)
    gaps, limits = np.diff(sorted_peaks), (sorted_peaks[1:] + sorted_peaks[:-1]) / 2

    def badness(limit: float) -> float:
        called = peaks > limit
        return round(float(np.mean(called[~stayed]) + np.mean(~called[stayed])), 9)

    order = [(badness(limit), -gap) for limit, gap in zip(limits, gaps, strict=True)]
    return float(limits[min(range(len(order)), key=order.__getitem__)])


def _found(row: Mapping[str, Any]) -> Found:
    return Found(*(np.asarray(row[name], np.float64) for name in Found._fields))


def kind(said: str) -> str:
    """Leave the layer out of a verdict."""
    return said.partition(" at layer")[0]


def row(
    experiment: Experiment, found: Found, run_dir: pathlib.Path | None
) -> dict[str, Any]:
    """Put what was measured, what is said of it and what became of it in one row."""
    ended: dict[str, Any] = {"loss": None, "unigram": None, "ended": ""}
    if run_dir is not None and runs.is_finished(run_dir):
        loss = metrics.read(run_dir / "measures.jsonl")[-1]["loss"]
        unigram = floors.add(experiment.data.dir)["unigram"]
        ended = {"loss": loss, "unigram": unigram, "ended": outcome(loss, unigram)}
    elif run_dir is not None:
        ended["ended"] = "has not come to its end"
    named = {
        "arm": experiment.arm,
        "seed": experiment.seed,
        "num_layers": experiment.model.num_layers,
        "verdict": verdict(found),
    }
    measures = {name: list(map(float, values)) for name, values in _items(found)}
    return named | ended | measures


def outcome(
    loss: float | None, unigram: float, limits: Thresholds = Thresholds()
) -> str:
    """Say where training ended; a loss that is None was not finite."""
    learned = loss is not None and loss < unigram - limits.plateau
    return LEARNED if learned else STAYED


def _items(found: Found) -> list[tuple[str, Numbers]]:
    return list(zip(Found._fields, found, strict=True))


def _say(found: Found, row: Mapping[str, Any]) -> None:
    metrics.say("layer " + " ".join(f"{name:>10}" for name, _ in MEASURES.values()))
    for layer, numbers in enumerate(zip(*found, strict=True), start=1):
        shown = zip(MEASURES.values(), numbers, strict=True)
        cells = (f"{number:>10{form}}" for (_, form), number in shown)
        metrics.say(f"{layer:5} " + " ".join(cells))
    ended = f"; it {row['ended']}" if row["ended"] else ""
    if row["unigram"] is not None:
        loss = "no finite loss" if row["loss"] is None else f"{row['loss']:.3f} nats"
        ended += f": {loss}, unigrams {row['unigram']:.3f}"
    metrics.say(f"{row['arm']} seed {row['seed']}: {row['verdict']}{ended}")


# Panel -> title, scale, and the measures that it shows with their labels.
_PANELS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "tokens": (
        "How alike tokens become",
        "linear",
        {
            "token_cosine": "cosine",
            "token_rank": "effective rank",
            "mean_share": "mean share",
        },
    ),
    "attention": (
        "What attention begins as",
        "linear",
        {"diagonal_mass": "on itself", "softest_mass": "on others, softest head"},
    ),
    "signals": (
        "What passes, and what comes back",
        "log",
        {
            "jacobian_max": "largest singular value",
            "jacobian_min": "smallest",
            "gradient_norm": "gradient's norm",
        },
    ),
}


def _figure(experiment: Experiment, found: Found) -> render.Figure:
    depths = np.arange(1, experiment.model.num_layers + 1)

    def panel(name: str) -> render.Panel:
        title, scale, shown = _PANELS[name]

        def draw(ax) -> None:
            ax.set_yscale(scale)
            for (field, label), look in zip(shown.items(), style.SPARE, strict=False):
                values = getattr(found, field)
                ax.plot(
                    depths, values, label=label, color=look.color, marker=look.marker
                )
            ax.set_xlabel("layer")
            ax.legend(frameon=False, fontsize=8)

        return render.Panel(name=name, title=title, draw=draw)

    return render.Figure(
        name=f"{experiment.arm}-seed-{experiment.seed}",
        title=f"{experiment.arm} at its initialization: {verdict(found)}",
        guide="Behind each block, before any training.",
        panels=[panel(name) for name in _PANELS],
    )
