"""What does not work, or would not be exact, with weights shared out among ranks; told before any are loaded."""

from typing import Any

from lightning.pytorch import Trainer
from peft import AdaLoraConfig, XLoraConfig

from ift.errors import UserError
from ift.models.adapters import attach_empty, empty_model, peft_config_of
from ift.models.base_weights import SampledLayers
from ift.models.methods import Method
from ift.models.quantization import is_quantized, stored_quantization
from ift.models.targets import peft_type
from ift.training.sharded_strategy import ShardedStrategy
from ift.training.sharding import obstacle_to_sharding

# fmt: off
_BESIDE_QUANTIZED = frozenset([
    "ADAPTION_PROMPT", "BEFT", "BOFT", "BOTTLENECK", "C3A", "CARTRIDGE", "FOURIERFT", "GRALORA", "IA3", "LN_TUNING",
    "LORA", "MISS", "MULTITASK_PROMPT_TUNING", "OFT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "PVERA", "P_TUNING",
    "RANDLORA", "ROAD", "TRAINABLE_TOKENS", "VERA", "WAVEFT",
])
# fmt: on
"""PEFT's types whose steps beside nf4 and int8 weights were those of DDP, bit for bit or up to rounding; all others
read the weights of a layer as a matrix, which packed ones are not."""
_TAKE = "Set trainer.strategy to ddp"


def check_sharded(module: Any, trainer: Trainer, *, config: Any) -> None:
    """Refuse what trainer.strategy fsdp cannot do; other strategies are none of its business.

    Args:
        module: an `InstructionModule`, checked, without its model.
        trainer: of the run.
        config: transformers' config of the base model, or `None` where it cannot be read.

    Raises:
        UserError: with the setting, the reason and what to take.
    """
    if isinstance(trainer.strategy, ShardedStrategy):
        check_shared_out(module, config=config)


def check_shared_out(module: Any, *, config: Any) -> None:
    """Refuse what cannot be trained with weights shared out by FSDP2.

    Args:
        module: an `InstructionModule`, checked, without its model.
        config: as for `check_sharded`.

    Raises:
        UserError: with the setting, the reason and what to take.
    """
    if module.compiles:
        raise UserError(f"model.compile: true, and trainer.strategy fsdp gathers weights between layers. {_TAKE}.")
    if is_quantized(config, module.quantization) and (reason := _obstacle_beside_quantized(config, module)):
        raise UserError(f"model.quantization: with trainer.strategy fsdp, {reason}. {_TAKE}.")
    if not module.optimizer_traits.elementwise:
        raise UserError(
            f"model.optimizer: {module.optimizer_traits.name} is not known to be exact where a rank holds some rows of "
            "each weight only. Take one of torch.optim that treats every number alone (AdamW, SGD and their kind), or "
            "set trainer.strategy to ddp."
        )
    if reason := _obstacle(module.method, module.base, module.growth):
        # Which ddp alone would refuse as well.
        take = f"{_TAKE}_find_unused_parameters_true" if isinstance(module.method.config, SampledLayers) else _TAKE
        raise UserError(
            f"model.adapter: {module.method.name} does not work with trainer.strategy fsdp: {reason}. {take}."
        )


def _obstacle_beside_quantized(config: Any, module: Any) -> str:
    stored = stored_quantization(config) if config is not None else None
    if stored is not None and stored.get("quant_method") != "bitsandbytes":
        return f"weights of {stored.get('quant_method')} are not shared out, only those of bitsandbytes"
    adapter: Any = peft_config_of(module.method)
    if adapter is None:
        return f"{module.method.name} would save the quantized weights, which are not put together again"
    if peft_type(adapter) not in _BESIDE_QUANTIZED or getattr(adapter, "use_dora", False):
        return f"{module.method.name} reads the base model's weights themselves, or was not seen to be exact"
    return ""


def _obstacle(method: Method, base: str, growth: Any) -> str:
    if isinstance(method.config, SampledLayers):
        return "it trains other layers every few steps, and FSDP2 shares out once what is trained"
    config: Any = peft_config_of(method)
    if isinstance(config, AdaLoraConfig):
        return "it weighs ranks by whole gradients, of which a rank has some rows"
    if isinstance(config, XLoraConfig):
        return "it makes passes through the model within passes, which was not tried"
    for name in ("kasa_config", "monteclora_config", "auxiliary_loss_weight"):
        if getattr(config, name, None):
            return f"'{name}' adds to the loss what it computes from weights outside of a pass through the model"
    model = empty_model(base, growth)
    attached = attach_empty(method, model) if model is not None else None
    return obstacle_to_sharding(attached) if attached is not None else ""
