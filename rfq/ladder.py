"""The methods of a setting that change the model before, or while, it is rounded.

"rotate" and "smooth" give other parameters of the same function, whose values are
easier to round; "gptq" rounds weights with regard to what they multiply. A setting
without methods compiles and computes nothing of this.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rfq import params as params_lib
from rfq import runs, sharding, steps, taps
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.memo import once
from rfq.model import config as model_config
from rfq.model import layers, transformer
from rfq.model.config import FED_BY, TAP_SETS
from rfq.quant import gptq, rotate, smooth
from rfq.rows import Setting
from rfq.types import Array, Batch, Params, Turns

# SmoothQuant's alpha at each site: half of what a channel reaches moves to the weights.
ALPHAS: Mapping[str, float] = dict.fromkeys(smooth.FOLDS, 0.5)


class Recipe(NamedTuple):
    """What makes the weights of a setting, beside their width and their scheme.

    Attributes:
        is_rotated: Whether the model is turned.
        smoothed: The tap set whose sites are smoothed, or "" for none.
        is_compensated: Whether GPTQ rounds.
        seed: The draw of calibration tokens, or 0 where none are looked at.
    """

    is_rotated: bool = False
    smoothed: str = ""
    is_compensated: bool = False
    seed: int = 0

    @property
    def unrounded(self) -> "Recipe":
        """The recipe of the full-precision parameters of the same form."""
        return self._replace(
            is_compensated=False, seed=self.seed if self.smoothed else 0
        )


def recipe(setting: Setting) -> Recipe:
    """Read the recipe off the methods of a setting."""
    methods = setting.methods.split("+")
    found = Recipe(
        is_rotated="rotate" in methods,
        smoothed=setting.taps if "smooth" in methods else "",
        is_compensated="gptq" in methods,
    )
    needs_data = found.smoothed or found.is_compensated
    return found._replace(seed=setting.calibration_seed if needs_data else 0)


def form(experiment: Experiment, is_rotated: bool) -> tuple[Experiment, Turns]:
    """Return the experiment of a model as trained or as rotated, and its turns."""
    if not is_rotated:
        return experiment, ()
    model = model_config.unfolded(experiment.model)
    return dataclasses.replace(experiment, model=model), _rotations(experiment).online


def _rotations(experiment: Experiment) -> rotate.Rotations:
    c = experiment.model
    return rotate.draw(c.width, c.head_width, c.mlp_width)


@dataclasses.dataclass(frozen=True)
class LadderSteps:
    """The compiled functions of the methods, all in float32.

    Attributes:
        rotate: params -> params of the rotated form.
        peaks: (params, batch) -> {site: max |x| [L, channels]}.
        smooth: (params, peaks) -> params.
        grams: (params, batch) -> {site: X^T X / tokens [L, K, K]}.
        round: (params, weight_bits, scheme, grams) -> params on their grids.
    """

    rotate: Callable[[Params], Params]
    peaks: Callable[[Params, Batch], dict[str, Array]]
    smooth: Callable[[Params, Mapping[str, Array]], Params]
    grams: Callable[[Params, Batch], dict[str, Array]]
    round: Callable[..., Params]


def compile_ladder(
    experiment: Experiment, mesh: Mesh, is_rotated: bool, smoothed: str
) -> LadderSteps:
    """Build the functions; each compiles at its first call.

    Args:
        experiment: As trained.
        mesh: The devices.
        is_rotated: Whether the parameters that come in, but for `rotate`, are rotated.
        smoothed: The tap set whose sites `peaks` and `smooth` look at, or "".
    """
    formed, turns = form(experiment, is_rotated)
    config = model_config.in_float32(model_config.rolled(formed.model))
    as_trained = sharding.params_shardings(mesh, transformer.shapes(experiment.model))
    placed = sharding.params_shardings(mesh, transformer.shapes(config))
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    mlp_is_gated = bool(layers.MLPS[config.mlp].leaves)
    sites = smooth.foldable(
        TAP_SETS[smoothed] if smoothed else (),
        is_gated=mlp_is_gated,
        is_rotated=is_rotated,
    )
    weights = [name for name in transformer.shapes(config)["blocks"] if name in FED_BY]

    def records(tap, sites: Sequence[str]):
        seams = transformer.Seams(
            taps.Taps(tap, tuple(sites)), placing=sharding.placing(mesh), turns=turns
        )

        def run(params: Params, batch: Batch) -> dict[str, Array]:
            with jax.default_matmul_precision("highest"):
                found = transformer.features(params, batch[:, :-1], config, seams)
            return found[1]

        run.__name__ = tap.__name__  # Profiles and caches show it.
        return jax.jit(run, in_shardings=(placed, rows), out_shardings=everywhere)

    def rotated(params: Params) -> Params:
        return rotate.rotated(params, _rotations(experiment))

    def smoothed_by(params: Params, peaks: Mapping[str, Array]) -> Params:
        return smooth.smoothed(params, peaks, {site: ALPHAS[site] for site in sites})

    def round_with(params: Params, weight_bits: Array, scheme: str, grams):
        tree = {**jax.tree.map(lambda _: None, dict(params)), "blocks": {}}
        for name in params["blocks"]:
            tree["blocks"][name] = grams.get(FED_BY.get(name))
        axes = params_lib.quantized_axes
        return gptq.quantize(params, weight_bits, tree, axes=axes, scheme=scheme)

    return LadderSteps(
        rotate=jax.jit(rotated, in_shardings=(as_trained,), out_shardings=placed),
        peaks=records(taps.measure_peaks, sites),
        smooth=jax.jit(
            smoothed_by, in_shardings=(placed, everywhere), out_shardings=placed
        ),
        grams=records(taps.measure_gram, sorted({FED_BY[name] for name in weights})),
        round=jax.jit(
            round_with,
            static_argnums=2,
            in_shardings=(placed, everywhere, everywhere),
            out_shardings=placed,
        ),
    )


def prepared(
    params: Params, recipe: Recipe, compiled: LadderSteps, batches: Sequence[Batch]
) -> Params:
    """Bring full-precision parameters into the form of a recipe.

    Args:
        params: As trained.
        recipe: The form.
        compiled: The functions of this form.
        batches: Calibration tokens, where the recipe is smoothed.
    """
    if recipe.is_rotated:
        params = compiled.rotate(params)
    if recipe.smoothed:
        seen = taps.by_site(compiled.peaks(params, batch) for batch in batches)
        peaks = {site: np.max(found, axis=0) for site, found in seen.items()}
        params = compiled.smooth(params, peaks)
    return params


def grams(
    params: Params, compiled: LadderSteps, batches: Sequence[Batch]
) -> dict[str, np.ndarray]:
    """Average X^T X of what meets each weight over batches, in float64.

    The activations are those of the full-precision model: every layer and every width
    then shares one pass.

    Raises:
        InputError: NaN or inf came past a site.
    """
    seen = taps.by_site(compiled.grams(params, batch) for batch in batches)
    found: dict[str, np.ndarray] = {}
    for site, each in seen.items():
        mean = np.asarray(np.mean(each, axis=0, dtype=np.float64))
        if not np.isfinite(mean).all():
            raise InputError(
                f"site {site!r} produced NaN or inf during calibration; evaluate the "
                "checkpoint in full precision first, it may have diverged"
            )
        found[site] = mean.astype(np.float32)
    return found


class Models:
    """The parameters of a run under every recipe; each is computed once."""

    def __init__(
        self,
        experiment: Experiment,
        run_dir: pathlib.Path,
        mesh: Mesh,
        calibration: Callable[[int], Sequence[Batch]],
    ):
        self._experiment = experiment
        self._run_dir = run_dir
        self._mesh = mesh
        self._calibration = calibration

    @once
    def programs(self, taps: str, is_rotated: bool) -> steps.QuantSteps:
        """Return the functions of the model as trained or as rotated."""
        formed, turns = form(self._experiment, is_rotated)
        return steps.compile_quant(formed, self._mesh, taps, turns)

    @property
    def trained(self) -> steps.QuantSteps:
        """The functions of the model as trained."""
        return self.programs(self._experiment.quantize.taps[0], False)

    @functools.cached_property
    def params(self) -> Params:
        """The parameters as trained."""
        return runs.final_params(self._experiment, self._run_dir, self.trained.params)

    @once
    def _compiled(self, is_rotated: bool, smoothed: str) -> LadderSteps:
        return compile_ladder(self._experiment, self._mesh, is_rotated, smoothed)

    @functools.partial(once, keep=2)
    def unrounded(self, recipe: Recipe) -> Params:
        """Return the full-precision parameters of an unrounded recipe."""
        if recipe == Recipe():
            return self.params
        batches = self._calibration(recipe.seed) if recipe.smoothed else []
        compiled = self._compiled(recipe.is_rotated, recipe.smoothed)
        return prepared(self.params, recipe, compiled, batches)

    @functools.partial(once, keep=1)
    def _grams(self, recipe: Recipe) -> dict[str, np.ndarray]:
        compiled = self._compiled(recipe.is_rotated, recipe.smoothed)
        params = self.unrounded(recipe.unrounded)
        return grams(params, compiled, self._calibration(recipe.seed))

    @functools.partial(once, keep=1)
    def quantized(self, weight_bits: int | None, scheme: str, recipe: Recipe) -> Params:
        """Return the parameters of a recipe, rounded; None leaves full precision."""
        params = self.unrounded(recipe.unrounded)
        if weight_bits is None:
            return params
        bits = jnp.int32(weight_bits)
        if recipe.is_compensated:
            compiled = self._compiled(recipe.is_rotated, recipe.smoothed)
            return compiled.round(params, bits, scheme, self._grams(recipe))
        first = self._experiment.quantize.taps[0]
        return self.programs(first, recipe.is_rotated).quantize(params, bits, scheme)
