"""Settle the names of arms: one name stands for one config (D78, D130).

A run that several sources hold counts once, under its first name. An arm whose name
another config has before it, in another source or in the same, takes what differs from
that into its own: `residual_adamw_num_layers_12`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rfq.errors import InputError


class Made(NamedTuple):
    """One config of an arm and seed.

    Attributes:
        fingerprint: Of the config; None where no file has it.
        config: What is known of what fixes an arm but its seed, by dotted path.
    """

    arm: str
    seed: int
    fingerprint: str | None
    config: Mapping[str, Any]

    def differences(self, other: "Made") -> list[str]:
        """List the fields that both tell and in which they differ."""
        theirs = other.config
        return [p for p, x in sorted(self.config.items()) if x != theirs.get(p, x)]

    def apart(self, other: "Made") -> bool:
        """Say whether one name stands for two configs."""
        prints = {self.fingerprint, other.fingerprint} - {None}
        another = self.seed == other.seed and len(prints) > 1
        return self.arm == other.arm and (another or bool(self.differences(other)))


class Names:
    """The configs that have a name so far, under that name."""

    def __init__(self) -> None:
        self.taken: list[Made] = []

    def settle(
        self, configs: Sequence[Made], where: pathlib.Path
    ) -> tuple[list[str | None], list[str]]:
        """Name the configs of a source.

        Returns:
            The name of each config, None for one that counted before, and a phrase for
            each of these.

        Raises:
            InputError: two configs of one name cannot be told apart.
        """
        names: list[str | None] = [None] * len(configs)
        again = []
        # Further configs of a name are settled like those of a further source.
        for group in _groups(configs):
            before, named = list(self.taken), []
            held = {(m.fingerprint, m.seed): m.arm for m in before if m.fingerprint}
            homes: dict[tuple[str, int], str] = {}
            for at in group:
                made = configs[at]
                home = (made.arm, made.seed)
                twin = held.get((made.fingerprint or "", made.seed))
                if home in homes:
                    names[at] = homes[home]
                elif twin is None:
                    beside = [*named, *(configs[i] for i in group)]
                    names[at] = homes[home] = _name(made, before, beside, where)
                    named.append(made._replace(arm=homes[home]))
                else:
                    again.append(f"{made.arm} (seed {made.seed}) is {twin}")
            self.taken += named
        return names, again


def _groups(configs: Sequence[Made]) -> list[list[int]]:
    """Put configs into groups in which each name stands for one."""
    groups: list[list[int]] = []
    for at, made in enumerate(configs):
        fit = (g for g in groups if not any(made.apart(configs[i]) for i in g))
        group = next(fit, None)
        if group is None:
            groups.append(group := [])
        group.append(at)
    return groups


def _name(
    made: Made, taken: Sequence[Made], beside: Sequence[Made], where: pathlib.Path
) -> str:
    """Return the arm's name, with what differs if another config has it.

    Args:
        made: What is named.
        taken: What was named before.
        beside: What this source holds, under its own names and under final ones.
        where: The source.
    """
    rival = next((m for m in taken if m.arm == made.arm and m.apart(made)), None)
    changed = rival.differences(made) if rival else []
    parts = [f"{path.split('.')[-1]}_{made.config[path]}" for path in changed]
    own = made._replace(arm="_".join([made.arm, *parts]))
    before = [m for m in taken if m.arm == own.arm]
    known = [*before, *(m for m in beside if changed and m.arm == own.arm)]
    if any(m.apart(own) or m.seed == own.seed for m in known) or any(
        not m.config.keys() & own.config.keys() for m in before
    ):
        raise InputError(
            f"arm {made.arm!r} (seed {made.seed}) of {where} has the name of another "
            "config, and what is recorded does not tell them apart; give one another "
            "--arm"
        )
    return own.arm
