"""How much memory the heap of a process takes for tensors beside their bytes, asked of the allocator itself.

On a CPU, torch takes memory for tensors from the C library's heap, where holes are left: before glibc 2.38, what an
aligned request of some size gave back is too small for the next aligned request of that size, unless its neighbours
are free as well, and between large tensors lie small objects of the autograd graph, which live as long as the graph.
How much that is depends on sizes and order, so that no share of the tensors' bytes is right for all runs. So the same
requests are made of this process's heap while a step runs on shapes, behind its own holes are filled. Nothing is
written to that memory, so next to none of it becomes resident. What small objects do is the doing of the allocator's
settings (`ift.small_objects`), so `ift plan` has those of `ift fit`.
"""

import ctypes
import os
from typing import Any

ALIGNMENT = 64
"""Of torch's requests."""
PAGE_ALIGNMENT, LARGE_BYTES = 4096, 2 * 2**20
"""Of its large ones with THP_MEM_ALLOC_ENABLE, and from where on they are large."""
FILLING_BYTES = (2**17 - 4096, 2**14, 2**12, 2**10)
"""Of what fills holes, none so large that it would get pages of its own (128 KiB and more)."""
MOST_FILLING = 200_000


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
        self._large_pages = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
        self._held: dict[int, int] = {}
        self._filling: list[int] = []
        self._limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._fill_holes()
        self._begin, self._most = self._size(), 0

    def _fill_holes(self) -> None:
        """Request what is free in the heap, so that it grows by what comes, whatever was asked of it before."""
        for size in FILLING_BYTES:
            before = self._size()
            while self._size() == before and len(self._filling) < MOST_FILLING:
                self._filling.append(self._library.malloc(size))

    def take(self, key: int, size: int) -> None:
        """Request memory as torch does for a tensor, under a key; nothing where it fails, or is more than there is."""
        if self._most + size > self._limit:
            return
        found = ctypes.c_void_p()
        alignment = PAGE_ALIGNMENT if self._large_pages and size >= LARGE_BYTES else ALIGNMENT
        failed = self._library.posix_memalign(ctypes.byref(found), alignment, size)
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
        while self._filling:
            self._library.free(self._filling.pop())
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
        library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        library.free.argtypes = [ctypes.c_void_p]
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (AttributeError, OSError, TypeError):
        return None
    return library
