"""What `ift plan` found: plain facts, for the table and for machines."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ift.training.memory_plan import GIB, Parts


@dataclass(frozen=True)
class Row:
    """A rank's memory under one strategy and one set of settings."""

    strategy: str
    devices: int
    checkpointing: bool
    quantized: str | None
    """Scheme, or `None`."""
    method: str
    parts: Parts
    needed_gib: float
    """The prediction with its margin, and what the process holds beside it."""
    fits: bool
    own: bool
    """Whether these are the run's own settings."""
    settings: dict[str, Any]
    """Keys to change for it, and their values."""
    refused: str | None = None
    """Why `ift fit` would not run it; `None` where it would."""

    @property
    def advisable(self) -> bool:
        """Whether it fits and `ift fit` would run it."""
        return self.fits and self.refused is None

    def describe(self) -> dict[str, Any]:
        """Return plain values, in GiB."""
        parts = {f"{name}_gib": round(value / GIB, 4) for name, value in asdict(self.parts).items()}
        own = {name: value for name, value in vars(self).items() if name != "parts"}
        return own | {"needed_gib": round(self.needed_gib, 4), "total_gib": round(self.parts.total / GIB, 4)} | parts


@dataclass(frozen=True)
class Course:
    """Steps, tokens, operations and time of the whole run."""

    steps_per_epoch: int | None
    steps: int | None
    tokens_per_step: float
    supervised_tokens_per_step: float
    padding_share: float
    tokens: float | None
    """Of the whole run."""
    micro_batches: int
    """Most of a rank in a step."""
    largest_micro_batch: str
    model_flops_per_step: float
    hardware_flops_per_step: float
    seconds_per_step: float | None
    seconds: float | None
    time_is_for: str
    """On what the time is a rough guess of."""
    counted: bool
    """Whether lengths are those of prepared data."""


@dataclass(frozen=True)
class PlanReport:
    """All that was found."""

    base: str
    method: str
    dtype: str
    optimizer: str
    parameters: int
    trainable: int
    card: str
    card_gib: float
    """For one rank."""
    margin: str
    """What is added to a prediction before it is said to fit."""
    rows: tuple[Row, ...]
    course: Course
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    error: str
    """Measured, of the predictions."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Alternatives that are not there, and why."""

    @property
    def own(self) -> Row:
        """Return the run's own settings."""
        return next(row for row in self.rows if row.own)

    def describe(self) -> dict[str, Any]:
        """Return plain values."""
        found = {name: value for name, value in vars(self).items() if name not in ("rows", "course")}
        return found | {"course": asdict(self.course), "rows": [row.describe() for row in self.rows]}
