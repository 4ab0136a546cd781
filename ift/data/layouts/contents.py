"""What a turn says: plain text, a list of typed parts, calls of tools, and what was thought before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ift.data.layouts.fields import RowError, as_json, from_json, text_of

_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
_THOUGHT_TYPES = (*_THOUGHTS, "think")
_TEXT_TYPES = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Content:
    """What one turn holds, whatever form it had."""

    text: str
    thought: str = ""
    call: bool = False
    """Whether the text is, or ends with, a call of a tool."""


def read_content(turn: Mapping[str, Any], key: str, problem: str) -> Content:
    """Read what a turn says.

    Args:
        turn: the turn.
        key: field of its text or its list of parts; null only where the turn calls a tool.
        problem: what to say of a turn without text.

    Raises:
        RowError: no text, a part that is no text, or a call that is none.
    """
    calls = _calls(turn)
    value = turn.get(key)
    if isinstance(value, str):
        content = Content(value)
    elif isinstance(value, list | tuple):
        content = _parts(value)
    elif value is None and calls:
        content = Content("")
    else:
        raise RowError(problem)
    thought = "".join((*_own_thoughts(turn), content.thought))
    if content.call and calls:
        raise RowError("a turn calls tools in its content and in 'tool_calls'")
    text = "\n".join(filter(None, (content.text, *calls)))
    return Content(text, thought, content.call or bool(calls))


def _own_thoughts(turn: Mapping[str, Any]) -> list[str]:
    given = [text_of(turn[name], name) for name in _THOUGHTS if turn.get(name) is not None]
    if len(set(given)) > 1:
        raise RowError("a turn holds two different thoughts")
    return given[:1]


def _parts(parts: Sequence[Any]) -> Content:
    """Join the parts of a message: texts with nothing between, calls one per line after them."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_TYPES:
            texts.append(_part_text(part, "text"))
        elif kind in _THOUGHT_TYPES:
            thoughts.append(_part_text(part, kind))
        elif kind == "tool_call":
            calls.append(_part_text(part, "text"))
        else:
            named = f"'{kind}'" if isinstance(kind, str) else f"type {type(part).__name__}"
            raise RowError(f"content holds a part of {named}; known: text, reasoning, tool_call")
    text = "\n".join(filter(None, ("".join(texts), *calls)))
    return Content(text, "".join(thoughts), bool(calls))


def _part_text(part: Mapping[str, Any], key: str) -> str:
    """Return the text of a part; data sets call it `text`, `value`, or as the part's type."""
    for name in (key, "text", "value"):
        if part.get(name) is not None:
            return text_of(part[name], name)
    raise RowError(f"a part of content has neither 'text' nor 'value', but {', '.join(map(repr, part))}"[:200])


def _calls(turn: Mapping[str, Any]) -> list[str]:
    """Return the calls of OpenAI's `tool_calls` (or the older `function_call`) as JSON of name and arguments."""
    given = turn.get("tool_calls")
    if given is None:
        given = [] if turn.get("function_call") is None else [{"function": turn["function_call"]}]
    if not isinstance(given, list | tuple):
        raise RowError(f"'tool_calls' must be a list, found {type(given).__name__}")
    return [_call(call) for call in given]


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a call of a tool needs 'name' and 'arguments'")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and arguments.strip():
        arguments = from_json(arguments, "arguments")
    return as_json({"name": function["name"], "arguments": arguments})
