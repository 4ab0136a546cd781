"""What cannot be trained under DeepSpeed as on one device, refused with the reason before weights load."""

import importlib.metadata
import os
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from packaging.version import Version

from ift.errors import UserError
from ift.models.base_weights import SampledLayers
from ift.models.methods import Method
from ift.models.targets import peft_type
from ift.training.deepspeed_config import is_installed
from ift.training.deepspeed_strategy import ZeroStrategy
from ift.training.optimizers import ELEMENTWISE

VERSIONS = ("0.19.8", "0.20")
"""From the first to before the second: state is read from places of DeepSpeed that others may lack."""

OPTIMIZERS = {
    # Adagrad makes its state with itself, before DeepSpeed has put rows of its own in the place of the weights.
    **{kind.__name__: "torch" for kind in ELEMENTWISE if kind is not torch.optim.Adagrad},
    **dict.fromkeys(("DeepSpeedCPUAdam", "DeepSpeedCPULion", "FusedAdam", "FusedLion"), "deepspeed"),
}
"""Optimizers that treat every number of a weight for itself, with the package that they are from. DeepSpeed lays
weights end to end and cuts the row anywhere, so that rows, columns and blocks are no more."""

STAGE_3_ADAPTERS = frozenset({"IA3", "LORA"})
"""PEFT's types that were seen to train exactly with weights that are there in their own module's pass only."""

_OTHER_LORA = (
    *("alora_invocation_tokens", "kasa_config", "monteclora_config", "trainable_token_indices"),
    *("use_dora", "velora_config"),
)
"""Settings that make LoRA read weights outside of their module's pass."""


def check_installed(name: str) -> None:
    """Refuse a strategy of DeepSpeed where there is none, one of a version that was not tried, or settings beside ours.

    Args:
        name: of the strategy.

    Raises:
        UserError: with what to install, or the environment variable to unset.
    """
    repair = f"Install it with pip install 'ift[deepspeed]' (deepspeed>={VERSIONS[0]},<{VERSIONS[1]})"
    if not is_installed():
        raise UserError(f"trainer.strategy: {name} needs DeepSpeed, which is not installed. {repair}, or take fsdp.")
    found = importlib.metadata.version("deepspeed")
    if not Version(VERSIONS[0]) <= Version(found) < Version(VERSIONS[1]):
        raise UserError(f"trainer.strategy: {name} was not tried with DeepSpeed {found}. {repair}.")
    if path := os.environ.get("PL_DEEPSPEED_CONFIG_PATH"):
        raise UserError(
            f"trainer.strategy: PL_DEEPSPEED_CONFIG_PATH names '{path}', and the settings of {name} are made from the "
            "run's. Unset it."
        )


def check_command(name: str, command: str) -> None:
    """Refuse commands that only read weights.

    Raises:
        UserError: the command does not train.
    """
    if command != "fit":
        raise UserError(
            f"trainer.strategy: {name} is for training. Set it to auto for '{command}', which reads the checkpoints of "
            "any strategy."
        )


def check_accelerator(accelerator: Any) -> None:
    """Refuse what is no CUDA GPU.

    Raises:
        UserError: with what to take.
    """
    if not isinstance(accelerator, CUDAAccelerator):
        kind = type(accelerator).__name__.removesuffix("Accelerator").lower()
        raise UserError(
            f"trainer.strategy: DeepSpeed needs GPUs, and trainer.accelerator is {kind} here. Take fsdp or ddp, which "
            "need none."
        )


