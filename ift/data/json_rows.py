"""Rows out of JSON: one array, one value per line, or values one after the other; read piece by piece.

Memory holds one piece of the file and one row. Every row comes with the line on which it begins; what is no JSON comes
as a problem in the place of a row.
"""

import codecs
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple

from ift.data.decompression import DamagedFileError

_BLANK = re.compile(r"[ \t\r\n]*")
_ESCAPED = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as Python's `surrogateescape` writes them."""
_MARK, _MARK_IN_TEXT = re.compile(r'["\[\]{}]'), re.compile(r'["\\]')
"""What decides where a value ends: outside of its texts, and within them."""
_DIGITS = frozenset("0123456789")
_UNREADABLE = "the file cannot be read beyond this place"
_PIECE = 1 << 20
_LONGEST = 1 << 28
"""Characters (or bytes) of one row above which the row is refused rather than held in memory."""
LINE_TOO_LONG = f"the line is longer than {_LONGEST} bytes"
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
    element: int = 0
    """Number of the record in its array, or on its line of JSON lines, from 1, where it does not begin its line; else
    the line says it all, and this is 0."""

    @property
    def place(self) -> str:
        """Where in its file the record stands."""
        return f"line {self.line}, element {self.element}" if self.element else f"line {self.line}"


class DuplicateKeyError(ValueError):
    """A JSON object names a key twice, so that one of the values would be lost."""


class TooLongError(ValueError):
    """A row is longer than may be held in memory."""


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
_PLAIN_DECODER = json.JSONDecoder(parse_int=str)
"""Finds the end of a value that the other refuses for a key that occurs twice or an integer with too many digits."""


def read_json(open_file: Callable[[], AbstractContextManager[BinaryIO]]) -> Iterator[RawRow]:
    """Yield the rows of a JSON file in order.

    A file that begins with `[` is one array. A file whose first value is an object that reaches over lines is read as
    values that may do so (a single pretty-printed document); any other file holds values on lines of their own.

    Args:
        open_file: opens the decompressed bytes from the beginning.
    """
    with open_file() as file:
        window = _Window(file)
        if window.is_utf16:
            yield RawRow(1, problem="the file is UTF-16; it must be UTF-8")
            return
        first = window.next_character()
        if first == "[":
            yield from _read_array(window)
            return
        if first == "{":
            row = _row(window)
            window.count_lines()
            if not row.problem.endswith(_UNREADABLE) and window.line > row.line:
                yield row
                yield from _read_values(window)
                return
    with open_file() as file:
        yield from _read_lines(file)


def parse_line(number: int, raw: bytes) -> list[RawRow]:
    """Return the values of one line of JSON lines: one, or several that stand one after the other; none if blank."""
    rows = _line_values(number, raw)
    if rows and rows[-1].problem and b"\r" in raw.rstrip(b"\r\n"):
        # Lines that end in a carriage return alone, which JSON reads as a blank: damage to one leaves the others.
        return [row for part in raw.split(b"\r") for row in _line_values(number, part)]
    return rows


def _line_values(number: int, raw: bytes) -> list[RawRow]:
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
        rows.append(RawRow(number, value, element=len(rows) + 1 if rows else 0))
        position = _skip_blank(line, end)
    return rows


def _read_lines(file: BinaryIO) -> Iterator[RawRow]:
    for number, raw in bounded_lines(file):
        if raw is None:
            yield RawRow(number, problem=LINE_TOO_LONG)
        else:
            yield from parse_line(number, raw)


def bounded_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines of a file with their numbers from 1; `None` in the place of one too long to be held."""
    number = 0
    while raw := file.readline(_LONGEST):
        number += 1
        if len(raw) < _LONGEST or raw.endswith(b"\n"):
            yield number, raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(_PIECE)
        yield number, None


class _Window:
    """A moving piece of decoded text; bytes that are no UTF-8 are kept as lone surrogates."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text, self.position, self.line = "", 0, 1
        self.ended = False
        self._line_position = 0
        self._escaped = False
        start = self._bytes(4)
        self.is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        self._add(start.removeprefix(codecs.BOM_UTF8))

    def more(self, size: int | None = None) -> None:
        """Forget what lies before the position and read on."""
        self.count_lines()
        data = self._bytes(size or _PIECE)
        self.text = self.text[self.position :]
        self.position = self._line_position = 0
        self.ended = not data
        self._add(data)

    def _bytes(self, size: int) -> bytes:
        """Read so many bytes, or fewer at the end of the file or before a damage, which the next call tells."""
        pieces: list[bytes] = []
        while size > 0:
            try:
                piece = self._file.read1(size)  # type: ignore[attr-defined]
            except DamagedFileError:
                if not pieces:
                    raise
                break
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _add(self, data: bytes) -> None:
        piece = self._decoder.decode(data, final=self.ended)
        self._escaped = self._escaped or bool(_ESCAPED.search(piece))
        self.text += piece

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
            ValueError: no JSON.
        """
        try:
            value, end = self._decode(_DECODER)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            self._pass_over()
            raise UnusableValueError(_problem(error)) from error
        start, self.position = self.position, end
        if self._escaped and (broken := _ESCAPED.search(self.text, start, end)):
            place = len(self.text[start : broken.start()].encode("utf-8", "surrogateescape"))
            raise UnusableValueError(f"not UTF-8 at byte {place} of the row")
        return value

    def _decode(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _TAIL
                if self.ended or not unfinished:
                    raise
            else:
                # A number may go on (12 and then .5); every other value shows its own end.
                if self.ended or end <= len(self.text) - _TAIL or self.text[end - 1] not in _DIGITS:
                    return value, end
            self._double()

    def _double(self) -> None:
        """Read about as much again as is held, so that a long value is decoded only a few times."""
        held = len(self.text) - self.position
        if held > _LONGEST:
            raise TooLongError(f"one row is longer than {_LONGEST} characters")
        self.more(min(held + _PIECE, _LONGEST + 1 - held))

    def _pass_over(self) -> None:
        """Move behind the value at the position, which cannot be taken."""
        try:
            _, self.position = self._decode(_PLAIN_DECODER)
        except (TooLongError, RecursionError):
            if not self._skip():
                raise

    def _skip(self) -> bool:
        """Move behind the text, list or object at the position, whatever it holds; False where it does not end."""
        if self.text[self.position : self.position + 1] not in ('"', "[", "{"):
            return False
        depth, quoted = 0, False
        while True:
            match = (_MARK_IN_TEXT if quoted else _MARK).search(self.text, self.position)
            self.position = match.end() if match else len(self.text)
            if match is None or match[0] == "\\":
                if self.position == len(self.text):
                    if self.ended:
                        return False
                    self.more()
                self.position += match is not None  # the escaped character
                continue
            if match[0] == '"':
                quoted = not quoted
            else:
                depth += 1 if match[0] in "[{" else -1
            if depth <= 0 and not quoted:
                return True


def _read_array(window: _Window) -> Iterator[RawRow]:
    window.position += 1
    more = window.next_character() != "]"
    number, line = 0, 0
    while more:
        window.next_character()
        row = _row(window)
        number += 1
        yield row._replace(element=number) if row.line == line else row
        line = row.line
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


def _read_values(window: _Window) -> Iterator[RawRow]:
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


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the row is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.removesuffix(" at").removesuffix(" starting")
        if error.doc.startswith("\ufeff", error.pos):
            what = "a byte order mark (U+FEFF) in the middle of the file"
        return f"not valid JSON: {what}"
    if isinstance(error, DuplicateKeyError | TooLongError):
        return str(error)
    return f"an integer has more than {sys.get_int_max_str_digits()} digits"
