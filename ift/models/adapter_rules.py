"""Settings of adapters that PEFT (0.21) takes without a word and that would train, save or answer something else."""

from collections.abc import Iterator
from typing import Any

from peft import AdaLoraConfig, PeftConfig

from ift.errors import UserError
from ift.models.initial_adapters import changes_base
from ift.models.targets import peft_type

KEY = "model.adapter"


def check_settings(config: PeftConfig) -> None:
    """Refuse a configuration that PEFT would take for something else.

    Raises:
        UserError: with the reason and the nearest choice.
    """
    for reason in _reasons(config, peft_type(config)):
        raise UserError(f"{KEY}{reason}")


def check_start(model: Any) -> None:
    """Refuse an adapter that would be saved in part: of a converted start, only A and B matrices are.

    Args:
        model: a `peft.PeftModel` whose adapter takes its first value out of the base model's weights.

    Raises:
        UserError: with the first tensor that would be lost.
    """
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    lost = [name for name in trained if ".lora_A." not in name and ".lora_B." not in name]
    if lost:
        raise UserError(
            f"{KEY}: what begins with parts of the base model's weights (PiSSA, OLoRA) is saved as the difference of "
            f"two LoRA, and '{lost[0].removeprefix('base_model.model.')}' is part of neither. Leave out "
            "modules_to_save, bias, trainable_token_indices and embeddings, set model.vocabulary.train to none, or "
            "take lora."
        )


def _reasons(config: Any, kind: str) -> Iterator[str]:
    if config.is_prompt_learning and config.num_virtual_tokens is not None and config.num_virtual_tokens < 1:
        yield f".num_virtual_tokens: {config.num_virtual_tokens} is less than 1."
    if isinstance(config, AdaLoraConfig) and config.target_r > config.init_r:
        yield f".target_r: {config.target_r} is above init_r {config.init_r}; ranks are only taken away."
    if isinstance(config, AdaLoraConfig) and config.deltaT < 1:
        yield f".interval: {config.deltaT} is less than 1 step (deltaT)."
    if changes_base(config) and config.use_rslora and (config.rank_pattern or config.alpha_pattern):
        yield (
            ".use_rslora: PEFT cannot save what began with parts of the base model's weights with a rank_pattern or "
            "alpha_pattern beside it. Take one of the two."
        )
    if changes_base(config) and getattr(config, "use_dora", False):
        yield (
            f".use_dora: what began with '{config.init_lora_weights}' is saved as the difference of two LoRA, and that "
            "of two magnitudes is none. Take one of the two."
        )
    if kind == "LN_TUNING" and config.target_modules == "all-linear":
        yield (
            ".target_modules: 'all-linear' would train whole matrices and not the norms. Leave it out for every norm, "
            "or take lora."
        )
    if kind == "SHADOW" and config.target_modules is not None:
        yield f".target_modules: {config.target_modules}, and SHADOW runs with its own places only. Leave it out."
