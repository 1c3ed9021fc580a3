"""The compiled functions, and the only place that compiles.

Every function here is a pure function of arrays with static shapes. Which taps sit in
the model is static (another `Seams` is another program); weights, ranges and bit widths
are data, so that a whole grid of WnAm settings runs through one program.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rfq import gradients, objective, optim, sharding, taps
from rfq import params as params_lib
from rfq.experiment import Experiment
from rfq.model import config as model_config
from rfq.model import init as init_lib
from rfq.model import layers, matrices, products, transformer
from rfq.model.config import BLOCK_SITES, SITES, TAP_SETS, ModelConfig
from rfq.optim import build, schedule
from rfq.quant import distortion, grid, propagation, weights
from rfq.stats import bins, holders
from rfq.tasks import scoring
from rfq.types import Array, Batch, Params, Record, SiteState, Turns


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step, and only arrays."""

    step: Array
    params: Params
    opt_state: Any


# {site: what it is rounded to}, leaves [L] or scalars; host numbers enter as data.
Targets = Mapping[str, grid.Grid | grid.Dynamic]
# {site: magnitude}, up to which a value belongs to the bulk; shapes as Targets.
Limits = dict[str, np.ndarray]
# {site: where its histogram's bins lie}; shapes as Targets.
Binnings = dict[str, bins.Binning]


@dataclasses.dataclass(frozen=True)
class TrainSteps:
    """The functions that `train.run` calls.

    Attributes:
        state: The abstract `TrainState`, with shardings.
        init: (key, parameters of another run, default none) -> state; what those lack
            is drawn.
        train: (state, batch) -> (state, metrics); the old state is donated.
        measure: (params, batch) -> (losses [B], {site: {statistic: record}}).
        diagnose: opt_state -> named scalars; apart from `train` because looking at
            bases and eigenvalues costs more than stepping with them.
        finite: state -> True if every number of it is finite; what may be saved.
    """

    state: TrainState
    init: Callable[..., TrainState]
    train: jax.stages.Wrapped
    measure: Callable[[Params, Batch], tuple[Array, dict[str, Record]]]
    diagnose: Callable[[Any], dict[str, Array]]
    finite: Callable[[TrainState], Array]


def compile_train(experiment: Experiment, mesh: Mesh) -> TrainSteps:
    """Build the functions of a training run; each compiles at its first call."""
    config = model_config.attention_on(experiment.model, mesh.devices.flat[0])
    experiment = dataclasses.replace(experiment, model=config)
    shapes = transformer.shapes(config)
    placing = sharding.placing(mesh)
    params_placed = sharding.params_shardings(mesh, shapes)
    rate = schedule.make(
        experiment.schedule,
        experiment.optimizer.learning_rate,
        experiment.train.num_steps,
    )
    optimizer = build.build(
        experiment.optimizer,
        experiment.schedule,
        experiment.train.num_steps,
        axes=params_lib.matrix_axes(shapes),
        decay_mask=params_lib.decayed(shapes),
        clip_norm=experiment.train.clip_norm,
        placement=params_placed if mesh.size > 1 else None,
    )
    plain = transformer.Seams(placing=placing)

    def init(key: Array, given: Params | None = None) -> TrainState:
        drawn = init_lib.init(experiment.init, config, key=key)
        params = params_lib.overlaid(drawn, given or {})
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    minimized = objective.make(experiment, plain)

    def train(state: TrainState, batch: Batch):
        with _matmul_precision(config):
            values, grads = gradients.accumulated(
                lambda params, part: minimized(params, part, state.step),
                state.params,
                batch,
                experiment.sharding.microbatches,
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {
            **values,
            "learning_rate": rate(state.step),
            "grad_norm": gradients.global_norm(grads),
        }
        params = cast(Params, optax.apply_updates(state.params, updates))
        params = _annealed(params, state.step + 1, experiment)
        return TrainState(state.step + 1, params, opt_state), metrics

    log = experiment.log
    tap = taps.Measure(log.statistics, log.sample_tokens)
    measured = transformer.Seams(
        taps.Taps(tap, (*BLOCK_SITES, "final_norm_in")), placing=placing
    )

    def measure(params: Params, batch: Batch):
        return _sequence_losses(params, batch, model_config.rolled(config), measured)

    def finite(state: TrainState) -> Array:
        return jnp.all(
            jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)])
        )

    abstract = jax.eval_shape(init, jax.random.key(0))
    placed = sharding.state_shardings(mesh, abstract, shapes)
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return TrainSteps(
        state=_declared(abstract, placed),
        init=jax.jit(init, out_shardings=placed),
        train=jax.jit(
            train,
            in_shardings=(placed, rows),
            out_shardings=(placed, everywhere),
            donate_argnums=0,
        ),
        measure=jax.jit(
            measure,
            in_shardings=(placed.params, rows),
            out_shardings=everywhere,
        ),
        diagnose=jax.jit(
            optim.diagnostics,
            in_shardings=(placed.opt_state,),
            out_shardings=everywhere,
        ),
        finite=jax.jit(finite, in_shardings=(placed,), out_shardings=everywhere),
    )


