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
        trained: whether heads that require gradients, some of their rows or all, are meant, too; else they go on
            dividing in every pass.
    """
    rows = _single_rows(model)
    for module in model.modules():
        if type(module) is not NormalizedHead:
            continue
        parts = [module.weight, *rows.get(module, [])]
        if trained or not any(part.requires_grad for part in parts):
            for part in parts:
                part.copy_(F.normalize(part.float()))
            module.__class__ = nn.Linear  # type: ignore[assignment]


def _single_rows(model: nn.Module) -> dict[nn.Module, list[torch.Tensor]]:
    """Return the rows that an adapter holds in the place of a module's own, by the module."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    return {
        layer.base_layer: [*layer.trainable_tokens_delta.values(), *layer.trainable_tokens_original.values()]
        for layer in model.modules()
        if isinstance(layer, TrainableTokensLayer)
    }
