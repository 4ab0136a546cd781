"""How a step is taken under DeepSpeed, which exchanges, clips and applies gradients itself."""

from contextlib import AbstractContextManager, nullcontext
from collections.abc import Iterable
from typing import Any

import torch

from ift.training.engines import Engine


class ZeroEngine(Engine):
    """ZeRO stages 1 to 3: DeepSpeed averages gradients over ranks and keeps of them each rank's part.

    Stage 1 exchanges them behind the last micro-batch of a step, the others behind every one.
    """

    def exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Tell DeepSpeed whether a step ends with the next backward pass."""
        self._wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float) -> torch.Tensor:
        """Return the norm of the whole gradient; DeepSpeed clips by it when it updates, as its settings say."""
        zero = self._wrapped.optimizer
        if self._wrapped.zero_optimization_stage() == 3:
            from deepspeed.runtime.utils import combine_grad_norm_groups
            norm = combine_grad_norm_groups(zero._get_norm_groups())
        else:
            norm = zero.scaled_global_norm()
        norm = torch.as_tensor(norm, dtype=torch.float32)
        return torch.where(norm < 0, torch.inf, norm)

    @property
    def _wrapped(self) -> Any:
        return self.module.trainer.strategy.deepspeed_engine
