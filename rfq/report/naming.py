"""Settle the names of arms: one name stands for one config (D78, D130, D160).

A run that several sources hold has one name. An arm whose name another config has takes
what differs from that into its own, as `residual_adamw_num_layers_12`. Where nothing
that is recorded differs, it takes the name of its source.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# What rows tell of their config: where a config has it, and the field of a row.
TOLD = {
    "model.num_layers": "num_layers",
    "model.width": "width",
    "model.skip": "skip",
    "optimizer.name": "optimizer",
    "data": "data_fingerprint",
}


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

    def twin(self, other: "Made") -> bool:
        """Say whether both are one run."""
        same = self.fingerprint == other.fingerprint and self.seed == other.seed
        return same and self.fingerprint is not None and not self.differences(other)

    def apart(self, other: "Made") -> bool:
        """Say whether two configs of one arm cannot share its name."""
        prints = {self.fingerprint, other.fingerprint} - {None}
        another = self.seed == other.seed and len(prints) > 1
        return another or bool(self.differences(other))

    def clashes(self, other: "Made") -> bool:
        """Say whether two configs of one arm, of two sources, may not share a name."""
        unknown = not self.config.keys() & other.config.keys()
        return self.apart(other) or self.seed == other.seed or unknown


def settle(configs: Sequence[Made], taken: list[Made], source: str) -> list[str]:
    """Name the configs of a source, and add them to those that have a name.

    Args:
        configs: Under their own names.
        taken: The configs of the sources before, under their settled names.
        source: What the source is called.
    """
    names: dict[int, str] = {}
    for group in _groups(configs):
        new = []
        for at in group:
            twin = next((m for m in taken if m.twin(configs[at])), None)
            if twin:
                names[at] = twin.arm
            else:
                new.append(at)
        named = [configs[at] for at in new]
        others = {m.arm for m in configs} - {configs[group[0]].arm}
        for name in _candidates(named, taken, source):
            rivals = [m for m in taken if m.arm == name]
            if name not in others and not any(
                m.clashes(own) for m in rivals for own in named
            ):
                names |= dict.fromkeys(new, name)
                taken += [own._replace(arm=name) for own in named]
                break
    return [names[at] for at in range(len(configs))]


def _groups(configs: Sequence[Made]) -> list[list[int]]:
    """Put the configs of each arm into groups in which the name stands for one."""
    groups: list[list[int]] = []
    for at, made in enumerate(configs):
        for group in groups:
            mates = [configs[i] for i in group]
            if mates[0].arm == made.arm and not any(map(made.apart, mates)):
                group.append(at)
                break
        else:
            groups.append([at])
    return groups


def _candidates(
    named: Sequence[Made], taken: Sequence[Made], source: str
) -> Iterator[str]:
    """Give names for the configs of one arm: its own first, and ever longer ones."""
    for made in named[:1]:
        yield (name := made.arm)
        rivals = (m for m in taken if m.arm == name)
        rival = next((m for m in rivals if any(map(m.apart, named))), None)
        changed = rival.differences(made) if rival else []
        rows_tell = [path for path in changed if path in TOLD] or changed
        for paths in (rows_tell, changed if len(changed) < 4 else rows_tell):
            parts = [f"{path.split('.')[-1]}_{made.config[path]}" for path in paths]
            yield (name := "_".join([made.arm, *parts]))
        yield f"{made.arm}_{source}"
        yield f"{name}_{made.fingerprint}"
