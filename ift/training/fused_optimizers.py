"""LOMO and AdaLomo: each weight is updated in the backward pass, as soon as its gradient is there.

The gradient is freed at once, so that training all weights needs memory for the weights, the activations and one
weight's gradient, where AdamW holds the gradients and two moments of all weights.

References: Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources"
(arXiv:2306.09782); Lv et al. 2023, "AdaLomo: Low-memory Optimization with Adaptive Learning Rate" (arXiv:2310.10195).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.optim import Optimizer


@dataclass(frozen=True)
class _Pass:
    """What a backward pass does with the gradients that it meets."""

    update: bool
    scale: torch.Tensor | None
    """Factor of the gradient; none leaves it as it is."""
    norms: dict[torch.Tensor, torch.Tensor] = field(default_factory=dict)
    """Of the gradients met so far, before scaling."""


class FusedOptimizer(Optimizer, ABC):
    """An optimizer whose update can be fused with the backward pass, through `fused_backward`.

    After an ordinary backward pass it is an ordinary optimizer: `step` updates, and uses the gradients up.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        if defaults["lr"] < 0 or defaults["weight_decay"] < 0:
            raise ValueError(f"lr {defaults['lr']} and weight_decay {defaults['weight_decay']} must not be below 0")
        self._pass: _Pass | None = None
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of weights, as in any optimizer, and listen for their gradients."""
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1  # load_state_dict makes new groups, so it is the number that lasts
        for parameter in self.param_groups[number]["params"]:
            parameter.register_post_accumulate_grad_hook(partial(self._take, number=number))

    def fused_backward(
        self, backward: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor], *, clip_norm: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a backward pass that updates the weights, or two where gradients are clipped.

        The norm of the whole gradient is known only when its last part is, so the first of two passes takes the norm
        and drops the gradients, and the second updates.

        Args:
            backward: computes the loss and its gradient, the same each time, so random numbers begin anew in it.
            parameters: all that may have a gradient; the norm is summed up in their order.
            clip_norm: largest norm of the whole gradient; none clips nothing and takes one pass.

        Returns:
            What `backward` returned, and the norm of the gradient before clipping, float32.
        """
        order, scale = list(parameters), None
        if clip_norm is not None:
            _, norm = self._run(backward, _Pass(update=False, scale=None), order)
            scale = (clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        return self._run(backward, _Pass(update=True, scale=scale), order)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update by the gradients that an ordinary backward pass has left; a fused one leaves none."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, parameter.grad = parameter.grad, None
                if gradient is not None:
                    self._apply(parameter, gradient, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, each state in the dtype it was kept in."""
        super().load_state_dict(state_dict)
        # torch has rounded the state to the dtype of its weight.
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[parameter][name] = value.to(parameter.device, copy=True)

    @abstractmethod
    def update(
        self, parameter: torch.Tensor, weights: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        """Change weights in place.

        Args:
            parameter: whose weights they are; the key of `state`.
            weights: in float32 at least.
            gradient: in float32 at least; may be overwritten.
            group: of the parameter, with its settings.
        """

    def _run(
        self, backward: Callable[[], torch.Tensor], kind: _Pass, order: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._pass = kind
        try:
            result = backward()
        finally:
            self._pass = None
        norms = torch.stack([kind.norms[parameter] for parameter in order if parameter in kind.norms])
        return result, torch.linalg.vector_norm(norms)

    @torch.no_grad()
    def _take(self, parameter: torch.Tensor, *, number: int) -> None:
        """Use a gradient up that is complete; autograd calls this once per weight and backward pass."""
        if self._pass is None:  # an ordinary backward pass
            return
        if parameter in self._pass.norms:
            raise RuntimeError("a fused update takes one backward pass; gradients of several cannot be summed up")
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "autograd called before the gradient was there"
        self._pass.norms[parameter] = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        if self._pass.update:
            self._apply(parameter, gradient, self.param_groups[number], scale=self._pass.scale)

    def _apply(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        group: dict[str, Any],
        scale: torch.Tensor | None = None,
    ) -> None:
        precise = torch.promote_types(parameter.dtype, torch.float32)
        weights, gradient = parameter.to(precise), gradient.to(precise)  # the same tensors where that is their dtype
        if scale is not None:
            gradient.mul_(scale)
        self.update(parameter, weights, gradient, group)
        if weights is not parameter:
            parameter.copy_(weights)


class Lomo(FusedOptimizer):
    """LOMO: stochastic gradient descent without momentum, fused with the backward pass; it keeps no state.

    Args:
        params: weights or groups of weights.
        lr: learning rate.
        weight_decay: share of the learning rate by which weights shrink in each step.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def update(
        self, parameter: torch.Tensor, weights: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        """Go down the gradient."""
        if group["weight_decay"]:
            weights.mul_(1 - group["lr"] * group["weight_decay"])
        weights.add_(gradient, alpha=-group["lr"])


class AdaLomo(FusedOptimizer):
    """AdaLomo: a factorised second moment, and an update normalised per weight matrix, fused with the backward pass.

    The state is Adafactor's, one number per row and per column of a matrix, in float32. The learning rate is relative
    to the size (root mean square) of the matrix; the authors tune on instructions with 5e-4.

    Args:
        params: weights or groups of weights.
        lr: learning rate, relative to the size of a weight matrix.
        weight_decay: share of the learning rate by which weights shrink in each step.
        eps: added to the squared gradient; and the least size of a weight matrix, so that zeros can move.
        clip_threshold: largest root mean square of an update before the learning rate.
        decay_rate: the second moment of step t takes `t ** decay_rate` of the new gradient.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = 0.0,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
    ) -> None:
        if clip_threshold <= 0 or decay_rate >= 0 or min(eps) <= 0:
            raise ValueError(
                f"clip_threshold {clip_threshold} and both eps {tuple(eps)} must be above 0, and decay_rate "
                f"{decay_rate} below 0"
            )
        defaults = {"lr": lr, "weight_decay": weight_decay, "eps": tuple(eps), "clip_threshold": clip_threshold}
        super().__init__(params, {**defaults, "decay_rate": decay_rate})

    def update(
        self, parameter: torch.Tensor, weights: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        """Go down the gradient over the root of its second moment; needs no second tensor of a matrix's size."""
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        self._divide_by_root(gradient, state, share=state["step"] ** group["decay_rate"], eps=group["eps"][0])
        gradient.div_((_size(gradient) / group["clip_threshold"]).clamp(min=1.0))
        rate = group["lr"] * _size(weights).clamp(min=group["eps"][1])
        if group["weight_decay"]:
            weights.mul_(1 - rate * group["weight_decay"])
        weights.sub_(gradient.mul_(rate))

    def _divide_by_root(self, gradient: torch.Tensor, state: dict[str, Any], *, share: float, eps: float) -> None:
        """Divide a gradient by the root of its second moment, in place, after taking it into the moment."""
        if gradient.ndim < 2:
            squares = gradient.square().add_(eps)
            gradient.mul_(_average(state, "exp_avg_sq", squares, share=share).rsqrt())
            return
        rows = _average(state, "exp_avg_sq_row", _mean_square(gradient, dim=-1).add_(eps), share=share)
        columns = _average(state, "exp_avg_sq_col", _mean_square(gradient, dim=-2).add_(eps), share=share)
        gradient.mul_((rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1))
        gradient.mul_(columns.rsqrt().unsqueeze(-2))


def _average(state: dict[str, Any], name: str, new: torch.Tensor, *, share: float) -> torch.Tensor:
    """Return a moving average of the state after it has taken a share of what is new."""
    if name not in state:
        state[name] = torch.zeros_like(new)
    average: torch.Tensor = state[name].mul_(1 - share).add_(new, alpha=share)
    return average


def _mean_square(tensor: torch.Tensor, *, dim: int) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(tensor, dim=dim)
    return length.square_().div_(tensor.shape[dim])


def _size(tensor: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of a tensor."""
    size: torch.Tensor = torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
    return size
