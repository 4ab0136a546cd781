"""Which weights of a base model are held in 4 or 8 bits, and what must be known before they are loaded.

Comes in: `model.quantization`, and the base model's config. Goes out: arguments for transformers, or why
not. bitsandbytes quantizes the linear layers while they are read, one after another; `quantized_layers` prepares
the result.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from ift.errors import UserError, unknown_name
from ift.models.encoder_decoder import auto_class

KEY = "model.quantization"
Scheme = Literal["nf4", "fp4", "int8"]
SCHEMES: tuple[Scheme, ...] = ("nf4", "fp4", "int8")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Quantization:
    """How bitsandbytes holds the weights of the base model's linear layers; they are frozen, an adapter is trained."""

    scheme: Scheme
    """`nf4` and `fp4`: 4 bits and one scale for 64 weights (QLoRA, Dettmers et al. 2023; nf4 is its choice); `int8`: 8
    bits and one scale per row (Dettmers et al. 2022), with products in the dtype of the model."""
    double: bool = True
    """Hold the scales of nf4 and fp4 in 8 bits, which saves 0.37 bits per weight; int8 has too few to matter."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Of the products with 4-bit weights; by default `model.dtype`, so that nothing is rounded on the way."""
    skip_modules: list[str] | None = None
    """Modules to leave as they are, by name or its end (`q_proj`, `layers.0.mlp`), beside the output embedding."""

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise unknown_name(f"{KEY}.scheme", self.scheme, SCHEMES)
        if self.compute_dtype is not None and self.compute_dtype not in COMPUTE_DTYPES:
            raise unknown_name(f"{KEY}.compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        if self.compute_dtype is not None and self.scheme == "int8":
            raise UserError(
                f"{KEY}.compute_dtype: '{self.compute_dtype}' has no effect on int8, which computes in model.dtype. "
                "Leave it out, or take nf4."
            )


def stored_quantization(config: Any) -> dict[str, Any] | None:
    """Return the settings with which a checkpoint is quantized already, or `None` for a plain one.

    Args:
        config: transformers' config of the base model.
    """
    for part in (config, config.get_text_config(decoder=True)):
        if found := getattr(part, "quantization_config", None):
            return dict(found if isinstance(found, dict) else found.to_dict())
    return None


def is_quantized(config: Any, quantization: Quantization | None) -> bool:
    """Return whether a base model will be quantized in memory.

    Args:
        config: transformers' config of the base model, or `None` where it cannot be read.
        quantization: `model.quantization`.
    """
    return quantization is not None or (config is not None and stored_quantization(config) is not None)


def default_quantization(scheme: Scheme | None, config: Any) -> Quantization | None:
    """Return the quantization that a method asks for, unless the checkpoint is quantized already.

    Args:
        scheme: of the method; none asks for none.
        config: transformers' config of the base model, or `None` where it cannot be read.
    """
    return Quantization(scheme) if scheme is not None and not is_quantized(config, None) else None


def check_quantization(key: str, base: str, *, config: Any, quantization: Quantization | None) -> None:
    """Refuse a quantization that cannot be, from the base model's config alone.

    Args:
        key: the configuration key that named the base model, for errors.
        base: folder or hub id of the base model.
        config: its transformers' config, or `None` where it cannot be read.
        quantization: `model.quantization`.

    Raises:
        UserError: quantized twice, a package or a GPU is missing, or a module that is not there.
    """
    # Which device the model will be on is known when it is built; until then, the best there is.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _options_for(key, base, "float32", config=config, quantization=quantization, device=device)


def loading_options(
    key: str, base: str, *, dtype: str, config: Any, quantization: Quantization | None
) -> dict[str, Any]:
    """Return what `from_pretrained` needs to know of quantization; nothing for a plain model.

    Weights are read one after another onto the device of this process and quantized there, so that there is never a
    whole model in full precision. Under Lightning, the default device while the model is built is that of the rank.

    Args:
        key: the configuration key that named the base model, for errors.
        base: folder or hub id of the base model.
        dtype: of the weights that are not quantized.
        config: the base model's config, or `None` where it cannot be read.
        quantization: `model.quantization`.

    Raises:
        UserError: as for `check_quantization`.
    """
    device = str(torch.get_default_device())
    return _options_for(key, base, dtype, config=config, quantization=quantization, device=device)


def _options_for(
    key: str, base: str, dtype: str, *, config: Any, quantization: Quantization | None, device: str
) -> dict[str, Any]:
    stored = stored_quantization(config) if config is not None else None
    if stored is None and quantization is None:
        return {}
    options: dict[str, Any] = {"device_map": {"": device}}
    if stored is not None:
        _check_stored(key, base, stored=stored, quantization=quantization, device=device)
        return options
    assert quantization is not None
    skipped = modules_to_skip(config, quantization.skip_modules) if config is not None else quantization.skip_modules
    options["quantization_config"] = _bitsandbytes_config(quantization, dtype=dtype, skipped=skipped)
    try:
        _check_environment(options["quantization_config"], pre_quantized=False, device=device)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"{KEY}: bitsandbytes cannot quantize here: {_one_line(error)}") from error
    return options


