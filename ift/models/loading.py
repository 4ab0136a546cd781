"""Load base models and attach adapters, without remote code."""

import math
import pickle
from collections.abc import Mapping
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError

from ift.errors import UserError
from ift.hub import check_base, local_folder
from ift.models.attention import Attention, check_attention
from ift.models.base_files import base_folder
from ift.models.deferred import read_for_good
from ift.models.deferred_model import from_deferred
from ift.models.encoder_decoder import auto_class, check_encoder_decoder, settle_head
from ift.models.families import FAMILIES, Family, made_native, native_config, recognise
from ift.models.out_of_memory import is_out_of_memory, told_while_loading
from ift.models.positions import forget_lengths, positions_of
from ift.models.quantization import Quantization, is_quantized, loading_options
from ift.models.rope import Rope, with_rope

Dtype = Literal["float32", "bfloat16", "float16"]
TrainingDtype = Literal["float32", "bfloat16"]
"""float16 is for inference only: its small numbers vanish in gradients and in AdamW's denominator."""

_PLAIN: dict[str, Any] = {"trust_remote_code": False, "output_loading_info": True}


def load_base_model(
    key: str,
    base: str,
    dtype: Dtype,
    *,
    quantization: Quantization | None = None,
    attention: Attention | None = None,
    rope: Rope | None = None,
    deferred: bool = False,
) -> Any:
    """Load a causal language model, or a known encoder-decoder, in training mode; a quantized one is frozen.

    Args:
        key: the configuration key that named it, for errors.
        base: folder or hub id in transformers' layout; it may be quantized already.
        dtype: of the weights in memory, but for quantized ones.
        quantization: how to quantize the weights while they are read; none keeps them as they are.
        attention: how attention is computed; none leaves it to transformers.
        rope: rotary positions other than those of its config.
        deferred: leave the weights in their files, for `ift.models.sharded_loading` to read what a rank needs.

    Raises:
        UserError: nothing there that transformers can load, weights missing from the files, or a quantization,
            attention or rotary positions that cannot be here.
    """
    check_base(key, base)
    config = with_rope(read_config(base, key=key), rope)
    check_encoder_decoder(key, base, config=config, dtype=dtype)
    check_attention(attention, config=config, dtype=dtype)
    options = loading_options(key, base, dtype=dtype, config=config, quantization=quantization)
    chosen = {"attn_implementation": attention} if attention is not None else {}
    options_of_weights = {"dtype": getattr(torch, dtype), **chosen, **options}
    quantized = is_quantized(config, quantization)
    with told_while_loading(key, base, config=config, dtype=dtype, quantized=quantized):
        model = _read(key, base, config, options_of_weights, deferred=deferred)
    settle_head(model)
    if options:
        from ift.models.quantized_layers import prepare_quantized

        prepare_quantized(model)
    forget_lengths(model)
    # from_pretrained leaves the model in evaluation mode, and Lightning does not change that.
    model.train()
    return model


def _read(key: str, base: str, config: Any, options: Mapping[str, Any], *, deferred: bool) -> Any:
    """Read the files of a model, every weight of which must be there.

    Args:
        key: the configuration key that named it, for errors.
        base: folder or hub id.
        config: to make it by; `None` where it cannot be read, which transformers then tells.
        options: for `from_pretrained`.
        deferred: leave the weights in their files.

    Raises:
        UserError: nothing there that transformers can load, or weights missing from the files.
    """
    folder, family = local_folder(base), family_of(base, key=key)
    if config is None:
        _refuse_own_code(key, base)
    for doubt in family.doubts(raw_config(base)) if family is not None else ():
        rank_zero_warn(f"{key}: config.json of '{base}': {doubt}")
    try:
        reader, how = family.reader() if family else auto_class(config), {"config": config, **options, **_PLAIN}
        if deferred:
            model, report = from_deferred(reader, base_folder(key, base), how)
        else:
            model, report = reader.from_pretrained(str(folder) if folder else base, **how)
        if family is not None:
            made_native(model, family)
            if deferred and family.normalized_head:  # its rows are divided in place
                read_for_good(model.lm_head)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{key}: a .bin file of '{base}' is damaged or holds more than tensors, and is not executed. Fetch it "
            "again, or take safetensors."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{key}: no model could be loaded from '{base}': {reason}") from error
    # transformers would fill these at random and only log it.
    if missing := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        raise UserError(
            f"{key}: {len(missing)} weights of the model are not in the files of '{base}', first '{missing[0]}'. "
            "The folder is incomplete, or its config.json belongs to another model."
        )
    if family is not None and (unread := sorted(report["unexpected_keys"])):
        rank_zero_warn(
            f"{key}: {len(unread)} tensors in the files of '{base}' have no place in a {family.title} as its "
            f"config.json states it, and are not read, first '{unread[0]}'."
        )
    return model


