"""Head and cross-entropy in one, in tiles: the logits of a few hundred positions at a time, in one reused buffer.

Where gradients are wanted they are made in the forward pass, while a tile's logits are there, so that neither logits
nor their gradient are ever stored as a whole (as in Hsu et al. 2024, Liger Kernel, arXiv:2410.10989). The loss is
that of `F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="sum")`, and so are the gradients,
up to rounding; products are made in the dtype of the hidden states, all else in float32.
"""

from typing import Any, NamedTuple

import torch

TILE_POSITIONS = 512
"""Most positions of a tile. Fewer make the matrix products slower, more make them no faster."""
TILE_BYTES = {"cpu": 2**27, "cuda": 2**29}
"""About the most that the float32 logits of a tile take, by the device's type."""


class Buffers:
    """Memory for the logits of one tile, kept from call to call: making it anew costs page faults."""

    def __init__(self) -> None:
        self._held: dict[torch.dtype, torch.Tensor] = {}

    def tile(self, dtype: torch.dtype, like: torch.Tensor, *, rows: int, columns: int) -> torch.Tensor:
        """Return a tensor `(rows, columns)` with whatever is in it, on the device of another."""
        held = self._held.get(dtype)
        if held is None or held.numel() < rows * columns or held.device != like.device:
            self._held[dtype] = held = torch.empty(rows * columns, dtype=dtype, device=like.device)
        return held[: rows * columns].view(rows, columns)


def fused_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, targets: torch.Tensor, buffers: Buffers
) -> torch.Tensor:
    """Return the summed cross-entropy of a linear head's predictions, a float32 scalar in nats.

    Args:
        hidden: `(positions, width)`, float32, bfloat16 or float16.
        weight: of the head, `(vocabulary, width)`, in the dtype of `hidden`.
        bias: `(vocabulary,)`, or `None`.
        targets: int64, `(positions,)`; every one counts.
        buffers: to be used again in the next call.
    """
    fused: Any = _FusedCrossEntropy.apply
    loss: torch.Tensor = fused(hidden, weight, bias, targets, buffers)
    return loss


class _Gradients(NamedTuple):
    """What a pass over the tiles adds up; `None` what is not wanted."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    """float32 until it is complete."""
    bias: torch.Tensor | None


class _FusedCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy; logits of a tile are forgotten before the next, so the gradient is made with them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        buffers: Buffers,
    ) -> torch.Tensor:
        """Compute the loss tile by tile, and with it the gradients that will be asked for."""
        wanted = ctx.needs_input_grad
        gradients = _Gradients(
            torch.empty_like(hidden) if wanted[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None,
        )
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), _tile_rows(weight)):
            part = slice(start, start + _tile_rows(weight))
            loss += _tile(hidden[part], weight, bias, targets[part], part.start, gradients, buffers)
        ctx.save_for_backward(
            gradients.hidden,
            gradients.weight.to(weight.dtype) if gradients.weight is not None else None,
            gradients.bias.to(weight.dtype) if gradients.bias is not None else None,
        )
        return loss.float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: they are of no use to anyone else, and the head's is as large as the head. A second pass through
        # the same graph is refused by torch, which sees that what was saved has changed.
        own = (gradient.mul_(scale) if gradient is not None else None for gradient in ctx.saved_tensors)
        return (*own, None, None)


def _tile_rows(weight: torch.Tensor) -> int:
    most = TILE_BYTES.get(weight.device.type, TILE_BYTES["cuda"]) // (4 * len(weight))
    return max(1, min(TILE_POSITIONS, most))


def _tile(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    start: int,
    gradients: _Gradients,
    buffers: Buffers,
) -> torch.Tensor:
    """Return the summed loss of some positions, and add what they give to the gradients."""
    size: dict[str, int] = {"rows": len(hidden), "columns": len(weight)}
    product = buffers.tile(hidden.dtype, hidden, **size)
    if bias is None:
        torch.mm(hidden, weight.t(), out=product)
    else:
        torch.addmm(bias, hidden, weight.t(), out=product)
    logits = product if hidden.dtype == torch.float32 else buffers.tile(torch.float32, hidden, **size).copy_(product)
    losses = _losses(logits, targets)
    if any(gradient is not None for gradient in gradients):
        # What is left in the buffer are probabilities; less 1 at the target, they are the gradient of the logits.
        logits[torch.arange(len(targets), device=targets.device), targets] -= 1
        change = logits if product is logits else product.copy_(logits)
        _add(change, hidden, weight, start, gradients)
    return losses.double().sum()


def _add(change: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, start: int, gradients: _Gradients) -> None:
    """Add what the gradient of a tile's logits gives to the gradients of all else."""
    if gradients.hidden is not None:
        torch.mm(change, weight, out=gradients.hidden[start : start + len(hidden)])
    if gradients.weight is not None:
        if hidden.dtype == torch.float32:
            gradients.weight.addmm_(change.t(), hidden)
        else:
            gradients.weight.add_(torch.mm(change.t(), hidden))
    if gradients.bias is not None:
        gradients.bias.add_(change.sum(0, dtype=torch.float32))


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each row, float32 `(rows,)`, and leave the row's probabilities in its place."""
    rows = torch.arange(len(targets), device=targets.device)
    largest = logits.amax(-1)
    relative = logits[rows, targets] - largest
    if logits.device.type == "cpu":  # one pass over each row, while it is in the cache
        torch.softmax(logits, -1, out=logits)
        return -relative - logits.amax(-1).log()
    sums = logits.sub_(largest[:, None]).exp_().sum(-1)
    logits.div_(sums[:, None])
    return sums.log() - relative
