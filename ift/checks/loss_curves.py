"""Where the losses of two runs part. Starts without torch."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ift.artifacts import RunFolder
from ift.checks.findings import largest_of
from ift.errors import UserError

_OF_ROUNDING = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest share of a loss by which sums in another order differ, by dtype: about a hundred roundings of float32, one of
the others, over whose tokens a loss is a mean."""


@dataclass(frozen=True)
class Curve:
    """The training loss of a run."""

    source: Literal["losses.jsonl", "tensorboard"]
    """Every step exactly, or the logged ones in float32."""
    losses: dict[int, float]
    """Loss by the number of optimizer steps done."""


@dataclass(frozen=True)
class Parting:
    """Two curves against each other."""

    source: str
    num_steps: int
    """Steps that both have."""
    first: int | None
    """The first step at which they differ; `None` where they are the same."""
    last_same: int | None
    """The last compared step before it; `None` where they differ from the beginning."""
    gap: float
    """Difference of the losses at that step, the second run's less the first's; 0 where they are the same."""
    largest_gap: float
    largest_at: int | None
    largest_share: float
    """The largest gap as a share of the loss, where that is above 1."""
    first_share: float
    """The same of the gap at the first step that differs."""
    steps: tuple[int, int]
    """Last step of each run."""
    alone: tuple[int, int] = (0, 0)
    """Steps up to the shorter one's last that the first, and the second, has recorded alone."""

    @property
    def same(self) -> bool:
        """Whether both have the same steps with the same losses."""
        return self.first is None and self.steps[0] == self.steps[1] and self.num_steps > 0 and not any(self.alone)

    def text(self) -> str:
        """Return one line for people."""
        length = "" if self.steps[0] == self.steps[1] else f"; one has {self.steps[0]} steps, the other {self.steps[1]}"
        for which, number in zip(("second", "first"), self.alone, strict=True):
            length += f"; the {which} lacks {number} steps on the way" if number else ""
        if not self.num_steps:
            return f"no step that both have logged{length}"
        if self.first is None:
            return f"equal to the last bit at all {self.num_steps} steps that both have ({self.source}){length}"
        where = f"at step {self.first}"
        if self.last_same is not None and self.last_same + 1 < self.first:
            where = f"between step {self.last_same} and {self.first}, as only some are logged"
        return (
            f"part {where}, by {self.gap:+.3e}; largest gap {self.largest_gap:.3e} at step {self.largest_at} "
            f"({self.source}){length}"
        )


def compare_losses(run: RunFolder, other: RunFolder) -> Parting:
    """Compare the training losses of two runs, by the exact record where both have one.

    Raises:
        UserError: a damaged record.
    """
    one, two = _recorded(run), _recorded(other)
    if one is None or two is None:
        one, two = _logged(run), _logged(other)
    return part(one, two)


def part(one: Curve, two: Curve) -> Parting:
    """Compare two curves at the steps that both have."""
    steps = sorted(one.losses.keys() & two.losses.keys())
    gaps = {step: _gap(one.losses[step], two.losses[step]) for step in steps}
    differing = [step for step in steps if gaps[step]]
    first = differing[0] if differing else None
    before = [step for step in steps if first is not None and step < first]
    until = min(max(one.losses, default=0), max(two.losses, default=0))
    alone = [sum(step <= until for step in a.losses.keys() - b.losses.keys()) for a, b in ((one, two), (two, one))]
    largest = max(differing, key=lambda step: abs(gaps[step])) if differing else None
    shares = [abs(gaps[step]) / max(1.0, abs(one.losses[step])) for step in differing]
    return Parting(
        source=one.source,
        num_steps=len(steps),
        first=first,
        last_same=before[-1] if before else None,
        gap=gaps[first] if first is not None else 0.0,
        largest_gap=abs(gaps[largest]) if largest is not None else 0.0,
        largest_at=largest,
        largest_share=largest_of(shares),
        first_share=shares[0] if shares else 0.0,
        steps=(max(one.losses, default=0), max(two.losses, default=0)),
        alone=(alone[0], alone[1]),
    )


def rounding_text(parting: Parting, dtypes: set[str]) -> str | None:
    """Return what the gaps mean, for people; `None` where there are none, or a dtype is not known.

    Args:
        parting: of two runs.
        dtypes: in which they computed.
    """
    if parting.first is None or not dtypes <= _OF_ROUNDING.keys():
        return None
    dtype = max(dtypes, key=lambda name: _OF_ROUNDING[name])
    limit = _OF_ROUNDING[dtype]
    usual = f"sums in another order differ by up to {limit / 10:.0e} to {limit:.0e} of the loss in {dtype}"
    if parting.largest_share <= limit:
        return f"within rounding: at most {parting.largest_share:.1e} of the loss; {usual}, and what is beyond is real"
    text = f"beyond rounding: up to {parting.largest_share:.1e} of the loss, where {usual}. The difference is real"
    if parting.first_share <= limit:
        return f"{text}, or rounding ({parting.first_share:.1e} at step {parting.first}) that many steps have enlarged"
    return text


def _gap(one: float, two: float) -> float:
    """Return the difference; what is not a number equals itself here, and nothing else."""
    if math.isnan(one) or math.isnan(two):
        return 0.0 if math.isnan(one) and math.isnan(two) else math.inf
    return 0.0 if one == two else two - one


def _recorded(run: RunFolder) -> Curve | None:
    return Curve("losses.jsonl", recorded_losses(run)) if run.losses.is_file() else None


def recorded_losses(run: RunFolder) -> dict[int, float]:
    """Return the exact loss of every step that a run has recorded.

    Raises:
        UserError: a damaged record.
    """
    losses: dict[int, float] = {}
    lines = run.losses.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            losses[int(entry["step"])] = float(entry["loss"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # the end of a killed run
                break
            raise UserError(
                f"{run.losses} line {number}: damaged: {error!r}. Restore the file, or compare other runs."
            ) from error
    return losses


def _logged(run: RunFolder) -> Curve:
    return Curve("tensorboard", scalars(run.tensorboard).get("train/loss", {}))


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the curves of a TensorBoard folder by name, each by step; none where there is no folder."""
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: {one.step: one.value for one in events.Scalars(name)} for name in events.Tags()["scalars"]}
