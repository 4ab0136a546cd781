"""How the gradients of a step are exchanged between ranks, clipped and applied; one engine per kind of strategy."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")


class Engine:
    """One device, or DDP: every rank holds all weights, and gradients are averaged after the last micro-batch.

    Args:
        module: whose trainer has the strategy, and whose model has its method attached.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def in_step(self) -> bool:
        """Whether a pass through the model is something all ranks do together, so that each must do as many."""
        return False

    @property
    def even(self) -> bool:
        """Whether each rank must compute as many micro-batches of a step as the others."""
        return self.in_step

    @property
    def reads_anywhere(self) -> bool:
        """Whether weights can be read outside of their own module's pass, as a fused head does."""
        return True

    def loading(self) -> AbstractContextManager[Any]:
        """Let the base model be loaded within it as the strategy wants it."""
        return nullcontext()

    @property
    def keeps_rows(self) -> bool:
        """Whether a rank keeps some rows of each weight only, so that it need not read the others."""
        return False

    def place(self, model: Any) -> None:
        """Share out the weights of a model with its method attached among ranks, where the strategy does."""

    def shape_of(self, parameter: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of a whole weight, of which this rank may hold a part."""
        return tuple(parameter.shape)

    def whole(self, model: Any) -> AbstractContextManager[Any]:
        """Let the first rank find whole weights in the model, to write them; all ranks must enter it."""
        return nullcontext()

    def together(self, model: Any) -> AbstractContextManager[Any]:
        """Let all ranks answer the same prompts within it, with the first one's logits; needed where `in_step`."""
        return nullcontext()

    @property
    def scale(self) -> float:
        """Return the factor on a loss that turns DDP's mean of gradients over ranks into their sum."""
        return float(self.module.trainer.world_size)

    def exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Let gradients be exchanged in the backward pass within it only at the last micro-batch of a step."""
        wrapped = self.module.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Compute with the model, once for each micro-batch."""
        return compute()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a scalar to what is there."""
        self.module.manual_backward(loss)

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float) -> torch.Tensor:
        """Scale the gradient of the step down to a norm of at most `limit`; return the norm before, a float32 scalar.

        Args:
            parameters: that are trained.
            limit: may be infinite, which changes nothing.
        """
        trained = list(parameters)
        norm = torch.nn.utils.get_total_norm([one.grad for one in trained if one.grad is not None])
        # Scaling by 1 is a pass over all gradients. On a CPU reading the norm waits for nothing, and it is left out.
        seen = type(norm) is torch.Tensor and norm.device.type == "cpu"
        if not (seen and math.isfinite(norm) and norm + 1e-6 <= limit):
            torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
        return norm

    def update(self, optimizer: Any) -> None:
        """Let Lightning's wrapper of the optimizer take its step."""
        optimizer.step()


def engine_of(module: Any) -> Engine:
    """Return the engine for the strategy of a module's trainer."""
    from ift.training.deepspeed_engine import ZeroEngine
    from ift.training.deepspeed_strategy import ZeroStrategy
    from ift.training.sharded_engine import ShardedEngine
    from ift.training.sharded_strategy import ShardedStrategy

    strategy = module.trainer.strategy if module._trainer is not None else None
    if isinstance(strategy, ZeroStrategy):
        return ZeroEngine(module)
    return ShardedEngine(module) if isinstance(strategy, ShardedStrategy) else Engine(module)
