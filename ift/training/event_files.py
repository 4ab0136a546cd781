"""TensorBoard's files of a run that was killed: what lies beyond the checkpoint goes, as it will come again."""

import os
import time
from pathlib import Path

VALIDATION_TAGS = ("validation/", "samples/")


def keep_events(folder: Path, *, step: int, validated: bool) -> None:
    """Remove from the files of a log all that a run logged after a checkpoint, and records that a kill has torn.

    TensorBoard's own way, a mark in the next file, removes whole steps only; a validation that is made up for would be
    shown twice. And other readers do not know the mark.

    Args:
        folder: of the log.
        step: last step to keep; -1 removes all files.
        validated: whether what the validation at this step logged is to be kept, too.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    for path in files:
        if step < 0:
            path.unlink()
        else:
            _rewrite(path, step=step, validated=validated)
    _wait_for_later_name(files)


def _rewrite(path: Path, *, step: int, validated: bool) -> None:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

    temporary = path.with_name("rewritten.tmp")
    with temporary.open("wb") as file:
        writer = RecordWriter(file)
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            again = event.step == step and any(one.tag.startswith(VALIDATION_TAGS) for one in event.summary.value)
            if event.step <= step and (validated or not again):
                writer.write(record)
        writer.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _wait_for_later_name(files: list[Path]) -> None:
    """Wait until a new file's name comes after the others: they begin with the second of their making."""
    newest = max((int(path.name.split(".")[3]) for path in files), default=0)
    if 0 <= newest - time.time() + 1 <= 2:  # clocks that are further apart than that are not to be waited for
        time.sleep(max(0.0, newest + 1 - time.time()))
