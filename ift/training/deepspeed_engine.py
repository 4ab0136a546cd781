"""How a step is taken under DeepSpeed, which exchanges, clips and applies gradients itself."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ift.models.base_weights import BaseWeights
from ift.models.loading import family_of
from ift.training.deepspeed_checks import plain_start
from ift.training.deepspeed_state import shape_of
from ift.training.engines import Engine, Result
from ift.training.sharded_engine import logits_of_first_rank
from ift.training.sharding import base_of


class ZeroEngine(Engine):
    """ZeRO stages 1 to 3: DeepSpeed averages gradients over ranks and keeps of them each rank's part.

    Stage 1 exchanges them after the last micro-batch of a step, the others after every one.
    """

    @property
    def stage(self) -> int:
        """Return what is shared out: 1 the optimizer's state, 2 gradients as well, 3 weights as well."""
        return int(self.module.trainer.strategy.settings.stage)

    @property
    def in_step(self) -> bool:
        """Gathering a layer's weights takes all ranks."""
        return self.stage == 3

    @property
    def even(self) -> bool:
        """Whether all ranks take part in each backward pass."""
        return self.stage >= 2

    @property
    def reads_anywhere(self) -> bool:
        """Whether every rank holds all weights."""
        return not self.in_step

    def loading(self) -> AbstractContextManager[Any]:
        """Share out weights while they are read, in stage 3, so that no rank holds the whole model.

        Not where the weights of the base model are read once more before training.
        """
        strategy = self.module.trainer.strategy
        fresh = isinstance(self.module.method.config, BaseWeights) or plain_start(self.module.method.config)
        once = fresh and self.module.growth is None and not self.module.merged_chain
        once = once and family_of(self.module.base) is None
        return strategy.sharing_out(self.module.dtype_name) if self.in_step and once else nullcontext()

    def shape_of(self, parameter: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of a whole weight; in stage 3, what is left in its place has none."""
        return tuple(shape_of(parameter))

    def whole(self, model: Any) -> AbstractContextManager[Any]:
        """Gather what is trained, tensor by tensor, on the CPU of the first rank."""
        return self._whole(model) if self.in_step else nullcontext()

    @contextmanager
    def _whole(self, model: Any) -> Iterator[None]:
        import deepspeed

        first, trains_base = bool(self.module.trainer.is_global_zero), self.module.method.trains_base
        taken: list[tuple[nn.Module, str, nn.Parameter]] = []
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, one in module.named_parameters(recurse=False):
                if not hasattr(one, "ds_id") or not (trains_base or one.requires_grad):
                    continue
                if id(one) not in made:
                    with deepspeed.zero.GatheredParameters([one]):
                        full = one.detach().cpu().clone() if first else one
                    made[id(one)] = nn.Parameter(full, requires_grad=one.requires_grad) if first else one
                if first:
                    taken.append((module, name, one))
        try:
            for module, name, one in taken:
                module._parameters[name] = made[id(one)]
            yield
        finally:
            for module, name, one in taken:
                module._parameters[name] = one

    def together(self, model: Any) -> AbstractContextManager[Any]:
        """Send each pass's logits to all ranks, so that none could choose another token and make another pass."""
        return self._together(model) if self.in_step else nullcontext()

    @contextmanager
    def _together(self, model: Any) -> Iterator[None]:
        # Behind DeepSpeed's back, so it must be told of every pass.
        coordinator = self._wrapped.optimizer.parameter_offload.get_param_coordinator()
        handles = [
            base_of(model).register_forward_pre_hook(lambda *_: coordinator.reset_step()),
            base_of(model).register_forward_hook(logits_of_first_rank),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Tell DeepSpeed whether a step ends with the next backward pass."""
        self._wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Compute with the model as DeepSpeed's own forward pass, which counts micro-batches and gathers weights."""
        self.module.forward = compute
        try:
            found: Result = self._wrapped()
        finally:
            del self.module.forward
        return found

    def clip(self, parameters: Iterable[torch.nn.Parameter], limit: float) -> torch.Tensor:
        """Return the norm of the whole gradient; DeepSpeed clips by it when it updates, as its settings say."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        zero = self._wrapped.optimizer
        norm = combine_grad_norm_groups(zero._get_norm_groups()) if self.stage == 3 else zero.scaled_global_norm()
        # It says -1 for what is no number.
        return torch.where(norm < 0, torch.inf, norm).float()

    @property
    def _wrapped(self) -> Any:
        return self.module.trainer.strategy.deepspeed_engine
