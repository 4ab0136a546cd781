"""What every conversation must be, whatever layout it comes from."""

import re
from collections.abc import Sequence

from ift.data.conversation import Conversation, Message
from ift.data.layouts.fields import RowError

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_turns(conversation: Conversation, *, needs_response: bool) -> None:
    """Refuse a conversation that no template can render, no tokenizer can read or no loss can use.

    Args:
        conversation: what a row function returned.
        needs_response: whether a supervised response is required, as for training.

    Raises:
        RowError: no message, turns out of order, no valid text, an empty request, or nothing to learn from.
    """
    texts = [conversation.system, *(text for m in conversation.messages for text in (m.text, m.context, m.thought))]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("the row function gave a message whose text is no str")
    if _SURROGATE.search("".join(texts)):
        raise RowError("a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    roles = [message.role for message in conversation.messages]
    if not roles:
        raise RowError("the row holds no message")
    if roles != ["assistant"] and not _take_turns(conversation):
        raise RowError(
            "user and assistant must take turns, beginning with user, and a call of a tool is followed by its result; "
            f"found {_shortened(roles)}"
        )
    if any(m.role == "user" and not m.text.strip() and not m.context.strip() for m in conversation.messages):
        raise RowError("a request is empty")
    if needs_response:
        _check_responses(conversation)


def _check_responses(conversation: Conversation) -> None:
    if conversation.messages[-1].role != "assistant":
        raise RowError("the last message must be a response of the assistant")
    supervised = [m for m in conversation.messages if m.role == "assistant" and m.supervised is not False]
    if not supervised:
        raise RowError("no response is supervised, so there is nothing to learn from the row")
    if any(not message.text.strip() for message in supervised):
        raise RowError("a response is empty")


def _shortened(roles: Sequence[str]) -> str:
    """Name the roles up to the place where order is lost at the latest, so that equal mistakes are counted as one."""
    return ", ".join(roles) if len(roles) <= 8 else ", ".join(roles[:8]) + f" and {len(roles) - 8} more"


def _take_turns(conversation: Conversation) -> bool:
    """Whether requests and responses alternate, beginning with a request, and results of tools follow calls."""
    before: Message | None = None
    for message in conversation.messages:
        after_response = before is None or before.role == "assistant"
        if after_response != (message.role != "assistant"):
            return False
        called = before is not None and before.call
        if called != (message.role == "tool"):
            return False
        before = message
    return True
