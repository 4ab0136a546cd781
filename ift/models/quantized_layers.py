"""Linear layers with quantized weights, made to compute the same in training, evaluation and on every device.

Imports bitsandbytes, which takes seconds; import this module where a model is quantized only.
"""

import math
from functools import wraps
from typing import Any

import torch
from bitsandbytes import functional, matmul_4bit  # type: ignore[attr-defined]
from bitsandbytes.functional import dequantize_blockwise
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
    _read_scales_in_order()
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Otherwise the first evaluation on a CPU with AVX512-BF16 packs the weights for a kernel without gradient,
            # for good: later training steps would have wrong gradients and no error.
            module.support_avx512bf16_for_cpu = False
            module.__class__ = FourBitLinear
        elif isinstance(module, Linear8bitLt) and not module.state.has_fp16_weights:
            module.__class__ = EightBitLinear


class FourBitLinear(Linear4bit):
    """A linear layer with 4-bit weights that reads their scales in the order in which they were written.

    Scales belong to 64 weights in a row, counted over the whole matrix. bitsandbytes' CPU kernel (0.50) begins them
    anew in each row of the matrix, and so takes wrong ones where rows are no multiple of 64 long. Its layer would also
    round a bias to the compute dtype for good.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        inputs = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        product: torch.Tensor
        if x.device.type == "cpu":
            product = _product(inputs, self, bias)
        else:
            # bitsandbytes sums the gradient of a bias over the batch only, not over the length.
            trained = bias is not None and bias.requires_grad
            product = matmul_4bit(inputs, self.weight, state_of(self), bias=None if trained else bias)
            product = product + bias if bias is not None and trained else product
        return product.to(x.dtype)


class EightBitLinear(Linear8bitLt):
    """A linear layer with 8-bit weights and products in the dtype of its input.

    bitsandbytes' own layer rounds its inputs to 8 bits too, but for columns that hold an outlier anywhere in the batch;
    so a response would depend on its neighbours in the batch, a step on how it is cut, and on a CPU, where bitsandbytes
    trains as here, evaluation would be of another function than was trained.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return _product(x, self, None if self.bias is None else self.bias.to(x.dtype))