def _bitsandbytes_config(quantization: Quantization, *, dtype: str, skipped: list[str] | None) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization.scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.scheme,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=quantization.compute_dtype or dtype,
        llm_int8_skip_modules=skipped,
    )


def _check_stored(
    key: str, base: str, *, stored: dict[str, Any], quantization: Quantization | None, device: str
) -> None:
    method = stored.get("quant_method") or "a method that its config does not name"
    if quantization is not None:
        raise UserError(
            f"{KEY}: '{base}' is quantized already, with {method}, and is not quantized twice. Leave {KEY} out, or "
            f"name the unquantized model as {key}."
        )
    try:
        _check_environment(stored, pre_quantized=True, device=device)
    except (ImportError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{key}: '{base}' is quantized with {method}, and transformers cannot load that here: {_one_line(error)} "
            f"Mend that, or name the unquantized model and set {KEY}."
        ) from error


def _check_environment(settings: Any, *, pre_quantized: bool, device: str) -> None:
    """Let transformers' own quantizer say what is missing."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=pre_quantized)
    quantizer.validate_environment(device_map={"": device}, weights_only=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:400]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def modules_to_skip(config: Any, wished: Sequence[str] | None) -> list[str]:
    """Return the full names of the modules that are not quantized: transformers' own and the wished ones.

    transformers would take the wished ones in place of its own, and so quantize an output embedding that may be the
    input embedding too; and it would not notice a name that fits nothing.

    Args:
        config: transformers' config of the base model.
        wished: names of modules, or their ends.

    Raises:
        UserError: a name fits no module, nothing is left to quantize, or the config is of another kind of model.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    try:
        with torch.device("meta"):
            model = auto_class(config).from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"{KEY}: the base model's config makes no causal language model: {_one_line(error)}") from error
    linear = _linear_layers(model)
    skipped = set(get_keys_to_not_convert(model))
    for name in wished or ():
        found = {module for module in _ancestors(linear) if module == name or module.endswith(f".{name}")}
        if not found:
            raise _unknown_module(name, linear)
        skipped |= found
    left = [name for name in linear if not any(f"{name}.".startswith(f"{module}.") for module in skipped)]
    if not left and not wished:
        raise UserError(
            f"{KEY}: {type(model).__name__} has no plain linear layer but the head, and bitsandbytes takes no others. "
            f"Leave {KEY} out."
        )
    if not left:
        raise UserError(f"{KEY}.skip_modules: {wished} leaves no layer to quantize. Name fewer, or leave {KEY} out.")
    _warn_of_small_share(model, left)
    return sorted(skipped)


def _linear_layers(model: torch.nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    # bitsandbytes takes exactly these; a class derived from Linear may compute something else.
    return [name for name, one in model.named_modules() if type(one) is torch.nn.Linear or isinstance(one, Conv1D)]


def _ancestors(names: Sequence[str]) -> set[str]:
    """Return the names and those of all modules around them."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}


def _unknown_module(name: str, linear: Sequence[str]) -> UserError:
    modules = _ancestors(linear)
    ends = {module.rpartition(".")[2] for module in modules}
    nearest = difflib.get_close_matches(name, modules, n=1, cutoff=0.5) if "." in name else []
    hint = f"The nearest full name is '{nearest[0]}'." if nearest else "These are ends of names; whole names do too."
    return unknown_name(f"{KEY}.skip_modules", name, {end for end in ends if not end.isdigit()}, hint=hint)


def _warn_of_small_share(model: Any, names: Sequence[str]) -> None:
    """Say so where most weights are not in linear layers, as in mixtures of experts."""
    embeddings = {id(model.get_input_embeddings().weight)}
    if (output := model.get_output_embeddings()) is not None:
        embeddings.add(id(output.weight))
    matrices = [one.numel() for one in model.parameters() if one.ndim > 1 and id(one) not in embeddings]
    quantized = sum(model.get_submodule(name).weight.numel() for name in names)
    share = quantized / max(1, sum(matrices))
    if share < 0.5:
        rank_zero_warn(
            f"{KEY}: only {share:.0%} of the weights outside the embeddings are quantized; bitsandbytes takes linear "
            "layers only, and the others stay in model.dtype."
        )
