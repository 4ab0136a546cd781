"""Checkpoints that all ranks write together, each its rows: a folder that is whole or not there.

CHECKPOINT/__0_0.distcp, ...   tensors, by torch.distributed.checkpoint: `state_dict.NAME`, `optimizer.NUMBER.NAME`
CHECKPOINT/.metadata           where which rows of them lie; a pickle, of which only its own kinds of values are read
CHECKPOINT/facts.pt            all else, as in a checkpoint of one file; tensors in it have a shape and no data. Sealed
                               like that one, and with the sha256 of each of the other files

It is written into a folder beside its target and renamed, so it can be read by any number of ranks, or without any.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ift.artifacts import TEMPORARY
from ift.errors import UserError
from ift.training.seals import check_seal, damaged, sync_folder, write_sealed

FACTS = "facts.pt"
METADATA = ".metadata"
_SUMS = "sha256"
"""Among the facts: the sum of each other file, by its name."""


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
    from ift.training.sharded_tensors import write_tensors

    building = path.with_name(path.name + TEMPORARY)

    def begin() -> None:
        path.parent.mkdir(exist_ok=True)  # not its parents: a mount that vanished is not replaced by a folder
        shutil.rmtree(building, ignore_errors=True)  # left by a killed process

    def end() -> None:
        facts = {**checkpoint, "state_dict": _without_data(checkpoint["state_dict"])}
        if "optimizer_states" in facts:
            facts["optimizer_states"] = states
        write_sealed({**facts, _SUMS: sums}, building / FACTS)
        _put_in_place(building, path)

    _on_first_rank(begin)
    tensors = {f"state_dict.{name}": one for name, one in checkpoint["state_dict"].items()}
    states = [dict(one) for one in checkpoint.get("optimizer_states", [])]
    for state in states:
        for number, own in state["state"].items():
            tensors |= {f"optimizer.{number}.{name}": one for name, one in own.items() if _is_tensor(one)}
        state["state"] = {number: _without_data(own) for number, own in state["state"].items()}
    try:
        sums = write_tensors(tensors, building)
        _on_first_rank(end)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)  # on a full disk, others may need the room
        raise


def save_from_ranks(strategy: Any, checkpoint: dict[str, Any], filepath: Any, *, sharded: bool) -> None:
    """Write a checkpoint under a strategy of many ranks, which must all call it: a folder from all, or a file.

    Args:
        strategy: of Lightning.
        checkpoint: of Lightning; of a file, the first rank's is written.
        filepath: the first rank's counts.
        sharded: whether to write a folder.

    Raises:
        OSError: it could not be written.
    """
    path = Path(strategy.broadcast(str(filepath)))
    if sharded:
        save_sharded(checkpoint, path)
    elif strategy.is_global_zero:
        strategy.checkpoint_io.save_checkpoint(checkpoint, path)


def read_unread(path: Path) -> dict[str, Any]:
    """Return a checkpoint whose tensors are still where they lie: a file mapped, or of a folder, `read_facts`."""
    if is_sharded_checkpoint(path):
        return read_facts(path)
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return found


def read_facts(path: Path) -> dict[str, Any]:
    """Return all of a sharded checkpoint that is not tensors, those without data (meta), and its `folder`."""
    facts = _read_all_facts(path)
    facts.pop(_SUMS, None)
    return {**facts, "folder": str(path)}


def check_whole(key: str, path: Path) -> None:
    """Refuse a folder whose facts or table are not those that were written, or that lacks parts of tensors.

    What it reads is small; the tensors are `check_parts`'s.

    Args:
        key: the configuration key that named the folder.
        path: of the checkpoint.

    Raises:
        UserError: with the file.
    """
    from ift.training.sharded_tensors import check_files

    check_seal(key, path / FACTS)
    _check_sum(key, path / METADATA, _sums(key, path))
    check_files(key, path)


def check_parts(key: str, path: Path, *, rank: int = 0, num_ranks: int = 1) -> None:
    """Refuse a folder with tensors that are not byte for byte what was written.

    Ranks share the files out: as many ranks as have written them check each the file that it reads.

    Args:
        key: the configuration key that named the folder.
        path: of the checkpoint, of which `check_whole` holds.
        rank: of this process.
        num_ranks: that check.

    Raises:
        UserError: with the file.
    """
    sums = _sums(key, path)
    parts = sorted((name for name in sums if name != METADATA), key=lambda name: (len(name), name))  # __2_ before __10_
    own = parts[rank::num_ranks]
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        list(pool.map(lambda name: _check_sum(key, path / name, sums), own))


def load_own_parts(path: Path, targets: Mapping[str, torch.Tensor], *, section: str) -> None:
    """Read tensors into others of their shapes, of which each rank may hold some rows only.

    Args:
        path: of the checkpoint.
        targets: by name.
        section: `state_dict` or `optimizer`.

    Raises:
        UserError: the folder is damaged.
    """
    from ift.training.sharded_tensors import read_tensors  # which imports what a checkpoint of one file does not need

    if targets:
        read_tensors("--ckpt_path", path, {f"{section}.{name}": one for name, one in targets.items()})


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


def remove_sharded(path: Path) -> None:
    """Remove a sharded checkpoint such that at no moment a part of it could be taken for one."""
    going = path.with_name(path.name + ".old" + TEMPORARY)  # another one may be in the making under its name
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _without_data(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta") if _is_tensor(one) else one
        for name, one in values.items()
    }


def _with_data(value: Any) -> Any:
    return torch.zeros(value.shape, dtype=value.dtype) if _is_tensor(value) else value


def _read_all_facts(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path / FACTS, map_location="cpu", weights_only=True)
    return found


def _sums(key: str, path: Path) -> Mapping[str, str]:
    """Return the sha256 of each file beside the facts."""
    found = _read_all_facts(path).get(_SUMS)
    if found is None:
        raise UserError(
            f"{key}: '{path}' was not written by ift fit: it lacks the checksums of its files. Take another checkpoint."
        )
    sums: Mapping[str, str] = found
    return sums


def _check_sum(key: str, path: Path, sums: Mapping[str, str]) -> None:
    if not path.is_file():
        raise UserError(f"{key}: '{path}' is missing. Take another checkpoint.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sums.get(path.name):
            raise damaged(key, path)


def _put_in_place(building: Path, path: Path) -> None:
    """Give a finished folder its name, and let that reach the disk."""
    sync_folder(building)
    if path.is_dir():
        remove_sharded(path)
    building.rename(path)
    sync_folder(path.parent)


def _on_first_rank(action: Callable[[], None]) -> None:
    """Let the first rank do something, and the others wait for it.

    Raises:
        OSError: on every rank, if it failed on the first.
    """
    failure: list[str | None] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            failure = [str(error)]
    if dist.is_initialized():
        dist.broadcast_object_list(failure)
    if failure[0] is not None:
        raise OSError(failure[0])
