"""The gradient of a step, added up over its micro-batches."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ift.data.micro_batches import MicroBatch
from ift.data.steps import Step
from ift.models.calling import Calling
from ift.seeds import mixed_seed
from ift.training.course import MethodCourse
from ift.training.engines import Engine
from ift.training.objective import loss_sum


@dataclass(frozen=True)
class StepGradient:
    """Computes the gradient of a whole step, however it is cut."""

    model: Any
    """With its method attached."""
    calling: Calling
    course: MethodCourse
    engine: Engine
    seed: int
    rank: int

    def __call__(self, step: Step) -> torch.Tensor:
        """Add up the gradient of the step's loss and return this rank's summed cross-entropy (float64)."""
        # Seeded by step and rank, dropout does not depend on what else drew random numbers, nor on interruptions.
        torch.manual_seed(mixed_seed(self.seed, step.index, self.rank))
        # The loss is a sum over ranks divided by the supervised tokens of all of them; 0 where no row of a stream
        # could be used.
        scale = self.engine.scale / max(1, step.num_supervised)
        total = torch.zeros((), dtype=torch.float64, device=step.micro_batches[0].input_ids.device)
        for number, batch in enumerate(step.micro_batches, 1):
            with self.engine.exchange(last=number == len(step.micro_batches)):
                scaled, loss = self.engine.forward(partial(self._loss, batch, scale=scale, first=number == 1))
                self.engine.backward(scaled)
            total += loss
        return total

    def _loss(self, batch: MicroBatch, *, scale: float, first: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a micro-batch adds to the loss of the step, and its summed cross-entropy, without gradient."""
        loss = loss_sum(self.model, batch, calling=self.calling)
        added = self.course.loss(batch, loss)
        penalty = self.course.penalty() if first else None  # a step has one, however it is cut
        return added * scale if penalty is None else added * scale + penalty, loss.detach()
