"""When a run began: with its process, or, of several runs in one process, when the one before it was over."""

import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

_IMPORTED = time.time()
_RUNS = count()


def run_start() -> float:
    """Return when the run that begins now began, in seconds since 1970; for the first run, its process's start."""
    return process_start() if next(_RUNS) == 0 else time.time()


def process_start() -> float:
    """Return when this process was started, in seconds since 1970; where the system does not tell, when it got here."""
    with suppress(OSError, ValueError, IndexError):
        # Field 22, counted after the name, which may hold spaces: clock ticks since the machine started.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        started = time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
        return min(started, _IMPORTED)
    return _IMPORTED
