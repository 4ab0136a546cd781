"""How many floating-point operations a training step takes: counted on a model, once, and true for every step.

In: a model with its method attached, while it computes. Out: `FlopsModel`, which turns the lengths of a step's examples
into operations. What is counted are matrix products, as all else together is a few per cent: those of linear layers,
LoRA's own among them, experts (as many as a token is sent to), attention's two, and the head's. A product of a `(rows,
inputs)` and an `(inputs, outputs)` matrix is `2 x rows x inputs x outputs` operations. Not counted are products of two
weights, which some methods need once per micro-batch (DoRA's norms, LoHa's and LoKr's factors), and convolutions.

The backward pass is counted as autograd does it: a gradient with respect to a layer's input only where something below
is trained, with respect to a weight only where it is trained itself. So full fine-tuning costs three times the forward
pass, LoRA about twice, and the last layers alone little more than once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ift.errors import UserError
from ift.models.base_weights import decoder_layers

_IN_ATTENTION = ("attn", "attention")
"""One of these is part of the name of what computes attention, in every family of transformers."""


@dataclass(frozen=True)
class Flops:
    """Operations of a step, over all ranks."""

    model: float
    """What the step needs, however it is computed: forward and backward pass of its real tokens."""
    hardware: float
    """What is computed for it: padding and what gradient checkpointing computes twice are in it too."""


@dataclass(frozen=True)
class Products:
    """Operations of matrix products, for one token."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0
    """Of the forward pass that gradient checkpointing repeats."""

    def __add__(self, other: "Products") -> "Products":
        return Products(self.forward + other.forward, self.backward + other.backward, self.again + other.again)

    def times(self, number: float) -> "Products":
        """Return the operations of so many tokens."""
        return Products(self.forward * number, self.backward * number, self.again * number)


@dataclass(frozen=True)
class FlopsModel:
    """Operations of a model as functions of what a step holds."""

    token: Products
    """For each token: all but attention and head."""
    supervised: Products
    """For each supervised token: the head, and what else is computed only where the loss counts."""
    pair: Mapping[int | None, Products]
    """For each pair of a token and one that it attends to, summed over layers, by sliding window (`None`: no window).
    Attention's backward pass is counted as four products of the forward pass's two, as if nothing were computed twice
    in it."""

    def of(self, *, tokens: float, positions: float, supervised: float, pairs: Mapping[int | None, float]) -> Flops:
        """Return the operations of a step.

        Args:
            tokens: real ones.
            positions: tokens and padding.
            supervised: tokens that the loss counts.
            pairs: per sliding window in `pair`, what `num_pairs` returns for the examples.
        """
        rest = self.supervised.times(supervised)
        for window, products in self.pair.items():
            rest += products.times(pairs.get(window, 0))
        real, padded = rest + self.token.times(tokens), rest + self.token.times(positions)
        return Flops(real.forward + real.backward, padded.forward + padded.backward + padded.again)

    def pairs_of(self, lengths: Sequence[int]) -> dict[int | None, int]:
        """Return the pairs of tokens of examples that attend to one another, per sliding window."""
        return {window: num_pairs(lengths, window) for window in self.pair}


