"""What is known of one family of checkpoints that shipped with code of their own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ift.models.families.naming import SAME_NAMES, Naming

Config = Mapping[str, Any]
"""A checkpoint's `config.json` as it lies there."""


def nothing(config: Config) -> Iterable[str]:
    """Return nothing to say."""
    return ()


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one family are known, and read into classes of transformers without code of theirs."""

    name: str
    """As `ift_family` in a `config.json` names it."""
    title: str
    """For people."""
    recognises: Callable[[Config], bool]
    """Whether a `config.json` is of this family."""
    native_config: Callable[[Config], Any]
    """The same model as transformers (or a class of ours beside it) states it."""
    reader: Callable[[], Any]
    """The class whose `from_pretrained` reads the original files, tensor by tensor."""
    original_config: Callable[[Any], dict[str, Any]]
    """The `config.json` of the original that states the same as a native config."""
    native: Callable[[], Any] | None = None
    """The class of transformers that a model is once it is read; `None` where the reader itself is the model."""
    naming: Naming = SAME_NAMES
    """How the modules of the original files are called in the class that reads them."""
    refusals: Callable[[Config], Iterable[str]] = nothing
    """Reasons why a variant cannot be read exactly."""
    doubts: Callable[[Config], Iterable[str]] = nothing
    """What was taken for granted, and how to state it; told when weights are read."""
    normalized_head: bool = False
    """Whether the rows of the head are divided by their length before each product (Baichuan2)."""
