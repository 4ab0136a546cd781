"""What `trainer.strategy` may be, and the strategies behind our names, with settings whose steps are exact here."""

from typing import Any

from ift.errors import UserError, unknown_name
from ift.training import deepspeed_config

STRATEGIES = (
    *("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp", *deepspeed_config.NAMES),
    *("DDPStrategy", "SingleDeviceStrategy"),
)
"""Strategies whose steps are exact here; a class path may give one of the classes with arguments."""

_REFUSED = {
    "DeepSpeedStrategy": "DeepSpeed's settings follow from those of the run (Lightning would pass over 'stage' beside "
    "'config', and DeepSpeed over keys that it does not know). Take deepspeed_1, deepspeed_2 or deepspeed_3, or one of "
    "them with _offload",
    "FSDPStrategy": "the older FSDP cannot clip gradients by their norm. Take 'fsdp', which is FSDP2",
    "ModelParallelStrategy": "its own sizes would split layers within a node, and its checkpoints hold the base model. "
    "Take 'fsdp', which is this strategy with settings that are exact here",
}
"""Lightning's strategies that are not offered, and why."""


_NAMES = {"ShardedStrategy": "fsdp", "DDPStrategy": "ddp", "SingleDeviceStrategy": "auto"}
"""Classes of strategies, as the user knows them."""


def check_strategy_name(strategy: Any, command: str) -> None:
    """Refuse a strategy whose steps are not exact here.

    Args:
        strategy: as the user gave it: a name, or a class path with arguments.
        command: that is to run.

    Raises:
        UserError: with what to take.
    """
    named = strategy if isinstance(strategy, str) else strategy["class_path"].rpartition(".")[2]
    if named in _REFUSED:
        raise UserError(f"trainer.strategy: {named} is not possible; {_REFUSED[named]}.")
    if named not in STRATEGIES:
        raise unknown_name("trainer.strategy", named, STRATEGIES, hint="'auto' is one device, or ddp on several.")
    if named in deepspeed_config.NAMES:
        from ift.training import deepspeed_checks

        deepspeed_checks.check_command(named, command)
        deepspeed_checks.check_installed(named)
    if named == "fsdp" and command == "predict":
        raise UserError(
            "trainer.strategy: fsdp is for training; each rank answers prompts of its own, and needs all weights for "
            "that. Set it to ddp."
        )


def build_strategy(chosen: Any) -> Any:
    """Return a strategy for Lightning's Trainer.

    Args:
        chosen: a checked `trainer.strategy`; a class path is an object already.
    """
    if chosen == "fsdp":
        from ift.training.sharded_strategy import ShardedStrategy

        return ShardedStrategy()
    if chosen in deepspeed_config.NAMES:
        from ift.training import deepspeed_strategy

        return deepspeed_strategy.ZeroStrategy(chosen)
    if chosen == "ddp":
        from lightning.pytorch.strategies import DDPStrategy

        return DDPStrategy(find_unused_parameters=False)
    return chosen


def name_of(strategy: Any) -> str:
    """Return what stands under `trainer.strategy` for a strategy, which Lightning may have chosen by itself."""
    own = getattr(strategy, "name", None)  # of DeepSpeed, one of several
    return own or _NAMES.get(type(strategy).__name__, type(strategy).__name__)
