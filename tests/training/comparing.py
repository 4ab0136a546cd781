"""Comparing what runs have trained."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ift.checks.findings import largest_of


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return what a run has trained."""
    file = run / "adapter" / "adapter_model.safetensors"
    return load_file(str(file if file.is_file() else run / "model" / "model.safetensors"))


def largest_difference(run: Path, other: Path) -> float:
    """Return the largest difference of two runs' trained weights; they must have the same names."""
    one, two = trained_weights(run), trained_weights(other)
    assert one.keys() == two.keys()
    assert one
    # AdaLoRA leaves nothing of a matrix that it took the last rank from.
    assert all(one[name].shape == two[name].shape for name in one)
    return largest_of(float((one[name] - two[name]).abs().max()) for name in one if one[name].numel())
