"""From a source's rows to checked conversations: which row function reads them, and what each row gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ift.data.conversation import Conversation
from ift.data.layouts import RowError, RowFunction, check_turns, resolve_layout
from ift.data.rows import RawRow, Source


@dataclass(frozen=True)
class ResolvedSource:
    """The row function of a source."""

    layout: str
    function: RowFunction
    detected: bool = False
    """Whether the layout was found out from the rows."""


def resolve_source(key: str, source: Source) -> ResolvedSource:
    """Return the row function of a source, found out from its first rows where no layout is named.

    Raises:
        UserError: an unknown layout, or rows of none.
    """
    assert source.layout is not None
    return ResolvedSource(source.layout, resolve_layout(f"{key}.layout", source.layout))


def to_conversations(row: RawRow, function: RowFunction, *, needs_response: bool) -> list[Conversation | RowError]:
    """Turn a raw row into checked conversations; in the place of one that cannot be used, the reason.

    Returns:
        Never empty: a row that cannot be read at all gives its one reason.
    """
    if row.problem:
        return [RowError(row.problem)]
    if not isinstance(row.value, dict):
        return [RowError(f"a row must be a JSON object, found {type(row.value).__name__}")]
    try:
        given: Any = function(row.value)
        conversations = list(given) if isinstance(given, Iterable) else [given]
    except RowError as error:
        return [error]
    except Exception as error:  # a user's own row function may fail in any way; the row is rejected and counted
        return [RowError(f"the row function failed: {type(error).__name__}: {error}")]
    return [_checked(one, needs_response) for one in conversations] or [RowError("the row holds no conversation")]


def _checked(conversation: Any, needs_response: bool) -> Conversation | RowError:
    if isinstance(conversation, RowError):
        return conversation
    if not isinstance(conversation, Conversation):
        return RowError(f"the row function gave {type(conversation).__name__}, not a Conversation")
    try:
        check_turns(conversation, needs_response=needs_response)
    except RowError as error:
        return error
    return conversation
