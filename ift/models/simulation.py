"""The memory of a training step, without weights and without computing: a model runs on tensors that have only shapes.

In: a model on the meta device with its method attached, and the shape of a micro-batch. Out: what the step holds at
each moment beside its weights, and what it multiplies. Every operation is asked for the shape of its result (torch's
FakeTensorMode); what is made is counted until nothing refers to it any more. So whatever a model, an adapter, gradient
checkpointing or the fused head keep for the backward pass is counted as they keep it, not by a formula.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from ift.errors import UserError
from ift.models.calling import Calling, calling_of, with_fused_head
from ift.models.flops import FlopsModel, Products, flops_model, recording
from ift.models.fused_head import FusedHead
from ift.models.heap import Heap
from ift.models.live_memory import LiveMemory, Moment


@dataclass(frozen=True)
class MicroBatchShape:
    """What of a micro-batch decides how much memory it takes."""

    rows: int
    length: int
    """Positions of a row, padding among them."""
    supervised: int
    """Tokens that the loss counts, in all rows."""
    masked: bool = False
    """Whether a mask keeps the examples of a row apart."""

    @property
    def positions(self) -> int:
        """Positions of all rows."""
        return self.rows * self.length

    @property
    def kept(self) -> int:
        """Positions whose logits are computed: as many in each row, where shapes are all there is."""
        return self.rows * max(1, -(-self.supervised // self.rows))


@dataclass(frozen=True)
class Course:
    """The memory of one micro-batch, forward and backward."""

    moments: tuple[Moment, ...]
    """Those that no other exceeds in both, with rising gradients."""
    gradients: int
    """Bytes of all gradients of weights, once they are there."""
    logits: int
    """Of the activations at their peak, what head and loss take."""

    @property
    def activations(self) -> int:
        """Most bytes beside weights and their gradients."""
        return max(moment.activations for moment in self.moments)

    def peak(self, *, num_micro_batches: int = 1, share: float = 1.0) -> float:
        """Return the most bytes beside weights; arguments as of `Simulation.peak`."""
        if num_micro_batches > 1:
            return self.activations + share * self.gradients
        return max(moment.activations + share * moment.gradients for moment in self.moments)


@dataclass(frozen=True)
class Simulation:
    """Memory and operations of one micro-batch: those of one course, or what several say of a larger model."""

    courses: tuple[tuple[float, Course], ...]
    """With the weight of each in all sums."""
    flops: FlopsModel

    @property
    def activations(self) -> int:
        """Most bytes beside weights and their gradients."""
        return round(sum(weight * course.activations for weight, course in self.courses))

    @property
    def gradients(self) -> int:
        """Bytes of all gradients of weights, once they are there."""
        return round(sum(weight * course.gradients for weight, course in self.courses))

    @property
    def logits(self) -> int:
        """Of the activations, what head and loss take."""
        return round(sum(weight * course.logits for weight, course in self.courses))

    def peak(self, *, num_micro_batches: int = 1, share: float = 1.0) -> int:
        """Return the most bytes beside weights.

        Args:
            num_micro_batches: of a step; behind the first, all gradients are there from the beginning.
            share: of the gradients that a rank holds.
        """
        options: Any = {"num_micro_batches": num_micro_batches, "share": share}
        return round(sum(weight * course.peak(**options) for weight, course in self.courses))


def continued(few: Simulation, more: Simulation, *, by: float) -> Simulation:
    """Return what two models that differ in layers alone say of a third, in a straight line.

    Args:
        few: of the smallest.
        more: of the next.
        by: layers of the third beyond the first, over those of the second beyond the first.
    """
    courses = [(1 - by, course) for _, course in few.courses] + [(by, course) for _, course in more.courses]

    def line(one: Products, other: Products) -> Products:
        return one.times(1 - by) + other.times(by)

    pair = {window: line(few.flops.pair.get(window, Products()), one) for window, one in more.flops.pair.items()}
    token, supervised = line(few.flops.token, more.flops.token), line(few.flops.supervised, more.flops.supervised)
    return Simulation(tuple(courses), FlopsModel(token, supervised, pair))


def simulate(
    model: Any,
    shape: MicroBatchShape,
    *,
    checkpointing: bool,
    autocast: torch.dtype | None = None,
    frees_gradients: bool = False,
) -> Simulation:
    """Run one micro-batch forward and backward on shapes alone; the model is of use no more.

    Args:
        model: on the meta device, with its method attached, its weights in their dtypes.
        shape: of the micro-batch.
        checkpointing: as `model.gradient_checkpointing`.
        autocast: dtype of mixed precision.
        frees_gradients: whether the optimizer uses each gradient up as soon as it is there.

    Raises:
        UserError: what the model does depends on values, so that it cannot run on shapes.
    """
    calling = _as_trained(model, checkpointing=checkpointing)
    with _on_shapes(model):
        live = _watched(model, LiveMemory(), frees_gradients=frees_gradients)
        model.get_output_embeddings().register_forward_pre_hook(lambda *_: setattr(live, "in_head", True))
        with recording(model) as heard:
            _pass(model, calling, shape, live, autocast)
    flops = flops_model(model, heard, supervised=shape.kept, checkpointing=checkpointing)
    gradients = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    return Simulation(((1.0, Course(live.moments(), 0 if frees_gradients else gradients, live.logits)),), flops)


def lost_in_heap(
    model: Any,
    shapes: Sequence[MicroBatchShape],
    *,
    checkpointing: bool,
    autocast: torch.dtype | None = None,
    frees_gradients: bool = False,
) -> float:
    """Return by how much the heap of a process on a CPU exceeds what a step holds, as a share of its activations.

    The model is of use no more.

    Args:
        model: as of `simulate`, and so are all others.
        shapes: of micro-batches in their order, as tensors of another size leave other holes.
        checkpointing: as `model.gradient_checkpointing`.
        autocast: dtype of mixed precision.
        frees_gradients: whether the optimizer uses each gradient up as soon as it is there.

    Raises:
        UserError: as of `simulate`.
    """
    calling, heap = _as_trained(model, checkpointing=checkpointing), Heap()
    try:
        with _on_shapes(model):
            live = _watched(model, LiveMemory(heap), frees_gradients=frees_gradients)
            for one in shapes:
                _pass(model, calling, one, live, autocast)
    finally:
        heap.close()
    held = max(activations + gradients for gradients, activations in live.highest.items())
    return max(0, heap.growth - held) / max(1, *live.highest.values())


def _as_trained(model: Any, *, checkpointing: bool) -> Calling:
    """Turn a model to training, and return how it is called."""
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()
    return _believed(with_fused_head(calling_of(model), model))


@contextmanager
def _on_shapes(model: Any) -> Iterator[None]:
    """Let a model run without data, and tell where it cannot.

    Raises:
        UserError: what the model does depends on values.
    """
    torchs_own = logging.getLogger("torch._subclasses.fake_tensor")
    level = torchs_own.level
    try:
        torchs_own.setLevel(logging.CRITICAL)  # it logs the traceback of what is told below in a line
        with FakeTensorMode(allow_non_fake_inputs=True):
            _give_fake_weights(model)
            yield
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"model.base: the memory of {type(model).__name__} cannot be predicted without its weights "
            f"({type(error).__name__}: {reason}). Train a few steps instead: every run logs its peak memory."
        ) from error
    finally:
        torchs_own.setLevel(level)


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=dtype) if dtype is not None else nullcontext()


def _watched(model: Any, live: LiveMemory, *, frees_gradients: bool) -> LiveMemory:
    """Let weights not count, and their gradients apart."""
    live.ignore([*model.parameters(), *model.buffers()])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_taker(live, frees_gradients))
    return live


def _pass(model: Any, calling: Calling, shape: MicroBatchShape, live: LiveMemory, autocast: torch.dtype | None) -> None:
    """Run forward and backward."""
    inputs, keep, targets = _inputs(shape)
    with _told_of_packing(shape), live:
        with _autocast(autocast):
            loss = _loss(model, calling, inputs, keep, targets)
        live.in_head = False
        loss.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _told_of_packing(shape: MicroBatchShape) -> Iterator[None]:
    """Let transformers make a mask for packed rows only; of positions without values it would always make one."""
    from transformers import masking_utils

    looked_for = masking_utils.find_packed_sequence_indices
    if not shape.masked:
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looked_for


def _taker(live: LiveMemory, frees: bool) -> Any:
    def take(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, "autograd called before the gradient was there"
        if frees:
            parameter.grad = None
        else:
            live.take_gradient(parameter.grad)

    return take


def _give_fake_weights(model: nn.Module) -> None:
    """Put shapes without data in the place of all weights and buffers; shared ones stay shared."""
    made: dict[int, Any] = {}

    def fake(old: torch.Tensor) -> Any:
        if id(old) not in made:
            new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        return made[id(old)]

    for module in model.modules():
        for places in (module._parameters, module._buffers):
            places.update({name: fake(one) for name, one in places.items() if one is not None})


def _inputs(shape: MicroBatchShape) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Return a micro-batch, at which places of each row logits are kept, and what is to be predicted there."""
    places = shape.kept // shape.rows
    inputs: dict[str, Any] = {"input_ids": torch.zeros(shape.rows, shape.length, dtype=torch.int64), "use_cache": False}
    if shape.masked:
        inputs["position_ids"] = torch.zeros(shape.rows, shape.length, dtype=torch.int64)
    keep = torch.zeros(places, dtype=torch.int64)
    return inputs, keep, torch.zeros(shape.kept, dtype=torch.int64)


