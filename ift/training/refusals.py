"""Whether `ift fit` would refuse a run under a strategy, with the same rules, where there is no trainer yet.

In: a checked `InstructionModule` and the name of a strategy. Out: the reason, or `None`.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.errors import UserError
from ift.models.adapters import check_can_go_on, peft_config_of
from ift.models.foundations import check_gone_on_with
from ift.models.loading import read_config
from ift.models.quantization import Quantization, check_quantization
from ift.models.support import check_supported
from ift.models.vocabulary import enlarged_config
from ift.training.course import check_ddp
from ift.training.deepspeed_checks import check_zero
from ift.training.deepspeed_config import settings_of
from ift.training.memory_plan import ONE_DEVICE
from ift.training.recutting import cannot_repeat, cannot_repeat_fused
from ift.training.sharded_rules import check_shared_out


@dataclass(frozen=True)
class Surroundings:
    """What decides beside the module whether a run is possible."""

    on_gpu: bool
    precision: str
    """`trainer.precision`."""
    repeats_steps: bool
    """`data.auto_micro_batch`."""
    finds_unused: bool = False
    """Whether the strategy is `ddp_find_unused_parameters_true`."""


def refusal(
    module: Any, strategy: str, *, quantization: Quantization | None, checkpointing: bool, around: Surroundings
) -> str | None:
    """Return why `ift fit` would refuse a run, or `None`.

    Args:
        module: a checked `InstructionModule`; its own quantization and recomputation do not count.
        strategy: one of `PLANNED`.
        quantization: of the base model.
        checkpointing: as `model.gradient_checkpointing`.
        around: the rest.
    """
    module = copy.copy(module)
    module.quantization = quantization
    try:
        _check_model(module, checkpointing=checkpointing)
        _check_strategy(module, strategy, around)
    except UserError as error:
        return str(error)
    return None


def _check_model(module: Any, *, checkpointing: bool) -> None:
    config, quantization = read_config(module.base), module.quantization
    check_quantization("model.base", module.base, config=config, quantization=quantization)
    enlarged, adapter = enlarged_config(config, module.growth), peft_config_of(module.method)
    options: dict[str, Any] = {"quantization": quantization, "checkpointing": checkpointing}
    check_supported("model.adapter", module.method, adapter, config=enlarged, **options)
    if isinstance(module.method.config, Path):
        below: dict[str, Any] = {"base": module.base, "growth": module.growth, "rope": module.rope}
        check_gone_on_with(module.method.config, module.merged_chain, quantization=quantization, **below)
    check_can_go_on(module.method)


def _check_strategy(module: Any, strategy: str, around: Surroundings) -> None:
    traits = module.optimizer_traits
    if strategy != ONE_DEVICE and traits.fused:
        raise UserError(f"model.optimizer: {traits.name} updates weights before other processes could add gradients.")
    if strategy == "ddp":
        check_ddp("model.adapter", module.method, finds_unused=around.finds_unused)
    if strategy == "fsdp":
        check_shared_out(module, config=read_config(module.base))
    if strategy.startswith("deepspeed"):
        if not around.on_gpu:
            raise UserError("trainer.strategy: DeepSpeed needs GPUs. Take fsdp or ddp, which need none.")
        check_zero(module, name=strategy, stage=settings_of(strategy).stage, precision=around.precision)
    if around.repeats_steps and traits.fused:
        raise cannot_repeat_fused(traits.name)
    if around.repeats_steps and strategy not in (ONE_DEVICE, "ddp"):
        raise cannot_repeat(strategy)
