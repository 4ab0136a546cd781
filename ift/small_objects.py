"""Settings of the C library's allocator that a process has from its start or not at all.

glibc keeps freed pieces of up to a kilobyte apart (tcache, fastbins) and hands them to the next small request. Before
2.38 an aligned request, such as each of torch's tensors on a CPU, leaves two such pieces beside it. A small object in
one of them keeps what the tensor leaves behind from growing together again, and the next tensor of that size does not
fit there. Without those two stores, the heap of a training step was down to a third, and no step took longer
(scripts/bench/RESULTS_plan.md).
"""

import os
import sys
from pathlib import Path

KEPT_APART = ("glibc.malloc.tcache_count", "glibc.malloc.mxfast")
"""Tunables by which glibc keeps no small pieces apart where they are 0."""
REPAIRED_IN = (2, 38)
"""Version of glibc whose aligned requests reuse what others left; not tried here."""


def settings_for_start(environment: dict[str, str] | None = None) -> dict[str, str] | None:
    """Return the environment in which this process should have started, or `None` where it did.

    Args:
        environment: instead of this process's. What it says of either tunable is left as it is.
    """
    environment = dict(os.environ) if environment is None else environment
    said = environment.get("GLIBC_TUNABLES", "")
    version = _glibc_version()
    if version is None or version >= REPAIRED_IN or any(name in said for name in KEPT_APART):
        return None
    settings = [said] if said else []
    return {**environment, "GLIBC_TUNABLES": ":".join([*settings, *(f"{name}=0" for name in KEPT_APART)])}


def start_anew_with_settings() -> None:
    """Let this program take its own place with those settings; nothing where it has them, or is part of another."""
    environment = settings_for_start()
    is_own_program = Path(sys.argv[0]).name in ("ift", "__main__.py")
    if environment is None or not is_own_program or not sys.executable:
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:  # the run is the same without
        return


def _glibc_version() -> tuple[int, ...] | None:
    try:
        name, _, version = str(os.confstr("CS_GNU_LIBC_VERSION")).partition(" ")
        return tuple(int(part) for part in version.split(".")) if name == "glibc" else None
    except (AttributeError, OSError, ValueError):
        return None
