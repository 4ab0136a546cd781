"""The audit as words and numbers that people read; the terminal and the page lay them out."""

from collections.abc import Sequence
from dataclasses import dataclass

from ift.data.audit import Audit, SourceAudit, total
from ift.data.counts import LENGTH_EDGES, SourceCounts, describe_blocks

_MOST_TURNS = 12
"""Turns that are shown apart; later ones are summed."""


@dataclass(frozen=True)
class Line:
    """One number of every source."""

    label: str
    values: tuple[str, ...]
    """One per source, then that of all of them where there are several."""
    explanation: str


@dataclass(frozen=True)
class Bin:
    """Examples of about the same length."""

    lower: int
    """Fewest tokens."""
    upper: int
    """Fewest tokens of the next bin."""
    count: int


def number(value: int) -> str:
    """Return a number with separated thousands."""
    return f"{value:,}"


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal; 0.0 % and 100.0 % are exact, what only rounds to them is not."""
    text = f"{100 * share:.1f}%"
    if text == "0.0%" and share > 0:
        return "<0.1%"
    return ">99.9%" if text == "100.0%" and share < 1 else text


def audit_lines(audit: Audit) -> list[Line]:
    """Return the audit's table: one line per fact, one value per source."""
    sources = list(audit.sources)
    if len(sources) > 1:
        sources.append(total(audit.sources))
    columns = [_values(source) for source in sources]
    return [
        Line(label, tuple(column[place] for column in columns), explanation)
        for place, (label, explanation) in enumerate(_LABELS)
    ]


_LABELS = (
    ("rows", "read from the files"),
    ("examples", "conversations that can be trained on"),
    ("rejected", "conversations that cannot be used; the reasons stand below"),
    ("left out", "conversations that a filter left out (duplicates, contamination)"),
    ("tokens", "of all examples"),
    ("supervised tokens", "those that the loss counts"),
    ("supervised share", "supervised tokens per token"),
    ("tokens per example", "mean"),
    ("longest example", "in tokens"),
    ("cut", "examples that were cut to data.max_length"),
    ("responses", "supervised stretches of text"),
    ("end-of-text rate", "responses whose end is supervised, so that the model learns to stop"),
    ("duplicates", "examples whose tokens equal those of an earlier one of the same source"),
)


def _values(source: SourceAudit) -> tuple[str, ...]:
    counts = source.counts
    return (
        number(counts.rows),
        number(counts.examples),
        number(counts.num_rejected),
        number(counts.num_removed),
        number(counts.tokens),
        number(counts.supervised_tokens),
        percent(source.supervised_share) if counts.tokens else "–",
        f"{source.mean_tokens:,.1f}" if counts.examples else "–",
        number(counts.longest),
        f"{number(counts.cut)} ({percent(source.cut_share)})",
        number(counts.responses),
        percent(source.end_of_text_rate) if counts.responses else "–",
        number(source.duplicates),
    )


@dataclass(frozen=True)
class Turn:
    """The n-th responses of the examples of a source."""

    name: str
    examples: int
    """Those that have it."""
    tokens: int
    """Supervised ones of it."""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Name, examples, supervised tokens, and their mean per response, for reading."""
        mean = f"{self.tokens / max(1, self.examples):,.1f}"
        return self.name, number(self.examples), number(self.tokens), mean


def turns_of(counts: SourceCounts) -> list[Turn]:
    """Return the turns of a source; those after the twelfth are one."""
    examples, tokens = counts.examples_per_turn, counts.supervised_per_turn
    found = [Turn(str(place + 1), examples[place], tokens[place]) for place in range(len(examples))]
    if len(found) <= _MOST_TURNS:
        return found
    later = Turn(f"{_MOST_TURNS + 1} to {len(found)}", sum(examples[_MOST_TURNS:]), sum(tokens[_MOST_TURNS:]))
    return [*found[:_MOST_TURNS], later]


def histogram(counts: SourceCounts) -> list[Bin]:
    """Return the bins of the lengths, from the first that holds an example to the last."""
    filled = [place for place, count in enumerate(counts.lengths) if count]
    if not filled:
        return []
    edges = [*LENGTH_EDGES.tolist(), int(LENGTH_EDGES[-1]) * 2]
    return [Bin(edges[place], edges[place + 1], counts.lengths[place]) for place in range(filled[0], filled[-1] + 1)]


def by_count(reasons: dict[str, int]) -> Sequence[tuple[str, int]]:
    """Return reasons and their numbers, the commonest first."""
    return sorted(reasons.items(), key=lambda item: -item[1])


def describe_layout(counts: SourceCounts) -> str:
    """Return how the rows of a source are read."""
    return f"layout {counts.layout}" + (" (detected)" if counts.detected else "")


def describe_source(counts: SourceCounts) -> str:
    """Return where a source's rows come from, how they are read, what they weigh, and which are joined into blocks."""
    weight = "" if counts.weight == 1 else f", weight {counts.weight:g}"
    blocks = f", {describe_blocks(counts)}" if counts.texts else ""
    return f"{counts.path}: {describe_layout(counts)}{weight}{blocks}"
