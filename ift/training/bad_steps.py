"""Bad steps: a loss or gradient that is no finite number, or a gradient far larger than those before it.

In: the loss and the norm of the gradient of each step. Out: whether its update is made, left out and counted, or the
run stopped; and a file with the examples of the step, the worst first.
"""

import json
import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from tqdm import tqdm

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import collate
from ift.data.steps import Step, TrainingSteps, examples_of
from ift.errors import UserError
from ift.training.objective import loss_sum
from ift.training.optimizers import OptimizerTraits

_STEADIER = (
    "Lower the learning rate (model.optimizer.init_args.lr), lengthen model.schedule.warmup, use model.dtype float32"
)
_REPAIR = f"{_STEADIER}, mend the examples; or leave such steps out (model.on_bad_step.action skip, --ckpt_path last)."


@dataclass(frozen=True)
class OnBadStep:
    """What becomes of a step whose loss or gradient is infinite or not a number, or whose gradient is a spike.

    Either way, its examples are written to RUN/bad_step-N.jsonl, those with the largest loss first. On a GPU, leaving
    steps out or looking for spikes waits for the device once in every step. Without either, an infinite gradient is
    noticed there when the loss is logged or a checkpoint is due, and weights are not kept from then on.
    """

    action: Literal["stop", "skip"] = "stop"
    """`stop` ends the run; `skip` leaves weights and optimizer as they are, counts the step and goes on."""
    spike_ratio: float | None = None
    """A gradient is a spike if its norm (before clipping) is more than this many times the median of the last `window`
    steps that were none; none looks for no spikes."""
    window: int = 50
    """Number of steps that the median is of; no step is a spike before there are so many."""
    most_in_a_row: int = 10
    """More bad steps in a row than this stop the run even with `skip`: then it is not the data."""

    def check(self, key: str, optimizer: OptimizerTraits) -> None:
        """Refuse settings that make no sense.

        Args:
            key: the configuration key of this object.
            optimizer: of the run.

        Raises:
            UserError: with the setting.
        """
        if self.spike_ratio is not None and self.spike_ratio <= 1:
            raise UserError(f"{key}.spike_ratio: {self.spike_ratio} is not above 1; half of all steps would be spikes.")
        for name, value in (("window", self.window), ("most_in_a_row", self.most_in_a_row)):
            if value < 1:
                raise UserError(f"{key}.{name}: {value} is below 1. Set it to 1 or more.")
        if optimizer.fused and (self.action == "skip" or self.spike_ratio is not None):
            raise UserError(
                f"{key}: {optimizer.name} updates weights before the whole gradient is known, so a step cannot be left "
                "out. Set action to stop and spike_ratio to null, or take another optimizer."
            )

    def looks_at_each_step(self, device: torch.device) -> bool:
        """Whether every step is judged before its update; on the CPU that costs nothing."""
        return device.type == "cpu" or self.action == "skip" or self.spike_ratio is not None


