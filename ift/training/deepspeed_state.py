"""What DeepSpeed has shared out among ranks, as whole tensors: weights in float32 and the optimizer's state.

Described and loaded in torch's own layout of an optimizer's state, numbered as the weights were given to it, so that a
checkpoint is none of DeepSpeed's: other strategies can go on from it. `MASTER` is its own; they leave that unread and
begin with the weights as they are rounded.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

MASTER = "master"
"""Among the optimizer's state of a weight that is not float32: the float32 copy that is updated."""

Keep = Callable[[torch.Tensor], torch.Tensor]
"""What becomes of a whole tensor that is only there for a moment."""


class SharedOutState:
    """The state of a run's optimizer under DeepSpeed; all ranks must call `weight` and `describe` together.

    Args:
        engine: DeepSpeed's.
        groups: the trained weights, in the groups and order that the optimizer was given them.
    """

    def __init__(self, engine: Any, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self._zero, self._groups, self._device = engine.optimizer, groups, engine.device
        self._stage = int(engine.zero_optimization_stage())

    def weight(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return a whole weight in float32."""
        return self._whole(parameter, self._flat(parameter).data)

    def describe(self, keep: Keep) -> dict[str, Any]:
        """Return the optimizer's state in torch's layout."""
        state: dict[int, dict[str, Any]] = {}
        number = 0
        for group in self._groups:
            for parameter in group:
                own: dict[str, Any] = {}
                for name, value in self._own(parameter).items():
                    if not isinstance(value, torch.Tensor):
                        own[name] = value
                    elif value.ndim == 0:
                        # One for a whole row of weights: each gets its own, or another strategy would count each
                        # step once for every weight.
                        own[name] = value.clone()
                    else:
                        own[name] = keep(self._whole(parameter, value))
                if parameter.dtype != torch.float32:
                    own[MASTER] = keep(self.weight(parameter))
                if own:
                    state[number] = own
                number += 1
        return {"state": state, "param_groups": self._described_groups()}

    def load(self, saved: Mapping[str, Any], value_of: Callable[[int, str], torch.Tensor]) -> None:
        """Take over a state that `describe` returned; the weights are loaded already.

        Args:
            saved: the state; its tensors need no data.
            value_of: returns a whole tensor by number and name.
        """
        for group, kept in zip(self._zero.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in kept.items() if name != "params"})
        number = 0
        for group, settings in zip(self._groups, self._zero.param_groups, strict=True):
            for parameter in group:
                for name, value in saved["state"].get(number, {}).items():
                    if name == MASTER:
                        self.put_weight(parameter, value_of(number, name))
                    elif isinstance(value, torch.Tensor) and value.ndim:
                        self._put(parameter, value_of(number, name), name=name)
                    elif isinstance(value, torch.Tensor):
                        found = self._number(value_of(number, name), parameter, settings)
                        self._flat_state(parameter)[name] = found
                    else:
                        self._flat_state(parameter)[name] = value
                number += 1

    def _number(self, value: torch.Tensor, parameter: nn.Parameter, settings: Mapping[str, Any]) -> torch.Tensor:
        """Return a single number of the state, beside the weights where torch wants it there."""
        beside = settings.get("fused") or settings.get("capturable")
        return value.to(self._flat(parameter).device if beside else value.device, copy=True)

    def put_weight(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Set a whole weight: the model's and the float32 copy that is updated."""
        self._put(parameter, value, name=None)
        if self._stage == 3:
            parameter.ds_tensor.data.copy_(self._part(parameter, value))  # type: ignore[attr-defined]
        if parameter.data.numel():  # of stage 3, only small ones are whole between steps
            parameter.data.copy_(value.view_as(parameter.data))

    def _described_groups(self) -> list[dict[str, Any]]:
        described, number = [], 0
        for group, kept in zip(self._groups, self._zero.param_groups, strict=True):
            numbers = list(range(number, number + len(group)))
            number += len(group)
            described.append({name: value for name, value in kept.items() if name != "params"} | {"params": numbers})
        return described

    def _flat(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return this rank's part of the weights that a weight is updated with, one long row in float32."""
        if self._stage == 3:
            group, *_ = self._zero.grad_position[self._zero.get_param_id(parameter)]
            found: nn.Parameter = self._zero.fp32_partitioned_groups_flat[group]
            return found
        group = next(number for number, own in enumerate(self._groups) if any(one is parameter for one in own))
        own: nn.Parameter = self._zero.single_partition_of_fp32_groups[group]
        return own

    def _flat_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        found: dict[str, Any] = self._zero.optimizer.state[self._flat(parameter)]
        return found

    def _own(self, parameter: nn.Parameter) -> dict[str, Any]:
        return {name: value for name, value in self._flat_state(parameter).items() if value is not None}

    def _whole(self, parameter: nn.Parameter, flat: torch.Tensor) -> torch.Tensor:
        """Put together what the ranks hold of a weight, or of what the optimizer keeps of it.

        DeepSpeed's own functions for this miss all groups of weights but the first (0.19.8).
        """
        shape = shape_of(parameter)
        if self._stage == 3:
            _, start, number = self._zero.grad_position[self._zero.get_param_id(parameter)]
            part = torch.zeros(self._part_size(parameter), dtype=flat.dtype, device=self._device)
            part[:number] = flat.narrow(0, start, number)
            parts = torch.empty(len(part) * dist.get_world_size(), dtype=flat.dtype, device=self._device)
            dist.all_gather_into_tensor(parts, part)
            return parts[: shape.numel()].view(shape)
        whole = torch.zeros(shape.numel(), dtype=flat.dtype, device=self._device)
        if (mapping := _mapping(parameter)) is not None:
            there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
            whole.narrow(0, here.start, here.numel).copy_(flat.narrow(0, there.start, there.numel))
        dist.all_reduce(whole)
        return whole.view(shape)

    def _put(self, parameter: nn.Parameter, value: torch.Tensor, *, name: str | None) -> None:
        """Set this rank's part of a whole tensor: a weight's float32 copy, or what the optimizer keeps of it."""
        target = self._flat(parameter).data
        if name is not None:
            target = self._flat_state(parameter).setdefault(name, torch.zeros_like(target))
        if self._stage == 3:
            _, start, number = self._zero.grad_position[self._zero.get_param_id(parameter)]
            target.narrow(0, start, number).copy_(self._part(parameter, value)[:number])
        elif (mapping := _mapping(parameter)) is not None:
            there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
            part = value.flatten().narrow(0, here.start, here.numel)
            target.narrow(0, there.start, there.numel).copy_(part)

    def _part(self, parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """Return of a whole tensor what a rank holds of it in stage 3, zeros after its end."""
        size = self._part_size(parameter)
        start = size * dist.get_rank()
        part = torch.zeros(size, dtype=value.dtype, device=value.device)
        own = value.flatten()[start : start + size]
        part[: len(own)] = own
        return part

    @staticmethod
    def _part_size(parameter: Any) -> int:
        return int(parameter.ds_tensor.ds_numel)


def _mapping(parameter: Any) -> Any | None:
    """Return where in this rank's row which part of a weight lies, or `None` where all of it lies on other ranks."""
    return parameter._hp_mapping


def shape_of(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of a whole weight, wherever its parts are."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
