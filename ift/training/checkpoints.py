"""Checkpoints that are whole or not there, and where a run resumes."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ift.artifacts import TEMPORARY, RunFolder
from ift.errors import UserError
from ift.hub import fingerprint
from ift.launch import Launch
from ift.training.module import CHECKPOINT_KEY
from ift.training.seals import check_seal, sync_folder, write_sealed
from ift.training.sharded_checkpoints import (
    check_parts,
    check_whole,
    is_sharded_checkpoint,
    read_unread,
    read_whole,
    remove_sharded,
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, seals, flushes to disk and renames; a kill leaves the old file or the new one.

    Lightning's own writes into the system's temporary folder, and moving from there to another file system copies.

    Args:
        root: the run folder. Below it only what is missing is made: a mount that has vanished must not be replaced by a
            folder on the disk beneath it.
    """

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self._run = RunFolder(root.resolve()) if root is not None else None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to a local path.

        Raises:
            OSError: the disk is full, the folder cannot be written, or is gone.
        """
        target = Path(path)
        self._make(target.parent)
        temporary = target.with_name(target.name + TEMPORARY)
        try:
            write_sealed(checkpoint, temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)  # on a full disk, others may need the room
            raise
        sync_folder(target.parent)

    def _make(self, folder: Path) -> None:
        if self._run is not None and self._run.root in folder.resolve().parents:
            self._run.check_present()
        folder.mkdir(parents=True, exist_ok=True)

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


def remove_unfinished(run: RunFolder) -> None:
    """Remove what a killed process had begun to write; nothing under its name was ever read."""
    for path in (*run.root.glob("*" + TEMPORARY), *run.checkpoints.glob("*" + TEMPORARY)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def newest_checkpoint(key: str, run: RunFolder) -> Path | None:
    """Return the checkpoint of a run with the most steps, or `None`.

    Args:
        key: the configuration key or option that named the run.
        run: the run folder.

    Raises:
        UserError: one of them cannot be read, so that nobody knows which is the newest.
    """
    # A link to the last one points nowhere for a moment, in which a kill may come.
    found: dict[Path, int] = {}
    for path in run.checkpoints.glob("*.ckpt"):
        if path.exists():
            with told_way_on(path, resumes=key == "--ckpt_path"):
                found[path] = steps_of(key, path)
    return max(found, key=lambda path: (found[path], path.name)) if found else None


def check_newest(path: Path, run: RunFolder) -> None:
    """Refuse to go on within a run from a checkpoint that others follow: the folder would hold two courses of it.

    Raises:
        UserError: with the newest.
    """
    key = "--ckpt_path"
    newest = newest_checkpoint(key, run)
    if newest is not None and steps_of(key, newest) > (step := steps_of(key, path)):
        raise UserError(
            f"{key}: '{path}' is of step {step}, and '{run.root}' holds one of step {steps_of(key, newest)} "
            f"('{newest.name}'). Give 'last'; or another run_dir, to go on from here; or remove the later ones."
        )


def steps_of(key: str, path: Path) -> int:
    """Return after how many steps a checkpoint was written.

    Args:
        key: the configuration key or option that named it.
        path: of the checkpoint.

    Raises:
        UserError: it cannot be read, or is none.
    """
    checkpoint = read_checkpoint(key, path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("global_step"), int):
        raise UserError(f"{key}: '{path}' was not written by ift fit. Move it out of the way.")
    return int(checkpoint["global_step"])


def read_checkpoint(key: str, path: Path) -> Any:
    """Return what a checkpoint holds: mapped, or of a folder that many ranks wrote, without its tensors' data.

    Args:
        key: the configuration key or option that named it.
        path: of the checkpoint.

    Raises:
        UserError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        return read_unread(path)
    except Exception as error:  # torch raises many types for what is no checkpoint; each means that it is unusable
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")[:200] + "."
        raise UserError(f"{key}: '{path}' cannot be read as a checkpoint: {reason} Move it out of the way.") from error


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
        newest = newest_checkpoint("--ckpt_path", run)
        if newest is None and required:
            raise UserError(
                f"--ckpt_path: there is no checkpoint in '{run.checkpoints}'. Leave --ckpt_path out, or name a file."
            )
        return newest
    path = Path(ckpt_path).expanduser()
    if not path.is_file() and not is_sharded_checkpoint(path):
        raise UserError(f"--ckpt_path: no file '{ckpt_path}'. Name a checkpoint, or 'last' for the run's newest.")
    return path


