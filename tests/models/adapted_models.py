"""Tiny models with bottleneck adapters."""

import sys
from typing import Any

import torch
from peft import get_peft_model
from tiny import ROOT

sys.path.insert(0, str(ROOT / "tests" / "training"))  # the factories of tiny models
from families import make_model

from ift.models.bottleneck import BottleneckConfig

VARIANTS = ("houlsby", "pfeiffer", "parallel")
WIDTH, SIZE, LAYERS = 32, 6, 2
IDS = torch.arange(3, 83).reshape(2, 40)[:, :12]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    model.eval()
    result: torch.Tensor = model(input_ids=IDS, use_cache=False).logits.float()
    return result


def adapted(family: str, variant: str = "houlsby", *, fresh: bool = False, **settings: Any) -> Any:
    """Return a tiny model with an adapter, whose weights are drawn wide so that it matters."""
    config = BottleneckConfig(variant=variant, bottleneck_size=SIZE, **settings)  # type: ignore[arg-type]
    model = get_peft_model(make_model(family), config)
    if not fresh:
        stir(model)
    return model


def stir(model: Any, seed: int = 1) -> None:
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "bottleneck_" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