def num_pairs(lengths: Sequence[int], window: int | None = None) -> int:
    """Return how many pairs of a token and one before it, or itself, examples of these lengths have.

    Args:
        lengths: in tokens; examples do not attend to one another.
        window: tokens that a token attends to at most; `None` for all.
    """
    if window is None:
        return sum(length * (length + 1) // 2 for length in lengths)
    narrow = [min(length, window) for length in lengths]
    beyond = sum(max(0, length - window) for length in lengths)
    return sum(length * (length + 1) // 2 for length in narrow) + beyond * window


@dataclass
class _Record:
    """What one module multiplied in the forward passes of a step."""

    rows: int
    operations: int
    """For one row."""
    input_graded: bool
    weight_graded: bool

    def products(self, *, again: bool) -> Products:
        """Return the operations for one row."""
        return _products(self.operations, input_graded=self.input_graded, weight_graded=self.weight_graded, again=again)


def _products(operations: int, *, input_graded: bool, weight_graded: bool, again: bool) -> Products:
    graded = (input_graded + weight_graded) * operations
    return Products(operations, graded, operations if again else 0)


@dataclass
class Recording:
    """What was multiplied while the model was listened to."""

    records: dict[str, _Record] = field(default_factory=dict)
    """By name of the module, in the order of the first calls."""
    positions: int = 0
    """That went through the input embedding."""


@contextmanager
def recording(model: Any) -> Iterator[Recording]:
    """Listen to a model's products in the forward passes within; costs a call of Python per layer.

    Recomputation in a backward pass is not heard. Not for compiled models, which would be compiled anew.

    Args:
        model: a language model of transformers, wrapped by PEFT or not.
    """
    heard = Recording()
    handles = [
        module.register_forward_hook(_listener(heard, name, module))
        for name, module in model.named_modules()
        if _multiplies(module)
    ]
    handles.append(model.get_input_embeddings().register_forward_hook(_position_counter(heard)))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _multiplies(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) or bool(_experts(module))


def _experts(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a module that holds those of several experts, each `(experts, ., .)`."""
    own = [one for one in module.parameters(recurse=False) if one.ndim == 3]
    return own if own and hasattr(module, "num_experts") else []


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _position_counter(heard: Recording) -> Any:
    def count(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if not _in_backward():
            heard.positions += inputs[0].numel()

    return count


def _listener(heard: Recording, name: str, module: nn.Module) -> Any:
    experts = [(one[0].numel(), one.requires_grad) for one in _experts(module)]  # PEFT swaps them in a forward pass

    def listen(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Add a pass through a linear layer or experts to its record; a hook after the forward pass."""
        if _in_backward() or not inputs:
            return
        found = inputs[0]
        rows = found.numel() // found.shape[-1]
        if experts:
            # transformers gives the rows, and per row the experts it goes to.
            chosen = next((one.shape[-1] for one in inputs[1:] if not one.is_floating_point()), 1)
            operations = sum(2 * chosen * size for size, _ in experts)
            graded = any(trained for _, trained in experts)
        else:
            operations = 2 * found.shape[-1] * output.shape[-1]
            graded = bool(module.weight.requires_grad)
        enabled = torch.is_grad_enabled()
        record = heard.records.setdefault(name, _Record(0, operations, False, False))
        record.rows += rows
        record.input_graded |= found.requires_grad and enabled
        record.weight_graded |= graded and enabled

    return listen


def flops_model(model: Any, heard: Recording, *, supervised: int, checkpointing: bool) -> FlopsModel:
    """Return the operations of a model from what was heard of it in a step.

    Args:
        model: that was listened to.
        heard: at least one forward pass.
        supervised: tokens whose logits were computed in these forward passes.
        checkpointing: whether decoder layers are computed twice.
    """
    names = {id(module): name for name, module in model.named_modules()}
    head = names[id(model.get_output_embeddings())]
    layers = [names[id(layer)] for layer in _layers(model)]
    token, rare = Products(), Products()
    repeated = _repeated(heard, layers) if checkpointing else frozenset()
    for name, record in heard.records.items():
        if _within(name, head):
            continue
        products = record.products(again=name in repeated)
        # As many rows as there are supervised tokens: computed only where the loss reads (head, last block).
        if record.rows == supervised != heard.positions:
            rare += products
        else:
            token += products.times(record.rows / max(1, heard.positions))
    graded = any(record.input_graded or record.weight_graded for record in heard.records.values())
    rare += _of_head(model.get_output_embeddings(), input_graded=graded)
    return FlopsModel(token, rare, _of_attention(model, heard, layers, checkpointing=checkpointing))


def _layers(model: Any) -> list[nn.Module]:
    try:
        return decoder_layers(model)
    except UserError:  # of a kind whose layers are in no list
        return []


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _graded(heard: Recording, layers: Sequence[str]) -> list[bool]:
    """Return for each layer whether it has a backward pass."""
    return [
        any(one.input_graded or one.weight_graded for name, one in heard.records.items() if _within(name, layer))
        for layer in layers
    ]


def _repeated(heard: Recording, layers: Sequence[str]) -> frozenset[str]:
    """Return the names of what gradient checkpointing multiplies twice.

    A layer without gradients is not repeated, nor is the last product of the others: torch stops as soon as it has
    what the backward pass needs.
    """
    found: list[str] = []
    for layer, graded in zip(layers, _graded(heard, layers), strict=True):
        if graded:
            found += [name for name in heard.records if _within(name, layer)][:-1]
    return frozenset(found)


def _of_head(head: nn.Module, *, input_graded: bool) -> Products:
    """Return the head's operations for one position; it may be computed without calling its module."""
    copies: Any = getattr(head, "modules_to_save", None)
    head = next(iter(copies.values())) if copies else head  # PEFT's trained copy stands in for the original
    own = [(name, one) for name, one in head.named_modules() if isinstance(one, nn.Linear)]
    total, below = Products(), input_graded
    for name, one in own:
        # What LoRA adds after its A has an input that depends on a trained weight.
        behind = "lora_B" in name
        operations = 2 * one.in_features * one.out_features
        trained = bool(one.weight.requires_grad)
        total += _products(operations, input_graded=below or behind, weight_graded=trained, again=False)
    return total


def _of_attention(
    model: Any, heard: Recording, layers: Sequence[str], *, checkpointing: bool
) -> dict[int | None, Products]:
    """Return attention's operations for one pair of tokens."""
    config: Any = model.config.get_text_config(decoder=True)
    found: dict[int | None, Products] = {}
    graded_layers = _graded(heard, layers)
    for number, layer in enumerate(layers):
        window = _window(config, number)
        if window == 0:  # attends to nothing: a state-space layer, or one of linear cost
            continue
        forward = 2 * sum(_widths(config))
        behind = _is_graded(heard, layer)
        again = forward if checkpointing and graded_layers[number] else 0
        found[window] = found.get(window, Products()) + Products(forward, 2 * forward * behind, again)
    return found or {None: Products()}


def _is_graded(heard: Recording, layer: str) -> bool:
    """Return whether what attention gives to its output projection has a gradient."""
    inside = [
        record
        for name, record in heard.records.items()
        if _within(name, layer) and any(one in name.lower() for one in _IN_ATTENTION) and ".lora_" not in name
    ]
    return bool(inside) and inside[-1].input_graded


def _widths(config: Any) -> tuple[int, int]:
    """Return the widths of all heads' keys and of all heads' values."""
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    width = int(width or getattr(config, "hidden_size", 0) // max(1, heads))
    keys = getattr(config, "qk_nope_head_dim", None)  # multi-head latent attention
    if keys is not None:
        return heads * (keys + config.qk_rope_head_dim), heads * config.v_head_dim
    return heads * width, heads * width


def _window(config: Any, layer: int) -> int | None:
    """Return how many tokens a layer attends to; `None` for all, 0 where it has no attention."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if not kinds or layer >= len(kinds):
        return int(window) if window and getattr(config, "use_sliding_window", True) else None
    if kinds[layer] == "full_attention":
        return None
    return int(window or 0) if kinds[layer] == "sliding_attention" else 0
