"""Where the first parameters of a run came from, if it did not draw them itself."""

import dataclasses

from rfq.errors import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class OriginConfig:
    """The public checkpoint that a run was imported from, or went on from.

    It is empty for other runs.
    """

    family: str = ""  # The model_type of its config.json.
    dtype: str = ""  # The type of its tensors, in which it is exported again.
    context: int = 0  # Its longest sequence; model.seq_len may be shorter.
    digest: str = ""  # Names the values of its tensors.

    def __post_init__(self):
        check_fields(self, "origin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The run whose last parameters a run starts with; empty where it draws its own.

    `rfq train --from RUN` fills it in.
    """

    arm: str = ""
    fingerprint: str = ""  # Names the experiment of that run, its seed included.
    data_fingerprint: str = ""  # Names the data that it was trained on.

    def __post_init__(self):
        check_fields(self, "start")
