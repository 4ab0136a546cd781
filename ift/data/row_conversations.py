"""From a source's rows to checked conversations: which row function reads them, and what each row gives."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from ift.data.catalogue import resolve
from ift.data.conversation import Conversation
from ift.data.layouts import (
    Row,
    RowError,
    RowFunction,
    check_turns,
    detect_layout,
    map_columns,
    resolve_layout,
)
from ift.data.layouts.detection import ROWS_LOOKED_AT
from ift.data.rows import RawRow, Source, check_source, read_rows
from ift.errors import UserError


def locate(key: str, source: Source) -> Source:
    """Return a source whose path is a name of the catalogue with what the catalogue knows of it.

    What the source says itself goes first.

    Args:
        key: where it stands in the configuration, for errors.
        source: as configured.

    Raises:
        UserError: an unknown name, or a collection that cannot be loaded by name.
    """
    collection = resolve(f"{key}.path", source.path)
    if collection is None or collection.hub is None:
        return source
    return replace(
        source,
        path=collection.hub,
        layout=source.layout or collection.layout,
        columns=source.columns or collection.columns,
        split=source.split if source.split != "train" else collection.split,
        subset=source.subset or collection.config,
        revision=source.revision or collection.revision,
        files=source.files or collection.files,
    )


def checked_sources(key: str, sources: Sequence[Source]) -> list[Source]:
    """Return the sources with what the catalogue knows of them, each checked.

    Raises:
        UserError: a source that cannot be read, or an unknown layout.
    """
    located = []
    for number, configured in enumerate(sources):
        place = f"{key}[{number}]"
        source = locate(place, configured)
        check_source(place, source)
        if source.layout is not None:
            resolve_layout(f"{place}.layout", source.layout)
        located.append(source)
    return located


@dataclass(frozen=True)
class ResolvedSource:
    """The row function of a source."""

    layout: str
    function: RowFunction
    detected: bool = False
    """Whether the layout was found out from the rows."""


def resolve_source(key: str, source: Source, *, rows: Iterable[RawRow] | None = None) -> ResolvedSource:
    """Return the row function of a source, found out from its first rows where no layout is named.

    Args:
        key: where it stands in the configuration, for errors.
        source: located.
        rows: its first rows, where they are at hand.

    Raises:
        UserError: an unknown layout, or rows of none.
    """
    if source.layout is not None:
        function = resolve_layout(f"{key}.layout", source.layout)
        return ResolvedSource(source.layout, _with_columns(function, source))
    first = _first_rows(key, source, read_rows(source, key=key) if rows is None else rows)
    layout = detect_layout(first, key=f"{key}.layout")
    return ResolvedSource(layout, _with_columns(resolve_layout(key, layout), source), detected=True)


def _first_rows(key: str, source: Source, rows: Iterable[RawRow]) -> list[Any]:
    first = list(islice((row.value for row in rows if isinstance(row.value, dict)), ROWS_LOOKED_AT))
    if not first:
        raise UserError(f"{key}.path: '{source.path}' holds no row by which its layout could be told.")
    try:
        return [map_columns(row, source.columns) for row in first]
    except RowError as error:
        raise UserError(f"{key}.columns: {error}") from error


def _with_columns(function: RowFunction, source: Source) -> RowFunction:
    if not source.columns:
        return function
    return _Mapped(function, dict(source.columns))


@dataclass(frozen=True)
class _Mapped:
    """A row function that reads rows with foreign field names; no closure, as processes hand it on."""

    function: RowFunction
    columns: dict[str, str]

    def __call__(self, row: Row) -> Conversation | Iterable[Conversation | RowError]:
        return self.function(map_columns(row, self.columns))


@dataclass(frozen=True)
class Reject:
    """A row, or a conversation of one, that became no example."""

    file: str
    line: int
    kind: str
    """The reason without this row's own numbers, for counting; for one that a filter left out, the filter's name."""
    reason: str
    row: Any
    element: int = 0
    """As of `RawRow`."""

    @staticmethod
    def of(row: RawRow, path: str, *, kind: str, reason: str) -> "Reject":
        """Return what is said of a row of the source `path`."""
        return Reject(row.file or path, row.line, kind, reason, row.value, row.element)

    def describe(self) -> dict[str, Any]:
        """Return plain values, for `rejects.jsonl` and `removed.jsonl`; `element` where there is one."""
        described = asdict(self)
        return described if self.element else {name: one for name, one in described.items() if name != "element"}


_MOST_CHARACTERS = 300
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def to_conversations(row: RawRow, function: RowFunction, *, needs_response: bool) -> list[Conversation | RowError]:
    """Turn a raw row into checked conversations; in the place of one that cannot be used, the reason.

    Returns:
        Never empty: a row that cannot be read at all gives its one reason.
    """
    if row.problem:
        return [_error(row.problem)]
    if not isinstance(row.value, dict):
        return [_error(f"a row must be a JSON object, found {type(row.value).__name__}")]
    found: list[Conversation | RowError] = []
    try:
        for one in _each(function(row.value)):
            found.append(_checked(one, needs_response))
    except RowError as error:  # what came before it is used
        found.append(_error(str(error)))
    except Exception as error:  # a user's own row function may fail in any way; the row is rejected and counted
        found.append(_error(f"the row function failed: {type(error).__name__}: {error}"))
    return found or [_error("the row holds no conversation")]


def _each(given: Any) -> Iterable[Any]:
    if isinstance(given, Conversation):
        return (given,)
    return given if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping) else [given]


def _checked(conversation: Any, needs_response: bool) -> Conversation | RowError:
    if isinstance(conversation, RowError):
        return _error(str(conversation))
    if not isinstance(conversation, Conversation):
        return _error(f"the row function gave {type(conversation).__name__}, not a Conversation")
    try:
        check_turns(conversation, needs_response=needs_response)
    except RowError as error:
        return _error(str(error))
    except (TypeError, AttributeError) as error:  # of a user's own: messages that are no Message
        return _error(f"the row function gave a Conversation that is none: {error}")
    return conversation


def _error(reason: str) -> RowError:
    """Return a reason in one line that any terminal and file can take, though rows have a say in it."""
    if len(reason) > 2 * _MOST_CHARACTERS:
        reason = f"{reason[:_MOST_CHARACTERS]} … {reason[-_MOST_CHARACTERS:]}"
    if " at 0x" in reason:
        reason = _ADDRESS.sub("", reason)
    if not reason.isprintable():
        line = " ".join(reason.split())
        reason = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in line)
    return RowError(reason)
