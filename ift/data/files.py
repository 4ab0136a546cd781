"""Data files: where they lie, what format their name says, how they are opened, and what tells two versions apart."""

import glob
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from ift.errors import UserError

Format = Literal["json", "csv", "tsv", "parquet", "text"]
FORMATS: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""Suffix to format; JSON arrays, JSON lines and single JSON documents are told apart by their content."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix after the format's to compression."""
SUFFIXES = tuple(FORMATS)
_HASHED_BYTES = 1 << 20


class DamagedFileError(Exception):
    """A file that breaks off or cannot be decompressed; what was read before is good."""


def format_of(path: str) -> Format | None:
    """Return the format that a file's name says, or `None`."""
    name = path.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def is_remote(path: str) -> bool:
    """Whether a path is an address such as `s3://…`, `https://…` or `memory://…`."""
    return "://" in path


@dataclass(frozen=True)
class DataFile:
    """One file of a source."""

    path: str
    """As the user wrote it, a pattern expanded."""

    @property
    def format(self) -> Format:
        """Its format by its name; JSON where the name says nothing."""
        return format_of(self.path) or "json"

    @property
    def compression(self) -> str | None:
        """`gzip`, `zstd` or `None`, by its name."""
        return next((kind for suffix, kind in COMPRESSIONS.items() if self.path.lower().endswith(suffix)), None)

    @property
    def seekable(self) -> bool:
        """Whether reading can begin in the middle without reading what comes before."""
        return self.compression is None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the decompressed content.

        Raises:
            DamagedFileError: inside the block, where the compressed content breaks off.
        """
        with self._open_raw() as raw:
            try:
                yield self._decompressed(raw)
            except (EOFError, OSError) as error:
                if self.compression is None:
                    raise
                raise DamagedFileError(f"the {self.compression} file is damaged or breaks off ({error})") from error

    def _open_raw(self) -> BinaryIO:
        if is_remote(self.path):
            import fsspec

            return cast(BinaryIO, fsspec.open(self.path, "rb").open())
        return Path(self.path).expanduser().open("rb")

    def _decompressed(self, raw: BinaryIO) -> BinaryIO:
        if self.compression == "gzip":
            import gzip
            import zlib

            class Reader(gzip.GzipFile):
                """Damage inside the stream is an OSError too."""

                def read(self, size: int | None = -1) -> bytes:
                    try:
                        return super().read(size)
                    except zlib.error as error:
                        raise OSError(str(error)) from error

                def readline(self, size: int | None = -1) -> bytes:
                    try:
                        return super().readline(size)
                    except zlib.error as error:
                        raise OSError(str(error)) from error

            return cast(BinaryIO, Reader(fileobj=raw))
        if self.compression == "zstd":
            import pyarrow as pa

            return cast(BinaryIO, io.BufferedReader(_Raw(pa.CompressedInputStream(pa.PythonFile(raw), "zstd"))))
        return raw

    def identity(self, hashes: Path | None) -> str:
        """Return a hash that changes with the file's content.

        A local file is hashed once; while its size, times and inode stay, the kept hash serves.

        Args:
            hashes: folder that keeps hashes between runs, or `None` to compute it anew.
        """
        if is_remote(self.path):
            import fsspec

            system, inner = fsspec.core.url_to_fs(self.path)
            return str(system.ukey(inner))
        path = Path(self.path).expanduser().resolve()
        status = path.stat()
        stamp = [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        kept = hashes / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json" if hashes else None
        if kept is not None and (known := _read_json(kept)) and known.get("stamp") == stamp:
            return str(known["sha256"])
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps({"stamp": stamp, "sha256": sha256}), encoding="utf-8")
            os.replace(temporary, kept)
        return sha256


class _Raw(io.RawIOBase):
    """Makes an Arrow input stream a file of Python's, which can be read line by line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_files(key: str, path: str) -> list[DataFile]:
    """Return the files that a path or a pattern (`data/*.jsonl`) names, in the order of their names.

    Raises:
        UserError: no such file, a folder, an unknown format, or an empty file.
    """
    if is_remote(path):
        return _find_remote(key, path)
    place = os.path.expanduser(path)
    names = sorted(glob.glob(place)) if glob.has_magic(place) and not os.path.exists(place) else [place]
    if not names:
        raise UserError(f"{key}: no file matches '{path}' (looked in {Path.cwd()}). Mend the pattern.")
    for name in names:
        _check_file(key, name, shown=path if len(names) == 1 else name)
    return [DataFile(name) for name in names]


def _find_remote(key: str, path: str) -> list[DataFile]:
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(path)
        found = sorted(system.glob(inner)) if glob.has_magic(inner) else [inner] * system.exists(inner)
        names = [str(system.unstrip_protocol(name)) for name in found]
    except Exception as error:  # every file system raises its own types; each means that nothing can be read there
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: '{path}' cannot be reached: {type(error).__name__}: {reason}.") from error
    if not names:
        raise UserError(f"{key}: nothing at '{path}'. Mend the address.")
    return [DataFile(name) for name in names]


def _check_file(key: str, name: str, *, shown: str) -> None:
    path = Path(name)
    if path.is_dir():
        raise UserError(
            f"{key}: '{shown}' is a folder. Name the file in it, or several with a pattern such as '{shown}/*.jsonl'."
        )
    if not path.is_file():
        raise UserError(f"{key}: no file '{shown}' (looked in {Path.cwd()}). Mend the path.")
    if path.stat().st_size == 0:
        raise UserError(f"{key}: '{shown}' is empty (0 bytes).")