def _loss(
    model: Any, calling: Calling, inputs: Mapping[str, Any], keep: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Compute the loss as the engine does, but with places in the stead of a mask, whose count would be a value."""
    inputs = {**inputs, **calling.task(len(inputs["input_ids"]), keep.device)}
    if calling.split is not None:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if calling.both_ways is not None:
        inputs["layout_ids"] = inputs["input_ids"]
    if calling.head is not None:
        read = calling.block.only_at(targets) if calling.block is not None else nullcontext()  # as many, of no values
        with calling.head.giving_loss(targets), read:
            return calling.head.loss(model(**inputs, logits_to_keep=keep).logits)
    kept = model(**inputs, logits_to_keep=keep) if calling.keep_only else model(**inputs)
    logits = kept.logits if calling.keep_only else kept.logits[:, calling.num_virtual_tokens :][:, keep]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets, reduction="sum")


class _BelievedHead(FusedHead):
    """A fused head that takes weights without data for what they stand for."""

    def _fits(self, hidden: torch.Tensor) -> bool:
        weight = self._head.weight
        return weight.dtype == hidden.dtype or torch.is_autocast_enabled(hidden.device.type)


def _believed(calling: Calling) -> Calling:
    return replace(calling, head=_BelievedHead(calling.head._head)) if calling.head is not None else calling
