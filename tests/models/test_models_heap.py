"""The heap as it grows when the memory of tensors is requested of it, in processes whose heap is not yet used."""

import ctypes
import subprocess
import sys

import pytest

from ift.models.heap import Heap, can_ask

MIB = 2**20
pytestmark = pytest.mark.skipif(not can_ask(), reason="the C library does not tell the size of its heap")


def in_its_own_process(check: str) -> int:
    ended = subprocess.run(
        [sys.executable, __file__, check], check=True, timeout=200, stdout=subprocess.PIPE, text=True
    )
    return int(ended.stdout)


def test_the_heap_grows_by_what_is_held_and_not_by_what_follows() -> None:
    assert 8 * 20 * MIB <= in_its_own_process("held") < 8 * 21 * MIB
    assert in_its_own_process("held_before") == in_its_own_process("held")  # the most, not the last


def test_what_lies_between_is_why_memory_is_lost() -> None:
    """Holes between small objects that stay are joined to no larger ones, as in a backward pass that is to come."""
    assert in_its_own_process("pinned") > 1.2 * in_its_own_process("free")


def growth(check: str) -> int:
    """Return by how much the heap of this process has grown."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    heap = Heap()
    if check.startswith("held"):
        for key in range(8):
            heap.take(key, 20 * MIB)
        if check == "held_before":
            for key in range(8):
                heap.give_back(key)
            heap.take(9, MIB)
        return heap.growth
    heap.take(0, 30 * MIB)  # given back, so that the C library takes what is smaller from the heap
    heap.give_back(0)
    for size in (4 * MIB, 4 * MIB + 65536):
        for key in range(20):
            heap.take(key, size)
            if check == "pinned":
                library.malloc(300_000)
        for key in range(20):
            heap.give_back(key)
    return heap.growth


def test_what_is_more_than_there_is_counts_nothing() -> None:
    heap = Heap()
    heap.take(1, 1 << 60)
    assert heap.growth == 0
    heap.give_back(1)
    heap.give_back(2)  # never taken
    heap.close()


if __name__ == "__main__":
    print(growth(sys.argv[1]))