def check_deepspeed(module: Any, trainer: Trainer) -> None:
    """Refuse settings of a run that DeepSpeed would compute otherwise than one device; others pass.

    Args:
        module: an `InstructionModule`, without its model.
        trainer: with the strategy.

    Raises:
        UserError: with the key and the repair.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ZeroStrategy):
        return
    check_accelerator(trainer.accelerator)
    check_zero(module, name=strategy.name, stage=strategy.settings.stage, precision=str(trainer.precision))


def check_zero(module: Any, *, name: str, stage: int, precision: str) -> None:
    """Refuse settings of a run that ZeRO would compute otherwise than one device.

    Args:
        module: an `InstructionModule`, without its model.
        name: of the strategy.
        stage: of ZeRO.
        precision: of the run.

    Raises:
        UserError: with the key and the repair.
    """
    if precision != "32-true":
        raise UserError(
            f"trainer.precision: {precision} is not possible with {name}, which would turn adapters into "
            "bfloat16, too. Leave it out, and set model.dtype to bfloat16: DeepSpeed updates such weights in float32."
        )
    if module.compiles:
        raise UserError(f"model.compile: true was not tried with {name}. Set it to false, or trainer.strategy to ddp.")
    if module.bad_steps.settings.action == "skip":
        raise UserError(
            f"model.on_bad_step.action: skip is not possible with {name}, which applies gradients itself. Set it to "
            "stop, or trainer.strategy to fsdp or ddp."
        )
    _check_optimizer(module, name)
    check_method("model.adapter", module.method, name=name, stage=stage)
    if stage == 3 and module.quantization is not None:
        raise UserError(
            f"model.quantization: {name} shares out weights by their numbers, and {module.quantization.scheme} keeps "
            "scales beside them that only fit the whole. Set trainer.strategy to deepspeed_2, or to fsdp."
        )
    if stage == 3 and module.growth is not None and not module.method.trains_base:
        raise UserError(
            f"model.vocabulary: {name} was not tried with rows that are trained beside an adapter. Set "
            "trainer.strategy to deepspeed_2, or to ddp."
        )


def check_method(key: str, method: Method, *, name: str, stage: int) -> None:
    """Refuse a method that reads gradients or weights where DeepSpeed has shared them out.

    Args:
        key: the configuration key of the method, for errors.
        method: of the run.
        name: of the strategy.
        stage: of ZeRO.

    Raises:
        UserError: with what to take.
    """
    if isinstance(method.config, SampledLayers):
        raise UserError(
            f"{key}: {method.name} trains other layers every few steps, and {name} lays out what is trained once. "
            "Set trainer.strategy to ddp_find_unused_parameters_true."
        )
    config = method.peft_config
    kind = peft_type(config) if config is not None else ""
    if kind == "ADALORA":
        raise UserError(
            f"{key}: AdaLoRA weighs its ranks by gradients, of which {name} leaves each rank a part. Set "
            "trainer.strategy to ddp."
        )
    if stage != 3 or method.trains_base:
        return
    other = next((one for one in _OTHER_LORA if getattr(config, one, None)), None)
    if config is None or kind not in STAGE_3_ADAPTERS or other is not None:
        what = f"'{other}'" if other is not None else f"'{method.name}'"
        raise UserError(
            f"{key}: {what} was not tried with {name}, where weights are only there in their own module's pass. Set "
            "trainer.strategy to deepspeed_2 or fsdp, or the adapter to lora."
        )


def plain_start(config: Any) -> bool:
    """Whether a fresh adapter's first weights are drawn or zero, and not computed from the base model's."""
    return peft_type(config) == "IA3" or (
        peft_type(config) == "LORA" and config.init_lora_weights in (True, "gaussian")
    )


def _check_optimizer(module: Any, name: str) -> None:
    kind = module.optimizer_traits.kind
    if OPTIMIZERS.get(kind.__name__) != kind.__module__.split(".")[0]:
        raise UserError(
            f"model.optimizer: {kind.__module__}.{kind.__name__} may look at the shape of a weight or at blocks of it, "
            f"and {name} lays weights end to end and gives each rank a piece. Take torch.optim.AdamW, or one of "
            f"{', '.join(sorted(OPTIMIZERS))}; or trainer.strategy ddp."
        )


def notes(module: Any, trainer: Trainer) -> list[str]:
    """Return what the user may not expect, one line each."""
    strategy = trainer.strategy
    if not isinstance(strategy, ZeroStrategy) or not strategy.settings.offload:
        return []
    kind = module.optimizer_traits.name
    if kind.startswith("DeepSpeedCPU"):
        return []
    return [
        f"model.optimizer: {strategy.name} lets {kind} compute on the CPU; deepspeed.ops.adam.DeepSpeedCPUAdam is "
        "made for that and faster."
    ]
