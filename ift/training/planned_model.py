"""The model of a run without its weights, as memory is planned by: methods attached, linear layers quantized.

In: a checked `InstructionModule`. Out: a model on the meta device in the dtypes of the run, of the base model's config
alone; and, where that has many layers, what a few of them say of all.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ift.errors import UserError
from ift.models.adapters import attach_empty, peft_config_of
from ift.models.base_weights import AllWeights, LayerSampler, SampledLayers, all_layers
from ift.models.encoder_decoder import auto_class, is_encoder_decoder
from ift.models.loading import read_config
from ift.models.methods import Method
from ift.models.quantization import Quantization, modules_to_skip, stored_quantization
from ift.models.rope import with_rope
from ift.models.simulation import MicroBatchShape, Simulation, continued, lost_in_heap, simulate
from ift.models.vocabulary import enlarged_config

FEW_LAYERS = (2, 4)
"""Numbers of layers that are simulated in the stead of many."""
MANY_LAYERS = 12
_UNEVEN = ("layers_to_transform", "rank_pattern", "alpha_pattern")
"""Settings of adapters that tell layers apart."""


@dataclass(frozen=True)
class Weights:
    """Bytes and numbers of a model's weights and of what the optimizer sees of them."""

    num_parameters: int
    num_trainable: int
    frozen: int
    """Bytes, buffers among them."""
    trained: int
    """Bytes."""
    largest_layer: int
    """Bytes of the layer with most."""
    largest_layer_trained: int
    """Numbers that are trained in it."""
    outside: int
    """Bytes outside of the layers: embeddings, head, norms."""


@dataclass(frozen=True)
class PlannedModel:
    """What is known of a run's model before its weights are loaded."""

    weights: Weights
    trained: tuple[torch.Tensor, ...]
    """The trained weights, without data."""
    vocabulary: int
    """Rows of the head."""


def planned_weights(module: Any, *, quantization: Quantization | None) -> PlannedModel:
    """Return what weights a run has.

    Args:
        module: a checked `InstructionModule`.
        quantization: of the base model; `module.quantization`, or another one to compare with.
    """
    model = empty_run_model(module, quantization=quantization)
    sizes = {id(one): _bytes(one) for one in [*model.parameters(), *model.buffers()]}
    trained = [one for one in model.parameters() if one.requires_grad]
    layers = [list(layer.parameters()) for layer in all_layers(_base_of(model))]
    inside = {id(one) for layer in layers for one in layer}
    largest = max(layers, key=lambda layer: sum(sizes[id(one)] for one in layer))
    own = sum(sizes[id(one)] for one in trained)
    weights = Weights(
        num_parameters=sum(_numbers(one) for one in model.parameters()),
        num_trainable=sum(one.numel() for one in trained),
        frozen=sum(sizes.values()) - own,
        trained=own,
        largest_layer=sum(sizes[id(one)] for one in largest),
        largest_layer_trained=max(sum(one.numel() for one in layer if one.requires_grad) for layer in layers),
        outside=sum(sizes[id(one)] for one in model.parameters() if id(one) not in inside),
    )
    return PlannedModel(weights, tuple(trained), int(model.get_output_embeddings().weight.shape[0]))


def planned_memory(
    module: Any,
    shape: MicroBatchShape,
    *,
    quantization: Quantization | None,
    checkpointing: bool,
    autocast: torch.dtype | None,
) -> Simulation:
    """Return the memory of a micro-batch and its operations.

    Of a model with many equal layers, few are run, twice, and the result is taken on in a straight line.

    Args:
        module: a checked `InstructionModule`.
        shape: of the micro-batch.
        quantization: of the base model.
        checkpointing: as `model.gradient_checkpointing`.
        autocast: dtype of mixed precision.

    Raises:
        UserError: the model cannot run without values.
    """
    options: dict[str, Any] = {"checkpointing": checkpointing, "autocast": autocast}
    options["frees_gradients"] = module.optimizer_traits.fused
    number = _num_layers(module)
    if number <= MANY_LAYERS or not _layers_are_alike(module):
        return simulate(empty_run_model(module, quantization=quantization), shape, **options)
    few, more = (
        simulate(empty_run_model(module, quantization=quantization, num_layers=one), shape, **options)
        for one in FEW_LAYERS
    )
    return continued(few, more, by=(number - FEW_LAYERS[0]) / (FEW_LAYERS[1] - FEW_LAYERS[0]))


def planned_heap(
    module: Any,
    shapes: Sequence[MicroBatchShape],
    *,
    quantization: Quantization | None,
    checkpointing: bool,
    autocast: torch.dtype | None,
    most_layers: int,
) -> float:
    """Return by how much the heap of a process on a CPU exceeds what micro-batches hold.

    Args:
        module: as of `planned_memory`, and so are all others.
        shapes: of micro-batches in their order.
        quantization: of the base model.
        checkpointing: as `model.gradient_checkpointing`.
        autocast: dtype of mixed precision.
        most_layers: of a model with more, so many are run; what they lose, as a share, is about what all do.

    Returns:
        A share of the activations.
    """
    options: dict[str, Any] = {"checkpointing": checkpointing, "autocast": autocast}
    options["frees_gradients"] = module.optimizer_traits.fused
    few = most_layers if _num_layers(module) > most_layers and _layers_are_alike(module) else None
    return lost_in_heap(empty_run_model(module, quantization=quantization, num_layers=few), shapes, **options)