def _product(x: torch.Tensor, layer: Any, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = _Product.apply(x, layer, bias)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """`x @ weight.T + bias` with a weight that is not kept in full precision between forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        rows = F.linear(x.flatten(0, -2), dequantized_weight(layer, x.dtype), bias)
        # With a bias, more dimensions would give a view, which nothing may be added to in place; some adapters do.
        return torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], rows.shape[-1]])  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (gradient,) = gradients
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            # Under autocast the output, and so its gradient, has a smaller dtype than the input.
            of_input = (gradient @ dequantized_weight(ctx.layer, gradient.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.flatten(0, -2).sum(0, dtype=ctx.dtype)
        return of_input, None, of_bias


def dequantized_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight that a quantized layer computes with, `(out_features, in_features)`."""
    weight: Any = layer.weight
    if isinstance(layer, Linear8bitLt):
        # bitsandbytes keeps the scales with the weight or in the layer's state, and moving a model forgets them.
        own = getattr(weight, "SCB", None)
        scales: Any = own if own is not None else layer.state.SCB
        scales = scales.to(weight.device)
        return (weight.data * (scales / 127).unsqueeze(1)).to(dtype)  # type: ignore[no-any-return]
    return _values(weight.data, state_of(layer), dtype)


def state_of(layer: Any) -> Any:
    """Return what the packed weight of a 4-bit layer stands for: its scales, shape and kind."""
    own = getattr(layer.weight, "quant_state", None)
    return own if own is not None else layer.quant_state


def as_plain_parameters(model: Any, device: torch.device) -> list[Any]:
    """Let packed weights be plain frozen parameters, which can be shared out by rows; scales stay whole in the layers.

    Args:
        model: of `prepare_quantized`, with or without an adapter.
        device: of the scales.

    Returns:
        The layers, for `tell_of_packing` once their weights have got their place.
    """
    layers = [module for module in model.modules() if isinstance(module, FourBitLinear | EightBitLinear)]
    for layer in layers:
        packed: Any = layer.weight
        if isinstance(layer, FourBitLinear):
            layer.quant_state = state_of(layer)
            layer.quant_state.to(device)
        else:
            own: Any = packed.SCB if packed.SCB is not None else layer.state.SCB
            layer.state.SCB = own.to(device)
        layer.weight = torch.nn.Parameter(packed.data, requires_grad=False)
    return layers


def tell_of_packing(layers: list[Any]) -> None:
    """Let weights that `as_plain_parameters` made plain tell what they stand for: to who counts or lists them."""
    for layer in layers:
        weight: Any = layer.weight
        if isinstance(layer, FourBitLinear):
            weight.quant_state = layer.quant_state
        else:
            weight.SCB = None  # bitsandbytes then looks into the layer


def _values(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return 4-bit values in the shape of their matrix."""
    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    # As one row: the scales' order is then right on every device.
    values = torch.ops.bitsandbytes.dequantize_4bit(
        packed, scales.float(), state.blocksize, state.quant_type, [1, math.prod(state.shape)], dtype
    )
    return values.reshape(state.shape)  # type: ignore[no-any-return]


def _read_scales_in_order() -> None:
    """Let whoever asks bitsandbytes for the values of 4-bit weights get the right ones; does nothing twice.

    PEFT asks for them (for the norms of DoRA, for one), and on a CPU they are wrong where rows are no multiple of 64
    long, as `FourBitLinear` says.
    """
    asked = functional.dequantize_4bit
    if hasattr(asked, "__wrapped__"):
        return

    @wraps(asked)
    def in_order(A: torch.Tensor, quant_state: Any = None, *args: Any, **options: Any) -> torch.Tensor:  # noqa: N803
        right = quant_state is None or A.device.type != "cpu" or quant_state.shape[-1] % quant_state.blocksize == 0
        if right or args or options:
            return asked(A, quant_state, *args, **options)
        values = _values(A, quant_state, quant_state.dtype)
        return values.t() if A.shape[0] == 1 else values

    functional.dequantize_4bit = in_order


def dequantized(model: Any, *, dtype: torch.dtype | None = None) -> Any:
    """Turn a quantized model into a plain one with the weights that it computed with, in place.

    One layer after another, so that memory holds one model and one layer. Must come before an adapter is attached,
    which would keep the quantized layers.

    Args:
        model: of `load_base_model`; a plain one only changes its dtype.
        dtype: of all weights; by default the model's.

    Returns:
        The same model, frozen; `save_pretrained` writes a plain folder.

    Raises:
        ValueError: an adapter is attached.
        UserError: quantized by another library that offers no way back.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("dequantized() must come before an adapter is attached")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return _cast(model, dtype)
    if str(getattr(model.quantization_method, "value", model.quantization_method)) != "bitsandbytes":
        try:
            return _cast(model.dequantize(), dtype)
        except NotImplementedError as error:
            raise UserError(f"model.base: weights of {model.quantization_method} cannot be dequantized.") from error
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit | Linear8bitLt):
            model.set_submodule(name, _plain_layer(module, computing=model.dtype, dtype=dtype or model.dtype))
    quantizer.remove_quantization_config(model)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            vars(part.config).pop("_is_quantized", None)
    model.__dict__.pop("is_loaded_in_4bit", None)
    model.__dict__.pop("is_loaded_in_8bit", None)
    return _cast(model, dtype)


def _cast(model: Any, dtype: torch.dtype | None) -> Any:
    """Cast weights only: `model.to(dtype)` would round the frequencies of rotary positions too."""
    if dtype is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model


def _plain_layer(layer: Any, *, computing: torch.dtype, dtype: torch.dtype) -> torch.nn.Module:
    from transformers.pytorch_utils import Conv1D

    # In the dtype of its products first: the weight that it computed with.
    weight = dequantized_weight(layer, getattr(layer, "compute_dtype", None) or computing).to(dtype)
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
