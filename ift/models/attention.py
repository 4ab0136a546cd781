"""How attention is computed, and what must be known before a model is loaded with it.

Comes in: `model.attention` and the base model's config. Goes out: nothing, or why not. The result is the same up to
rounding with each of them; time and memory are not, nor are the row layouts that are exact (`ift.models.packing`).
"""

from typing import Any, Literal, get_args

import torch

from ift.errors import UserError
from ift.models.encoder_decoder import auto_class

KEY = "model.attention"
Attention = Literal["sdpa", "eager", "flash_attention_2"]
FLASH_PACKAGE = "flash-attn (2.3.3 or newer)"


def model_class(config: Any) -> type[Any] | None:
    """Return the class that transformers makes a language model of, or `None` where it has none.

    Args:
        config: transformers' config of the base model.
    """
    # Asked for its keys, the mapping imports the configs of all families.
    found: Any = auto_class(config)._model_mapping.get(type(config), None)
    made_of: type[Any] | None = found[0] if isinstance(found, tuple) else found
    return made_of


def check_attention(attention: Attention | None, *, config: Any, dtype: str, device: str | None = None) -> None:
    """Refuse attention that the model's class does not have, or that cannot run here; loads no weights.

    Args:
        attention: `model.attention`; none leaves the choice to the config, and then to transformers, which takes what
            there is.
        config: transformers' config of the base model, or `None` where it cannot be read.
        dtype: `model.dtype`.
        device: type of the device that the model will be on; `None` where only a process of the run can tell.

    Raises:
        UserError: with the reason and the repair.
    """
    attention = attention or _stated(config)
    if attention is None or config is None:
        return
    made_of = model_class(config)
    if made_of is not None and not has_attention(made_of, attention):
        others = [one for one in ("sdpa", "eager") if one != attention and has_attention(made_of, one)]
        raise UserError(
            f"{KEY}: {made_of.__name__} has no '{attention}' attention in transformers. Set it to {others[0]}, or to "
            "null for the fastest that is certain to work."
        )
    if attention == "flash_attention_2":
        _check_flash(dtype, device)


def _stated(config: Any) -> Attention | None:
    """Return the attention that a config asks for, as far as it is known here.

    Raises:
        UserError: it names a kernel on the hub.
    """
    stated = getattr(config, "_attn_implementation", None)
    if isinstance(stated, str) and "/" in stated:
        raise UserError(
            f"{KEY}: config.json of the base model asks for '{stated}', which is code on the hub, and ift executes "
            f"none of a checkpoint's. Take attn_implementation out of that file, or set {KEY}."
        )
    return next((one for one in get_args(Attention) if one == stated), None)


def has_attention(made_of: type[Any], attention: str) -> bool:
    """Return whether a class of transformers has an attention implementation."""
    if attention == "eager":
        return True
    if attention == "sdpa":
        return bool(made_of._supports_sdpa)
    # Some name the only kernels that fit them, and transformers would take those, from the hub, without a word.
    only = getattr(made_of, "_compatible_flash_implementations", None)
    return bool(made_of._supports_flash_attn) and (only is None or attention in only)


def _check_flash(dtype: str, device: str | None) -> None:
    from transformers.utils import is_flash_attn_2_available

    repair = f"Set {KEY} to sdpa, which needs none, or "
    if dtype == "float32":
        raise UserError(
            f"{KEY}: flash_attention_2 computes in bfloat16 and float16 only, and model.dtype is float32. Set "
            f"model.dtype to bfloat16, or {KEY} to sdpa."
        )
    if not torch.cuda.is_available():
        raise UserError(f"{KEY}: flash_attention_2 needs a GPU, and none is here. {repair}run it where one is.")
    if device is not None and device != "cuda":
        raise UserError(
            f"{KEY}: flash_attention_2 needs a GPU, and the model is to be on '{device}'. {repair}set "
            "trainer.accelerator to gpu."
        )
    # Where it is missing, transformers would take a kernel from the hub instead.
    if not is_flash_attn_2_available():
        raise UserError(
            f"{KEY}: flash_attention_2 needs the package {FLASH_PACKAGE}, which is not installed. {repair}install it "
            "(pip install flash-attn --no-build-isolation)."
        )
