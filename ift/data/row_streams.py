"""Rows without end: files read on and on, shuffled in blocks, resumable from a place in a file.

A stream goes through its files in an order that changes from epoch to epoch, reads blocks of `buffer` rows, and deals
each block out in a seeded order. All of it is a function of the seed, the epoch and the number of the block, so the
state is where the current block begins. Going on from a state reads that block and nothing before it, where the file
can be entered in the middle: JSON lines, text, and Parquet (from the row group on). Compressed files, CSV and JSON
arrays have to be read again from their own beginning.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ift.data.files import DamagedFileError, DataFile
from ift.data.json_rows import LINE_TOO_LONG, RawRow, bounded_lines, parse_line
from ift.data.order import Permutation
from ift.data.rows import Source, read_file
from ift.data.table_rows import read_parquet
from ift.errors import UserError

_SEVERAL = re.compile(rb"}[ \t]*[^ \t,}\]]")
"""What stands on a line of several values that begins with an object, and on few others."""


@dataclass(frozen=True)
class Place:
    """A place between two rows of a file."""

    rows: int = 0
    """Rows before it."""
    offset: int = 0
    """Bytes before it; only for files that are read line by line."""
    lines: int = 0
    """Lines before it."""
    values: int = 0
    """Rows of the next line before it, where that line holds several."""


@dataclass(frozen=True)
class BlockStart:
    """Where a block begins."""

    first: int = 0
    """Number of the block's first row since the beginning of the stream, over all epochs."""
    epoch: int = 0
    block: int = 0
    """Number of the block in its epoch."""
    shard: int = 0
    """Number of the file in the epoch's order."""
    place: Place = Place()

    @staticmethod
    def from_dict(state: dict[str, Any]) -> "BlockStart":
        """Return what `asdict` described."""
        return BlockStart(**{**state, "place": Place(**state["place"])})


