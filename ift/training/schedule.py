"""Learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch.optim.lr_scheduler import LambdaLR

from ift.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves from step to step."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up: half a cosine or a line down to `final_share`, or constant."""
    warmup: int | float = 0.03
    """Steps (a whole number) or share of all steps (below 1) in which the rate rises linearly."""
    final_share: float = 0.0
    """Where the decay ends, as a share of the full learning rate."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or (isinstance(self.warmup, float) and self.warmup >= 1):
            raise UserError(
                f"model.schedule.warmup: {self.warmup} is neither a number of steps nor a share below 1. Write it as "
                "100 or as 0.03."
            )
        if not 0 <= self.final_share <= 1:
            raise UserError(
                f"model.schedule.final_share: {self.final_share} is no share of the full learning rate. Give a number "
                "from 0 to 1."
            )


def settle_learning_rates(schedulers: Iterable[LambdaLR]) -> None:
    """Give the next step the learning rate that its schedule says.

    A restored optimizer brings the rate that the run before had settled for its next step. Of a run that has become
    longer, that is another schedule's, at the end of a decay 0.
    """
    for scheduler in schedulers:
        groups = scheduler.optimizer.param_groups
        for group, rate, share in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = rate * share(scheduler.last_epoch)


def learning_rate_share(step: int, num_steps: int, schedule: Schedule) -> float:
    """Return the learning rate of a step as a share of the full one.

    Args:
        step: from 0; the first step of a warm-up already learns, and the last step of a decay still does.
        num_steps: of the whole run.
        schedule: its shape.
    """
    warmup = schedule.warmup if isinstance(schedule.warmup, int) else math.ceil(schedule.warmup * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    decay = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final_share + (1 - schedule.final_share) * decay
