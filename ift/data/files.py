"""Data files: where they lie, what format their name says, how they are opened, and what tells two versions apart."""

import glob
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from ift.data.decompression import DamagedFileError, decompressed
from ift.errors import UserError

__all__ = ["FORMATS", "SUFFIXES", "DamagedFileError", "DataFile", "find_files", "format_of", "is_remote"]

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
            UserError: the file cannot be read at all, or has changed when the block ends.
        """
        try:
            before = self._stamp()
            try:
                with closing(self._open_raw() if self.compression is None else self._decompressed()) as file:
                    yield file
            except DamagedFileError:
                self._check_unchanged(before)
                raise
            self._check_unchanged(before)
        except OSError as error:
            raise UserError(
                f"'{self.path}' cannot be read: {_reason(error)}. Mend that, or leave the file out."
            ) from error

    def _check_unchanged(self, before: list[Any]) -> None:
        if self._stamp() != before:
            raise UserError(f"'{self.path}' changed while it was read. Start again when nothing writes to it.")

    def _decompressed(self) -> BinaryIO:
        return decompressed(self._open_raw, self.compression or "")

    def _open_raw(self) -> BinaryIO:
        if not is_remote(self.path):
            return open(os.path.expanduser(self.path), "rb")
        import fsspec

        try:
            file = cast(BinaryIO, fsspec.open(self.path, "rb").open())
        except Exception as error:  # every file system raises its own types
            raise UserError(f"'{self.path}' cannot be read: {type(error).__name__}: {_reason(error)}.") from error
        return file if hasattr(file, "read1") else cast(BinaryIO, io.BufferedReader(cast(Any, file)))

    def _stamp(self) -> list[Any]:
        """Return what a change to a local file changes; nothing for a remote one."""
        if is_remote(self.path):
            return []
        status = os.stat(os.path.expanduser(self.path))
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

    def size(self) -> int | None:
        """Return its size in bytes, or `None` where a remote file system does not tell."""
        if is_remote(self.path):
            import fsspec

            system, inner = fsspec.core.url_to_fs(self.path)
            size: int | None = system.info(inner).get("size")
            return size
        return Path(self.path).expanduser().stat().st_size

    def identity(self, hashes: Path | None) -> str:
        """Return a hash that changes with the file's content.

        A local file is hashed once; while its size, times and inode stay, the kept hash serves.

        Args:
            hashes: folder that keeps hashes between runs, or `None` to compute it anew.
        """
        if is_remote(self.path):
            import fsspec

            system, inner = fsspec.core.url_to_fs(self.path)
            # Of an address of the web, fsspec's own key says nothing of the content; what the server says of it does.
            described = json.dumps([system.ukey(inner), system.info(inner)], sort_keys=True, default=str)
            return hashlib.sha256(described.encode()).hexdigest()
        path = Path(os.path.expanduser(self.path)).resolve()
        stamp = [str(path), *self._stamp()]
        kept = hashes / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json" if hashes else None
        if kept is not None and (known := _read_json(kept)) and known.get("stamp") == stamp:
            return str(known["sha256"])
        sha256 = _sha256(path, shown=self.path)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps({"stamp": stamp, "sha256": sha256}), encoding="utf-8")
            os.replace(temporary, kept)
        return sha256


def _sha256(path: Path, *, shown: str) -> str:
    """Return the hash of a file's bytes; one that takes long says how far it is."""
    from tqdm import tqdm

    digest = hashlib.sha256()
    with (
        path.open("rb", buffering=0) as file,
        tqdm(total=path.stat().st_size, desc=f"Hashing {shown}", unit="B", unit_scale=True, delay=2.0) as progress,
    ):
        while piece := file.read(_HASHED_BYTES):
            digest.update(piece)
            progress.update(len(piece))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:300]


def find_files(key: str, path: str) -> list[DataFile]:
    """Return the files that a path or a pattern (`data/*.jsonl`, `data/**/*.jsonl`) names, in the order of their names.

    Raises:
        UserError: no such file, a folder, a file that cannot be read, or an empty one.
    """
    if is_remote(path):
        return _find_remote(key, path)
    place = os.path.expanduser(path)
    is_pattern = glob.has_magic(place) and not os.path.lexists(place)
    names = sorted(glob.glob(place, recursive=True)) if is_pattern else [place]
    if not names:
        raise UserError(f"{key}: no file matches '{path}' (looked in {Path.cwd()}). Mend the pattern.{_hint(place)}")
    for name in names:
        _check_file(key, name, shown=name if is_pattern else path)
    return [DataFile(name) for name in names]


def _hint(place: str) -> str:
    """Say what is likely meant where a folder's real name holds characters of patterns."""
    folder = os.path.dirname(place)
    if not glob.has_magic(folder) or not os.path.isdir(folder):
        return ""
    mended = os.path.join(glob.escape(folder), os.path.basename(place))
    return f" The folder '{folder}' exists, but its name is read as a pattern; write '{mended}'."


def _find_remote(key: str, path: str) -> list[DataFile]:
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(path)
        found = sorted(system.glob(inner)) if glob.has_magic(inner) else [inner] * system.exists(inner)
        names = [str(system.unstrip_protocol(name)) for name in found]
        folders = [name for name, one in zip(names, found, strict=True) if system.isdir(one)]
    except Exception as error:  # every file system raises its own types; each means that nothing can be read there
        raise UserError(f"{key}: '{path}' cannot be reached: {type(error).__name__}: {_reason(error)}.") from error
    if not names:
        raise UserError(f"{key}: nothing at '{path}'. Mend the address.")
    if folders:
        raise _is_folder(key, folders[0])
    return [DataFile(name) for name in names]


def _is_folder(key: str, shown: str) -> UserError:
    return UserError(
        f"{key}: '{shown}' is a folder. Name the file in it, or several with a pattern such as '{shown}/*.jsonl'."
    )


def _check_file(key: str, name: str, *, shown: str) -> None:
    try:
        if os.path.isdir(name):
            raise _is_folder(key, shown)
        if not os.path.exists(name):
            target = f" (a link to '{os.readlink(name)}', where nothing is)" if os.path.islink(name) else ""
            raise UserError(f"{key}: no file '{shown}'{target} (looked in {Path.cwd()}). Mend the path.")
        if not os.path.isfile(name):
            raise UserError(f"{key}: '{shown}' is no ordinary file (a pipe or a device), and it has to be read twice.")
        with open(name, "rb") as file:
            empty = not file.read(1)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{key}: '{shown}' cannot be read: {_reason(error)}. Mend its name or its permissions."
        ) from error
    if empty:
        raise UserError(f"{key}: '{shown}' is empty (0 bytes).")
    if DataFile(name).format == "parquet" and DataFile(name).compression:
        raise UserError(f"{key}: '{shown}' is a compressed Parquet file, which cannot be read. Decompress it.")
