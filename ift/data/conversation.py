"""A conversation: what every row becomes and what every template renders."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["user", "assistant", "tool"]
"""`tool` is what a tool gave back; it stands where a request stands, after a call of the assistant."""
TrainOn = Literal["outputs", "last_output", "everything"]
"""What the loss counts: every response, the last response only, or all text."""


@dataclass(frozen=True)
class Message:
    """One turn of one speaker."""

    role: Role
    text: str
    context: str = ""
    """What alpaca rows call `input`: material that the request is about. Only for role `user`."""
    supervised: bool | None = None
    """Whether the loss counts this text; `None` leaves it to `train_on`."""
    thought: str = ""
    """What the assistant thinks before it writes `text`; the model writes it, the reader does not see it."""
    call: bool = False
    """Whether `text` of the assistant is a call of a tool, so that a message of role `tool` follows."""


@dataclass(frozen=True)
class Conversation:
    """Messages of user (or tool) and assistant in turn; plain text is a single assistant message."""

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


def supervise(conversation: Conversation, train_on: TrainOn) -> Conversation:
    """Return the conversation with `supervised` of every message decided; a message's own flag wins.

    Args:
        conversation: what a row function returned.
        train_on: what the loss counts where a message does not say so itself.
    """
    messages, last = [], len(conversation.messages) - 1
    while last >= 0 and conversation.messages[last].role != "assistant":
        last -= 1
    for number, m in enumerate(conversation.messages):
        counted = m.supervised
        if counted is None and train_on == "everything":
            counted = m.role != "tool"
        elif counted is None:
            counted = m.role == "assistant" and (train_on == "outputs" or number == last)
        # Written out, as `replace` takes most of the time of preparing a row.
        messages.append(Message(m.role, m.text, m.context, counted, m.thought, m.call))
    c = conversation
    return Conversation(tuple(messages), c.system, c.id, c.source, c.meta)
