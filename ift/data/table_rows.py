"""Rows out of tables and text: CSV, TSV, Parquet, and plain text with one document per line."""

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from ift.data.decompression import DamagedFileError
from ift.data.json_rows import RawRow, bounded_lines

_ESCAPED = re.compile("[\udc80-\udcff]")
_BATCH_ROWS = 1000
_LONGEST = 1 << 28
"""Characters of one CSV record above which it is refused rather than held in memory."""
_MOST_LINES = 10_000
"""Lines of one CSV record; bounds what a quotation mark that is never closed costs."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
csv.field_size_limit(_LONGEST)


class _Lines:
    """The lines of a text, of which those of a record that is none are read again."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._record: list[str] = []
        self._size = 0
        self.number = 1
        """Line on which the current record begins."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._size > _LONGEST or len(self._record) >= _MOST_LINES:
            raise csv.Error("a record does not end, likely for a quotation mark that is never closed")
        line = self._again.popleft() if self._again else self._text.readline(_LONGEST)
        if not line:
            raise StopIteration
        self._record.append(line)
        self._size += len(line)
        if len(line) >= _LONGEST:
            raise csv.Error("the line is too long to be held in memory")
        return line

    def next_record(self) -> None:
        """Leave the lines of the record behind."""
        self.number += len(self._record)
        self._record, self._size = [], 0

    def refuse_record(self) -> None:
        """Leave the first line of the record behind; the others are read again."""
        self._again.extendleft(reversed(self._record[1:]))
        del self._record[1:]
        self._pass_line()
        self.next_record()

    def _pass_line(self) -> None:
        """Move to the end of the line, where it was too long to be held."""
        line = self._record[0] if self._record else "\n"
        while line and not self._again and not line.endswith(("\n", "\r")):
            line = self._text.readline(_LONGEST)


def read_csv(file: BinaryIO, *, delimiter: str) -> Iterator[RawRow]:
    """Yield one mapping of column names to text per record; the first record names the columns (RFC 4180).

    Where the quoting of a record is broken, its first line is refused and reading goes on with the next.
    """
    if (utf16 := _utf16(file)) is not None:
        yield utf16
        return
    lines = _Lines(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    header: list[str] | None = None
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield RawRow(lines.number, problem=f"not valid CSV: {error}")
            lines.refuse_record()
            if header is None:
                return
            continue
        if fields is None:
            return
        if fields and header is None:
            header = fields
            if problem := _header_problem(header):
                yield RawRow(lines.number, problem=f"{problem}; the file cannot be read")
                return
        elif fields and header is not None:
            yield _csv_row(lines.number, header, fields)
        lines.next_record()


def _utf16(file: BinaryIO) -> RawRow | None:
    if file.peek(2).startswith(_UTF16):  # type: ignore[attr-defined]
        return RawRow(1, problem="the file is UTF-16; it must be UTF-8")
    return None


def _header_problem(header: list[str]) -> str:
    if any(_ESCAPED.search(name) for name in header):
        return "the first line, which names the columns, is not UTF-8"
    if len(set(header)) != len(header) or not all(header):
        names = ", ".join(f"'{name}'" for name in header)
        return f"the first line must name the columns, each once; found {names}"
    return ""


def _csv_row(line: int, header: list[str], fields: list[str]) -> RawRow:
    if len(fields) != len(header):
        return RawRow(line, problem=f"{len(fields)} fields where the first line names {len(header)} columns")
    if any(_ESCAPED.search(field) for field in fields):
        return RawRow(line, problem="not UTF-8")
    return RawRow(line, dict(zip(header, fields, strict=True)))


def read_text(file: BinaryIO) -> Iterator[RawRow]:
    """Yield `{"text": line}` for every line that is not blank."""
    if (utf16 := _utf16(file)) is not None:
        yield utf16
        return
    for number, raw in bounded_lines(file):
        if raw is None:
            yield RawRow(number, problem="the line is too long to be held in memory")
            continue
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield RawRow(number, problem=f"not UTF-8 at byte {error.start} of the line")
            continue
        if line.strip():
            yield RawRow(number, {"text": line})


def read_parquet(file: BinaryIO, *, start: int = 0) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file, numbered from 1.

    Args:
        file: seekable.
        start: rows to leave out at the beginning; whole row groups are skipped unread.

    Raises:
        DamagedFileError: the file is no Parquet file, or damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if len(set(names)) != len(names):
            raise DamagedFileError(f"columns of the Parquet file have the same name ({', '.join(names)[:200]})")
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if number + size <= start:
                number += size
                continue
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group]):
                for row in _batch_rows(batch, number):
                    number += 1
                    if number > start:
                        yield row
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise DamagedFileError(f"the Parquet file is damaged ({' '.join(str(error).split())[:200]})") from error


def _batch_rows(batch: Any, before: int) -> list[RawRow]:
    """Return the rows of a record batch; one that Python cannot hold (year 20000, text that is no UTF-8) is a problem.

    Args:
        batch: an Arrow record batch.
        before: rows before it.
    """
    try:
        return [RawRow(number, value) for number, value in enumerate(batch.to_pylist(), before + 1)]
    except Exception:  # each type of value fails in its own way
        if len(batch) > 1:
            half = len(batch) // 2
            return _batch_rows(batch[:half], before) + _batch_rows(batch[half:], before + half)
        return [RawRow(before + 1, problem=_unreadable_columns(batch))]


def _unreadable_columns(batch: Any) -> str:
    found = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist()
        except Exception as error:  # as above
            found.append(f"'{name}' ({' '.join(str(error).split())[:100]})")
    return f"values that cannot be read: {', '.join(found)}"
