"""How much memory the heap of a process takes for tensors beside their bytes, asked of the allocator itself.

On a CPU, torch takes memory for tensors from the C library's heap, where holes are left: before glibc 2.38, what an
aligned request of some size gave back is too small for the next aligned request of that size, unless its neighbours
are free as well, and between large tensors lie small objects of the autograd graph, which live as long as the graph.
How much that is depends on sizes and order, so that no share of the tensors' bytes is right for all runs. So the same
requests are made of this process's heap while a step runs on shapes. Nothing is written to that memory, so next to none
of it becomes resident.
"""

import ctypes
import os
from typing import Any

ALIGNMENTS = {True: 4096, False: 64}
"""Of torch's requests, with and without THP_MEM_ALLOC_ENABLE."""


class _Facts(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    # fmt: off
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]
    # fmt: on


class Heap:
    """The C library's heap of this process."""

    def __init__(self) -> None:
        library = _library()
        assert library is not None, "not asked whether it can be"
        self._library = library
        self._library.malloc_trim(0)
        self._alignment = ALIGNMENTS[os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"]
        self._held: dict[int, int] = {}
        self._limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._begin, self._most = self._size(), 0

    def take(self, key: int, size: int) -> None:
        """Request memory as torch does for a tensor, under a key; nothing where it fails, or is more than there is."""
        if self._most + size > self._limit:
            return
        found = ctypes.c_void_p()
        failed = self._library.posix_memalign(ctypes.byref(found), self._alignment, size)
        if not failed and found.value is not None:
            self._held[key] = found.value
            self._most = max(self._most, self._size() - self._begin)

    def give_back(self, key: int) -> None:
        """Give back what was requested under a key."""
        if (address := self._held.pop(key, None)) is not None:
            self._library.free(address)

    def close(self) -> None:
        """Give back all that is left."""
        for key in list(self._held):
            self.give_back(key)
        self._library.malloc_trim(0)

    @property
    def growth(self) -> int:
        """Most bytes by which the heap grew."""
        return self._most

    def _size(self) -> int:
        facts = self._library.mallinfo2()
        return int(facts.arena + facts.hblkhd)


def can_ask() -> bool:
    """Whether the C library tells the size of its heap: glibc 2.33 or later."""
    return _library() is not None


def _library() -> Any | None:
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Facts
        library.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
        library.free.argtypes = [ctypes.c_void_p]
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (AttributeError, OSError, TypeError):
        return None
    return library
