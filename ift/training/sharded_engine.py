"""How gradients of sharded weights (FSDP2) are exchanged and clipped."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from ift.models.sharded_loading import read_sharded
from ift.training.engines import Engine
from ift.training.sharding import base_of, shard, whole_weights


class ShardedEngine(Engine):
    """Every rank holds rows of each weight, and is sent the summed gradient of those.

    An adapter's gradients are exchanged after the last micro-batch, as under DDP. Those of the base model's weights
    are exchanged with every micro-batch: until then, every rank would hold the gradient of the whole model.
    """

    @property
    def in_step(self) -> bool:
        """Gathering a layer's weights takes all ranks."""
        return True

    @property
    def keeps_rows(self) -> bool:
        """All weights are shared out by rows."""
        return True

    def place(self, model: Any) -> None:
        """Leave each rank its rows, and read those that are still in files."""
        strategy = self.module.trainer.strategy
        mesh = strategy.device_mesh["data_parallel"]
        read_sharded(model, lambda one: shard(one, mesh), device=strategy.root_device)

    def whole(self, model: Any) -> AbstractContextManager[Any]:
        """Gather what is trained, tensor by tensor, on the CPU of the first rank."""
        first = bool(self.module.trainer.is_global_zero)
        trains_base = self.module.method.trains_base
        return whole_weights(model, on_this_rank=first, wanted=lambda one: trains_base or one.requires_grad)

    @contextmanager
    def together(self, model: Any) -> Iterator[None]:
        """Send each pass's logits to all ranks, so that none could choose another token and make another pass."""
        handle = base_of(model).register_forward_hook(logits_of_first_rank)
        try:
            yield
        finally:
            handle.remove()

    def exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Let gradients be exchanged in the backward pass within it."""
        return self._exchange(now=last or self.module.method.trains_base)

    @contextmanager
    def _exchange(self, *, now: bool) -> Iterator[None]:
        self.module.model.set_requires_gradient_sync(now)
        yield

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float) -> torch.Tensor:
        """Scale the gradient of the step down to a norm of at most `limit`; return the norm before."""
        norm = super().clip(parameters, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def logits_of_first_rank(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
    """Put the first rank's logits in the place of those of any other; a forward hook of a language model."""
    logits = output.logits.contiguous()
    dist.broadcast(logits, src=0)
    output.logits = logits
    return output
