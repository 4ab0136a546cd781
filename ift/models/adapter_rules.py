"""Settings of adapters that PEFT (0.21) takes without a word and that would train, save or answer something else."""

from collections.abc import Iterator
from typing import Any

from peft import PeftConfig

from ift.errors import UserError
from ift.models.initial_adapters import changes_base
from ift.models.targets import KEYS_AND_VALUES, peft_type

KEY = "model.adapter"
_STARTS_FROM_DATA = {"eva": "activations", "corda": "activations", "lora_ga": "gradients", "loftq": "quantized weights"}
"""Beginnings of LoRA that a program of their own must compute; without, PEFT begins some as plain LoRA."""


def check_settings(config: PeftConfig) -> None:
    """Refuse a configuration that PEFT would take for something else.

    Raises:
        UserError: with the reason and the nearest choice.
    """
    for reason in _reasons(config, peft_type(config)):
        raise UserError(f"{KEY}{reason}")


def _reasons(config: Any, kind: str) -> Iterator[str]:
    start = str(getattr(config, "init_lora_weights", None)).lower()
    if start in _STARTS_FROM_DATA:
        yield (
            f".init_lora_weights: '{config.init_lora_weights}' begins from {_STARTS_FROM_DATA[start]}, which are not "
            "computed here. Take pissa or olora, which need the weights only, or true."
        )
    if changes_base(config) and getattr(config, "use_dora", False):
        yield (
            f".use_dora: what began with '{config.init_lora_weights}' is saved as the difference of two LoRA, and that "
            "of two magnitudes is none. Take one of the two."
        )
    if kind == "LILY":
        yield (
            ": LILY takes a mean over all tokens of a batch, padding and later ones too, so its loss and answers would "
            "depend on how a step is cut and on the other prompts. Take lora."
        )
    if kind == "LN_TUNING" and config.target_modules == "all-linear":
        yield (
            ".target_modules: 'all-linear' would train whole matrices and not the norms. Leave it out for every norm, "
            "or take lora."
        )
    if kind == "SHADOW" and config.target_modules is not None:
        yield f".target_modules: {config.target_modules}, and SHADOW runs with its own places only. Leave it out."


def check_checkpointing(config: PeftConfig | None) -> None:
    """Refuse gradient checkpointing where a layer computed again lacks what the adapter put there.

    Args:
        config: of the adapter; nothing where the base model is trained.

    Raises:
        UserError: with the repair.
    """
    if config is not None and (kind := peft_type(config)) in (*KEYS_AND_VALUES, "POLY"):
        what = "the keys and values before the text" if kind in KEYS_AND_VALUES else "the task"
        raise UserError(
            f"model.gradient_checkpointing: true, and a layer that is computed again would lack {what} ({kind}). Set "
            "it to false and lower data.micro_batch_tokens, or take p_tuning or lora."
        )
