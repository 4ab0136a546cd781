"""Rows out of tables and text: CSV, TSV, Parquet, and plain text with one document per line."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from ift.data.files import DamagedFileError
from ift.data.json_rows import RawRow

_ESCAPED = re.compile("[\udc80-\udcff]")
_BATCH_ROWS = 1000
csv.field_size_limit(1 << 28)


def read_csv(file: BinaryIO, *, delimiter: str) -> Iterator[RawRow]:
    """Yield one mapping of column names to text per record; the first record names the columns (RFC 4180)."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    before = 0
    while True:
        line, before = before + 1, reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield RawRow(before + 1, problem=f"not valid CSV: {error}; the file cannot be read beyond this place")
            return
        line, before = before + 1, reader.line_num
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            if len(set(header)) != len(header) or not all(header):
                yield RawRow(line, problem=f"the first line must name the columns, each once; found {header}")
                return
            continue
        yield _csv_row(line, header, fields)


def _csv_row(line: int, header: list[str], fields: list[str]) -> RawRow:
    if len(fields) != len(header):
        return RawRow(line, problem=f"{len(fields)} fields where the first line names {len(header)} columns")
    if any(_ESCAPED.search(field) for field in fields):
        return RawRow(line, problem="not UTF-8")
    return RawRow(line, dict(zip(header, fields, strict=True)))


def read_text(file: BinaryIO) -> Iterator[RawRow]:
    """Yield `{"text": line}` for every line that is not blank."""
    for number, raw in enumerate(file, 1):
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
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if number + size <= start:
                number += size
                continue
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group]):
                values: list[dict[str, Any]] = batch.to_pylist()
                for value in values:
                    number += 1
                    if number > start:
                        yield RawRow(number, value)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"the Parquet file is damaged ({' '.join(str(error).split())[:200]})") from error
