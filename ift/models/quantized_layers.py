"""Linear layers with quantized weights, made to compute the same in training, evaluation and on every device.

Imports bitsandbytes, which takes seconds; import this module where a model is quantized only.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch.nn import functional as F

from ift.errors import UserError


def prepare_quantized(model: Any) -> None:
    """Freeze a quantized model and let its layers compute one function, in training and in evaluation.

    Nothing is cast to float32, as PEFT's `prepare_model_for_kbit_training` does: the model trained is then the model
    that predicts. What that guards against does not occur here: adapters, optimizer and loss are in float32, float16
    does not train. Inputs need no gradients for checkpointing, which is of the non-reentrant kind.

    Args:
        model: of transformers, as loaded.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Otherwise the first evaluation on a CPU with AVX512-BF16 packs the weights for a kernel without gradient,
            # for good: later training steps would have wrong gradients and no error.
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt) and not module.state.has_fp16_weights:
            module.__class__ = Int8Linear


class _Int8Product(torch.autograd.Function):
    """`x @ weight.T + bias` with a weight that is never kept in full precision."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.input_dtype, ctx.bias_dtype = x.dtype, None if bias is None else bias.dtype
        return F.linear(x, int8_weight(codes, scales, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, torch.Tensor | None]:
        (gradient,) = gradients
        codes, scales = ctx.saved_tensors
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            # Under autocast the output, and so its gradient, has a smaller dtype than the input.
            of_input = (gradient @ int8_weight(codes, scales, gradient.dtype)).to(ctx.input_dtype)
        if ctx.needs_input_grad[3]:
            of_bias = gradient.flatten(0, -2).sum(0, dtype=ctx.bias_dtype)
        return of_input, None, None, of_bias


class Int8Linear(Linear8bitLt):
    """A linear layer with 8-bit weights and products in the dtype of its input.

    bitsandbytes' own layer rounds its inputs to 8 bits too, but for columns that hold an outlier anywhere in the batch;
    so a response would depend on its neighbours in the batch, a step on how it is cut, and on a CPU, where bitsandbytes
    trains as here, evaluation would be of another function than was trained.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        product: torch.Tensor = _Int8Product.apply(x, self.weight.data, row_scales(self), self.bias)  # type: ignore[no-untyped-call]
        return product


def row_scales(layer: Any) -> torch.Tensor:
    """Return the largest magnitude of each row of an 8-bit layer, where its codes are +-127; float32, `(rows,)`."""
    scales: torch.Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return scales.to(layer.weight.device)  # moving a whole model forgets them


def int8_weight(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight that 8-bit codes stand for.

    Args:
        codes: int8, `(rows, columns)`.
        scales: float32, `(rows,)`.
        dtype: of the result; rounded once, from float32.
    """
    return (codes * (scales / 127).unsqueeze(1)).to(dtype)


def dequantized(model: Any) -> Any:
    """Turn a quantized model into a plain one with the weights that it computed with, in place.

    One layer after another, so that memory holds one model and one layer. Must come before an adapter is attached,
    which would keep the quantized layers.

    Args:
        model: of `load_base_model`; a plain one is returned as it is.

    Returns:
        The same model, in its dtype, frozen; `save_pretrained` writes a plain folder.

    Raises:
        ValueError: an adapter is attached.
        UserError: quantized by another library that offers no way back.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("dequantized() must come before an adapter is attached")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return model
    if str(getattr(model.quantization_method, "value", model.quantization_method)) != "bitsandbytes":
        try:
            return model.dequantize()
        except NotImplementedError as error:
            raise UserError(f"model.base: weights of {model.quantization_method} cannot be dequantized.") from error
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit | Linear8bitLt):
            model.set_submodule(name, _plain_layer(module, model.dtype))
    quantizer.remove_quantization_config(model)
    for part in model.modules():
        if hasattr(part, "config"):
            vars(part.config).pop("_is_quantized", None)
    model.__dict__.pop("is_loaded_in_4bit", None)
    model.__dict__.pop("is_loaded_in_8bit", None)
    return model


def _plain_layer(layer: Any, dtype: torch.dtype) -> torch.nn.Module:
    from transformers.pytorch_utils import Conv1D

    weight = dequantized_weight(layer).to(dtype)
    plain: Any
    with torch.device("meta"):
        if issubclass(getattr(layer, "source_cls", torch.nn.Linear), Conv1D):  # GPT-2's, with transposed weights
            plain, weight = Conv1D(layer.out_features, layer.in_features), weight.T.contiguous()
        else:
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    plain.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    plain.train(layer.training)
    return plain  # type: ignore[no-any-return]


def dequantized_weight(layer: Any) -> torch.Tensor:
    """Return the weight that a quantized layer computes with, `(out_features, in_features)`."""
    if isinstance(layer, Linear8bitLt):
        return int8_weight(layer.weight.data, row_scales(layer), torch.float32)
    state = layer.weight.quant_state
    # Straight to the dtype of its products, as the kernels do.
    state_dtype, state.dtype = state.dtype, layer.compute_dtype or state.dtype
    try:
        weight: torch.Tensor = dequantize_4bit(layer.weight.data, state)
    finally:
        state.dtype = state_dtype
    return weight