def check_checkpoint(path: Path, base: str, *, resumes: bool = False) -> None:
    """Refuse a checkpoint that was not written over this base model, before any weights are loaded.

    Args:
        path: of the checkpoint.
        base: `model.base`.
        resumes: whether training is to go on from there, for which weights are not enough.

    Raises:
        UserError: not a checkpoint of ift, a damaged one, or one of another base model.
    """
    with told_way_on(path):
        if is_sharded_checkpoint(path):
            check_whole("--ckpt_path", path)  # its tensors are `damage_of_own_parts`' business
        else:
            check_seal("--ckpt_path", path)
        checkpoint = read_checkpoint("--ckpt_path", path)
    own = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if own is None:
        raise UserError(f"--ckpt_path: '{path}' was not written by ift fit. Take another checkpoint.")
    if own["base_fingerprint"] != fingerprint(base):
        raise UserError(
            f"--ckpt_path: '{path}' belongs to another base model ('{own['base']}'; model.base is '{base}', with "
            "other weights or another config). Resume with the configuration in the run folder."
        )
    if not resumes and (note := RunFolder(path.resolve().parent.parent).later_than(int(checkpoint["global_step"]))):
        print(note, file=sys.stderr)
    if resumes and "optimizer_states" not in checkpoint:
        raise UserError(
            f"--ckpt_path: '{path}' holds weights only (checkpoint.save_weights_only), and training goes on from "
            "weights and optimizer. Name another checkpoint, or begin anew without --ckpt_path."
        )


def damage_of_own_parts(path: Path | None, place: Launch) -> str:
    """Return what is wrong with this process's share of the tensors of a folder of many ranks; empty where nothing is.

    Args:
        path: of the checkpoint, if there is one; a file is checked by `check_checkpoint`.
        place: of this process. Where Lightning starts the others, the first has looked before they are there.
    """
    if path is None or not is_sharded_checkpoint(path) or (place.program is None and not place.is_first):
        return ""
    num_ranks = place.num_processes if place.program is not None else 1
    try:
        with told_way_on(path):
            check_parts("--ckpt_path", path, rank=place.rank, num_ranks=num_ranks)
    except (UserError, OSError) as error:
        return str(error)
    return ""


def intact_beside(path: Path) -> tuple[Path, int] | None:
    """Return the checkpoint with the most steps that lies beside a damaged one and is whole, with its steps."""
    found = {}
    for other in path.parent.glob("*.ckpt"):
        with suppress(UserError, OSError):
            if other != path:
                found[other] = steps_of("", other)
    for other in sorted(found, key=lambda one: (found[one], one.name), reverse=True):
        with suppress(UserError, OSError):
            if is_sharded_checkpoint(other):
                check_whole("", other)
                check_parts("", other)
            else:
                check_seal("", other)
            return other, found[other]
    return None


@contextmanager
def told_way_on(path: Path, *, resumes: bool = True) -> Iterator[None]:
    """Say beside what is wrong with a checkpoint which other one there is.

    Args:
        path: of the checkpoint.
        resumes: whether a run is to go on, or validate, from there.

    Raises:
        UserError: the one that was met, with the other checkpoint's name and steps.
    """
    try:
        yield
    except UserError as error:
        other = intact_beside(path)
        if other is None:
            raise UserError(f"{error} No checkpoint beside it is intact.") from error
        way = f"after 'mv {path} {path}.damaged', --ckpt_path last takes that one."
        raise UserError(
            f"{error} The newest intact one beside it is '{other[0]}', of step {other[1]}: "
            + (way if resumes else "name that one.")
        ) from error
