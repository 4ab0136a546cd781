"""Two processes never train in one run folder at once; a lock ends with its process, however that ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ift.artifacts import RunFolder
from ift.cli import main
from ift.commands import run_lock
from ift.commands.run_lock import RunLock
from ift.errors import UserError

Config = Callable[..., Path]

HOLD = """
import sys, time
from ift.artifacts import RunFolder
from ift.commands.run_lock import RunLock
lock = RunLock(RunFolder(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Hold a run folder in a process of its own."""
    holders: list[subprocess.Popen[str]] = []

    def start(root: Path, *, seconds: float = 60.0, wait: bool = True) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(root), str(seconds)]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None
        assert not wait or holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def test_a_folder_that_is_trained_in_is_refused(
    hold: Any, config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "LONGEST_WAIT_SECONDS", 1.5)
    path = config("run")
    run = path.with_suffix("")
    holder = hold(run)
    (run / "checkpoints").mkdir(parents=True)
    unfinished = run / "checkpoints" / "step-00000002.ckpt.tmp"
    unfinished.touch()
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"run_dir: another process ({holder.pid}) trains in '{run}'" in said
    assert unfinished.exists(), "what the other one writes was removed"


def test_a_run_waits_for_one_that_ends(hold: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = hold(tmp_path, seconds=2.5)
    begun = time.monotonic()
    lock = RunLock(RunFolder(tmp_path))
    lock.acquire()
    lock.release()
    assert time.monotonic() - begun > 1.0
    assert f"waiting for another process ({holder.pid})" in capsys.readouterr().err


def test_a_killed_run_holds_nothing(hold: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LONGEST_WAIT_SECONDS", 1.5)
    holder = hold(tmp_path)
    with pytest.raises(UserError, match="another process"):
        RunLock(RunFolder(tmp_path)).acquire()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = RunLock(RunFolder(tmp_path))
    lock.acquire()
    lock.release()


def test_one_process_may_hold_a_folder_twice_and_others_are_free(hold: Any, tmp_path: Path) -> None:
    first, again = RunLock(RunFolder(tmp_path / "a")), RunLock(RunFolder(tmp_path / "a"))
    first.acquire()
    again.acquire()
    hold(tmp_path / "b")
    first.release()
    other = hold(tmp_path / "a", wait=False)
    time.sleep(3.0)
    assert other.poll() is None, "it is still held"
    again.release()
    assert other.stdout.readline() == "held\n"


def test_a_run_gives_its_folder_back(config: Config, hold: Any) -> None:
    path = config("run")
    assert main(["fit", "--config", str(path)]) == 0
    hold(path.with_suffix(""), seconds=0.0)
