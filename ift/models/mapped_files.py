"""Weights that transformers reads are mapped files: memory that the system may take back, and that counts till then."""

import ctypes
import sys
from pathlib import Path

_PAGEOUT = 21
"""Linux' MADV_PAGEOUT: give pages back now. What was changed in them is kept, unlike with MADV_DONTNEED."""


def release_mapped_weights() -> None:
    """Give back the pages of mapped weight files that were read; whoever reads them again gets them from the file.

    A matrix that was merged has a memory of its own, and its old values would stay beside it: two models in the end.
    Does nothing where the system offers no such call.
    """
    maps = Path("/proc/self/maps")
    if not sys.platform.startswith("linux") or not maps.is_file():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT)