class BadSteps:
    """Judges the steps of a run.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: OnBadStep) -> None:
        self.settings = settings
        self.skipped: list[dict[str, Any]] = []
        """The steps that were left out: number, and why."""
        self._norms: deque[float] = deque(maxlen=settings.window)
        self._in_a_row = 0
        self._first_infinite: torch.Tensor | None = None

    def usable(self, module: Any, step: Step, *, loss: torch.Tensor, norm: torch.Tensor) -> bool:
        """Return whether a step is to be used for an update; all ranks return the same.

        Args:
            module: an `InstructionModule` before the update of the step.
            step: that was computed.
            loss: summed cross-entropy of this rank.
            norm: of the gradient of the whole step, before clipping; the same on all ranks.

        Raises:
            UserError: it is not, and the run is to stop.
        """
        if not self.settings.looks_at_each_step(module.device):
            # A number on the device, looked at when weights are kept or losses told: no wait in every step.
            first = torch.where(torch.isfinite(norm), 0, step.index + 1)
            known = self._first_infinite
            self._first_infinite = first if known is None else torch.where(known > 0, known, first)
            return True
        reason = self.judge(float(loss), float(norm))
        if not module.trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            self.count_in(float(norm))
            return True
        self.handle(module, step, reason or "its loss is infinite or not a number on another rank")
        return False

    def check_finite(self, module: Any) -> None:
        """Stop a run whose gradient has left the numbers, before its weights are kept.

        Raises:
            UserError: a gradient was infinite or not a number.
        """
        if self._first_infinite is not None and (number := int(self._first_infinite)):
            self._stop_late(module, number)

    def judge(self, loss: float, norm: float) -> str | None:
        """Return what is wrong with a step as this rank sees it, or `None`.

        Args:
            loss: summed cross-entropy of this rank.
            norm: of the gradient of the whole step, before clipping.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss ({loss:g}) or its gradient (norm {norm:g}) became infinite or not a number"
        ratio = self.settings.spike_ratio
        if ratio is not None and len(self._norms) == self.settings.window and norm > ratio * median(self._norms):
            return (
                f"the gradient is a spike: its norm is {norm:g}, and the median of the last {len(self._norms)} steps "
                f"is {median(self._norms):g} (model.on_bad_step.spike_ratio {ratio:g})"
            )
        return None

    def count_in(self, norm: float) -> None:
        """Take a step in which no rank has found anything wrong into the measure of the next ones."""
        if self.settings.spike_ratio is not None:
            self._norms.append(norm)
        self._in_a_row = 0

    def handle(self, module: Any, step: Step, reason: str) -> None:
        """Write the examples of a bad step; then count it as left out, or stop.

        Args:
            module: an `InstructionModule` before the update of the step.
            step: the bad one.
            reason: of `judge`.

        Raises:
            UserError: the run is to stop.
        """
        number, trainer = step.index + 1, module.trainer
        fused = module.optimizer_traits.fused  # which has changed the weights already
        path, first = write_examples(module, step, with_losses=not fused)
        text = f"step {number}: {reason}. Its examples, the largest loss first, are in '{path}'; the first is {first}."
        self._in_a_row += 1
        if self.settings.action == "stop":
            raise UserError(f"{text} The weights are not kept. {_REPAIR}")
        if self._in_a_row > self.settings.most_in_a_row:
            raise UserError(f"{text} {self._in_a_row} bad steps in a row: the data are not the cause. {_STEADIER}.")
        self.skipped.append({"step": number, "reason": reason})
        if trainer.is_global_zero:
            tqdm.write(f"{text} It is left out ({len(self.skipped)} so far).", file=sys.stderr)
        if trainer.logger is not None:
            trainer.logger.log_metrics({"train/skipped_steps": len(self.skipped)}, step=number)

    def _stop_late(self, module: Any, number: int) -> None:
        """Stop after a step whose gradient was infinite, which nobody waited for.

        Raises:
            UserError: always.
        """
        steps = getattr(module.trainer.train_dataloader, "steps", None)
        text = f"step {number}: the loss or its gradient became infinite or not a number."
        if isinstance(steps, TrainingSteps):
            path, _ = write_examples(module, steps[number - 1], with_losses=False)
            text += f" Its examples are in '{path}'."
        raise UserError(f"{text} The weights are not kept. {_REPAIR}")

    def state(self) -> dict[str, Any]:
        """Return what the next judgement depends on."""
        return {"norms": list(self._norms), "skipped": list(self.skipped), "in_a_row": self._in_a_row}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._norms.clear()
        self._norms.extend(state["norms"])
        self.skipped, self._in_a_row = list(state["skipped"]), int(state["in_a_row"])


def write_examples(module: Any, step: Step, *, with_losses: bool) -> tuple[Path, str]:
    """Write this rank's examples of a bad step into the run folder, one JSON object a line, the largest loss first.

    Args:
        module: an `InstructionModule` in training.
        step: the bad one.
        with_losses: whether the weights are those of before the step; losses are computed without dropout, each
            example alone.

    Returns:
        The file, and where its first example comes from.
    """
    trainer = module.trainer
    rank = f".rank-{trainer.global_rank}" if trainer.global_rank else ""
    path = Path(trainer.default_root_dir) / f"bad_step-{step.index + 1:08d}{rank}.jsonl"
    examples = examples_of(step)
    # Where weights are divided among ranks, all of them compute together, and here each has examples of its own.
    alone = not module.engine.in_step
    losses = _losses(module, examples) if with_losses and alone else [None] * len(examples)
    places = _places(trainer, step)
    decode = trainer.datamodule.encoder.tokenizer.decode
    lines = []
    for example, loss in zip(examples, losses, strict=True):
        counted = int((example.labels[1:] != IGNORE_INDEX).sum())
        file, line = places.get(example.input_ids.tobytes(), (None, None))
        found: dict[str, Any] = {"step": step.index + 1, "file": file, "line": line, "tokens": len(example.input_ids)}
        text = decode(example.input_ids, skip_special_tokens=False)
        mean = None if loss is None else loss / max(1, counted)
        lines.append(found | {"supervised_tokens": counted, "loss": mean, "text": text})
    lines.sort(key=lambda one: -_size(one["loss"]))
    shown = [{**one, "loss": one["loss"] if _size(one["loss"]) < math.inf else str(one["loss"])} for one in lines]
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in shown), encoding="utf-8")
    first = lines[0]
    return path, f"{first['file']} line {first['line']}" if first["file"] else "a row of a stream"


def _size(loss: float | None) -> float:
    """Return a loss to sort by; what is no number is the worst."""
    return 0.0 if loss is None else loss if math.isfinite(loss) else math.inf


@torch.no_grad()
def _losses(module: Any, examples: list[Example]) -> list[float]:
    training = module.model.training
    module.model.eval()
    try:
        batches = (collate([[one]], pad_token_id=0).to(module.device) for one in examples)
        return [float(loss_sum(module.model, batch, calling=module.calling)) for batch in batches]
    finally:
        module.model.train(training)


def _places(trainer: Any, step: Step) -> dict[bytes, tuple[str, int]]:
    """Return file and line by the ids of each example of the step; streams do not know them."""
    steps = getattr(trainer.train_dataloader, "steps", None)
    return steps.places(step.index) if isinstance(steps, TrainingSteps) else {}
