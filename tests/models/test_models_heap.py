"""The heap that is asked: requests as torch makes them, and an answer that does not depend on what was asked before."""

import os

import pytest

from ift.models.heap import LARGE_BYTES, Heap, can_ask

pytestmark = pytest.mark.skipif(not can_ask(), reason="needs glibc 2.33 or later")
MIB = 2**20


def grown(sizes: list[int]) -> int:
    """Return the growth by requests that are all held at once."""
    heap = Heap()
    try:
        for key, size in enumerate(sizes):
            heap.take(key, size)
        return heap.growth
    finally:
        heap.close()


def test_a_heap_that_was_asked_answers_the_same_again() -> None:
    sizes = [100_000 + 64 * number for number in range(300)]
    first, again, more = grown(sizes), grown(sizes), grown(sizes + sizes)
    assert sum(sizes) <= first < 1.1 * sum(sizes)
    assert again == pytest.approx(first, rel=0.02)
    # What a larger question left free does not hide what a smaller one takes.
    assert more == pytest.approx(2 * first, rel=0.05)
    assert grown(sizes) == pytest.approx(first, rel=0.02)


@pytest.mark.parametrize(("large_pages", "aligned"), [("1", 4096), ("0", 64)])
def test_only_large_requests_are_aligned_to_pages(
    monkeypatch: pytest.MonkeyPatch, large_pages: str, aligned: int
) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", large_pages)
    heap, asked = Heap(), {}
    library = heap._library

    class Recorded:
        def __getattr__(self, name: str) -> object:
            return getattr(library, name)

        def posix_memalign(self, found: object, alignment: int, size: int) -> int:
            asked[size] = alignment
            return int(library.posix_memalign(found, alignment, size))

    heap._library = Recorded()
    try:
        for key, size in enumerate((1000, LARGE_BYTES - 1, LARGE_BYTES)):
            heap.take(key, size)
    finally:
        heap.close()
    assert asked == {1000: 64, LARGE_BYTES - 1: 64, LARGE_BYTES: aligned}


def test_more_than_there_is_is_not_requested() -> None:
    heap = Heap()
    heap.take(0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + 1)
    heap.take(1, MIB)
    held = list(heap._held)
    heap.close()
    assert held == [1]
