"""One process of a node does a thing for all of them, and one of each node where several share a file system.

The lock lies on the node's own disk: on a shared one, locks work on some systems, on some they fail, and on some they
silently lock nothing. So what is made is written beside its place, under a name of this process's own, and renamed.
"""

import hashlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ift.launch import launch

_BETWEEN_NEWS_SECONDS = 30.0


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Make a folder, unless it is there, or another process on this node makes it; return when it is there.

    Args:
        folder: what is to be there in the end; only ever whole.
        build: fills a new folder, which becomes this one.
    """
    if folder.is_dir():
        return
    with _locked(folder):
        if folder.is_dir():
            return
        for left in folder.parent.glob(f"{folder.name}.{_node()}.*.tmp"):  # by a killed process: the lock says so
            shutil.rmtree(left, ignore_errors=True)
        building = folder.with_name(f"{folder.name}.{_node()}.{os.getpid()}.tmp")
        building.mkdir()
        build(building)
        try:
            os.replace(building, folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(building, ignore_errors=True)  # another node was first, with the same


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file(folder))
    told = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=1.0)
            break
        except Timeout:
            if launch().is_first and time.monotonic() - told > _BETWEEN_NEWS_SECONDS:
                told = time.monotonic()
                print(f"waiting for another process on this node, which prepares '{folder}'", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def lock_file(folder: Path) -> str:
    """Return a file in a folder of this user's on the node's own disk, or else beside the folder."""
    own = Path(tempfile.gettempdir()) / f"ift-locks-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        mine = own.stat().st_uid == os.getuid() and os.access(own, os.W_OK)
    except OSError:
        mine = False
    if not mine:
        return f"{folder}.{_node()}.lock"
    return str(own / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.lock")


def _node() -> str:
    return socket.gethostname().replace(".", "-") or "node"