def empty_run_model(module: Any, *, quantization: Quantization | None, num_layers: int | None = None) -> Any:
    """Return the model that a run trains, on the meta device.

    Args:
        module: a checked `InstructionModule`.
        quantization: of the base model.
        num_layers: how many layers it has; `None` for as many as its config says.

    Raises:
        UserError: its config cannot be read, or PEFT needs the weights to attach the method.
    """
    config = enlarged_config(with_rope(read_config(module.base), module.rope), module.growth)
    if config is None:
        raise UserError(f"model.base: no config of a language model could be read from '{module.base}'.")
    quantization, stored = _quantization_in(config, quantization)
    if num_layers is not None:
        config = _with_layers(config, num_layers)
    options = {"attn_implementation": module.attention} if module.attention is not None else {}
    if stored:
        config = copy.deepcopy(config)
        del config.quantization_config
    with torch.device("meta"):
        model = auto_class(config).from_config(
            config, dtype=getattr(torch, module.dtype_name), trust_remote_code=False, **options
        )
    skipped = modules_to_skip(config, quantization.skip_modules) if quantization is not None else []
    model.requires_grad_(quantization is None)
    attached = attach_empty(_as_fresh(module.method), model)
    if attached is None:
        raise UserError(f"model.adapter: PEFT attaches {module.method.name} by the weights' values only.")
    _draw_layers(attached, module.method, seed=module.seed)
    if quantization is not None:
        _quantize(attached, quantization, skipped=skipped, dtype=getattr(torch, module.dtype_name))
    return attached


def _as_fresh(method: Method) -> Method:
    """Return a method whose trained adapter is attached as a new one of its kind, which is as large."""
    config: Any = copy.deepcopy(peft_config_of(method))
    if method.trains_base or method.peft_config is not None or config is None:
        return method
    config.inference_mode = False
    return Method(method.name, config)


def _draw_layers(model: nn.Module, method: Method, *, seed: int) -> None:
    """Let of sampled layers those be trained that are drawn first; any draw has as many."""
    if isinstance(method.config, SampledLayers):
        sampler = LayerSampler(model, method.config, seed=seed)
        drawn = set(sampler.drawn(0))
        for number, layer in enumerate(all_layers(model)):
            layer.requires_grad_(number in drawn)


def _quantization_in(config: Any, quantization: Quantization | None) -> tuple[Quantization | None, bool]:
    """Return the quantization of a run, and whether it is that of the checkpoint's own files."""
    stored = stored_quantization(config)
    if stored is None:
        return quantization, False
    if stored.get("load_in_8bit"):
        return Quantization("int8"), True
    # Other methods of 4 bits have about as many scales.
    return Quantization("nf4", double=bool(stored.get("bnb_4bit_use_double_quant"))), True


def _num_layers(module: Any) -> int:
    config: Any = read_config(module.base)
    return int(getattr(config, "num_hidden_layers", 0) or 0)


def _layers_are_alike(module: Any) -> bool:
    config: Any = read_config(module.base)
    if is_encoder_decoder(config):
        return False
    adapter = peft_config_of(module.method)
    if adapter is None:
        return isinstance(module.method.config, AllWeights)
    named = any(getattr(adapter, name, None) for name in _UNEVEN)
    return not named and not getattr(adapter, "is_prompt_learning", False)


def _with_layers(config: Any, number: int) -> Any:
    config = copy.deepcopy(config)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = list(kinds)[:number]
    config.num_hidden_layers = number
    return config


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _numbers(parameter: torch.Tensor) -> int:
    return int(getattr(parameter, "numbers", parameter.numel()))


def _quantize(model: Any, quantization: Quantization, *, skipped: list[str], dtype: torch.dtype) -> None:
    """Let linear layers hold as many bytes as quantized ones, and make their weights anew in each product."""
    from transformers.pytorch_utils import Conv1D

    computed = getattr(torch, quantization.compute_dtype) if quantization.compute_dtype is not None else dtype
    for name, module in model.named_modules():
        plain = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        if not isinstance(module, nn.Linear | Conv1D) or any(f"{plain}.".startswith(f"{one}.") for one in skipped):
            continue
        if module.weight.requires_grad or ".lora_" in name or "modules_to_save" in name:
            continue
        shape, numbers = tuple(module.weight.shape), module.weight.numel()
        packed = torch.empty(quantized_bytes(shape, quantization), dtype=torch.uint8, device="meta")
        weight = nn.Parameter(packed, requires_grad=False)
        weight.numbers = numbers  # type: ignore[attr-defined]
        module.weight = weight
        shape = shape if isinstance(module, nn.Linear) else shape[::-1]
        module.forward = _Dequantizing(module, shape, computed)  # type: ignore[method-assign]


def quantized_bytes(shape: tuple[int, ...], quantization: Quantization) -> int:
    """Return the bytes of a matrix in 4 or 8 bits, its scales among them."""
    numbers = math.prod(shape)
    if quantization.scheme == "int8":
        return numbers + 4 * shape[0]
    blocks = math.ceil(numbers / 64)
    scales = blocks + 4 * math.ceil(blocks / 256) if quantization.double else 4 * blocks
    return math.ceil(numbers / 2) + scales


class _Dequantizing:
    """The product of a quantized linear layer, with a weight that is there only while it is needed."""

    def __init__(self, layer: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._layer, self._shape, self._dtype = layer, shape, dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Product.apply(x.to(self._dtype), self._shape)  # type: ignore[no-untyped-call]
        bias = self._layer.bias
        return (found if bias is None else found + bias.to(found.dtype)).to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        ctx.shape = shape
        return x @ torch.empty(shape, dtype=x.dtype, device=x.device).t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device), None
