"""What the commands that sort rows share: their input, rows with progress, and new files."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ift.commands.option_parser import OptionParser
from ift.data.conversation import Conversation
from ift.data.layouts import resolve_layout
from ift.data.row_conversations import Reject, resolve_source, to_conversations
from ift.data.rows import RawRow, Source, check_source, read_rows
from ift.errors import UserError

UNREADABLE = "unreadable"
Write = Callable[[Any], None]
Judge = Callable[[Sequence[Conversation], RawRow, Source], Reject | None]
"""Decides about a row by its conversations, of which there is at least one; `None` keeps it."""


def add_input_options(parser: OptionParser) -> None:
    """Add `--input` and `--layout`."""
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help="files of rows, in order")
    parser.add_argument("--layout", default=None, metavar="NAME", help="layout of the rows, or the path of a function")


def sources_of(paths: Sequence[str], layout: str | None, *, key: str = "--input") -> list[Source]:
    """Return the files as sources that can be read.

    Raises:
        UserError: a file that cannot, one that stands there twice, or an unknown layout.
    """
    if layout is not None:
        resolve_layout("--layout", layout)
    sources = [Source(path=path, layout=layout) for path in paths]
    for source in sources:
        check_source(key, source)
        if paths.count(source.path) > 1:
            raise UserError(f"{key}: '{source.path}' stands there twice. Leave one out.")
    return sources


def check_new(files: Mapping[str, str | None], *, folders: Mapping[str, str] | None = None) -> None:
    """Refuse outputs that exist, or are named for two purposes.

    Args:
        files: option to path; `None` where it was not given.
        folders: likewise; an empty folder counts as none.

    Raises:
        UserError: with the option.
    """
    taken: dict[Path, str] = {}
    for name, given in [*files.items(), *(folders or {}).items()]:
        if given is None:
            continue
        path = Path(given).expanduser().resolve()
        empty = name in (folders or {}) and path.is_dir() and not any(path.iterdir())
        if path.exists() and not empty:
            raise UserError(f"--{name}: '{given}' exists, and nothing is overwritten. Give another path, or remove it.")
        if path in taken:
            raise UserError(f"--{name}: '{given}' is --{taken[path]} already. Give another path.")
        taken[path] = name


@contextmanager
def _json_lines(path: str | Path) -> Iterator[Write]:
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        # Half of a surrogate pair, which UTF-8 cannot say, is written as JSON's escape of it.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield lambda value: print(json.dumps(value, ensure_ascii=False, default=str), file=file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def json_lines(path: str | Path) -> AbstractContextManager[Write]:
    """Open a new file of JSON lines; it appears under its name when it is complete."""
    return _json_lines(path)


@dataclass
class FileCounts:
    """What became of the rows of one file."""

    file: str
    rows: int = 0
    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    """Kind to number of rows."""

    def __str__(self) -> str:
        kinds = "".join(f", {number} {kind}" for kind, number in sorted(self.removed.items()))
        return f"{self.file}: {self.rows} rows, {self.kept} kept{kinds}"


def sift(sources: Sequence[Source], judge: Judge, *, keep: Write, remove: Write) -> list[FileCounts]:
    """Give every row of the sources to one of two writers, in order.

    Args:
        sources: of `sources_of`.
        judge: is asked about every row that holds a conversation; the others are `UNREADABLE`.
        keep: gets the rows that stay, as they were.
        remove: gets the others, each as a `Reject`.

    Returns:
        The counts of each file.
    """
    from tqdm import tqdm

    all_counts = []
    for source in sources:
        counts = FileCounts(source.path)
        resolved = resolve_source("--input", source)
        if resolved.detected:
            print(f"{source.path}: no layout is named; its first rows have layout '{resolved.layout}'", file=sys.stderr)
        for row in tqdm(read_rows(source, key="--input"), desc=source.path, unit=" rows", delay=2.0):
            given = to_conversations(row, resolved.function, needs_response=False)
            usable = [conversation for conversation in given if isinstance(conversation, Conversation)]
            if usable:
                reject = judge(usable, row, source)
            else:
                reject = Reject.of(row, source.path, kind=UNREADABLE, reason=str(given[0]))
            counts.rows += 1
            if reject is None:
                counts.kept += 1
                keep(row.value)
            else:
                counts.removed[reject.kind] += 1
                remove(reject.describe())
        all_counts.append(counts)
    return all_counts
