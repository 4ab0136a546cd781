"""What every row function is made of: the types, and readers of a row's fields that say what is wrong with it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ift.data.conversation import Conversation, Message

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row that cannot become a conversation; the message says why, without file and line."""


RowFunction = Callable[[Row], Conversation | Iterable[Conversation | RowError]]
"""One row in; out comes its conversation, or several. A `RowError` among several is one that cannot be used: it is
counted, and the others stay."""


def found_fields(row: Row) -> str:
    """Return the names of a row's fields for an error, shortened where they are many."""
    names = [f"'{name}'" for name in row]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "no field"


def text_of(value: Any, name: str) -> str:
    """Return a value that must be text.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, str):
        raise RowError(f"'{name}' must be text, found {type(value).__name__}")
    return value


def needed(row: Row, key: str, layout: str, *, needs: str) -> str:
    """Return the text of a field that the layout cannot do without.

    Args:
        row: the record.
        key: the field.
        layout: name of the layout, for the error.
        needs: the fields that the layout needs, for the error.
    """
    value = row.get(key)
    if value is None:
        found = f"'{key}' null" if key in row else found_fields(row)
        raise RowError(f"layout '{layout}' needs {needs}; found {found}")
    return text_of(value, key)


def optional(row: Row, key: str) -> str:
    """Return the text of a field that may be missing or null, which is the same as empty.

    Raises:
        RowError: it holds something other than text.
    """
    value = row.get(key)
    return "" if value is None else text_of(value, key)


def needed_list(row: Row, key: str, layout: str) -> Sequence[Any]:
    """Return the list that a layout cannot do without.

    Raises:
        RowError: there is none.
    """
    value = row.get(key)
    if not isinstance(value, list | tuple):
        raise RowError(f"layout '{layout}' needs a list '{key}'; found {found_fields(row)}")
    return value


def first_text(value: Any, name: str) -> str:
    """Return a text, or the first of a list of texts (the first of several references).

    Raises:
        RowError: the list is empty, or there is no text.
    """
    if isinstance(value, list | tuple):
        if not value:
            raise RowError(f"'{name}' is an empty list")
        return text_of(value[0], f"{name}[0]")
    return text_of(value, name)


def rest(row: Row, *used: str) -> dict[str, Any]:
    """Return the fields that went into neither the conversation nor its id."""
    return {key: value for key, value in row.items() if key not in used}


def identifier(row: Row, key: str = "id") -> str:
    """Return the id of a row as text; empty where it has none that is text or a number."""
    value = row.get(key)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def exchange(request: str, response: str, *, context: str = "") -> tuple[Message, Message]:
    """Return one request with its response."""
    return Message("user", request, context=context), Message("assistant", response)


def not_blank(text: str, name: str) -> str:
    """Return a text that must not be empty.

    Raises:
        RowError: it is.
    """
    if not text.strip():
        raise RowError(f"'{name}' is empty")
    return text


def as_json(value: Any) -> str:
    """Write a value as JSON, as a tool's call or result holds it.

    Raises:
        RowError: it is nested too deeply, or no JSON can say it.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"a call of a tool cannot be written as JSON ({type(error).__name__})") from error


def from_json(text: str, name: str) -> Any:
    """Read JSON that stands as text in a field.

    Raises:
        RowError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"'{name}' holds no valid JSON") from error


def numbered(identifier: str, number: int) -> str:
    """Return the id of one of several conversations of a row: `id-0`, `id-1`; empty where the row has no id."""
    return f"{identifier}-{number}" if identifier else ""
