"""Which parameters the optimizer treats apart: no decay on biases and norms, and LoRA+'s faster B matrices."""

from collections.abc import Iterable
from typing import Any

import torch

from ift.training.deepspeed_state import shape_of


def parameter_groups(named: Iterable[tuple[str, torch.nn.Parameter]], *, ratio: float = 1.0) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups.

    Args:
        named: the trained parameters.
        ratio: learning rate of LoRA's B matrices over that of all else (Hayou et al. 2024, LoRA+).

    Returns:
        Groups with `params`; `weight_decay` 0 where a parameter is no matrix; `ratio` where it is not 1.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in named:
        faster = ratio != 1.0 and (".lora_B." in name or ".lora_embedding_B." in name)
        # What DeepSpeed has shared out leaves an empty row behind, whatever it was.
        groups.setdefault((len(shape_of(parameter)) >= 2, faster), []).append(parameter)
    return [
        {"params": params} | ({} if decays else {"weight_decay": 0.0}) | ({"ratio": ratio} if faster else {})
        for (decays, faster), params in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def spread_learning_rate(optimizer: torch.optim.Optimizer) -> None:
    """Multiply the learning rate of groups that have a `ratio`, before a schedule remembers it."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("ratio", 1.0)
