"""What became of the rows of a source: the numbers of the manifest and of the audit."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ift.data.encoding import NO_LOSS, STOP_LOSS, EncodedBatch, Encoder

TOO_LONG = "longer than data.max_length"
"""Begins the reason for which an example that is too long is rejected."""
_MOST_KINDS = 50
"""Distinct reasons that are counted apart; a reason may hold a row's own words, and there may be millions of rows."""
LENGTH_EDGES = np.unique(np.round(2.0 ** np.arange(0, 20.5, 0.5)).astype(np.int64))
"""Lower edges of the histogram of lengths, in tokens: half powers of two."""


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that the audit looks for."""

    begin: int | None
    """Begin-of-text, where the tokenizer has one."""
    stops: tuple[int, ...]
    """What ends a response."""
    end: int
    """End-of-text."""
    unknown: int | None
    """What stands for text that the tokenizer has no token for, where it has such a token."""

    @classmethod
    def of(cls, encoder: Encoder) -> "SpecialTokens":
        """Return those of an encoder."""
        stops = tuple(encoder.stop_token_ids)
        return cls(encoder.begin_token_id, stops, encoder.end_token_id, encoder.unknown_token_id)


@dataclass
class SourceCounts:
    """What became of the rows of one source."""

    path: str
    layout: str
    weight: float
    sha256: str
    detected: bool = False
    """Whether the layout was found out from the rows."""
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason to number of conversations that cannot be used."""
    first_rejects: list[str] = field(default_factory=list)
    """The first few rejected rows, as `file line N: reason`."""
    removed: dict[str, int] = field(default_factory=dict)
    """Filter (duplicate, near_duplicate, contaminated) to number of conversations that were asked to be left out."""
    cut: int = 0
    """Examples that were cut to `data.max_length`."""
    texts: int = 0
    """Plain texts that were joined and cut into blocks."""
    blocks: int = 0
    """Examples that are such blocks."""
    short_blocks: int = 0
    """Those that are shorter than `data.max_length`: what was left over."""
    left_out_texts: int = 0
    """Texts before a last response that were to be learned, and that a template with `last_output_only` leaves out."""
    unknown_tokens: int = 0
    """Tokens that stand for text of which the tokenizer knows nothing."""
    longest: int = 0
    """Tokens of the longest example."""
    lengths: list[int] = field(default_factory=lambda: [0] * len(LENGTH_EDGES))
    """Number of examples per bin of `LENGTH_EDGES`."""
    responses: int = 0
    """Supervised stretches of text."""
    ended_responses: int = 0
    """Those with a supervised token that ends a response, so that the model learns to stop; it need not be the last
    token, as some templates write a newline behind it."""
    supervised_per_turn: list[int] = field(default_factory=list)
    """Supervised tokens of the first, second, … supervised stretch of the examples."""
    examples_per_turn: list[int] = field(default_factory=list)
    """Examples that have a first, second, … supervised stretch."""
    doubled_begin: int = 0
    """Examples that begin with begin-of-text twice."""

    @property
    def num_used(self) -> int:
        """Number of conversations that are in the examples: a text counts once, however many blocks it is in."""
        return self.examples - self.blocks + self.texts

    @property
    def num_rejected(self) -> int:
        """Number of conversations that became no example and were not asked to be left out."""
        return sum(self.rejected.values())

    @property
    def num_removed(self) -> int:
        """Number of conversations that a filter left out."""
        return sum(self.removed.values())

    def reject(self, kind: str, place: str) -> None:
        """Count a conversation that cannot be used."""
        kind = kind if kind in self.rejected or len(self.rejected) < _MOST_KINDS else "other reasons"
        self.rejected[kind] = self.rejected.get(kind, 0) + 1
        if len(self.first_rejects) < 3:
            self.first_rejects.append(place)

    def remove(self, kind: str) -> None:
        """Count a conversation that a filter left out."""
        self.removed[kind] = self.removed.get(kind, 0) + 1

    def add(self, batch: EncodedBatch, special: SpecialTokens) -> None:
        """Count the examples of a batch."""
        if not len(batch):
            return
        self.examples += len(batch)
        self.tokens += len(batch.input_ids)
        self.supervised_tokens += int(batch.num_supervised.sum())
        if special.unknown is not None:
            self.unknown_tokens += int((batch.input_ids == special.unknown).sum())
        self.longest = max(self.longest, int(batch.num_tokens.max()))
        bins = np.searchsorted(LENGTH_EDGES, batch.num_tokens, side="right") - 1
        self.lengths = (np.array(self.lengths) + np.bincount(bins, minlength=len(LENGTH_EDGES))).tolist()
        self._add_responses(batch, special)
        starts = batch.starts[:-1]
        if special.begin is not None:
            second = np.minimum(starts + 1, len(batch.input_ids) - 1)
            both = (batch.input_ids[starts] == special.begin) & (batch.input_ids[second] == special.begin)
            self.doubled_begin += int((both & (batch.num_tokens > 1)).sum())

    def _add_responses(self, batch: EncodedBatch, special: SpecialTokens) -> None:
        counted = batch.loss != NO_LOSS
        first = np.zeros(len(counted), dtype=bool)  # of its example
        first[batch.starts[:-1]] = True
        # The token that another response's end is learned from may be followed directly by the next response.
        after_stop = np.concatenate(([False], batch.loss[:-1] == STOP_LOSS))
        begins = counted & (first | after_stop | np.concatenate(([True], ~counted[:-1])))
        labels = np.where(batch.loss == STOP_LOSS, special.end, batch.input_ids)
        self.responses += int(begins.sum())
        owner = np.repeat(np.arange(len(batch)), batch.num_tokens)
        run = np.cumsum(begins)
        self.ended_responses += len(np.unique(run[counted & np.isin(labels, special.stops)]))
        before = np.concatenate(([0], run))[batch.starts[:-1]]  # responses before each example
        turn = (run - before[owner] - 1)[counted]
        self.supervised_per_turn = _added(self.supervised_per_turn, np.bincount(turn))
        turns = (run - before[owner] - 1)[begins]
        self.examples_per_turn = _added(self.examples_per_turn, np.bincount(turns))

    def describe(self) -> dict[str, Any]:
        """Return the counts as plain values, for the manifest and the store."""
        return asdict(self)


