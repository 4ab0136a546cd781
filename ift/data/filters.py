"""Which conversations a run leaves out although they could be used: duplicates, and what overlaps with a benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ift.data.conversation import Conversation
from ift.data.rows import Source, check_source, content_hash

Deduplicate = Literal["none", "exact", "near"]
"""Which conversations are left out where an earlier one stays: none, equal ones, or nearly equal ones too."""


class ConversationFilter(Protocol):
    """Leaves conversations out that could be used."""

    name: str
    """What is counted: duplicate, near_duplicate, contaminated."""

    def check(self, conversation: Conversation, place: str) -> str | None:
        """Return why a conversation is left out, or `None` to keep it; called once for each, in order."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return all that decides the outcome."""
        ...


@dataclass(frozen=True)
class FilterSettings:
    """What is to be left out."""

    deduplicate: Deduplicate = "none"
    benchmarks: tuple[str, ...] = ()
    """Files of benchmark items; a conversation that shares a run of 13 tokens with an item is left out."""

    def check(self, key: str) -> None:
        """Refuse benchmark files that cannot be read.

        Raises:
            UserError: a missing or empty file.
        """
        for number, path in enumerate(self.benchmarks):
            check_source(f"{key}.benchmarks[{number}]", Source(path))

    def describe(self, hashes: Path) -> dict[str, Any]:
        """Return plain values that decide the outcome, without reading an unchanged file again."""
        contents = [
            content_hash(Source(path), key=f"data.benchmarks[{number}]", hashes=hashes)
            for number, path in enumerate(self.benchmarks)
        ]
        return {"duplicates": [dict(one.describe()) for one in self._duplicates()], "benchmarks": contents}

    def build(self) -> list[ConversationFilter]:
        """Return fresh filters: they remember what they have seen."""
        filters: list[ConversationFilter] = []
        if self.benchmarks:
            from ift.data.benchmark_index import index_benchmarks
            from ift.data.contamination import ContaminationFilter

            index = index_benchmarks([Source(path) for path in self.benchmarks], key="data.benchmarks")
            filters.append(ContaminationFilter(index))
        return filters + self._duplicates()

    def _duplicates(self) -> list[ConversationFilter]:
        if self.deduplicate == "none":
            return []
        from ift.data.duplicates import ExactDuplicates, NearDuplicates

        return [ExactDuplicates()] if self.deduplicate == "exact" else [ExactDuplicates(), NearDuplicates()]


NO_FILTERS = FilterSettings()
