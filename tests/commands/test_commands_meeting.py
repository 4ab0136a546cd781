"""Processes that run several commands one after another meet before each of them."""

import gc
import os
import signal
import socket
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

from ift.commands.meeting import Meeting
from ift.launch import Launch


def meet_thrice(rank: int, port: int, *, folder: Path) -> None:
    """Meet another process, each of them late once, when the other could have left."""
    for number, late in enumerate((1, 0, 1)):
        place = Launch("torchrun", rank, rank, num_processes=2, processes_per_node=2)
        meeting = Meeting(SimpleNamespace(main_address="127.0.0.1", main_port=port), place)
        if rank == late:
            time.sleep(0.5)
            (folder / f"{number}").touch()
        meeting.wait(longest_seconds=60)
        assert (folder / f"{number}").exists()  # the early one has waited
        del meeting  # as a command that has ended
        gc.collect()
    (folder / f"rank-{rank}").touch()
    while not (folder / "rank-1").exists() and os.getppid() != 1:  # the first one hosts the store
        time.sleep(0.02)


def in_child(rank: int, port: int, *, folder: Path) -> int:
    """Do it in a child of this process; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for name in [name for name in os.environ if name.startswith("TORCHELASTIC_")]:
            del os.environ[name]
        meet_thrice(rank, port, folder=folder)
        code = 0
    except BaseException:  # nothing may leave the child
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.mark.timeout(120)
def test_two_processes_meet_several_times(tmp_path: Path) -> None:
    """A bug: whoever hosted the store let it go with its first command, and the others waited at the second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [in_child(rank, port, folder=tmp_path) for rank in range(2)]
    deadline = time.monotonic() + 90
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
            elif child not in codes and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    assert list(codes.values()) == [0, 0]
