"""Settings of adapters that PEFT (0.21) takes without a word and that would train, save or answer something else."""

from collections.abc import Iterator
from typing import Any

from peft import PeftConfig

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


def _reasons(config: Any, kind: str) -> Iterator[str]:
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
