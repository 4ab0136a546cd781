"""Baichuan2's head: a linear layer whose rows are divided by their length before each product (Yang et al. 2023).

A head that is trained keeps its rows as they are and divides in every pass, as the original does, so that its gradient
is the original's. One that is not trained is divided once and is a plain layer from then on.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class NormalizedHead(nn.Linear):
    """`hidden (…, width)` to `logits (…, vocabulary)`, the scalar products with rows of length 1."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return F.linear(input, F.normalize(self.weight), self.bias)


def with_normalized_head(model: Any) -> None:
    """Let the head of a model divide its rows; its weight stays the same tensor."""
    model.lm_head.__class__ = NormalizedHead


@torch.no_grad()
def settle_heads(model: nn.Module, *, trained: bool = False) -> None:
    """Divide the rows of heads once and for all, and let them be plain layers; the logits stay the same.

    Args:
        model: any model, wrapped by PEFT or not; without such a head, nothing is done.
        trained: whether heads that require gradients are meant, too; else they go on dividing in every pass.
    """
    for module in model.modules():
        if type(module) is NormalizedHead and (trained or not module.weight.requires_grad):
            module.weight.copy_(F.normalize(module.weight.float()))
            module.__class__ = nn.Linear  # type: ignore[assignment]
