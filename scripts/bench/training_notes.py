"""What a runner of `training.py` notes of every finished step, and what follows from it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 2
"""First steps, which fill caches and build the optimizer's state; they are not timed."""


def note(file: Any, loss: float, supervised: int) -> None:
    """Write one step, with the time and this process's processor time."""
    step = {"time": time.time(), "processor": time.process_time(), "loss": loss, "supervised": supervised}
    file.write(json.dumps(step) + "\n")
    file.flush()


@dataclass(frozen=True)
class Run:
    """One run of one runner."""

    rate: float
    """Supervised tokens per second, after the warm-up."""
    processor_rate: float
    """Supervised tokens per second of processor time, which other programs on the machine disturb less."""
    first_step_seconds: float
    """From the start of the process to the end of the first step."""
    peak_mib: float
    """Most resident memory of the process."""
    losses: tuple[float, ...]
    tokens: tuple[int, ...]


def read_run(path: Path, *, started: float, peak_mib: float) -> Run:
    """Return what the notes of a run say.

    Args:
        path: of the notes.
        started: time at which the process was.
        peak_mib: of the process.
    """
    steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    begin, timed = steps[WARM_UP - 1], steps[WARM_UP:]
    tokens = sum(step["supervised"] for step in timed)
    return Run(
        rate=tokens / (timed[-1]["time"] - begin["time"]),
        processor_rate=tokens / (timed[-1]["processor"] - begin["processor"]),
        first_step_seconds=steps[0]["time"] - started,
        peak_mib=peak_mib,
        losses=tuple(step["loss"] for step in steps),
        tokens=tuple(step["supervised"] for step in steps),
    )
