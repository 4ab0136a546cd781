"""Accelerators by name: how much memory they have, and how fast they multiply bfloat16 matrices, as published."""

import re
from dataclasses import dataclass

from ift.errors import UserError, unknown_name


@dataclass(frozen=True)
class Card:
    """What a run may be put on."""

    name: str
    gib: float
    """Memory."""
    bfloat16_flops_per_second: float | None = None
    """Dense, as published; `None` where it is not known."""


CARDS = {
    "a10-24g": Card("a10-24g", 24, 125e12),
    "a100-40g": Card("a100-40g", 40, 312e12),
    "a100-80g": Card("a100-80g", 80, 312e12),
    "b200-180g": Card("b200-180g", 180, 2250e12),
    "h100-80g": Card("h100-80g", 80, 989e12),
    "h200-141g": Card("h200-141g", 141, 989e12),
    "l4-24g": Card("l4-24g", 24, 121e12),
    "l40s-48g": Card("l40s-48g", 48, 362e12),
    "rtx3090-24g": Card("rtx3090-24g", 24, 71e12),
    "rtx4090-24g": Card("rtx4090-24g", 24, 165e12),
}


def card_of(text: str) -> Card:
    """Return the card that `--card` names: by name, or as a number of GiB (`24`, `24GB`).

    Raises:
        UserError: neither.
    """
    if text.lower() in CARDS:
        return CARDS[text.lower()]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?", text.strip().lower())
    if match is None:
        raise unknown_name("--card", text, CARDS, hint="A number of GiB will do: --card 24.")
    gib = float(match[1])
    if gib <= 0:
        raise UserError(f"--card: {text} is not above 0 GiB. Give the memory of the card, as 24.")
    return Card(f"{match[1]} GiB", gib)


def card_here(device: str) -> Card:
    """Return what this machine has: the memory of its first GPU, or its main memory.

    Args:
        device: `cuda` or `cpu`.
    """
    import torch

    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        return Card(facts.name, facts.total_memory / 2**30)
    return Card("this machine's main memory", main_memory_gib())


def main_memory_gib() -> float:
    """Return the main memory of this machine, or of the container that it is."""
    import os
    from contextlib import suppress
    from pathlib import Path

    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    with suppress(OSError, ValueError):
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()) / 2**30)
    return found
