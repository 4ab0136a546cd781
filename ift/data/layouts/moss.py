"""The row function of MOSS: chats whose every part stands between markers, with plugins or without."""

import re
from collections.abc import Mapping
from typing import Any

from ift.data.conversation import Conversation, Message
from ift.data.layouts.fields import Row, RowError, found_fields, identifier, optional, rest

_ENDS = {"Human": "eoh", "Inner Thoughts": "eot", "Commands": "eoc", "Tool Responses": "eor", "MOSS": "eom"}
_NAMES = {"Tool Responses": "Results"}
"""Markers that are not called as their field."""
_PARTS = {
    field: re.compile(rf"\s*<\|{_NAMES.get(field, field)}\|>:(?: |(?=\n))(.*?)<(?:{end}|eoa)>\s*", re.DOTALL)
    for field, end in _ENDS.items()
}
_FIRST = re.compile(r"\[(Human|MOSS)\]: ?(.*?)\s?<(?:eoh|eoa)>\s*", re.DOTALL)
"""A turn of the second data set, which holds a whole chat in one text."""


def moss(row: Row) -> Conversation:
    r"""Read `chat`: `turn_1`, `turn_2`, ... with Human, Inner Thoughts, Commands, Tool Responses, MOSS.

    Markers are cut exactly (`<|Human|>: ` before, `<eoh>\n` after, and the newlines on both sides of the results); a
    part without markers is taken as it is. `meta_instruction` is the system text. Where Commands are not None or empty,
    the turn becomes request, call (with the inner thoughts before it), result and response; else the thoughts, if any,
    belong to the response. The older form is `plain_text`: `[Human]: ... <eoh> [MOSS]: ... <eoa>`, with `prefix` as
    system text.
    """
    if "plain_text" in row and "chat" not in row:
        return _plain_text(row)
    chat = row.get("chat")
    if not isinstance(chat, Mapping) or not chat:
        raise RowError(f"layout 'moss' needs 'chat' with turn_1, turn_2, ...; found {found_fields(row)}")
    if set(chat) != {f"turn_{number}" for number in range(1, len(chat) + 1)}:
        raise RowError("'chat' must hold turn_1, turn_2, ... without a gap")
    messages: list[Message] = []
    for number in range(1, len(chat) + 1):
        messages += _turn(chat[f"turn_{number}"], f"turn_{number}")
    used = ("conversation_id", "meta_instruction", "chat")
    system, name = optional(row, "meta_instruction"), identifier(row, "conversation_id")
    return Conversation(tuple(messages), system=system, id=name, meta=rest(row, *used))


def _turn(turn: Any, name: str) -> list[Message]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("Human"), str) or not isinstance(turn.get("MOSS"), str):
        raise RowError(f"{name} needs the texts 'Human' and 'MOSS'")
    said = {field: _unmarked(turn[field], field, name) for field in _ENDS if turn.get(field) is not None}
    request, response = Message("user", said["Human"]), said["MOSS"]
    thought, commands, results = (_given(said, field) for field in ("Inner Thoughts", "Commands", "Tool Responses"))
    if not commands:
        if results:
            raise RowError(f"{name} has results of a tool, but no command")
        return [request, Message("assistant", response, thought=thought)]
    if not results:
        raise RowError(f"{name} has a command, but no results of the tool")
    call = Message("assistant", commands, thought=thought, call=True)
    return [request, call, Message("tool", results), Message("assistant", response)]


def _given(said: dict[str, str], field: str) -> str:
    text = said.get(field, "None")
    # Generated data: the model sometimes ends the word None with a full stop.
    return "" if text.strip() in ("None", "None.", "") else text


def _unmarked(value: Any, field: str, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"'{field}' of {name} must be text, found {type(value).__name__}")
    marked = _PARTS[field].fullmatch(value)
    if marked is None:
        if "<|" in value[:3]:
            raise RowError(f"'{field}' of {name} begins with a marker but does not end with <{_ENDS[field]}>")
        return value
    text = marked.group(1)
    return text.removeprefix("\n").removesuffix("\n") if field == "Tool Responses" else text


def _plain_text(row: Row) -> Conversation:
    text = optional(row, "plain_text")
    messages: list[Message] = []
    end = 0
    while end < len(text):
        turn = _FIRST.match(text, end)
        if turn is None:
            raise RowError("'plain_text' must hold turns such as '[Human]: ... <eoh> [MOSS]: ... <eoa>'")
        messages.append(Message("user" if turn.group(1) == "Human" else "assistant", turn.group(2)))
        end = turn.end()
    used = ("id", "plain_text", "prefix")
    return Conversation(tuple(messages), system=optional(row, "prefix"), id=identifier(row), meta=rest(row, *used))
