"""Rows out of JSON: one array, one value per line, or values one after the other; read piece by piece.

Memory holds one piece of the file and one row. Every row comes with the line on which it begins; what is no JSON comes
as a problem in the place of a row.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple

_BLANK = re.compile(r"[ \t\r\n]*")
_ESCAPED = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as Python's `surrogateescape` writes them."""
_UNREADABLE = "the file cannot be read beyond this place"
_PIECE = 1 << 20
_LONGEST = 1 << 28
"""Characters (or bytes) of one row above which the row is refused rather than held in memory."""
_TAIL = 16
"""An error this close to the end of what was read may be only that the rest is missing."""


class RawRow(NamedTuple):
    """One record as it stands in its file, or the reason why there is none."""

    line: int
    """Line of the file on which the record begins, from 1; for Parquet and hub data the number of the row, from 1."""
    value: Any = None
    problem: str = ""
    """Why the text at this place is no record; empty where `value` holds one."""
    file: str = ""
    """The file, where a source has several."""


class DuplicateKeyError(ValueError):
    """A JSON object names a key twice, so that one of the values would be lost."""


class UnusableValueError(ValueError):
    """A row is JSON but cannot be taken; the rows after it can be read."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKeyError(f"the key '{twice}' occurs twice in one object")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_PLAIN_DECODER = json.JSONDecoder()


def read_json(open_file: Callable[[], AbstractContextManager[BinaryIO]]) -> Iterator[RawRow]:
    """Yield the rows of a JSON file in order.

    A file that begins with `[` is one array. A file whose first line is a whole JSON value holds one per line; any
    other is read as values that may reach over lines (a single pretty-printed document), if its beginning can be.

    Args:
        open_file: opens the decompressed bytes from the beginning.
    """
    with open_file() as file:
        start = file.readline(_LONGEST)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield RawRow(1, problem="the file is UTF-16; it must be UTF-8")
            return
        while start and not start.removeprefix(codecs.BOM_UTF8).strip():
            start = file.readline(_LONGEST)
    first = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if first.startswith(b"["):
        reader = _read_array
    elif first.startswith(b"{") and not _is_whole(first) and _begins_document(open_file):
        reader = _read_values
    else:
        reader = _read_lines
    with open_file() as file:
        yield from reader(file)


def parse_line(number: int, raw: bytes) -> list[RawRow]:
    """Return the values of one line of JSON lines: one, or several that stand one after the other; none if blank."""
    try:
        line = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return [RawRow(number, problem=f"not UTF-8 at byte {error.start} of the line")]
    if number == 1:
        line = line.removeprefix("\ufeff")
    rows: list[RawRow] = []
    position = _skip_blank(line, 0)
    while position < len(line):
        try:
            value, end = _DECODER.raw_decode(line, position)
        except (ValueError, RecursionError) as error:
            place = f" at column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            return [RawRow(number, problem=_problem(error) + place)]
        rows.append(RawRow(number, value))
        position = _skip_blank(line, end)
    return rows


def _read_lines(file: BinaryIO) -> Iterator[RawRow]:
    number = 0
    while raw := file.readline(_LONGEST):
        number += 1
        if len(raw) == _LONGEST and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(_PIECE)
            yield RawRow(number, problem=f"the line is longer than {_LONGEST} bytes")
            continue
        yield from parse_line(number, raw)


class _Window:
    """A moving piece of decoded text; bytes that are no UTF-8 are kept as lone surrogates."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text, self.position, self.line = "", 0, 1
        self.ended = False
        self._line_position = 0
        self._escaped = False
        self.more()
        self.text = self.text.removeprefix("\ufeff")

    def more(self, size: int = _PIECE) -> None:
        """Forget what lies before the position and read on."""
        self.count_lines()
        data = self._file.read(size)
        self.ended = not data
        piece = self._decoder.decode(data, final=self.ended)
        self._escaped = self._escaped or bool(_ESCAPED.search(piece))
        self.text = self.text[self.position :] + piece
        self.position = self._line_position = 0

    def count_lines(self) -> None:
        """Bring the line number to the position."""
        self.line += self.text.count("\n", self._line_position, self.position)
        self._line_position = self.position

    def next_character(self) -> str:
        """Skip blanks and return the character there, or nothing at the end of the file."""
        while True:
            self.position = _skip_blank(self.text, self.position)
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self.more()

    def value(self) -> Any:
        """Decode the value at the position and move behind it.

        Raises:
            UnusableValueError: a whole value that cannot be taken; the position is behind it.
            ValueError: no JSON, or too long.
        """
        try:
            value, end = self._decode(_DECODER)
        except DuplicateKeyError as error:
            _, self.position = self._decode(_PLAIN_DECODER)
            raise UnusableValueError(str(error)) from error
        start, self.position = self.position, end
        if self._escaped and (broken := _ESCAPED.search(self.text, start, end)):
            place = len(self.text[start : broken.start()].encode("utf-8", "surrogateescape"))
            raise UnusableValueError(f"not UTF-8 at byte {place} of the row")
        return value

    def _decode(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        size = _PIECE
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _TAIL
                if self.ended or not unfinished:
                    raise
            else:
                if end < len(self.text) or self.ended:
                    return value, end
            if len(self.text) - self.position > _LONGEST:
                raise ValueError(f"one row is longer than {_LONGEST} characters")
            self.more(size)
            size *= 2


def _read_array(file: BinaryIO) -> Iterator[RawRow]:
    window = _Window(file)
    window.next_character()
    window.position += 1
    more = window.next_character() != "]"
    while more:
        window.next_character()
        row = _row(window)
        yield row
        if row.problem.endswith(_UNREADABLE):
            return
        following = window.next_character()
        if following not in (",", "]"):
            window.count_lines()
            yield RawRow(window.line, problem=f"not valid JSON: expected ',' or ']' after an element; {_UNREADABLE}")
            return
        more = following == ","
        if more:
            window.position += 1
    window.position += 1
    if window.next_character():
        window.count_lines()
        yield RawRow(window.line, problem=f"text after the end of the JSON array; {_UNREADABLE}")


def _read_values(file: BinaryIO) -> Iterator[RawRow]:
    window = _Window(file)
    while window.next_character():
        row = _row(window)
        yield row
        if row.problem.endswith(_UNREADABLE):
            return


def _row(window: _Window) -> RawRow:
    """Return the row at the window's position; after what is no JSON nothing can be told apart any more."""
    window.count_lines()
    line = window.line
    try:
        return RawRow(line, window.value())
    except UnusableValueError as error:
        return RawRow(line, problem=str(error))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            line += window.text.count("\n", window.position, error.pos)
        return RawRow(line, problem=f"{_problem(error)}; {_UNREADABLE}")


def _is_whole(line: bytes) -> bool:
    return not any(row.problem for row in parse_line(2, line))


def _begins_document(open_file: Callable[[], AbstractContextManager[BinaryIO]]) -> bool:
    """Whether the file begins with a whole value that reaches over several lines."""
    with open_file() as file:
        window = _Window(file)
        window.next_character()
        return not _row(window).problem.endswith(_UNREADABLE)


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _problem(error: Exception) -> str:
    if isinstance(error, DuplicateKeyError):
        return str(error)
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    return f"not valid JSON: {getattr(error, 'msg', error)}"
