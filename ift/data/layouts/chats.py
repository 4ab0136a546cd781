"""Row functions of data sets whose rows hold a list of turns, each with its speaker."""

from collections.abc import Mapping, Sequence
from typing import Any

from ift.data.conversation import Conversation, Message, Role
from ift.data.layouts.contents import Content, read_content
from ift.data.layouts.fields import Row, RowError, identifier, needed_list, optional, rest

_ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_SYSTEM = ("system", "developer")
_CALLS = ("function_call",)
_FLAGS = ("supervised", "loss_weight", "weight", "train")


def messages(row: Row) -> Conversation:
    """Read `messages`: a list of `{role, content}` (OpenAI's chat layout).

    Roles are system or developer (only first), user, assistant, and tool or function. `content` is text or a list of
    parts (`{type: text, text}`), which follow one another with nothing between. Reasoning becomes the thought of the
    response; `tool_calls` become JSON, one call per line. `supervised`, `loss_weight`, `weight` or `train` of a turn
    say whether the loss counts it; `tools` stay in `meta`.
    """
    turns = needed_list(row, "messages", "messages")
    return _conversation(row, turns, key="messages", names=("role", "content"))


def sharegpt(row: Row) -> Conversation:
    """Read `conversations`: a list of `{from, value}` with human and gpt in turn (ShareGPT).

    A `system` turn stands first, or `system` is a field of the row. `function_call` and `observation` (or `tool`) are
    a tool's call and result. Nothing is left out: a chat that begins with gpt, or in which one speaks twice, is
    refused, as is one that ends with human.
    """
    turns = needed_list(row, "conversations", "sharegpt")
    return _conversation(row, turns, key="conversations", names=("from", "value"))


def _conversation(row: Row, turns: Sequence[Any], *, key: str, names: tuple[str, str]) -> Conversation:
    """Build a conversation out of turns.

    Args:
        row: the record.
        turns: its turns.
        key: the field that held them.
        names: keys of speaker and text; where the first turn has those of the other layout, they are read.
    """
    role, content = names
    if turns and isinstance(turns[0], Mapping) and role not in turns[0]:
        other = ("from", "value") if role == "role" else ("role", "content")
        role, content = other if other[0] in turns[0] else names
    system, result = optional(row, "system"), []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise RowError(f"turn {number} needs '{role}' and a text '{content}'")
        speaker = turn.get(role)
        read = read_content(turn, content, f"turn {number} needs '{role}' and a text '{content}'")
        if isinstance(speaker, str) and speaker in _SYSTEM and number == 0:
            system = _system(system, read, turn)
        else:
            result.append(_message(turn, speaker, read, number=number, key=role))
    return Conversation(tuple(result), system=system, id=identifier(row), meta=rest(row, "id", key, "system"))


def _system(of_row: str, read: Content, turn: Mapping[str, Any]) -> str:
    if of_row and of_row != read.text:
        raise RowError("there are two system texts: field 'system' and the first turn")
    if read.call or read.thought or _flag(turn, 0):
        raise RowError("a system text can neither call a tool nor think, nor does the loss count it")
    return read.text


def _message(turn: Mapping[str, Any], speaker: Any, read: Content, *, number: int, key: str) -> Message:
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        named = f"'{speaker}'" if isinstance(speaker, str) else f"of type {type(speaker).__name__}"
        first = "human, gpt" if key == "from" else "user, assistant"
        others = ", ".join(name for name in _ROLES if name not in first.split(", "))
        raise RowError(f"turn {number} has {key} {named}; known: system (first), {first}, {others}")
    if role != "assistant" and (read.call or read.thought):
        raise RowError(f"turn {number} of {speaker} calls a tool or thinks, as only the assistant can")
    context = optional(turn, "context") if role == "user" else ""
    call = read.call or speaker in _CALLS
    supervised = _flag(turn, number)
    return Message(role, read.text, context=context, supervised=supervised, thought=read.thought, call=call)


def _flag(turn: Mapping[str, Any], number: int) -> bool | None:
    """Return whether the loss counts a turn, as far as the turn says so itself."""
    given = {name: turn[name] for name in _FLAGS if turn.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            found = value if isinstance(value, int | float) else type(value).__name__
            raise RowError(f"turn {number}: '{name}' must be 0 or 1 (or true or false), found {found}")
    if len(set(map(bool, given.values()))) > 1:
        raise RowError(f"turn {number}: {' and '.join(given)} contradict one another")
    return bool(next(iter(given.values()))) if given else None
