"""Large models: made without data, sharded, and only then read, every rank its own rows.

No rank ever holds the whole model: what is in memory is a rank's share of the weights, at times one tensor that has to
be read whole, and the adapter. The model is built as always (`load_base_model(..., deferred=True)`, `enlarge`,
`attach`) on weights that are left in their files, so that names, tied weights and the adapter's random first values are
those of one process, bit for bit. `read_sharded` then takes the weights away, lets the strategy shard what is left, and
reads.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import nn

from ift.models.base_files import base_folder
from ift.models.deferred import Deferred, in_place, read_into
from ift.models.deferred_model import obstacle_to_deferring
from ift.models.initial_adapters import changes_base
from ift.models.loading import read_config
from ift.models.methods import Method
from ift.models.quantization import Quantization, is_quantized


@dataclass(frozen=True)
class ShardReading:
    """What a rank read."""

    own_bytes: int
    """In memory afterwards: its share of the base model's weights."""
    model_bytes: int
    """Of all of them."""


def can_defer(
    key: str, base: str, *, quantization: Quantization | None, merged: bool, method: Method, ranks: bool = True
) -> bool:
    """Return whether a base model's weights can be left in their files; tell the user which way ranks take.

    Args:
        key: the configuration key that named the base model.
        base: folder or hub id.
        quantization: `model.quantization`.
        merged: whether adapters are merged into it first.
        method: what is trained.
        ranks: whether each of several is to read its rows; else one process reads all, tensor by tensor.
    """
    reason = _obstacle(key, base, quantization=quantization, merged=merged, method=method)
    if not ranks:
        if reason:
            _tell(f"{key}: all of '{base}' is loaded into memory, as {reason}")
        return not reason
    if not reason:
        _tell(f"{key}: every rank reads its own rows of the weights, and none holds the whole model")
        return True
    rank_zero_warn(
        f"{key}: every rank loads all of '{base}' before it keeps its share, as {reason}; each needs memory for all of "
        "it at first."
    )
    return False


@rank_zero_only
def _tell(text: str) -> None:
    # What Lightning logs as information is hidden.
    print(text, file=sys.stderr)


def _obstacle(key: str, base: str, *, quantization: Quantization | None, merged: bool, method: Method) -> str:
    if is_quantized(read_config(base), quantization):
        return "its weights are quantized while they are read"
    if merged:
        return "adapters are merged into it ('ift merge' writes a folder that holds them)"
    if method.peft_config is not None and changes_base(method.peft_config):
        return f"{method.name} begins with a part of its weights"
    return obstacle_to_deferring(base_folder(key, base))


def read_sharded(model: Any, shard: Callable[[Any], None], *, device: torch.device) -> ShardReading:
    """Shard a model and read the weights that are still in their files.

    Args:
        model: with its adapter; of `load_base_model(..., deferred=True)`, or one that is in memory already. What is
            on another device is read from there.
        shard: shards it in place (`fully_shard` on its layers and itself).
        device: that the model is to be on.

    Returns:
        What was read.
    """
    places = _take_weights_away(model, device)
    shard(model)
    model._apply(lambda one: torch.empty_like(one, device=device) if one.is_meta else one.to(device))
    own = total = 0
    for source, where in places:
        weight = _the_one(where)
        own += _read_own_part(weight, source)
        total += source.numel() * weight.dtype.itemsize
    return ShardReading(own, total)


_Where = list[tuple[nn.Module, str]]
"""The modules that share a weight, and its name in each."""


def _take_weights_away(model: nn.Module, device: torch.device) -> list[tuple[Deferred, _Where]]:
    """Put a weight without data in the place of each that is elsewhere; weights that were shared still are."""
    places: dict[int, tuple[torch.Tensor, _Where]] = {}
    for module in model.modules():
        for name, one in [*module._parameters.items(), *module._buffers.items()]:
            elsewhere = type(one) is nn.Parameter and one.device.type != device.type  # others hold more than values
            if one is not None and (elsewhere or isinstance(one, Deferred)):
                places.setdefault(id(one), (one, []))[1].append((module, name))
    for one, where in places.values():
        empty: torch.Tensor = torch.empty(one.shape, dtype=one.dtype, device="meta")
        if isinstance(one, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=one.requires_grad)
        for module, name in where:
            setattr(module, name, empty)
    return [(one if isinstance(one, Deferred) else in_place(one), where) for one, where in places.values()]


def _the_one(where: _Where) -> torch.Tensor:
    """Return what now stands in the place of a weight, the same one in all of its modules."""
    weight: torch.Tensor = getattr(*where[0])
    for module, name in where[1:]:
        if getattr(module, name) is not weight:  # moving a module to a device parts what it shares
            setattr(module, name, weight)
    return weight


@torch.no_grad()
def _read_own_part(weight: torch.Tensor, source: Deferred) -> int:
    """Fill the part of a weight that this rank has, and return its bytes."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(weight, DTensor):
        read_into(weight, source)
        return weight.nbytes
    shape, begin = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    local = weight.to_local()
    assert tuple(local.shape) == tuple(shape)
    if 0 in shape:
        return 0
    part: Any = source
    for dim in range(1, len(shape)):
        part = part.narrow(dim, begin[dim], shape[dim])
    read_into(local, part, first_row=begin[0] if begin else 0)
    return local.nbytes