@dataclasses.dataclass(frozen=True)
class Programs:
    """One function of a batch, under every kind of setting.

    Attributes:
        plain: (params, batch) -> result, no quantized activation.
        as_trained: the same in the dtype of training.
        quantized: stream -> (params, batch, targets) -> result.
    """

    plain: Callable[[Params, Any], Any]
    as_trained: Callable[[Params, Any], Any]
    quantized: dict[str, Callable[[Params, Any, Targets], Any]]


@dataclasses.dataclass(frozen=True)
class QuantSteps:
    """What `ptq` and `measure` call. All but `as_trained` compute in float32 (D9).

    Attributes:
        params: The abstract parameters, with shardings.
        quantize: (params, weight_bits, scheme) -> params on their grids.
        weigh: params -> {matrix: {statistic: one number a layer}}.
        calibrate: (params, batch) -> {site: {"range", "moments", "binning"}} over the
            tap set.
        score: batch -> losses [B].
        answer: `scoring.Rows` -> log-probabilities of the tokens they ask for, [G, P],
            and whether each is the likeliest.
        distort: (params, batch, targets, bulk limits) -> {site: Effect}.
        diverge: stream -> (clean params, quantized params, batch, targets) ->
            {site: Distortion} of the clean model against the quantized one, at the
            taps' sites and at "head_in".
        propagate: stream -> (params, batch) -> {source: {target: [L, L]}}, how much of
            an error of the source arrives at the target (`quant.propagation`), at the
            taps' sites and at "head_in".
        loss_per_error: (params, batch) -> nats a token that an error at "head_in" costs
            (`propagation.loss_per_error`).
        measure: (params, batch) -> {site: {statistic: record}} at every site: all that
            one pass can tell, and the binning for the next.
        histogram: (params, batch, {site: Binning}) -> {site: {"histogram": Sample}} of
            all values at those sites.
        hold: (params, batch, `Mark` of documents) -> {site: `Holders`} at every site.
    """

    params: Params
    quantize: Callable[..., Params]
    weigh: Callable[[Params], dict[str, dict[str, Array]]]
    calibrate: Callable[[Params, Batch], dict[str, Record]]
    score: Programs
    answer: Programs
    distort: Callable[[Params, Batch, Targets, Limits], dict[str, taps.Effect]]
    diverge: dict[str, Callable[..., dict[str, distortion.Distortion]]]
    propagate: dict[str, Callable[[Params, Batch], dict[str, dict[str, Array]]]]
    loss_per_error: Callable[[Params, Batch], Array]
    measure: Callable[[Params, Batch], dict[str, Record]]
    histogram: Callable[[Params, Batch, Binnings], dict[str, Record]]
    hold: Callable[[Params, Batch, holders.Mark], dict[str, Record]]


