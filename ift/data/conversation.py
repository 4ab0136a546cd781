"""A conversation: what every row becomes and what every template renders."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of one speaker."""

    role: Role
    text: str
    context: str = ""
    """What alpaca rows call `input`: material that the request is about. Only for role `user`."""
    supervised: bool = True
    """Whether the loss counts this text. Only for role `assistant`."""


@dataclass(frozen=True)
class Conversation:
    """Messages of user and assistant in turn; plain text is a single assistant message."""

    messages: tuple[Message, ...]
    system: str = ""
    """System text given by the row; empty where the template's own applies."""
    id: str = ""
    source: str = ""
    """Name of the data source, for counts per source."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> "Conversation":
        """The conversation without its last response: what the model reads before it answers."""
        if self.messages and self.messages[-1].role == "assistant":
            return replace(self, messages=self.messages[:-1])
        return self

    @property
    def response(self) -> str | None:
        """The last response, or `None` where the conversation ends with a request."""
        last = self.messages[-1] if self.messages else None
        return last.text if last is not None and last.role == "assistant" else None