class RowStream:
    """The rows of some files, without end, by number; numbers must not decrease.

    Args:
        files: the shards.
        buffer: rows per block; 1 keeps the order of the files' rows.
        seed: of the orders.
    """

    def __init__(self, files: Sequence[DataFile], *, buffer: int, seed: tuple[int, ...]) -> None:
        self._files, self._buffer, self._seed = list(files), buffer, seed
        described = [[file.path, file.size()] for file in self._files]
        self._identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
        self._start = BlockStart()
        self._next = BlockStart()
        self._rows: list[RawRow | _Line] = []
        self._order = np.zeros(0, dtype=np.int64)
        self._reading: Iterator[tuple[RawRow | _Line, int, Place]] | None = None

    def state(self) -> dict[str, Any]:
        """Return where the current block begins and in which files, as plain values."""
        return {"files": self._identity, **asdict(self._start)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; reads nothing yet.

        Raises:
            UserError: the state is of other files.
        """
        if state["files"] != self._identity:
            raise UserError(
                f"data.sources: the files of the stream that begins with '{self._files[0].path}' have changed since "
                "the run was interrupted, so it cannot go on where it was. Begin a new run_dir."
            )
        place = {key: value for key, value in state.items() if key != "files"}
        self._start = self._next = BlockStart.from_dict(place)
        self._rows, self._reading = [], None

    def row(self, number: int) -> RawRow:
        """Return a row by its number since the beginning of the stream.

        Raises:
            UserError: the files hold no row at all.
        """
        if number < self._start.first:
            raise ValueError(f"row {number} lies before the block that begins with row {self._start.first}")
        while number >= self._start.first + len(self._rows):
            self._read_block()
        found = self._rows[int(self._order[number - self._start.first])]
        return found.parse() if isinstance(found, _Line) else found

    def _read_block(self) -> None:
        """Make the next block the current one."""
        empty_epochs = 0
        while True:
            start = self._next
            if self._reading is None:
                self._reading = self._epoch(start)
            rows: list[RawRow | _Line] = []
            shard, place = start.shard, start.place
            for row, shard, place in self._reading:  # noqa: B007 (used below)
                rows.append(row)
                if len(rows) == self._buffer:
                    break
            else:
                self._reading = None
                self._next = BlockStart(start.first + len(rows), start.epoch + 1)
            if rows:
                break
            empty_epochs += 1
            if empty_epochs > 1:
                raise UserError(f"'{self._files[0].path}' and its companions hold no row, so there is no stream.")
        if self._reading is not None:
            self._next = BlockStart(start.first + len(rows), start.epoch, start.block + 1, shard, place)
        self._start, self._rows = start, rows
        self._order = Permutation(len(rows), *self._seed, start.epoch, start.block)(np.arange(len(rows)))

    def _epoch(self, start: BlockStart) -> Iterator[tuple["RawRow | _Line", int, Place]]:
        """Yield the rest of an epoch: each row with its file's number and the place behind it."""
        order = Permutation(len(self._files), *self._seed, start.epoch)(np.arange(len(self._files)))
        for shard in range(start.shard, len(order)):
            place = start.place if shard == start.shard else Place()
            for row, behind in _read_from(self._files[int(order[shard])], place):
                yield row, shard, behind


@dataclass(frozen=True)
class _Line:
    """A line that is parsed when its turn comes, as other processes take most of them."""

    number: int
    raw: bytes
    file: str
    is_text: bool

    def parse(self) -> RawRow:
        """Return the row, or the problem of a line that is none."""
        if self.is_text:
            try:
                return RawRow(self.number, {"text": self.raw.decode("utf-8").rstrip("\r\n")}, file=self.file)
            except UnicodeDecodeError as error:
                return RawRow(self.number, problem=f"not UTF-8 at byte {error.start} of the line", file=self.file)
        (row,) = parse_line(self.number, self.raw)
        return row._replace(file=self.file)


def _read_from(file: DataFile, place: Place) -> Iterator[tuple["RawRow | _Line", Place]]:
    """Yield the rows of a file from a place on, each with the place behind it."""
    if _is_read_by_lines(file):
        yield from _read_lines(file, place)
        return
    number = place.rows if file.format == "parquet" else 0
    rows = _read_parquet(file, place.rows) if file.format == "parquet" else read_file(file)
    for row in rows:
        number += 1
        if number > place.rows:
            yield row._replace(file=file.path), Place(rows=number)


def _read_parquet(file: DataFile, start: int) -> Iterator[RawRow]:
    last = start
    try:
        with file.open() as opened:
            for row in read_parquet(opened, start=start):
                last = row.line
                yield row
    except DamagedFileError as error:
        yield RawRow(last + 1, problem=f"{error}; the file cannot be read beyond this place")


def _is_read_by_lines(file: DataFile) -> bool:
    """Whether each row is a line: text, and JSON that neither begins with `[` nor reaches over lines."""
    if not file.seekable or file.format not in ("json", "text"):
        return False
    if file.format == "text":
        return True
    with file.open() as opened:
        lines = (raw for _, raw in bounded_lines(opened) if raw is None or raw.strip(b"\xef\xbb\xbf \t\r\n"))
        first = next(lines, b"")
    # An array, or a value that reaches over lines, is no row per line; a broken first line is read as what it is not.
    return first is not None and [type(row.value) for row in parse_line(1, first)] == [dict]


def _read_lines(file: DataFile, place: Place) -> Iterator[tuple["RawRow | _Line", Place]]:
    rows, offset, lines = place.rows, place.offset, place.lines
    with file.open() as opened:
        opened.seek(offset)
        for _, raw in bounded_lines(opened):
            before, offset = Place(rows, offset, lines), opened.tell()
            lines += 1
            values = _values(file, lines, raw)
            for number, row in enumerate(values, 1):
                if before.offset == place.offset and number <= place.values:
                    continue
                rows += 1
                is_last = number == len(values)
                yield row, Place(rows, offset, lines) if is_last else replace(before, rows=rows, values=number)


def _values(file: DataFile, number: int, raw: bytes | None) -> list["RawRow | _Line"]:
    """Return what a line holds: nothing, one value to be read when its turn comes, or several that are read already."""
    if raw is None:
        return [RawRow(number, problem=LINE_TOO_LONG, file=file.path)]
    if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if file.format == "text":
        return [_Line(number, raw, file.path, is_text=True)] if raw.strip() else []
    content = raw.strip(b" \t\r\n")
    if content.startswith(b"{") and b"\r" not in content and not _SEVERAL.search(content):
        return [_Line(number, raw, file.path, is_text=False)]
    return [row._replace(file=file.path) for row in parse_line(number, raw)]


def stream_files(key: str, source: Source) -> list[DataFile]:
    """Return the files of a streaming source; of a hub data set, the addresses of its files.

    Raises:
        UserError: no such file, or no such data set.
    """
    if source.has_files:
        return source.data_files(key)
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(source.path, source.subset, revision=source.revision).config.data_files or {}
    except Exception as error:  # the hub client raises dozens of types; each means that the data cannot be had
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{key}.path: no file '{source.path}', and no data set of that name could be had from the hub: "
            f"{type(error).__name__}: {reason}. Mend the path."
        ) from error
    if source.split not in found:
        known = ", ".join(map(str, found)) or "none"
        raise UserError(f"{key}.split: '{source.path}' has no split '{source.split}' of files. It has: {known}.")
    return [DataFile(str(path)) for path in found[source.split]]