def compile_quant(
    experiment: Experiment, mesh: Mesh, tap_set: str, turns: Turns = ()
) -> QuantSteps:
    """Build the functions of a quantization sweep over one tap set.

    The activations of a model with rotated weights take `turns`, as `Seams`.
    """
    trained = model_config.attention_on(experiment.model, mesh.devices.flat[0])
    trained = model_config.rolled(trained)
    config = model_config.in_float32(trained)
    tapped = TAP_SETS[tap_set]
    plain = transformer.Seams(placing=sharding.placing(mesh), turns=turns)

    def seams(tap, sites, stream: str = "branch") -> transformer.Seams:
        return dataclasses.replace(
            plain, taps=taps.Taps(tap, sites), stream=layers.STREAMS[stream]
        )

    def records(params: Params, batch: Batch, tap, sites, states=None):
        with _matmul_precision(config):
            return transformer.features(
                params, batch[:, :-1], config, seams(tap, sites), states
            )[1]

    sample = experiment.quantize.sample_tokens
    first_pass = taps.Measure(
        tuple(name for name, row in taps.STATISTICS.items() if not row.binned), sample
    )
    observed = taps.Measure(("range", "moments", "binning"), sample)

    def quantize(params: Params, weight_bits: Array, scheme: str = "asymmetric"):
        axes = params_lib.quantized_axes
        return weights.quantize(params, weight_bits, axes=axes, scheme=scheme)

    def calibrate(params: Params, batch: Batch):
        return records(params, batch, observed, tapped)

    def distort(params, batch, targets: Targets, limits: Limits):
        states = {
            site: taps.Probe(target, jnp.asarray(limits[site]))
            for site, target in targets.items()
        }
        return records(params, batch, taps.measure_distortion, tapped, states)

    def diverge(stream: str):
        both = seams(taps.measure_divergence, tapped, stream)

        def compare(clean, quantized, batch, targets: Targets):
            def one(params: Params):
                return transformer.features(
                    params, batch[:, :-1], config, both, targets
                )

            pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), clean, quantized)
            with _matmul_precision(config):
                h_2BTD, distortions = jax.vmap(one, axis_name=taps.PAIR)(pair)
            first = jax.tree.map(lambda leaf: leaf[0], distortions)
            # A tapped head rounds its input; the input before rounding is compared.
            return {"head_in": distortion.measure(*h_2BTD)} | first

        return compare

    def few(batch: Batch) -> Array:
        num_tokens = experiment.quantize.gain_tokens
        return batch[: max(1, num_tokens // batch.shape[1]), :-1][:, :num_tokens]

    def loss_per_error(params: Params, batch: Batch) -> Array:
        with _matmul_precision(config):
            h_BTD, _ = transformer.features(params, few(batch), config, plain)
            head = transformer.head(params, config, transformer.PLAIN, None)
            return propagation.loss_per_error(head, h_BTD, key=jax.random.key(0))

    def propagate(stream: str):
        perturbed = seams(taps.perturb, tapped, stream)

        def enter(params: Params, tokens_BT: Array, errors: Mapping[str, Array]):
            states = {s: e if s in BLOCK_SITES else e[0] for s, e in errors.items()}
            with _matmul_precision(config):
                h_BTD, records = transformer.features(
                    params, tokens_BT, config, perturbed, states
                )
            entered = {"head_in": h_BTD} | records
            return {s: x if s in BLOCK_SITES else x[None] for s, x in entered.items()}

        def gains(params: Params, batch: Batch):
            tokens_BT = few(batch)
            entered = jax.eval_shape(enter, params, tokens_BT, {})
            unmoved = {s: jnp.zeros(entered[s].shape, jnp.float32) for s in tapped}
            run = functools.partial(enter, params, tokens_BT)
            return propagation.gains(run, unmoved, key=jax.random.key(0))

        return gains

    def measure(params: Params, batch: Batch):
        return records(params, batch, first_pass, SITES)

    def hold(params: Params, batch: Batch, mark: holders.Mark):
        starts_BT = holders.starts(batch[:, :-1], mark)
        starts_LBT = jnp.broadcast_to(starts_BT, (config.num_layers, *starts_BT.shape))
        states = {s: starts_LBT if s in BLOCK_SITES else starts_BT for s in SITES}
        return records(params, batch, taps.measure_holders, SITES, states)

    def histogram(params: Params, batch: Batch, binnings: Binnings):
        binned = tuple(name for name, row in taps.STATISTICS.items() if row.binned)
        tap = taps.Measure(binned)
        return records(params, batch, tap, tuple(binnings), binnings)

    def score(params: Params, batch: Batch, *model) -> Array:
        return _sequence_losses(params, batch, *model)[0]

    def answer(params: Params, rows: scoring.Rows, config: ModelConfig, *model):
        with _matmul_precision(config):
            return transformer.target_log_probs(params, *rows, config, *model)

    def programs(of: Callable[..., Any]) -> Programs:
        """Compile of(params, batch, config, seams, states)."""

        def quantized(stream: str):
            fake = seams(taps.fake_quantize, tapped, stream)

            def run(params: Params, batch: Any, targets: Targets):
                return of(params, batch, config, fake, targets)

            return compiled(_named(run, of), everywhere)

        def unquantized(config: ModelConfig):
            def run(params: Params, batch: Any):
                return of(params, batch, config, plain, None)

            return compiled(_named(run, of))

        return Programs(
            unquantized(config),
            unquantized(trained),
            {stream: quantized(stream) for stream in layers.STREAMS},
        )

    shapes = transformer.shapes(config)
    placed = sharding.params_shardings(mesh, shapes)
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    def jitted(function, *placements):
        return jax.jit(function, in_shardings=placements, out_shardings=everywhere)

    def compiled(function, *more):
        return jitted(function, placed, rows, *more)

    return QuantSteps(
        params=_declared(shapes, placed),
        quantize=jax.jit(
            quantize,
            static_argnums=2,
            in_shardings=(placed, everywhere),
            out_shardings=placed,
        ),
        weigh=jitted(matrices.describe, placed),
        calibrate=compiled(calibrate),
        score=programs(score),
        answer=programs(answer),
        distort=compiled(distort, everywhere, everywhere),
        diverge={
            stream: jitted(diverge(stream), placed, placed, rows, everywhere)
            for stream in layers.STREAMS
        },
        propagate={s: compiled(propagate(s)) for s in layers.STREAMS},
        loss_per_error=compiled(loss_per_error),
        measure=compiled(measure),
        histogram=compiled(histogram, everywhere),
        hold=compiled(hold, everywhere),
    )


@dataclasses.dataclass(frozen=True)
class IntegerSteps:
    """The functions that `export` calls; they compute on integers or in float32.

    Attributes:
        params: The abstract parameters, with shardings.
        encode: (params, weight_bits) -> (params with codes for matrices, their grids).
        score: (params with codes, batch, states) -> losses [B], on integers; states
            are a `Grid` for each site of the full tap set and `integer.Operands` for
            each weight.
        score_weights_only: the same with {weight: Grid} as states.
    """

    params: Params
    encode: Callable[[Params, int], tuple[Params, Params]]
    score: Callable[[Params, Batch, dict[str, SiteState]], Array]
    score_weights_only: Callable[[Params, Batch, dict[str, SiteState]], Array]


def compile_integer(experiment: Experiment, mesh: Mesh, stream: str) -> IntegerSteps:
    """Build the functions of a model whose hidden matrices are integers."""
    config = model_config.in_float32(model_config.rolled(experiment.model))
    shapes = transformer.shapes(config)
    placed = sharding.params_shardings(mesh, shapes)
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    def compiled(dot: products.Dot, tap):
        seams = transformer.Seams(
            taps.Taps(tap, TAP_SETS["full"]),
            layers.STREAMS[stream],
            dot,
            sharding.placing(mesh),
        )

        def score(params: Params, batch: Batch, states: dict[str, SiteState]) -> Array:
            return _sequence_losses(params, batch, config, seams, states)[0]

        return jax.jit(
            score, in_shardings=(placed, rows, everywhere), out_shardings=everywhere
        )

    return IntegerSteps(
        params=_declared(shapes, placed),
        encode=jax.jit(
            functools.partial(weights.encode, axes=params_lib.quantized_axes),
            static_argnums=1,
            in_shardings=(placed,),
            out_shardings=everywhere,
        ),
        score=compiled(products.integer_matmul, taps.fake_quantize),
        score_weights_only=compiled(products.dequantized_matmul, taps.identity),
    )


def _annealed(params: Params, step: Array, experiment: Experiment) -> Params:
    """Set the skip's weight of this step, which no optimizer trains."""
    share = experiment.train.skip_anneal
    if share == 0.0:
        return params
    left = jnp.maximum(0.0, 1.0 - step / (share * experiment.train.num_steps))
    blocks = params["blocks"]
    weight = jnp.full_like(blocks["skip_weight"], experiment.init.skip_weight * left)
    return {**params, "blocks": {**blocks, "skip_weight": weight}}


def _sequence_losses(params, batch, config: ModelConfig, seams, states=None):
    """Compute the mean next-token loss of each sequence [B], and the taps' records."""
    with _matmul_precision(config):
        losses_BT, records = transformer.token_losses(
            params, batch, config, seams, states
        )
    return jnp.mean(losses_BT, axis=1), records


def _named(function: Callable[..., Any], after: Callable[..., Any]):
    """Give a function the name under which profiles and caches show its program."""
    function.__name__ = after.__name__
    return function


def _declared(shapes, placed):
    """Make abstract arrays with their shardings."""
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        shapes,
        placed,
    )


def _matmul_precision(config: ModelConfig):
    """Ask for full float32 products with float32: TF32 could not carry A12."""
    highest = config.compute_dtype == "float32"
    return jax.default_matmul_precision("highest" if highest else "default")