def read_config(base: str, *, key: str = "model.base") -> Any | None:
    """Return transformers' config of a base model, or `None` where it cannot be read; loads no weights.

    Args:
        base: folder or hub id.
        key: the configuration key that named it, for errors.

    Raises:
        UserError: a checkpoint of 2023 of which no exact reading is known.
    """
    from transformers import AutoConfig

    folder = local_folder(base)
    family = family_of(base, key=key)
    if family is not None:
        return _config_of_family(key, base, family)
    try:
        return AutoConfig.from_pretrained(str(folder) if folder else base, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError):  # load_base_model says what is wrong
        return None


def _config_of_family(key: str, base: str, family: Family) -> Any:
    try:
        return native_config(family, raw_config(base))
    except Exception as error:  # whatever a value of another type leads to
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{key}: config.json of '{base}' is not that of a {family.title} ({type(error).__name__}: {reason}). "
            "Fetch it again."
        ) from error


def _refuse_own_code(key: str, base: str) -> None:
    """Say that a model is code of its own, where transformers could not read its config; its advice is to run that."""
    try:
        config = raw_config(base)
    except (OSError, ValueError):
        return
    if config.get("auto_map"):
        known = ", ".join(family.title for family in FAMILIES)
        raise UserError(
            f"{key}: config.json of '{base}' says model_type {config.get('model_type')!r}, which transformers does not "
            f"know, and names code of its own (auto_map), which ift never executes. Known without it are {known}."
        )


def family_of(base: str, *, key: str = "model.base") -> Family | None:
    """Return the family of a checkpoint of 2023 that shipped with code of its own; `None` for all others.

    Raises:
        UserError: one of which no exact reading is known.
    """
    try:
        config = raw_config(base)
    except (OSError, ValueError):
        return None
    return recognise(key, base, config)


def raw_config(base: str) -> dict[str, Any]:
    """Return a base model's `config.json` as it lies there.

    Raises:
        OSError: there is none.
        ValueError: it is no JSON.
    """
    from transformers import PreTrainedConfig

    folder = local_folder(base)
    found: dict[str, Any] = PreTrainedConfig.get_config_dict(str(folder) if folder else base)[0]
    return found


def max_positions(base: str, rope: Rope | None = None) -> int | None:
    """Return the longest input of a base model in tokens, or `None` where its config states none; loads no weights.

    Args:
        base: folder or hub id of the base model.
        rope: rotary positions other than those of its config.
    """
    config = with_rope(read_config(base), rope)
    return positions_of(config) if config is not None else None


def check_vocabulary(key: str, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer whose ids the model has no rows for.

    Raises:
        UserError: the tokenizer is larger than the embedding.
    """
    weight = model.get_input_embeddings().weight
    rows = getattr(weight, "ds_shape", weight.shape)[0]  # where DeepSpeed has shared it out, none is left
    if len(tokenizer) > rows:
        raise UserError(f"{key}: the tokenizer has {len(tokenizer)} tokens, the model's embedding only {rows} rows.")


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of trainable and of all parameters; of weights in 4 bits, two are in a byte."""
    sizes = [(_number_of(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return {"trainable": sum(n for n, trainable in sizes if trainable), "total": sum(n for n, _ in sizes)}


def _number_of(parameter: torch.Tensor) -> int:
    # Of weights that DeepSpeed has shared out among ranks, an empty one is left in their place.
    shape = getattr(getattr(parameter, "quant_state", None), "shape", getattr(parameter, "ds_shape", None))
    return math.prod(shape) if shape is not None else parameter.numel()
