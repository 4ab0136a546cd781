"""Runs in a child of the test's own process, so that a real SIGKILL comes without the seconds of a new interpreter."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ift.cli import main

TIME_DEPENDENT = ("per_second", "seconds", "utilisation", "utilization", "memory", "flops", "time")
"""Parts of the names of curves that no two runs share."""
LONGEST_SECONDS = 150.0


def kill_now() -> None:
    """End this process as a power cut would: nothing is flushed, closed or told."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_child(
    path: Path, *arguments: str, patch: Callable[[], Any] | None = None, kill_after: float | None = None
) -> int:
    """Begin or continue a run in a child process.

    Args:
        path: of the config.
        arguments: of the command line, after the config's.
        patch: called in the child before the run; it says where the child kills itself.
        kill_after: seconds after which the child is killed.

    Returns:
        The exit code, -9 after a kill.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _run_and_exit(path, arguments, patch)
    deadline = time.monotonic() + (LONGEST_SECONDS if kill_after is None else kill_after)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert kill_after is not None, f"the run did not end within {LONGEST_SECONDS} s"
    return os.waitstatus_to_exitcode(status)


def _run_and_exit(path: Path, arguments: tuple[str, ...], patch: Callable[[], Any] | None) -> None:
    code = 99
    try:
        with path.with_suffix(".log").open("a") as log:  # what a child says is read after it
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        if patch is not None:
            patch()
        code = main(["fit", "--config", str(path), "--ckpt_path", "last", *arguments])
    except BaseException:  # nothing may leave the child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def output(path: Path) -> str:
    """Return what the children of a config have written."""
    return path.with_suffix(".log").read_text(errors="replace")


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the logged scalars that do not depend on time, in the order they are shown in."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not any(part in name for part in TIME_DEPENDENT)]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in sorted(names)}


def kept(run: Path) -> list[str]:
    """Return the names in the checkpoint folder."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())
