"""What was seen to work: methods on families of models, beside quantized weights, with checkpointing, packed, merged.

`support.json` is written by `python scripts/support_matrix`, which tries every pair on tiny models: that the loss
falls, that a loaded adapter and a merged model have the trained model's logits, and that gradients beside quantized
weights are those beside the values they stand for. What failed there is refused here, before any weights are loaded.
"""

import json
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from ift.errors import UserError
from ift.models.encoder_decoder import tried_family
from ift.models.methods import METHODS, Method
from ift.models.quantization import Quantization, stored_quantization

YES = "yes"
COLUMNS = ("train", "reload", "generate", "merge", "checkpointing", "packed", "nf4", "fp4", "int8")

_KINDS: tuple[tuple[str, ...], ...] = (
    ("prefix", "PrefixTuningConfig", "CartridgeConfig", "prompt", "p_tuning", "PromptTuningConfig", "CPTConfig",
     "PromptEncoderConfig", "MultitaskPromptTuningConfig", "AdaptionPromptConfig"),
    ("OFTConfig", "BOFTConfig", "HRAConfig", "PsoftConfig", "RoadConfig"),
    ("ia3", "IA3Config", "ln_tuning", "LNTuningConfig", "BeftConfig", "bitfit"),
    ("sadapter_h", "sadapter_p", "p_adapter", "BottleneckConfig"),
    ("VeraConfig", "RandLoraConfig", "PveraConfig", "VBLoRAConfig", "UniLoraConfig", "TinyLoraConfig",
     "FourierFTConfig", "WaveFTConfig"),
)  # fmt: skip
"""Methods that are alike; all others are most like lora."""

_BEFORE_TRAINING = (
    "it begins with a pass over the data or its gradients, which 'ift fit' does not make. Take 'pissa', which begins "
    "with the weights alone, or 'lora'."
)
_NOT_MADE = {
    **dict.fromkeys(("eva", "corda", "lora_ga"), _BEFORE_TRAINING),
    "loftq": "it quantizes the base model anew, on a GPU only. Take 'qlora'.",
    "LilyConfig": "it takes a mean over all tokens of a batch, padding and later ones too, so its loss and answers "
    "would depend on how a step is cut and on the other prompts. Take 'lora'.",
    "arrow": "it chooses among adapters trained before, and trains nothing. Train each with 'lora'.",
}


_BOTTLENECKS = {"houlsby": "sadapter_h", "pfeiffer": "sadapter_p", "parallel": "p_adapter"}


