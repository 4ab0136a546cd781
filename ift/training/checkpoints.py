"""Checkpoints that are whole or not there, and where a run resumes."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ift.artifacts import RunFolder
from ift.errors import UserError
from ift.hub import fingerprint
from ift.training.module import CHECKPOINT_KEY
from ift.training.sharded_checkpoints import check_whole, is_sharded_checkpoint, read_facts, read_whole, remove_sharded


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames; a kill at any moment leaves the old file or the new one.

    Lightning's own writes into the system's temporary folder, and moving from there to another file system copies.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to a local path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Load a file, or all of a folder that several ranks wrote."""
        if is_sharded_checkpoint(Path(path)):
            return read_whole(Path(path))
        return super().load_checkpoint(path, *arguments, **options)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file, or a folder such that no part of it is ever taken for a checkpoint."""
        if Path(path).is_dir():
            remove_sharded(Path(path))
        else:
            super().remove_checkpoint(path)


def newest_checkpoint(run: RunFolder) -> Path | None:
    """Return the checkpoint of a run with the most steps, or `None`."""
    found = {path: read_checkpoint(path)["global_step"] for path in run.checkpoints.glob("*.ckpt")}
    return max(found, key=lambda path: (found[path], path.name)) if found else None


def read_checkpoint(path: Path) -> Any:
    """Return what a checkpoint holds: mapped, or of a folder that many ranks wrote, without its tensors' data.

    Raises:
        UserError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        if is_sharded_checkpoint(path):
            return read_facts(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types for what is no checkpoint; each means that it is unusable
        raise UserError(f"--ckpt_path: '{path}' cannot be read as a checkpoint: {error}") from error


def steps_of(path: Path) -> int:
    """Return the optimizer steps after which a checkpoint was written.

    Raises:
        UserError: it cannot be read.
    """
    return int(read_checkpoint(path)["global_step"])


def resolve_checkpoint(ckpt_path: str | None, run: RunFolder, *, required: bool) -> Path | None:
    """Return the checkpoint to start from, or `None`.

    Args:
        ckpt_path: a file, `last` for the newest of the run folder, or none.
        run: the run folder.
        required: whether `last` must exist; a job that is started again and again begins without one.

    Raises:
        UserError: a path that is no file, or no last checkpoint where one is required.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        newest = newest_checkpoint(run)
        if newest is None and required:
            raise UserError(f"--ckpt_path: there is no checkpoint in '{run.checkpoints}'.")
        return newest
    path = Path(ckpt_path).expanduser()
    if not path.is_file() and not is_sharded_checkpoint(path):
        raise UserError(f"--ckpt_path: no file '{ckpt_path}'. Name a checkpoint, or 'last' for the run's newest.")
    return path


def check_checkpoint(path: Path, base: str) -> None:
    """Refuse a checkpoint that was not written over this base model, before any weights are loaded.

    Raises:
        UserError: not a checkpoint of ift, or one of another base model.
    """
    checkpoint = read_checkpoint(path)
    if path.is_dir():
        check_whole(path)
    own = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if own is None:
        raise UserError(f"--ckpt_path: '{path}' was not written by ift fit.")
    if own["base_fingerprint"] != fingerprint(base):
        raise UserError(
            f"--ckpt_path: '{path}' belongs to another base model ('{own['base']}'; model.base is '{base}', with "
            "other weights or another config). Resume with the configuration in the run folder."
        )
