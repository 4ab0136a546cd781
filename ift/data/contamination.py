"""Which n-grams a conversation shares with the items of benchmarks, and a filter that leaves such ones out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ift.data.benchmark_index import LONGEST_EXCERPT, TOKEN, BenchmarkIndex
from ift.data.conversation import Conversation
from ift.data.text_windows import UNICODE_VERSION, normalised, window_hashes
from ift.errors import UserError


@dataclass(frozen=True)
class Overlap:
    """What one conversation shares with one item."""

    item: int
    """Index into `BenchmarkIndex.items`."""
    ngrams: frozenset[int]
    """The shared n-grams of the item, as positions in the index."""
    share: float
    """Number of them divided by that of all n-grams of the item."""
    text: str
    """The beginning of the longest stretch of the conversation whose n-grams are all shared, normalised."""


def find_overlaps(index: BenchmarkIndex, conversation: Conversation) -> list[Overlap]:
    """Return what a conversation shares with each item, in the order of the items."""
    shared: dict[int, set[int]] = {}
    stretches: dict[int, str] = {}
    for text in training_texts(conversation):
        _search(index, text, shared=shared, stretches=stretches)
    return [
        Overlap(item, frozenset(found), len(found) / index.items[item].num_ngrams, stretches[item])
        for item, found in sorted(shared.items())
    ]


def _search(index: BenchmarkIndex, text: str, *, shared: dict[int, set[int]], stretches: dict[int, str]) -> None:
    """Add to `shared` and `stretches` (by item) what one text shares."""
    clean = normalised(text)
    tokens = np.array([index.vocabulary.get(token, 0) for token in TOKEN.findall(clean)], dtype=np.uint64)
    for length, own in index.lengths.items():
        if len(tokens) < length:
            continue
        by_item: dict[int, list[int]] = {}
        windows, places = own.find(window_hashes(tokens, length))
        for window, place in zip(windows.tolist(), places.tolist(), strict=True):
            for item in own.items[own.starts[place] : own.starts[place + 1]].tolist():
                shared.setdefault(item, set()).add(own.first + place)
                by_item.setdefault(item, []).append(window)
        spans = [match.span() for match in TOKEN.finditer(clean)] if by_item else []
        for item, found in by_item.items():
            first, last = _longest_run(found)
            stretch = clean[spans[first][0] : spans[last + length - 1][1]][:LONGEST_EXCERPT]
            stretches[item] = max(stretches.get(item, ""), stretch, key=len)


class ContaminationFilter:
    """Leaves out conversations that overlap with a benchmark.

    Args:
        index: of the benchmark files.
        min_share: least share of an item's n-grams that a conversation must hold to be left out; with 0, one n-gram
            is enough.

    Raises:
        UserError: `min_share` is no share.
    """

    name = "contaminated"

    def __init__(self, index: BenchmarkIndex, *, min_share: float = 0.0) -> None:
        if not 0 <= min_share <= 1:
            raise UserError(f"min_share: {min_share} is not from 0 to 1.")
        self.index, self.min_share = index, min_share

    def check(self, conversation: Conversation, place: str) -> str | None:
        """Return the item with which a conversation overlaps most, or `None` where it is kept."""
        return self.reason(find_overlaps(self.index, conversation))

    def reason(self, overlaps: Sequence[Overlap]) -> str | None:
        """Return why a conversation with these overlaps is left out, or `None`."""
        worst = max(overlaps, key=lambda overlap: overlap.share, default=None)
        if worst is None or worst.share < self.min_share:
            return None
        item = self.index.items[worst.item]
        more = f", and overlaps with {len(overlaps) - 1} more" if len(overlaps) > 1 else ""
        if item.how == "whole":
            return f"holds the whole of {item.place}: '{worst.text[:80]}'{more}"
        counts = f"{len(worst.ngrams)} of the {item.num_ngrams} {self.index.ngram}-grams"
        return f"shares {counts} of {item.place}: '{worst.text[:80]}'{more}"

    def describe(self) -> dict[str, Any]:
        """Return all that decides the outcome."""
        return {
            "filter": self.name,
            "ngram": self.index.ngram,
            "fields": list(self.index.fields),
            "max_items": self.index.max_items,
            "min_share": self.min_share,
            "benchmarks": self.index.sha256,
            "unicode": UNICODE_VERSION,
        }


def training_texts(conversation: Conversation) -> Iterator[str]:
    """Yield every text of a conversation that a benchmark item could stand in."""
    yield conversation.system
    for message in conversation.messages:
        yield from (message.text, message.context, message.thought)


def _longest_run(numbers: Sequence[int]) -> tuple[int, int]:
    """Return first and last number of the longest run of numbers that follow one another; the earliest of equals."""
    best = first = last = numbers[0]
    best_last = last
    for number in numbers[1:]:
        if number != last + 1:
            first = number
        last = number
        if last - first > best_last - best:
            best, best_last = first, last
    return best, best_last
