"""What the engine must know of an optimizer before a model loads: whether it can be built, and what it asks for."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import SingleDeviceStrategy

from ift.errors import UserError
from ift.training.fused_optimizers import FusedOptimizer
from ift.training.strategies import name_of

ELEMENTWISE: tuple[type, ...] = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Rprop),
)
"""Torch's optimizers that treat every number of a weight for itself; not their subclasses, which may do otherwise."""


@dataclass(frozen=True)
class OptimizerTraits:
    """What of an optimizer changes how a step is computed, or is worth telling."""

    kind: type
    """Its class."""
    fused: bool
    """It updates in the backward pass, so a step is one micro-batch on one device."""
    paged: bool
    """Its state moves between GPU and main memory (bitsandbytes)."""
    elementwise: bool
    """It treats each number of a weight by itself, so that rows of a weight can be updated apart."""

    @property
    def name(self) -> str:
        """Of its class."""
        return self.kind.__name__

    def check_strategy(self, key: str, trainer: Trainer) -> None:
        """Refuse to fuse where several processes sum up their gradients after the backward pass.

        Args:
            key: the configuration key that named the optimizer.
            trainer: with the strategy.

        Raises:
            UserError: the optimizer is fused, and the strategy is not of a single device.
        """
        if self.fused and not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise UserError(
                f"{key}: {self.name} updates weights before other processes could add their gradients, and here the "
                f"trainer.strategy is {name_of(trainer.strategy)} with {trainer.world_size} of them. Set "
                "trainer.devices 1 and trainer.strategy auto, or take another optimizer."
            )

    def notes(self, *, global_batch_size: int, clip_norm: float | None, device: torch.device) -> list[str]:
        """Return what the user may not expect, one line each."""
        notes = []
        if self.fused:
            notes.append(
                f"model.optimizer: {self.name} updates in the backward pass, so the {global_batch_size} examples of a "
                "step (data.global_batch_size) go through the model at once; data.micro_batch_tokens cuts only "
                "validation."
            )
        if self.fused and clip_norm is not None:
            notes.append(
                f"model.gradient_clip_norm: {clip_norm} takes each step of {self.name} twice through the model, first "
                "for the norm; null saves that."
            )
        if self.paged and device.type == "cpu":
            notes.append(f"model.optimizer: {self.name} pages nothing on the CPU; it is the ordinary optimizer there.")
        return notes


def without_paging(optimizer: Any, device: torch.device) -> Any:
    """Return an optimizer that pages its state only where bitsandbytes can, which is on a GPU.

    Its own fall-back on the CPU misses some optimizers (PagedAdEMAMix8bit).
    """
    if device.type == "cpu" and getattr(optimizer, "is_paged", False):
        optimizer.is_paged = False
    return optimizer


def with_fused_update(optimizer: Any) -> Any:
    """Let AdamW update each tensor in one pass where nothing else was asked for; the result is the same to rounding.

    A checkpoint says how its run updated, so that one that was begun otherwise goes on so. Tensors that a strategy has
    sharded are updated as torch has it.
    """
    if type(optimizer) is not torch.optim.AdamW:
        return optimizer
    chosen = optimizer.defaults["fused"] is not None or optimizer.defaults["foreach"] is not None
    if chosen or optimizer.defaults["capturable"] or optimizer.defaults["differentiable"]:
        return optimizer
    if all(_is_whole(tensor) for group in optimizer.param_groups for tensor in group["params"]):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


def _is_whole(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return plain and tensor.is_floating_point() and tensor.device.type in ("cpu", "cuda")


def optimizer_traits(key: str, optimizer: OptimizerCallable) -> OptimizerTraits:
    """Build an optimizer over two small weights and return what it is like.

    Raises:
        UserError: it cannot be built with its settings, or not over groups of weights.
    """
    groups: list[dict[str, Any]] = [
        {"params": [torch.nn.Parameter(torch.zeros(2, 2))]},
        {"params": [torch.nn.Parameter(torch.zeros(2))], "weight_decay": 0.0},
    ]
    try:
        built = optimizer(groups)
    except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{key}: the optimizer cannot be built: {error}") from error
    return OptimizerTraits(
        type(built),
        fused=isinstance(built, FusedOptimizer),
        paged=bool(getattr(built, "is_paged", False)),
        elementwise=type(built) in ELEMENTWISE,
    )
