"""The configs as functions with keyword arguments, in the manner of optax.

`transform(MuonConfig)` is `rfq.optim.muon`, and `direction(MuonConfig)` is
`rfq.optim.scale_by_muon`: their arguments, with types, defaults and explanations, are
the fields of the config.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rfq.optim import build, matrix
from rfq.optim.axes import Axes

_ARGUMENTS = {
    "learning_rate": "rate a, a number or a schedule.",
    "other_learning_rate": (
        "rate of the other leaves, likewise; None is `learning_rate`."
    ),
    "axes": (
        "which leaves are matrices: a tree like the parameters with an "
        "`optim.MatrixAxes` or None at each leaf, or a function of the parameters that "
        "makes one (`optim.axes_by_path`, `optim.scanned_axes`); None takes the leaves "
        "with two axes. `optim.describe` shows what comes of it."
    ),
    "mask": "which leaves decay, as in `optax.adamw`; None is all of them.",
    "placement": (
        "where the parameters live, see `rfq.optim.matrix.scale_by_rule`; None is one "
        "device."
    ),
}
_RATES = ("learning_rate", "other_learning_rate")
_KINDS: Mapping[str, object] = {
    "learning_rate": optax.ScalarOrSchedule,
    "other_learning_rate": optax.ScalarOrSchedule | None,
    "axes": Axes,
    "mask": build.Mask,
    "placement": matrix.Placement,
}
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_WORDS = ("auto", "full")  # What a field called ..._dtype may be besides a type.


class _Fixed:
    """A default integer, which `optax.inject_hyperparams` must not trace."""

    def __init__(self, value: int):
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def transform(
    config: type[build.OptimizerConfig], name: str
) -> Callable[..., optax.GradientTransformation]:
    """Make the optax optimizer `name` of a config: (learning_rate, *, fields...)."""
    matrices = issubclass(config, build.MatrixConfig)
    rates = _RATES if matrices else _RATES[:1]
    extra = ("axes", "mask", "placement") if matrices else ("mask",)
    fields = [f for f in dataclasses.fields(config) if f.name not in _RATES]

    def make(given: dict[str, Any]) -> optax.GradientTransformation:
        rate, other = given["learning_rate"], given.get("other_learning_rate")
        return build.assemble(
            config(**_values(fields, given), **_numbers(given, rates)),
            rate,
            rate if other is None else other,
            axes=given["axes"] if matrices else _no_matrix,
            mask=given["mask"],
            clip_norm=None,
            placement=given.get("placement"),
        )

    example = f"""
    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq import optim
        >>> params = {{"w": jnp.ones((4, 3)), "b": jnp.ones(3)}}
        >>> optimizer = optim.{name}(1e-3, weight_decay=0.1)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> updates["w"].shape
        (4, 3)
    """
    first = f"Makes an optax optimizer with the fields of `{config.__name__}`."
    return _function(name, config, first, (*rates, *extra), fields, make, example)


def direction(
    config: type[build.OptimizerConfig], name: str
) -> Callable[..., optax.GradientTransformation]:
    """Make the optax transform `name` of a config: what it does to its matrices.

    It neither has a rate nor decays, and every leaf must have matrix axes, unless the
    config does the same to all leaves.
    """
    matrices = issubclass(config, build.MatrixConfig)
    extra = ("axes", "placement") if matrices else ()
    fields = [
        f
        for f in dataclasses.fields(config)
        if f.name not in {*_RATES, "weight_decay", "decay", "rates", "anchors"}
        and not f.name.startswith("adam_")
    ]

    def make(given: dict[str, Any]) -> optax.GradientTransformation:
        made = config(**_values(fields, given))
        return made.directions(given.get("axes"), given.get("placement")).matrix

    example = f"""
    Examples:
        >>> import optax
        >>> from rfq import optim
        >>> optimizer = optax.chain(
        ...     optim.{name}(), optax.scale_by_learning_rate(1e-3)
        ... )
    """
    first = f"Makes the direction of `{config.__name__}`, without rate and decay."
    return _function(name, config, first, extra, fields, make, example)


def _function(
    name: str,
    config: type,
    first: str,
    extra: tuple[str, ...],
    fields: list[dataclasses.Field],
    make: Callable[[dict[str, Any]], optax.GradientTransformation],
    example: str,
) -> Callable[..., optax.GradientTransformation]:
    own = {field.name: (field.type, _default(field)) for field in fields}
    shared = {key: (_KINDS[key], None) for key in extra}
    rates = {key: shared.pop(key) for key in _RATES if key in shared}
    signature = inspect.Signature(
        [
            inspect.Parameter(key, _KEYWORD, annotation=kind, default=default)
            if key != "learning_rate"
            else inspect.Parameter(key, _POSITIONAL, annotation=kind)
            for key, (kind, default) in {**rates, **own, **shared}.items()
        ],
        return_annotation=optax.GradientTransformation,
    )

    def function(*args: Any, **options: Any) -> optax.GradientTransformation:
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        bound.apply_defaults()
        return make(bound.arguments)

    summary, _, _ = inspect.cleandoc(config.__doc__ or "").partition("\n")
    explained = {**_attributes(config), **_ARGUMENTS}
    lines = [f"        {key}: {explained[key]}" for key in signature.parameters]
    arguments = "\n".join(["    Args:", *lines]) if lines else ""
    function.__doc__ = f"{first} {summary}\n\n{arguments}\n{example}"
    function.__name__ = function.__qualname__ = name
    function.__module__ = "rfq.optim"
    function.__signature__ = signature
    return function


def _attributes(config: type) -> dict[str, str]:
    """Collect the explanations of a config's fields from its classes' docstrings."""
    explanations = {}
    for base in reversed(config.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.M):
            explanations[name] = " ".join(text.split())
    return explanations


def _default(field: dataclasses.Field) -> Any:
    if callable(field.default_factory):
        return field.default_factory()
    fixed = isinstance(field.default, int) and not isinstance(field.default, bool)
    return _Fixed(field.default) if fixed else field.default


def _values(
    fields: list[dataclasses.Field], given: Mapping[str, Any]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in (field.name for field in fields):
        value: Any = given[name]
        if isinstance(value, _Fixed):
            value = value.value
        if name.endswith("_dtype") and value is not None and value not in _WORDS:
            value = jnp.dtype(value).name
        values[name] = value
    return values


def _numbers(given: Mapping[str, Any], rates: tuple[str, ...]) -> dict[str, float]:
    return {key: given[key] for key in rates if isinstance(given[key], int | float)}


def _no_matrix(params: optax.Params) -> Any:
    return jax.tree.map(lambda _: None, params)
