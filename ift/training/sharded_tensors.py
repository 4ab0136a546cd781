"""The tensors of a sharded checkpoint, by torch.distributed.checkpoint; nothing that a file says is executed."""

import hashlib
import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ift.errors import UserError
from ift.models.deferred import Deferred
from ift.training.sharded_checkpoints import METADATA

_PLAIN = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath"},
    "torch": {"Size", "device"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}
"""What `.metadata` is made of, by module; also every `torch` dtype."""


class _PlainUnpickler(pickle.Unpickler):
    """Makes nothing that does not belong into a table of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a table of tensors")


class _Reader(FileSystemReader):
    """Goes by a table that was read without executing what it says."""

    def __init__(self, path: Path, table: Metadata) -> None:
        super().__init__(path)
        self._table = table

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._table


class _HashedStream:
    """What torch writes a file to; hashes on the way."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.hash = stream, hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.hash.update(view)
        self._stream.write(view)
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _HashedFiles(FileSystem):
    """The file system, with the sha256 of what was written to each file."""

    def __init__(self) -> None:
        self._hashes: dict[str, Any] = {}

    @property
    def sums(self) -> dict[str, str]:
        return {name: one.hexdigest() for name, one in self._hashes.items()}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            hashed = _HashedStream(stream)
            self._hashes[Path(path).name] = hashed.hash
            yield hashed

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self._hashes[Path(new_path).name] = self._hashes.pop(Path(path).name)


def write_tensors(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, str]:
    """Write tensors into a new folder; all ranks must call it, and sharded ones are written by those who have them.

    Returns:
        The sha256 of what each rank wrote, by the name of the file.

    Raises:
        OSError: on every rank, if any of them could not write.
    """
    writer = FileSystemWriter(folder, single_file_per_rank=True)
    writer.fs = files = _HashedFiles()
    try:
        save(cast(dict[str, Any], tensors), storage_writer=writer)
    except CheckpointException as error:  # no Exception, but a BaseException
        raise OSError(_reason(error)) from error
    if not dist.is_initialized():
        return files.sums
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, files.sums)
    return {name: one for own in found for name, one in own.items()}


def read_tensors(key: str, path: Path, targets: Mapping[str, torch.Tensor], *, table: Metadata | None = None) -> None:
    """Read tensors into others of their shapes, of which each rank may hold some rows only; nobody is waited for.

    Args:
        key: the configuration key or option that named the folder.
        path: of the checkpoint.
        targets: by their names in the checkpoint.
        table: of the checkpoint, where it was read before.

    Raises:
        UserError: the folder is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            reader = _Reader(path, table or _read_table(key, path))
            load(cast(dict[str, Any], targets), storage_reader=reader, no_dist=True)
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # torch raises many types for what is damaged
        raise UserError(
            f"{key}: '{path}' cannot be read as a checkpoint: {_reason(error)}. Take another checkpoint."
        ) from error


def deferred_weights(key: str, path: Path, likes: Mapping[str, torch.Tensor]) -> dict[str, Deferred]:
    """Return the weights of a checkpoint, each of which is read when it is asked for.

    Args:
        key: the configuration key or option that named the folder.
        path: of the checkpoint.
        likes: its weights without data, by name.

    Raises:
        UserError: its table is damaged, or names what is none of a table's.
    """
    table = _read_table(key, path)

    def deferred(name: str, like: torch.Tensor) -> Deferred:
        def rows(start: int, stop: int) -> torch.Tensor:
            whole = torch.empty(like.shape, dtype=like.dtype)
            read_tensors(key, path, {f"state_dict.{name}": whole}, table=table)
            return whole[start:stop] if whole.ndim else whole

        return Deferred(like, rows, by_rows=False)

    return {name: deferred(name, like) for name, like in likes.items()}


def check_files(key: str, path: Path) -> None:
    """Refuse a folder whose files are not as long as its table says.

    Args:
        key: the configuration key that named the folder.
        path: of the checkpoint.

    Raises:
        UserError: with the file.
    """
    for place in _read_table(key, path).storage_data.values():
        file = path / place.relative_path
        if not file.is_file() or file.stat().st_size < place.offset + place.length:
            raise UserError(f"{key}: '{file}' is missing or was cut off. Take another checkpoint.")


def _read_table(key: str, path: Path) -> Metadata:
    try:
        table = _PlainUnpickler(io.BytesIO((path / METADATA).read_bytes())).load()
    except Exception as error:  # of a damaged pickle, nearly any
        raise UserError(
            f"{key}: '{path / METADATA}' cannot be read: {_one_line(error)}. Take another checkpoint."
        ) from error
    if not isinstance(table, Metadata) or not table.storage_data:
        raise UserError(f"{key}: '{path / METADATA}' is no table of tensors. Take another checkpoint.")
    for name, one in table.state_dict_metadata.items():
        if not isinstance(one, TensorStorageMetadata):
            raise UserError(f"{key}: '{path / METADATA}' names '{name}', which is no tensor. Take another checkpoint.")
    for place in table.storage_data.values():
        if Path(place.relative_path).name != place.relative_path:
            raise UserError(f"{key}: '{path / METADATA}' names a file outside of its folder. Take another checkpoint.")
    return table


def _reason(error: BaseException) -> str:
    """Return why reading failed; torch packs that into an exception which `except Exception` does not catch."""
    failures = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    first = failures[0][0] if failures else error
    return _one_line(first) or type(first).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
