"""Checkpoints that all ranks write together, each its rows: a folder that is whole or not there.

CHECKPOINT/__0_0.distcp, ...   tensors, by torch.distributed.checkpoint: `state_dict.NAME`, `optimizer.NUMBER.NAME`
CHECKPOINT/.metadata           where which rows of them lie; a pickle, of which only its own kinds of values are read
CHECKPOINT/facts.pt            all else, as in a checkpoint of one file; tensors in it have a shape and no data

It is written into a folder beside its target and renamed, so it can be read by any number of ranks, or without any.
"""

import io
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_tensors
from torch.distributed.checkpoint.state_dict_saver import save as write_tensors

from ift.errors import UserError
from ift.models.deferred import Deferred

FACTS = "facts.pt"
METADATA = ".metadata"
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
    """Reads the table without executing what it says, and only once."""

    _table: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._table = self._table or _read_table(Path(self.path))
        return self._table


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether a checkpoint is a folder that all ranks wrote."""
    return path.is_dir() and (path / FACTS).is_file() and (path / METADATA).is_file()


def save_sharded(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint from all ranks, which must all call it.

    Args:
        checkpoint: of Lightning, with `state_dict` and `optimizer_states`; sharded tensors are written by those who
            have them, all else by the first rank.
        path: the folder.

    Raises:
        OSError: on every rank, if any of them could not write.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    building = path.with_name(path.name + ".tmp")
    if first:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(building, ignore_errors=True)  # left by a killed process
    _barrier()
    tensors = {f"state_dict.{name}": one for name, one in checkpoint["state_dict"].items()}
    states = [dict(one) for one in checkpoint.get("optimizer_states", [])]
    for state in states:
        for number, own in state["state"].items():
            tensors |= {f"optimizer.{number}.{name}": one for name, one in own.items() if _is_tensor(one)}
        state["state"] = {number: _without_data(own) for number, own in state["state"].items()}
    write_tensors(tensors, storage_writer=FileSystemWriter(building, single_file_per_rank=True, sync_files=True))
    if first:
        facts = {**checkpoint, "state_dict": _without_data(checkpoint["state_dict"])}
        if "optimizer_states" in facts:
            facts["optimizer_states"] = states
        _write(facts, building / FACTS)
        _put_in_place(building, path)
    _barrier()


def read_facts(path: Path) -> dict[str, Any]:
    """Return all of a sharded checkpoint that is not tensors, those without data (meta), and its `folder`."""
    found: dict[str, Any] = torch.load(path / FACTS, map_location="cpu", weights_only=True)
    return {**found, "folder": str(path)}


def load_own_parts(
    path: Path, targets: Mapping[str, torch.Tensor], *, section: str, reader: FileSystemReader | None = None
) -> None:
    """Read tensors into others of their shapes, of which each rank may hold some rows only; nobody is waited for.

    Args:
        path: of the checkpoint.
        targets: by name.
        section: `state_dict` or `optimizer`.
        reader: of this checkpoint, which has its table already.

    Raises:
        UserError: the folder is damaged.
    """
    state = {f"{section}.{name}": one for name, one in targets.items()}
    if not state:
        return
    try:
        read_tensors(cast(dict[str, Any], state), storage_reader=reader or _Reader(path), no_dist=True)
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # torch raises many types for what is damaged
        raise UserError(f"--ckpt_path: '{path}' cannot be read as a checkpoint: {_reason(error)}") from error


def read_whole(path: Path) -> dict[str, Any]:
    """Return a sharded checkpoint as if it were one file, all of it in memory."""
    facts = read_facts(path)
    folder = Path(facts.pop("folder"))
    weights = {name: _with_data(one) for name, one in facts["state_dict"].items()}
    load_own_parts(folder, weights, section="state_dict")
    facts["state_dict"] = weights
    for state in facts.get("optimizer_states", []):
        state["state"] = {
            number: {name: _with_data(one) for name, one in own.items()} for number, own in state["state"].items()
        }
        flat = {
            f"{number}.{name}": one
            for number, own in state["state"].items()
            for name, one in own.items()
            if _is_tensor(one)
        }
        load_own_parts(folder, flat, section="optimizer")
    return facts


def tensors_in(path: Path, likes: Mapping[str, torch.Tensor]) -> dict[str, Deferred]:
    """Return the weights of a sharded checkpoint, each of which is read when it is asked for.

    Args:
        path: of the checkpoint.
        likes: its weights without data, by name.

    Raises:
        UserError: its table is damaged, or names what is none of a table's.
    """
    reader = _Reader(path)
    reader.read_metadata()

    def deferred(name: str, like: torch.Tensor) -> Deferred:
        def rows(start: int, stop: int) -> torch.Tensor:
            whole = torch.empty(like.shape, dtype=like.dtype)
            load_own_parts(path, {name: whole}, section="state_dict", reader=reader)
            return whole[start:stop] if whole.ndim else whole

        return Deferred(like, rows, by_rows=False)

    return {name: deferred(name, like) for name, like in likes.items()}


def remove_sharded(path: Path) -> None:
    """Remove a sharded checkpoint such that at no moment a part of it could be taken for one."""
    going = path.with_name(path.name + ".tmp")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def _read_table(path: Path) -> Metadata:
    try:
        table = _PlainUnpickler(io.BytesIO((path / METADATA).read_bytes())).load()
    except Exception as error:  # of a damaged pickle, nearly any
        raise UserError(f"--ckpt_path: '{path / METADATA}' cannot be read: {_one_line(error)}") from error
    if not isinstance(table, Metadata) or not table.storage_data:
        raise UserError(f"--ckpt_path: '{path / METADATA}' is no table of tensors.")
    for name, one in table.state_dict_metadata.items():
        if not isinstance(one, TensorStorageMetadata):
            raise UserError(f"--ckpt_path: '{path / METADATA}' names '{name}', which is no tensor.")
    for place in table.storage_data.values():
        if Path(place.relative_path).name != place.relative_path:
            raise UserError(f"--ckpt_path: '{path / METADATA}' names a file outside of its folder.")
    return table


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _without_data(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta") if _is_tensor(one) else one
        for name, one in values.items()
    }


def _with_data(value: Any) -> Any:
    return torch.zeros(value.shape, dtype=value.dtype) if _is_tensor(value) else value


def _write(value: Any, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(building: Path, path: Path) -> None:
    """Give a finished folder its name, and let that reach the disk."""
    _sync_folder(building)
    if path.is_dir():
        remove_sharded_before(path)
    building.rename(path)
    _sync_folder(path.parent)


def remove_sharded_before(path: Path) -> None:
    """Take the folder of an older checkpoint away that another is to replace."""
    going = path.with_name(path.name + ".old.tmp")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _reason(error: BaseException) -> str:
    """Return why reading failed; torch packs that into an exception which `except Exception` does not catch."""
    failures = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    first = failures[0][0] if failures else error
    return _one_line(first) or type(first).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
