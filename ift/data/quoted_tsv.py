"""Read tab-separated records with CSV quoting, each with the line on which it begins or the reason why it is none.

Quoting is read as Python's csv module reads it, because published conversions did: a field that begins with a quotation
mark is quoted up to the next single one, `""` within it means one, tabs and newlines within it belong to the text; text
behind the closing mark is added to the field without the marks. A mark inside a field that does not begin with one is
text, and so is every backslash.

One thing differs: where csv would let a mark that is never closed swallow record after record, only the line with that
mark is refused, and reading goes on with the line after it.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_LINES = 200
"""Most lines that one record may span: bounds what a mark that is never closed costs."""
_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"([^\t]*)')


@dataclass(frozen=True)
class TsvRecord:
    """One record as it stands in its file, or the reason why there is none."""

    line: int
    """Line of the file on which the record begins, from 1."""
    fields: tuple[str, ...] = ()
    loosely_quoted: bool = False
    """Whether text follows a closing mark, so that quotation marks which may have been part of the text are gone."""
    problem: str = ""
    """Why the text at this place is no record; empty where `fields` holds one."""


def read_quoted_tsv(path: Path) -> Iterator[TsvRecord]:
    """Yield the records of a UTF-8 file in file order; lines without any character are none.

    A line that cannot be decoded, or whose quotation mark does not close, is a record with a problem.
    """
    with path.open("rb") as file:
        lines = _Lines(file)
        while (first := lines.peek(0)) is not None:
            if first.problem or not first.text:
                lines.skip(1)
                if first.problem:
                    yield TsvRecord(first.number, problem=first.problem)
                continue
            record, used = _record(first, lines)
            lines.skip(used)
            yield record


@dataclass(frozen=True)
class _Line:
    number: int
    text: str = ""
    problem: str = ""


class _Lines:
    """The lines of a file, of which those to come can be looked at before they are used."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ahead: deque[_Line] = deque()
        self._read = 0

    def peek(self, distance: int) -> _Line | None:
        """Return the line that many lines ahead, or `None` behind the end of the file."""
        while len(self._ahead) <= distance:
            raw = self._file.readline()
            if not raw:
                return None
            self._read += 1
            self._ahead.append(_decoded(raw, self._read))
        return self._ahead[distance]

    def skip(self, number: int) -> None:
        """Use up lines that were looked at."""
        for _ in range(number):
            self._ahead.popleft()


def _decoded(raw: bytes, number: int) -> _Line:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return _Line(number, problem=f"not UTF-8 at byte {error.start} of the line")
    return _Line(number, text.removesuffix("\n").removesuffix("\r"))


def _record(first: _Line, lines: _Lines) -> tuple[TsvRecord, int]:
    """Return the record that begins on a line, and how many lines it uses."""
    text, used = first.text, 1
    while (parsed := _fields(text)) is None:
        following = lines.peek(used) if used < MAX_LINES else None
        if following is None or following.problem:
            return TsvRecord(first.number, problem="a quotation mark that opens a field is never closed"), 1
        text, used = f"{text}\n{following.text}", used + 1
    fields, loose = parsed
    if loose and used > 1:
        # A text that runs over lines and ends in the middle of a field was never one text: the mark that closes it
        # belongs to another record.
        return TsvRecord(first.number, problem="a quotation mark that opens a field is not closed on its line"), 1
    return TsvRecord(first.number, fields, loose), used


def _fields(text: str) -> tuple[tuple[str, ...], bool] | None:
    """Return the fields and whether one is loosely quoted, or `None` while a quotation mark is open."""
    fields, loose, position = [], False, 0
    while position <= len(text):
        if text.startswith('"', position):
            match = _QUOTED.match(text, position)
            if match is None:
                return None
            fields.append(match[1].replace('""', '"') + match[2])
            loose, end = loose or bool(match[2]), match.end()
        else:
            end = text.find("\t", position)
            end = len(text) if end < 0 else end
            fields.append(text[position:end])
        position = end + 1
    return tuple(fields), loose