def _added(one: list[int], other: Any) -> list[int]:
    size = max(len(one), len(other))
    total = np.zeros(size, dtype=np.int64)
    total[: len(one)] += np.array(one, dtype=np.int64)
    total[: len(other)] += other
    return [int(value) for value in total]


def describe_blocks(counts: SourceCounts) -> str:
    """Return what became of the texts of a source that are joined, in a few words."""
    shorter = f" ({counts.short_blocks} of them shorter)" if counts.short_blocks else ""
    return f"{counts.texts} texts joined and cut into {counts.blocks} blocks{shorter}"


def reject_report(counts: Sequence[SourceCounts]) -> str:
    """Return the rejected rows of all sources in a few lines: how many for which reason, and the first places."""
    reasons: Counter[str] = Counter()
    for source in counts:
        reasons.update(source.rejected)
    lines = [f"  {number} x {reason}" for reason, number in reasons.most_common(5)]
    lines += [f"  {place}" for source in counts for place in source.first_rejects][:4]
    return "\n".join(lines)


def rejected_advice(reasons: Iterable[str]) -> str:
    """Return what to do about rejected rows, by the reasons for which they were."""
    found = set(reasons)
    long = {reason for reason in found if reason.startswith(TOO_LONG)}
    advice = ["Mend the rows or their layout."] if found - long else []
    if long == {TOO_LONG}:
        advice.append(
            "Raise data.max_length, or let data.over_long cut what is longer (cut_turns, cut_start, cut_end)."
        )
    elif long:
        advice.append("Raise data.max_length, or let data.over_long cut otherwise (cut_turns, cut_start, cut_end).")
    return " ".join([*advice, "Or raise data.max_rejected."])
