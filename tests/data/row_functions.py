"""Row functions of a user's own, named by their dotted paths."""

from collections.abc import Mapping
from typing import Any

from ift.data.conversation import Conversation, Message
from ift.data.layouts import alpaca, text


def question(row: Mapping[str, Any]) -> Conversation:
    """Read `q` and `a`, which fails in Python's own way where one is missing."""
    return Conversation((Message("user", row["q"]), Message("assistant", row["a"])))


def nothing(row: Mapping[str, Any]) -> Any:
    """Forget to return."""


def number(row: Mapping[str, Any]) -> Conversation:
    """Forget that a message holds text."""
    return Conversation((Message("user", "count"), Message("assistant", 7)))  # type: ignore[arg-type]


NOT_A_FUNCTION = 3


def either(row: Mapping[str, Any]) -> Conversation:
    """Read a text where there is one, and an instruction otherwise."""
    return text(row) if "text" in row else alpaca(row)
