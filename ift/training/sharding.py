"""Weights shared out among ranks by rows (FSDP2), and whole again where they are written.

In: a model with its method attached, the same on every rank. Out: the same model, of whose weights every rank holds its
rows; in each forward and backward pass a layer's weights are gathered shortly before they are needed.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ift.errors import UserError
from ift.models.base_weights import all_layers


def base_of(model: Any) -> Any:
    """Return the language model within a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def obstacle_to_sharding(model: Any) -> str:
    """Return why a model cannot be sharded layer by layer; empty where it can.

    Args:
        model: with its method attached; it may be without data.
    """
    owner: dict[int, int] = {}
    layers = all_layers(base_of(model))
    for number, layer in enumerate(layers, 1):
        for name, one in layer.named_parameters():
            if owner.setdefault(id(one), number) != number:
                return f"layers share one tensor ('{name}'), of which FSDP2 would train a copy in each"
    inside = {id(module) for layer in layers for module in layer.modules()}
    for place, module in model.named_modules():
        for name, one in module.named_parameters(recurse=False):
            if id(module) not in inside and id(one) in owner:
                return f"'{place}.{name}' is a part of a layer as well, of which FSDP2 would train a copy"
            if one._backward_hooks:
                return f"the gradient of '{place}.{name}' goes through a function that FSDP2 would leave out"
            if one.ndim == 0:
                return f"'{place}.{name}' is a single number, which has no rows to share out"
    return ""


def check_one_dtype(model: Any) -> None:
    """Refuse trained weights of several dtypes side by side, whose gradients FSDP2 cannot exchange together.

    Raises:
        UserError: with the setting to change.
    """
    layers = all_layers(base_of(model))
    inside = {id(one) for layer in layers for one in layer.parameters()}
    units = [list(layer.parameters()) for layer in layers]
    units.append([one for one in model.parameters() if id(one) not in inside])
    for unit in units:
        found = sorted({str(one.dtype).removeprefix("torch.") for one in unit if one.requires_grad})
        if len(found) > 1:
            raise UserError(
                f"model.dtype: model.adapter trains weights of the base model beside its own here, in {found[0]} and "
                f"{found[1]}, and trainer.strategy fsdp exchanges gradients of one dtype. Set model.dtype to float32, "
                "or trainer.strategy to ddp."
            )


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Share out the weights of every layer, and of all that is outside of the layers, among the ranks of a mesh.

    Gradients are summed in float32. Products are computed in the dtype of the weights, as on one device; under
    bf16-mixed Lightning's autocast casts each weight once it is gathered.

    Args:
        model: with its method attached, in memory or without data (on the meta device); changed in place.
        mesh: of one dimension.

    Raises:
        UserError: trained weights of several dtypes side by side.
    """
    check_one_dtype(model)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    base = base_of(model)
    packed = []
    if getattr(base, "is_quantized", False):
        from ift.models.quantized_layers import as_plain_parameters, tell_of_packing

        packed = as_plain_parameters(model, torch.device(mesh.device_type))
    for layer in all_layers(base):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    if packed:
        tell_of_packing(packed)
    register_fsdp_forward_method(model, "generate")


def put_back(model: nn.Module) -> None:
    """Let all weights be shards again: what is outside of the layers stays gathered after a forward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor on the CPU; all ranks must call it for the same tensors in the same order."""
    found = tensor.detach()
    return (found.full_tensor() if isinstance(found, DTensor) else found).cpu()


def own_part(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return of a whole tensor what this rank holds of another one of its shape; no rank talks to another."""
    if not isinstance(like, DTensor):
        return whole
    placed = whole.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def whole_weights(model: nn.Module, *, on_this_rank: bool, wanted: Callable[[nn.Parameter], bool]) -> Iterator[None]:
    """Put whole weights on the CPU in the place of shards, to export them; afterwards, the shards are back.

    All ranks must enter it.

    Args:
        model: sharded or not; one that is not stays as it is.
        on_this_rank: whether weights are put in here; a rank where they are not only gives its rows.
        wanted: which weights.
    """
    put_back(model)
    taken: list[tuple[nn.Module, str, nn.Parameter]] = []
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, one in module.named_parameters(recurse=False):
            if not isinstance(one, DTensor) or not wanted(one):
                continue
            if id(one) not in made:
                full = gathered(one)
                made[id(one)] = nn.Parameter(full, requires_grad=one.requires_grad) if on_this_rank else one
            if on_this_rank:
                taken.append((module, name, one))
                module._parameters[name] = made[id(one)]
    # FSDP2 looks at its shards after `load_state_dict`, by which PEFT subtracts where PiSSA and its kind began.
    hooks = [(module, module._load_state_dict_post_hooks) for module in model.modules()] if on_this_rank else []
    for module, _ in hooks:
        module._load_state_dict_post_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, own in hooks:
            module._load_state_dict_post_hooks = own
        for module, name, one in taken:
            module._parameters[name] = one