@cache
def support() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Return by entry, family and column `yes`, `-` where nothing is to be asked, or what failed."""
    found: dict[str, dict[str, dict[str, str]]] = json.loads(
        (Path(__file__).parent / "support.json").read_text(encoding="utf-8")
    )
    return found


def entries_of(method: Method, config: Any) -> list[str]:
    """Return the entries that say what a method can; several where settings of LoRA are combined.

    Args:
        method: under `model.adapter`.
        config: its `peft.PeftConfig`, or `None` where base weights are trained.
    """
    if method.name in METHODS:
        rows = getattr(config, "trainable_token_indices", None)
        return [method.name, *(["LoraConfig trainable_token_indices"] if rows else [])]
    if config is None:
        return []
    name = type(config).__name__
    if name == "BottleneckConfig":
        return [_BOTTLENECKS[config.variant]]
    variants = _variants(config) if name == "LoraConfig" else []
    return [f"{name} {variant}" for variant in variants] or [name]


def _variants(config: Any) -> list[str]:
    start = config.init_lora_weights
    found = [re.sub(r"_\d+$", "", start.lower())] if isinstance(start, str) else []
    switches = {
        "dora": config.use_dora,
        "rslora": config.use_rslora,
        "lora_bias": config.lora_bias,
        "alora": config.alora_invocation_tokens,
        "qalora": config.use_qalora,
        "trainable_token_indices": config.trainable_token_indices,
        "kasa": config.kasa_config,
        "monteclora": config.monteclora_config,
        "velora": config.velora_config,
        "bdlora": config.use_bdlora,
        "arrow": config.arrow_config,
    }
    return found + [name for name, value in switches.items() if value]


def check_supported(
    key: str,
    method: Method,
    adapter: Any,
    *,
    config: Any,
    quantization: Quantization | None = None,
    checkpointing: bool = False,
) -> None:
    """Refuse what failed when it was tried.

    Args:
        key: the configuration key of the method, for errors.
        method: the method.
        adapter: its `peft.PeftConfig`, or `None` where base weights are trained.
        config: transformers' config of the base model, or `None` where it cannot be read; of a family that was not
            tried, what failed on every other is refused.
        quantization: `model.quantization`.
        checkpointing: whether activations are computed twice.

    Raises:
        UserError: with what failed, and the nearest choice.
    """
    scheme = _scheme(config, quantization)
    if method.trains_base and scheme is not None:
        raise UserError(
            f"{key}: {method.name} trains the base model's own weights, and those quantized with {scheme} cannot be "
            "trained. Name an adapter (lora), or load the base model without quantization."
        )
    model_type = tried_family(config.model_type) if config is not None else ""
    reason: str | None
    for entry in entries_of(method, adapter):
        if (reason := _NOT_MADE.get(entry.rpartition(" ")[2])) is not None:
            raise UserError(f"{key}: '{entry}' is not supported: {reason}")
        if entry not in support():
            rank_zero_warn(f"{key}: '{entry}' is not in the support matrix, so nothing is known of what works with it.")
            continue
        tried = partial(_failure, entry, model_type)
        for column in ("train", "reload"):
            if (reason := tried(column)) is not None:
                raise UserError(
                    f"{key}: '{entry}' does not work on '{model_type}' models: {_sentence(reason)} Take "
                    f"'{_nearest(entry, model_type, column)}'."
                )
        if scheme is not None and (reason := tried(_column(scheme))) is not None:
            raise UserError(
                f"{key}: '{entry}' does not train beside weights quantized with {scheme}: {_sentence(reason)} Leave "
                f"model.quantization out, or take '{_nearest(entry, model_type, _column(scheme))}'."
            )
        if checkpointing and (reason := tried("checkpointing")) is not None:
            raise UserError(
                f"model.gradient_checkpointing: true does not work with '{entry}': {_sentence(reason)} Set it to "
                f"false, or {key} to '{_nearest(entry, model_type, 'checkpointing')}'."
            )


def _scheme(config: Any, quantization: Quantization | None) -> str | None:
    if quantization is not None:
        return quantization.scheme
    stored = stored_quantization(config) if config is not None else None
    if stored is None:
        return None
    if str(stored.get("quant_method", "")).endswith("bitsandbytes"):
        return "int8" if stored.get("load_in_8bit") else str(stored.get("bnb_4bit_quant_type", "nf4"))
    return str(stored.get("quant_method") or "an unnamed method")


def _column(scheme: str) -> str:
    """Of other libraries' layers nothing was tried; they have in common with nf4 that a matrix is no plain one."""
    return scheme if scheme in COLUMNS else "nf4"


def _failure(entry: str, model_type: str, column: str) -> str | None:
    """Return what failed, or `None`; on a family that was not tried, what failed on all that were."""
    families = support()[entry]
    if model_type in families:
        found = families[model_type][column]
        return None if found in (YES, "-") else found
    failures = [one[column] for one in families.values()]
    return None if any(one in (YES, "-") for one in failures) else f"on every family that was tried, as {failures[0]}"


def _nearest(entry: str, model_type: str, column: str) -> str:
    """Return the most similar entry that was seen to work."""
    alike = next((kind for kind in _KINDS if entry in kind), ())
    for one in (*alike, "lora"):
        asked = [one, "train", "reload", column] if one != entry and one in support() else []
        if asked and all(_failure(one, model_type, name) is None for name in asked[1:]):
            return one
    return "lora"


def _sentence(reason: str) -> str:
    return reason if reason.endswith(".") else f"{reason}."
