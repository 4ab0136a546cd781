"""Read raw rows from local JSON and JSON-lines files, or through `datasets` from the hub, each with its place."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.errors import UserError

LOCAL_SUFFIXES = (".json", ".jsonl")
_BLANK = re.compile(r"[ \t\r\n]*")
_UNREADABLE = "the array cannot be read beyond this place"


@dataclass(frozen=True)
class RawRow:
    """One record as it stands in its file, or the reason why there is none."""

    line: int
    """Line of the file on which the record begins, from 1; for hub data the number of the row, from 1."""
    value: Any = None
    problem: str = ""
    """Why the text at this place is no record; empty where `value` holds one."""


@dataclass(frozen=True)
class Source:
    """One place that instruction data comes from."""

    path: str
    """A local `.json` or `.jsonl` file, or the id of a data set on the hub (`owner/name`)."""
    layout: str
    """alpaca, messages, sharegpt, text, or the dotted path of a row function."""
    weight: float = 1.0
    """How often each example occurs per epoch: 1 once, 2 twice, 0.5 a seeded half that changes from epoch to epoch."""
    split: str = "train"
    """Split of a hub data set; local files have none."""

    @property
    def is_local(self) -> bool:
        """Whether the path names a local file rather than a hub id."""
        return self.path.endswith(LOCAL_SUFFIXES) or Path(self.path).expanduser().exists()


def check_source(key: str, source: Source) -> None:
    """Refuse a source that cannot be read, before anything is loaded.

    Raises:
        UserError: a missing or empty local file, a folder, or a weight that is not above 0.
    """
    if source.weight <= 0:
        raise UserError(f"{key}.weight: {source.weight} is not above 0. Leave the source out to use none of it.")
    if not source.is_local:
        return
    path = Path(source.path).expanduser()
    if path.is_dir():
        raise UserError(f"{key}.path: '{source.path}' is a folder. Name the {' or '.join(LOCAL_SUFFIXES)} file in it.")
    if not path.is_file():
        raise UserError(f"{key}.path: no file '{source.path}' (looked in {Path.cwd()}). Mend the path.")
    if path.stat().st_size == 0:
        raise UserError(f"{key}.path: '{source.path}' is empty (0 bytes).")


def read_rows(source: Source, *, key: str = "data") -> Iterator[RawRow]:
    """Yield the rows of a source in file order.

    A local file that begins with `[` is one JSON array, whatever its suffix; any other holds one JSON object per line.

    Args:
        source: checked by `check_source`.
        key: where it stands in the configuration, for errors.

    Raises:
        UserError: a hub data set that cannot be had.
    """
    if not source.is_local:
        yield from _read_hub(source, key)
        return
    path = Path(source.path).expanduser()
    with path.open("rb") as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    yield from _read_array(path) if first == b"[" else _read_lines(path)


def _read_lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield RawRow(number, problem=f"not UTF-8 at byte {error.start} of the line")
                continue
            if line.strip():
                yield _parse_line(number, line)


def _parse_line(number: int, line: str) -> RawRow:
    try:
        return RawRow(number, json.loads(line))
    except (ValueError, RecursionError) as error:  # a ValueError without place: a number with too many digits
        place = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return RawRow(number, problem=f"not valid JSON: {getattr(error, 'msg', error)}{place}")


def _read_array(path: Path) -> Iterator[RawRow]:
    """Yield the elements of one JSON array with the lines on which they begin.

    After broken JSON nothing in an array can be told apart any more, so the rest is one problem.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield RawRow(1, problem=f"not UTF-8 at byte {error.start} of the file")
        return
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_blank(content, _skip_blank(content, 0) + 1)
    more = content[position : position + 1] != "]"
    while more:
        line, counted = line + content.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(content, position)
        except (ValueError, RecursionError) as error:
            bad = error.lineno if isinstance(error, json.JSONDecodeError) else line
            yield RawRow(bad, problem=f"not valid JSON: {getattr(error, 'msg', error)}; {_UNREADABLE}")
            return
        yield RawRow(line, value)
        position = _skip_blank(content, end)
        following = content[position : position + 1]
        if following not in (",", "]"):
            bad = line + content.count("\n", counted, position)
            yield RawRow(bad, problem=f"not valid JSON: expected ',' or ']' after an element; {_UNREADABLE}")
            return
        more = following == ","
        if more:
            position = _skip_blank(content, position + 1)
    rest = _skip_blank(content, position + 1)
    if rest < len(content):
        yield RawRow(content.count("\n", 0, rest) + 1, problem="text after the end of the JSON array")


def _skip_blank(content: str, position: int) -> int:
    match = _BLANK.match(content, position)
    return match.end() if match else position


def _read_hub(source: Source, key: str) -> Iterator[RawRow]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.path, split=source.split)
    except Exception as error:  # the hub client raises dozens of types; each means that the data cannot be had
        raise _no_hub_data(source, key, error) from error
    for number, value in enumerate(rows, 1):
        yield RawRow(number, value)


def content_hash(source: Source, *, key: str = "data") -> str:
    """Return the sha256 of a local file's bytes, or of the name and revision of a hub data set.

    Args:
        source: checked by `check_source`.
        key: where it stands in the configuration, for errors.

    Raises:
        UserError: a hub data set that cannot be had.
    """
    if source.is_local:
        with Path(source.path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(source.path)
    except Exception as error:  # as in _read_hub
        raise _no_hub_data(source, key, error) from error
    described = json.dumps([source.path, source.split, builder.config_id, str(builder.hash)])
    return hashlib.sha256(described.encode()).hexdigest()


def _no_hub_data(source: Source, key: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"{key}.path: no file '{source.path}' (looked in {Path.cwd()}), and no data set of that name could be had from "
        f"the hub (split '{source.split}'): {type(error).__name__}: {reason}. Mend the path or the split."
    )
