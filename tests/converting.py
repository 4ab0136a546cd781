"""What tests of conversion share: converting a folder, and what a folder computes."""

from pathlib import Path
from typing import Any

import torch

from ift.models.base_conversion import BaseConversion
from ift.models.conversion_record import ConversionRecord
from ift.models.conversion_source import ConversionSettings, open_source
from ift.models.loading import load_base_model

IDS = torch.tensor([[5, 17, 42, 7, 63, 3, 28, 11]])


def convert(source: Path, output: Path, **settings: Any) -> ConversionRecord:
    """Convert a base model, without a tokenizer unless told otherwise."""
    asked = ConversionSettings(output, **{"tokenizer": False, **settings})
    return BaseConversion(open_source(str(source), source, asked), asked, report=lambda text: None).convert()


def own_logits(folder: Path) -> torch.Tensor:
    """Return what `ift` computes with a folder in float32."""
    model = load_base_model("model.base", str(folder), "float32").eval()
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found
