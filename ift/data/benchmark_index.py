"""The n-grams of benchmark files, for finding them in training conversations.

A token is one character of a script that puts no blanks between words (Chinese, Japanese, Thai, ...), or one run of
other letters and digits; text is taken in NFKC and without upper case, punctuation does not count. An item overlaps
with a conversation where they share a run of `ngram` tokens; an item that has no text of that length is looked for
whole. The index of the benchmark lies in memory, the training side is read conversation by conversation.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ift.data.rows import RawRow, Source, check_source, content_hash, read_rows
from ift.data.text_windows import Hashes, normalised, window_hashes
from ift.errors import UserError, unknown_name

DEFAULT_NGRAM = 13
"""Tokens of an n-gram (Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C)."""
SHORTEST_WHOLE = 5
"""Tokens that an item needs to be looked for whole; fewer are found by chance, so they are not looked for."""
LONGEST_EXCERPT = 300

# Hiragana to Han with its extensions and compatibility forms; Thai, Lao, Myanmar and Khmer.
_ALONE = "\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ALONE += "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
# The look-ahead leaves out marks and punctuation of those ranges.
TOKEN = re.compile(f"(?=\\w)[{_ALONE}]|[^\\W_{_ALONE}]+")


@dataclass(frozen=True)
class BenchmarkItem:
    """One row of a benchmark file, as it is looked for."""

    file: str
    line: int
    how: str
    """`ngrams`; `whole`: no text has the length of an n-gram; not looked for: `too short`, `common`, `unreadable`."""
    excerpt: str
    """The beginning of its longest text; of an unreadable row, the reason."""
    num_ngrams: int
    """Different n-grams; 1 where it is looked for whole, 0 where it is not looked for."""

    @property
    def place(self) -> str:
        """`file line N`."""
        return f"{self.file} line {self.line}"


@dataclass
class NgramTable:
    """N-grams of one length, for all items that are looked for by it."""

    hashes: Hashes
    """Sorted, without repetitions."""
    starts: npt.NDArray[np.int64]
    """`(hashes + 1,)`: where the items of each hash begin in `items`."""
    items: npt.NDArray[np.int64]
    first: int
    """Position of the first n-gram in the whole index."""
    marks: npt.NDArray[np.bool_] = field(init=False)
    """Set at the low bits of every hash: tells at one look that most other hashes are not in the table."""

    def __post_init__(self) -> None:
        self.marks = np.zeros(1 << (8 * len(self.hashes)).bit_length(), dtype=np.bool_)
        self.marks[self._low(self.hashes)] = True

    def find(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the indices of the given hashes that are in the table, and their indices in the table."""
        likely = np.flatnonzero(self.marks[self._low(hashes)])
        places = np.searchsorted(self.hashes, hashes[likely])
        found = self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes[likely]
        return likely[found], places[found]

    def _low(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        return (hashes & np.uint64(len(self.marks) - 1)).astype(np.int64)


@dataclass
class BenchmarkIndex:
    """All n-grams of benchmark files; made by `index_benchmarks`."""

    ngram: int
    fields: tuple[str, ...]
    max_items: int | None
    sha256: dict[str, str]
    """File to the hash of its content."""
    items: list[BenchmarkItem]
    vocabulary: dict[str, int] = field(repr=False)
    """Token to a number from 1; a token that no item holds cannot be part of a shared n-gram."""
    lengths: dict[int, NgramTable] = field(repr=False)
    """Tokens of an n-gram to the n-grams: `ngram`, and the lengths of the items that are looked for whole."""
    holders: npt.NDArray[np.int64] = field(repr=False)
    """Number of items that hold each n-gram of the index."""


def index_benchmarks(
    sources: Sequence[Source],
    *,
    ngram: int = DEFAULT_NGRAM,
    fields: Sequence[str] = (),
    max_items: int | None = None,
    key: str = "benchmark",
) -> BenchmarkIndex:
    """Read benchmark files and index their n-grams.

    The texts of an item are all texts in its row, in nested lists and objects too, each on its own. Those of at least
    `ngram` tokens are indexed; where there is none, the longest text is looked for whole.

    Args:
        sources: the files; their layout does not matter.
        ngram: tokens of an n-gram.
        fields: of the row that count; empty for all.
        max_items: an n-gram that more items hold does not count, because it belongs to the form of the benchmark
            ("answer the following question with A, B, C or D"); `None` lets every n-gram count.
        key: where the files stand in the configuration, for errors.

    Raises:
        UserError: no file, no item or none that can be read, too short n-grams, or a field that no row has.
    """
    if ngram < SHORTEST_WHOLE:
        raise UserError(f"ngram: {ngram} is below {SHORTEST_WHOLE}; so few tokens are shared by chance. Usual is 13.")
    if max_items is not None and max_items < 1:
        raise UserError(f"max_items: {max_items} is below 1, so no n-gram would count.")
    builder = _IndexBuilder(ngram, tuple(fields), max_items)
    sha256 = {}
    for number, source in enumerate(sources):
        place = f"{key}[{number}]" if len(sources) > 1 else key
        check_source(place, source)
        sha256[source.path] = content_hash(source, key=place)
        builder.read(source, place)
    if not builder.items:
        raise UserError(f"{key}: no item in {', '.join(sha256)}.")
    if all(item.how == "unreadable" for item in builder.items):
        first = builder.items[0]
        raise UserError(f"{key}: no item can be read. {first.place}: {first.excerpt}.")
    return builder.index(sha256)


class _IndexBuilder:
    """Collects the n-grams of items."""

    def __init__(self, ngram: int, fields: tuple[str, ...], max_items: int | None) -> None:
        self.ngram, self.fields, self.max_items = ngram, fields, max_items
        self.items: list[BenchmarkItem] = []
        self._vocabulary: dict[str, int] = {}
        self._found: dict[int, list[tuple[int, Hashes]]] = {}

    def read(self, source: Source, key: str) -> None:
        """Add the items of a file."""
        from tqdm import tqdm

        seen: Counter[str] = Counter()
        for row in tqdm(read_rows(source, key=key), desc=f"Indexing {source.path}", unit=" items", delay=2.0):
            if isinstance(row.value, dict):
                seen.update(str(name) for name in row.value)
            self.items.append(self._item(source.path, row))
        for name in self.fields:
            if seen and name not in seen:
                raise unknown_name(f"fields of {source.path}", name, seen)

    def _item(self, file: str, row: RawRow) -> BenchmarkItem:
        if row.problem:
            return BenchmarkItem(file, row.line, "unreadable", row.problem, 0)
        value = row.value
        if self.fields and isinstance(value, dict):
            value = [value.get(name) for name in self.fields]
        texts = [(text, TOKEN.findall(normalised(text))) for text in _texts(value)]
        longest, tokens = max(texts, key=lambda pair: len(pair[1]), default=("", []))
        # Half of a surrogate pair may stand in a benchmark, and no report could be written with it.
        excerpt = longest[:LONGEST_EXCERPT].encode("utf-8", "backslashreplace").decode("utf-8")
        if len(tokens) < SHORTEST_WHOLE:
            return BenchmarkItem(file, row.line, "too short", excerpt, 0)
        if len(tokens) < self.ngram:
            self._add(len(tokens), [tokens])
            return BenchmarkItem(file, row.line, "whole", excerpt, 1)
        number = self._add(self.ngram, [own for _, own in texts if len(own) >= self.ngram])
        return BenchmarkItem(file, row.line, "ngrams", excerpt, number)

    def _add(self, length: int, texts: list[list[str]]) -> int:
        """Index the n-grams of the next item's texts, and return how many different ones there are."""
        numbers = [[self._vocabulary.setdefault(t, len(self._vocabulary) + 1) for t in text] for text in texts]
        hashes = np.unique(np.concatenate([window_hashes(np.array(n, dtype=np.uint64), length) for n in numbers]))
        self._found.setdefault(length, []).append((len(self.items), hashes))
        return len(hashes)

    def index(self, sha256: dict[str, str]) -> BenchmarkIndex:
        """Return the index of all that was read."""
        lengths: dict[int, NgramTable] = {}
        holders = [np.zeros(0, dtype=np.int64)]
        first = 0
        for length, found in sorted(self._found.items()):
            hashes = np.concatenate([own for _, own in found])
            items = np.repeat([item for item, _ in found], [len(own) for _, own in found])
            unique, place, held_by = np.unique(hashes, return_inverse=True, return_counts=True)
            rare = held_by <= (self.max_items or len(self.items))
            order = np.argsort(place, kind="stable")  # by hash, and for each hash in the order of the items
            order = order[rare[place[order]]]
            starts = np.concatenate([[0], np.cumsum(held_by[rare])])
            lengths[length] = NgramTable(unique[rare], starts, items[order], first)
            holders.append(held_by[rare])
            first += int(rare.sum())
        items_left = self._recounted(lengths) if self.max_items else self.items
        return BenchmarkIndex(
            self.ngram,
            self.fields,
            self.max_items,
            sha256,
            items_left,
            self._vocabulary,
            {length: own for length, own in lengths.items() if len(own.hashes)},
            np.concatenate(holders),
        )

    def _recounted(self, lengths: dict[int, NgramTable]) -> list[BenchmarkItem]:
        """Return the items with the number of n-grams that count."""
        left = Counter(item for own in lengths.values() for item in own.items.tolist())
        return [
            replace(item, num_ngrams=left[number], how=item.how if left[number] else "common")
            if item.num_ngrams
            else item
            for number, item in enumerate(self.items)
        ]


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, in order; without recursion, as lists may be nested as deep as JSON allows."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict | list | tuple):
            waiting += reversed(part.values() if isinstance(part, dict) else part)
