"""The audit of prepared data: what was counted while preparing, duplicates, and what makes training impossible."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ift.data.counts import SourceCounts
from ift.data.store import ExampleStore


@dataclass(frozen=True)
class SourceAudit:
    """The numbers of one source."""

    counts: SourceCounts
    duplicates: int
    """Examples whose ids equal those of an earlier example of the same source."""

    @property
    def supervised_share(self) -> float:
        """Supervised tokens per token, 0 to 1."""
        return _share(self.counts.supervised_tokens, self.counts.tokens)

    @property
    def end_of_text_rate(self) -> float:
        """Responses whose end is supervised, per response, 0 to 1."""
        return _share(self.counts.ended_responses, self.counts.responses)

    @property
    def cut_share(self) -> float:
        """Examples that were cut, per example, 0 to 1."""
        return _share(self.counts.cut, self.counts.examples)

    @property
    def mean_tokens(self) -> float:
        """Tokens per example."""
        return _share(self.counts.tokens, self.counts.examples)


@dataclass(frozen=True)
class Audit:
    """The numbers of all sources."""

    sources: tuple[SourceAudit, ...]
    duplicates_between_sources: int
    """Distinct examples of a source that an earlier source holds too, summed over the sources."""

    def describe(self) -> dict[str, Any]:
        """Return what the counts do not say themselves as plain values, for the manifest."""
        return {
            "sources": [
                {
                    "path": one.counts.path,
                    "supervised_share": round(one.supervised_share, 6),
                    "end_of_text_rate": round(one.end_of_text_rate, 6),
                    "cut_share": round(one.cut_share, 6),
                    "mean_tokens": round(one.mean_tokens, 3),
                    "duplicates": one.duplicates,
                }
                for one in self.sources
            ],
            "duplicates_between_sources": self.duplicates_between_sources,
        }


def audit(store: ExampleStore) -> Audit:
    """Return the audit of a store.

    Duplicates are found once per store and kept beside it, so that a later start reads no example.
    """
    within, between = _known_duplicates(store.folder) or _find_duplicates(store)
    sources = tuple(SourceAudit(counts, number) for counts, number in zip(store.counts, within, strict=True))
    return Audit(sources, between)


def total(sources: Sequence[SourceAudit]) -> SourceAudit:
    """Return the numbers of several sources as those of one; of weights, hashes and the like it says nothing."""
    counts = SourceCounts("", "", 1.0, "")
    for one in (source.counts for source in sources):
        for name in ("rows", "examples", "tokens", "supervised_tokens", "cut", "responses", "ended_responses"):
            setattr(counts, name, getattr(counts, name) + getattr(one, name))
        counts.doubled_begin += one.doubled_begin
        counts.longest = max(counts.longest, one.longest)
        counts.rejected = _added(counts.rejected, one.rejected)
        counts.removed = _added(counts.removed, one.removed)
    return SourceAudit(counts, sum(source.duplicates for source in sources))


def problems(audited: Audit, key: str, *, numbers: Sequence[int] | None = None) -> list[str]:
    """Return what makes it senseless to train on the data, one text each with key, numbers and repair.

    Args:
        audited: what `audit` returned.
        key: of the sources in the configuration: `data.sources`, or `data.validation`.
        numbers: of the sources under that key, where these are not all of them.
    """
    return [
        f"{key}[{number}]: {problem}"
        for number, source in zip(numbers or range(len(audited.sources)), audited.sources, strict=True)
        for problem in _problems(source.counts)
    ]


def _problems(counts: SourceCounts) -> list[str]:
    found = []
    if counts.rows and not counts.supervised_tokens and not counts.num_removed:
        reasons = ", ".join(f"{number} x {reason}" for reason, number in list(counts.rejected.items())[:3])
        found.append(
            f"none of the {counts.rows} rows of '{counts.path}' gives a supervised token, so there is nothing to learn "
            f"from it ({reasons or f'{counts.examples} examples'}). Mend the rows or their layout, raise "
            "data.max_length where they are too long, or leave the source out."
        )
    if counts.responses and not counts.ended_responses:
        cut = f" ({counts.cut} of {counts.examples} examples are cut)" if counts.cut else ""
        found.append(
            f"end-of-text is never supervised: none of {counts.responses} responses of '{counts.path}' ends with it"
            f"{cut}, so the model would never learn to stop. "
            + ("Raise data.max_length, or set data.over_long to drop or cut_turns." if cut else _NO_END)
        )
    if counts.doubled_begin:
        found.append(
            f"begin-of-text stands twice at the start of {counts.doubled_begin} of {counts.examples} examples of "
            f"'{counts.path}', which no model has seen. Write it once in the template (data.template), or in the "
            "tokenizer's own chat template."
        )
    return found


_NO_END = "Name another data.template, or end each response in it with a stop token."


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _known_duplicates(folder: Path) -> tuple[list[int], int] | None:
    try:
        found = json.loads((folder / "duplicates.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found["within"], found["between"]


def _find_duplicates(store: ExampleStore) -> tuple[list[int], int]:
    """Count duplicates within each source and between them, in the memory of the column of digests."""
    digests = store.column("digest")
    within = []
    for number in range(len(store.counts)):
        start, stop = store.source_range(number)
        digests[start:stop].sort()
        within.append(_num_repeats(digests[start:stop]))
    digests.sort()
    between = _num_repeats(digests) - sum(within)
    path = store.folder / "duplicates.json"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # other ranks may write it too
    with suppress(OSError):  # a cache that may only be read: the next start counts again
        temporary.write_text(json.dumps({"within": within, "between": between}), encoding="utf-8")
        os.replace(temporary, path)
    return within, between


def _num_repeats(ordered: npt.NDArray[np.uint64]) -> int:
    return int((ordered[1:] == ordered[:-1]).sum())
