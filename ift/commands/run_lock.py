"""One process at a time trains in a run folder.

Two would write over each other's checkpoints, curves and manifest, each of them whole, and none of them one run's. The
lock lies on the node's own disk, as shared ones may lock nothing; so two nodes that are given the same run folder by
two jobs do not see each other. It ends with its process, however that ends.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ift.artifacts import RunFolder
from ift.data.node_lock import lock_file
from ift.errors import UserError

LONGEST_WAIT_SECONDS = 20.0
"""A run that was killed a moment ago, and is started again, may not have ended yet."""


class RunLock:
    """Holds a run folder for this process, which may hold it more than once.

    Args:
        run: the folder; it need not be there.
    """

    def __init__(self, run: RunFolder) -> None:
        from filelock import FileLock

        self._root = run.root
        self._lock: Any = FileLock(lock_file(run.root), is_singleton=True)
        self._holder = Path(f"{self._lock.lock_file}.holder")

    def acquire(self) -> None:
        """Take the lock, or wait for a moment for the process that has it.

        Raises:
            UserError: another process goes on holding it.
        """
        from filelock import Timeout

        begun, told = time.monotonic(), False
        while True:
            try:
                self._lock.acquire(timeout=1.0)
                break
            except Timeout:
                if time.monotonic() - begun > LONGEST_WAIT_SECONDS:
                    raise UserError(
                        f"run_dir: {self._other()} trains in '{self._root}', and two would write over each other's "
                        "checkpoints. Wait until it ends, or give another run_dir."
                    ) from None
                if not told:
                    told = True
                    print(f"waiting for {self._other()}, which trains in '{self._root}'", file=sys.stderr)
        with suppress(OSError):  # a full disk: it only names the process
            self._holder.write_text(str(os.getpid()))

    def release(self) -> None:
        """Give the lock back, where it is held."""
        if self._lock.is_locked:
            self._lock.release()

    def _other(self) -> str:
        try:
            return f"another process ({int(self._holder.read_text())})"
        except (OSError, ValueError):
            return "another process"
