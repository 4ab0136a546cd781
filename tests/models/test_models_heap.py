"""The heap as it grows when the memory of tensors is requested of it."""

import ctypes

import pytest

from ift.models.heap import Heap, can_ask

MIB = 2**20
pytestmark = pytest.mark.skipif(not can_ask(), reason="the C library does not tell the size of its heap")


def test_the_heap_grows_by_what_is_held_and_not_by_what_follows() -> None:
    heap = Heap()
    try:
        for key in range(8):
            heap.take(key, 20 * MIB)
        held = heap.growth
        assert 8 * 20 * MIB <= held < 8 * 21 * MIB
        for key in range(8):
            heap.give_back(key)
        heap.take(9, MIB)
        assert heap.growth == held  # the most, not the last
    finally:
        heap.close()


def test_what_lies_between_is_why_memory_is_lost() -> None:
    """Holes between small objects that stay are joined to no larger ones, as in a backward pass that is to come."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

    def growth(*, pinned: bool) -> int:
        heap, between = Heap(), []
        try:
            heap.take(0, 30 * MIB)  # given back, so that the C library takes what is smaller from the heap
            heap.give_back(0)
            for size in (4 * MIB, 4 * MIB + 65536):
                for key in range(20):
                    heap.take(key, size)
                    if pinned:
                        between.append(library.malloc(300_000))
                for key in range(20):
                    heap.give_back(key)
            return heap.growth
        finally:
            heap.close()
            for address in between:
                library.free(address)

    assert growth(pinned=False) < 100 * MIB
    assert growth(pinned=True) > 150 * MIB


def test_what_is_more_than_there_is_counts_nothing() -> None:
    heap = Heap()
    heap.take(1, 1 << 60)
    assert heap.growth == 0
    heap.give_back(1)
    heap.give_back(2)  # never taken
    heap.close()
