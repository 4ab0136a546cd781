"""Sources of raw rows: local and remote files, and data sets of the hub, each row with its place."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ift.data.files import SUFFIXES, DamagedFileError, DataFile, find_files, format_of, is_remote
from ift.data.json_rows import RawRow, read_json
from ift.data.table_rows import read_csv, read_parquet, read_text
from ift.errors import UserError

__all__ = ["RawRow", "Source", "check_source", "content_hash", "read_file", "read_rows"]


@dataclass(frozen=True)
class Source:
    """One place that instruction data comes from."""

    path: str
    """A local file, a pattern of files (`data/*.jsonl`) or an address (`s3://…`): JSON, JSON lines, CSV, TSV, Parquet
    or text, also compressed (`.gz`, `.zst`); or the id of a data set on the hub (`owner/name`); or a name of the
    catalogue (`ift data list`)."""
    layout: str | None = None
    """Name of a layout, or the dotted path of a row function; found out from the first rows where it is left out."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The layout's field names to those in the file, where they differ: `{instruction: question, output: answer}`."""
    weight: float = 1.0
    """How often each example occurs per epoch: 1 once, 2 twice, 0.5 a seeded half that changes from epoch to epoch.
    With `data.mixing` `examples` or `tokens`, the source's share in relation to the others."""
    max_examples: int | None = None
    """At most so many examples are used, a seeded choice."""
    split: str = "train"
    """Split of a hub data set; files have none."""
    subset: str | None = None
    """Subset (configuration) of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    files: tuple[str, ...] = ()
    """Files within a hub data set (patterns with `*` and `**`) that are read on their own."""
    stream: bool = False
    """Whether rows are read, rendered and tokenized while training goes on, and never kept: for sources that are too
    large to prepare. Needs `trainer.max_steps`."""

    @property
    def has_files(self) -> bool:
        """Whether our own reader reads it, and not the library `datasets` from the hub."""
        if self.files or is_remote(self.path) or format_of(self.path) is not None or glob.has_magic(self.path):
            return True
        return self.path.startswith(("/", "./", "../", "~")) or os.path.exists(self.path)

    def data_files(self, key: str) -> list[DataFile]:
        """Return its files, in order.

        Raises:
            UserError: a file that is not there or cannot be read.
        """
        if not self.files:
            return find_files(f"{key}.path", self.path)
        at = f"@{self.revision}" if self.revision else ""
        addresses = [f"hf://datasets/{self.path}{at}/{name}" for name in self.files]
        return [file for address in addresses for file in find_files(f"{key}.files", address)]


def check_source(key: str, source: Source) -> None:
    """Refuse a source that cannot be read, before anything is loaded.

    Raises:
        UserError: a missing or empty local file, a folder, or a weight that is not above 0.
    """
    if not source.weight > 0 or source.weight == float("inf"):
        raise UserError(f"{key}.weight: {source.weight} is not above 0. Leave the source out to use none of it.")
    if source.max_examples is not None and source.max_examples < 1:
        raise UserError(f"{key}.max_examples: {source.max_examples} is less than 1. Leave the source out instead.")
    if source.has_files and not source.files and not is_remote(source.path):
        source.data_files(key)


def read_rows(source: Source, *, key: str = "data") -> Iterator[RawRow]:
    """Yield the rows of a source in order.

    Args:
        source: checked by `check_source`.
        key: where it stands in the configuration, for errors.

    Raises:
        UserError: a hub data set that cannot be had, or a file that cannot be read or changes meanwhile.
    """
    if not source.has_files:
        yield from _read_hub(source, key)
        return
    for file in source.data_files(key):
        try:
            for row in read_file(file):
                yield row._replace(file=file.path)
        except UserError as error:
            raise UserError(f"{key}.path: {error}") from error


def read_file(file: DataFile) -> Iterator[RawRow]:
    """Yield the rows of one file; where it is damaged, a last row says so."""
    last = 0
    try:
        for row in _read(file):
            last = row.line
            yield row
    except DamagedFileError as error:
        yield RawRow(last + 1, problem=f"{error}; the file cannot be read beyond this place")


def _read(file: DataFile) -> Iterator[RawRow]:
    if file.format == "json":
        yield from read_json(file.open)
        return
    with file.open() as opened:
        if file.format == "parquet":
            yield from read_parquet(opened)
        elif file.format == "text":
            yield from read_text(opened)
        else:
            yield from read_csv(opened, delimiter="," if file.format == "csv" else "\t")


def _read_hub(source: Source, key: str) -> Iterator[RawRow]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # the hub client raises dozens of types; each means that the data cannot be had
        raise _no_hub_data(source, key, error) from error
    for number, value in enumerate(rows, 1):
        yield RawRow(number, value, file=source.path)


def content_hash(source: Source, *, key: str = "data", hashes: Path | None = None) -> str:
    """Return the sha256 of local files' bytes, or of what tells a version of remote or hub data from another.

    Args:
        source: checked by `check_source`.
        key: where it stands in the configuration, for errors.
        hashes: folder that keeps the hashes of files between runs, so that an unchanged file is not read again.

    Raises:
        UserError: a hub data set that cannot be had.
    """
    if source.has_files:
        found = [file.identity(hashes) for file in source.data_files(key)]
        return found[0] if len(found) == 1 else hashlib.sha256(json.dumps(found).encode()).hexdigest()
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(source.path, source.subset, revision=source.revision)
    except Exception as error:  # as in _read_hub
        raise _no_hub_data(source, key, error) from error
    described = json.dumps([source.path, source.split, builder.config_id, str(builder.hash)])
    return hashlib.sha256(described.encode()).hexdigest()


def _no_hub_data(source: Source, key: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"{key}.path: no file '{source.path}' (looked in {Path.cwd()}; files end in {', '.join(SUFFIXES)}), and no "
        f"data set of that name could be had from the hub (split '{source.split}'): {type(error).__name__}: {reason}. "
        "Mend the path or the split."
    )
