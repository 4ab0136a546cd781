"""Row functions: one raw record in, one conversation out, or several.

A row function takes a mapping and returns a `Conversation` or an iterable of them (every thread of a tree); what is
wrong with the row it says by raising `RowError`.
A layout of one's own is any such function, named in the YAML by its dotted path (`my_package.my_module.my_function`).
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ift.data.conversation import Conversation, Message
from ift.errors import UserError, unknown_name

Row = Mapping[str, Any]
RowFunction = Callable[[Row], Conversation | Iterable[Conversation]]
_SURROGATE = re.compile("[\ud800-\udfff]")


class RowError(ValueError):
    """A row that cannot become a conversation; the message says why, without file and line."""


def _text(row: Row, key: str, layout: str, needs: str) -> str:
    value = row.get(key)
    if value is None:
        found = f"'{key}' null" if key in row else ", ".join(f"'{name}'" for name in row) or "no field"
        raise RowError(f"layout '{layout}' needs {needs}; found {found}")
    if not isinstance(value, str):
        raise RowError(f"'{key}' must be text, found {type(value).__name__}")
    return value


def _meta(row: Row, used: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used and key != "id"}


def _identifier(row: Row) -> str:
    return str(row["id"]) if row.get("id") is not None else ""


def alpaca(row: Row) -> Conversation:
    """Read `instruction`, optional `input`, `output` (Stanford Alpaca)."""
    needs = "'instruction' and 'output'"
    instruction = _text(row, "instruction", "alpaca", needs)
    output = _text(row, "output", "alpaca", needs)
    context = row.get("input") or ""
    if not isinstance(context, str):
        raise RowError(f"'input' must be text, found {type(context).__name__}")
    if not instruction.strip():
        raise RowError("'instruction' is empty")
    messages = (Message("user", instruction, context=context), Message("assistant", output))
    return Conversation(messages, id=_identifier(row), meta=_meta(row, ("instruction", "input", "output")))


def messages(row: Row) -> Conversation:
    """Read `messages`: a list of `{role, content}` with roles system, user, assistant (OpenAI's chat layout)."""
    turns = row.get("messages")
    if not isinstance(turns, list | tuple):
        found = ", ".join(f"'{name}'" for name in row) or "no field"
        raise RowError(f"layout 'messages' needs a list 'messages'; found {found}")
    return _conversation(row, turns, role="role", text="content", names={"user": "user", "assistant": "assistant"})


def sharegpt(row: Row) -> Conversation:
    """Read `conversations`: a list of `{from, value}` with human and gpt in turn (ShareGPT)."""
    turns = row.get("conversations")
    if not isinstance(turns, list | tuple):
        found = ", ".join(f"'{name}'" for name in row) or "no field"
        raise RowError(f"layout 'sharegpt' needs a list 'conversations'; found {found}")
    names = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"}
    return _conversation(row, turns, role="from", text="value", names=names)


def text(row: Row) -> Conversation:
    """Read `text`: a plain document, wholly supervised (language-model training)."""
    document = _text(row, "text", "text", "'text'")
    return Conversation((Message("assistant", document),), id=_identifier(row), meta=_meta(row, ("text",)))


def _conversation(row: Row, turns: Any, *, role: str, text: str, names: Mapping[str, str]) -> Conversation:
    """Build a conversation out of a list of turns whose keys and speaker names differ from layout to layout."""
    system, result = "", []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get(text), str):
            raise RowError(f"turn {number} needs '{role}' and a text '{text}'")
        speaker, content = turn.get(role), turn[text]
        if speaker == "system" and number == 0:
            system = content
        elif names.get(str(speaker)) == "user":
            result.append(Message("user", content, context=str(turn.get("context") or "")))
        elif names.get(str(speaker)) == "assistant":
            result.append(Message("assistant", content, supervised=turn.get("supervised")))
        else:
            raise RowError(f"turn {number} has {role} '{speaker}'; known: system (first), {', '.join(names)}")
    used = ("messages", "conversations")
    return Conversation(tuple(result), system=system, id=_identifier(row), meta=_meta(row, used))


def check_turns(conversation: Conversation, *, needs_response: bool) -> None:
    """Refuse a conversation that no template can render, no tokenizer can read or no loss can use.

    Args:
        conversation: what a row function returned.
        needs_response: whether a supervised response is required, as for training.

    Raises:
        RowError: no message, turns out of order, no valid text, or none to learn from.
    """
    texts = [conversation.system, *(text for m in conversation.messages for text in (m.text, m.context))]
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
            f"found {', '.join(roles)}"
        )
    if not needs_response:
        return
    if roles[-1] != "assistant":
        raise RowError("the last message must be a response of the assistant")
    supervised = [m for m in conversation.messages if m.role == "assistant" and m.supervised is not False]
    if not supervised:
        raise RowError("no response is supervised, so there is nothing to learn from the row")
    if any(not message.text.strip() for message in supervised):
        raise RowError("a response is empty")


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


LAYOUTS: dict[str, RowFunction] = {"alpaca": alpaca, "messages": messages, "sharegpt": sharegpt, "text": text}


def resolve_layout(key: str, name: str) -> RowFunction:
    """Return the row function of a layout name or dotted path.

    Args:
        key: where the name stands in the configuration, for the error.
        name: one of `LAYOUTS`, or `package.module.function`.

    Raises:
        UserError: unknown name, or a path that leads to no function.
    """
    if name in LAYOUTS:
        return LAYOUTS[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise unknown_name(key, name, LAYOUTS, hint="A row function of your own is named by its dotted path.")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}: '{name}' cannot be imported ({error}). Give 'package.module.function'.") from error
    if not callable(function):
        raise UserError(f"{key}: '{name}' is no function; a row function takes a mapping and returns a Conversation.")
    result: RowFunction = function
    return result
