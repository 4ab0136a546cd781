"""Whether an adapter can become part of the weights, known before any weights are loaded.

PEFT is asked, not a list: the tuner of the adapter's type, its layers, and a model without data that is made from the
base model's config.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ift.errors import UserError
from ift.models.bottleneck_layer import MERGE_REFUSAL
from ift.models.encoder_decoder import auto_class

CHOICES = (
    "Serve base model and adapter together (PEFT's PeftModel.from_pretrained), or train an adapter that merges (lora)."
)
CONVERTED_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin LoRA that change the base weights, so that the adapter is none of the base model unless it was saved
converted; PEFT's configuration does not say which these are."""


def check_mergeable(key: str, adapter: Path, *, config: Any) -> None:
    """Refuse an adapter that cannot be merged.

    Args:
        key: names the run, for errors.
        adapter: its folder.
        config: transformers' config of the base model, or `None` where it cannot be read.

    Raises:
        UserError: with the reason and the nearest choice.
    """
    settings = read_adapter_config(key, adapter)
    start = getattr(settings, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(CONVERTED_STARTS):
        raise UserError(
            f"{key}: '{adapter}' was saved unconverted: it began with init_lora_weights '{start}', which changed the "
            "base weights, and belongs to those. Save it with path_initial_model_for_weight_conversion, which makes it "
            "a plain LoRA of the base model, or train it with ift fit, which does."
        )
    reason = _reason_of_type(settings) or (_reason_of_model(settings, config) if config is not None else None)
    if reason == MERGE_REFUSAL:  # which says it all
        raise UserError(f"{key}: a {_name(settings)} adapter cannot be merged: {reason}")
    if reason is not None:
        raise UserError(f"{key}: a {_name(settings)} adapter cannot be merged: {reason} {CHOICES}")


def read_adapter_config(key: str, adapter: Path) -> Any:
    """Return the `peft.PeftConfig` of an adapter's folder.

    Raises:
        UserError: there is none, or PEFT does not know its type.
    """
    from peft import PeftConfig

    import ift.models.bottleneck  # noqa: F401 (PEFT then knows its type)

    try:
        return PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{key}: '{adapter}' holds no adapter that PEFT can read: {error}") from error


def _name(settings: Any) -> str:
    return str(getattr(settings.peft_type, "value", settings.peft_type))


def _reason_of_type(settings: Any) -> str | None:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    if getattr(settings, "layer_replication", None):  # PEFT means to refuse this, and looks in the wrong place
        return "with layer_replication, several of its layers share the weights of one."
    if settings.is_prompt_learning:
        return "its virtual tokens are read by the model and are no part of its weights."
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(settings.peft_type)
    if tuner is None or not issubclass(tuner, BaseTuner) or not hasattr(tuner, "tuner_layer_cls"):
        return "it changes how the model computes, which no weights can say."
    if (said := _refusal(tuner._check_merge_allowed)) is not None:
        return said
    refusals = [_refusal(kind.merge) for kind in _kinds(tuner.tuner_layer_cls)]
    return refusals[-1] if all(one is not None for one in refusals) else None


def _kinds(kind: Any) -> Iterator[Any]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _refusal(method: Any) -> str | None:
    """Return what a method says that refuses whatever it is called on, or `None` where it goes about its work."""
    try:
        method(None)
    except (NotImplementedError, ValueError) as error:
        return str(error).rstrip(".") + "." if str(error) else "its layers know no merge."
    except Exception:  # it began, and found no layer to work on
        return None
    return None


def _reason_of_model(settings: Any, config: Any) -> str | None:
    """Merge on a model without data, one layer of each kind: PEFT refuses some layers only (without a bias, ...)."""
    import warnings

    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model: Any = get_peft_model(auto_class(config).from_config(config), settings, low_cpu_mem_usage=True)
    except Exception:  # what cannot be made without data is tried when the weights are there
        return None
    seen = set()
    for name, layer in model.named_modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else None
        kind = (type(layer), type(base), getattr(base, "bias", None) is None)
        if base is None or kind in seen:
            continue
        seen.add(kind)
        try:
            layer.merge()
        except Exception as error:  # one of torch's, which misses the data, is no refusal
            if "merg" in str(error) and "meta device" not in str(error):
                return f"{name.removeprefix('base_model.model.')}: {str(error).rstrip('.')}."
    return None
