"""The contamination report: for each benchmark item, the training rows that overlap with it; as JSON and for people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ift.data.benchmark_index import SHORTEST_WHOLE, BenchmarkIndex, BenchmarkItem
from ift.data.contamination import Overlap

ROWS_PER_ITEM = 10
"""Rows that the report names for one item, those with the largest share; all are counted."""
WORST_ITEMS = 20
COMMON = 10
"""An n-gram that more items hold is common: it says little about any of them."""


@dataclass(frozen=True)
class OverlappingRow:
    """A training row that overlaps with an item."""

    file: str
    line: int
    covered: int
    """Number of the item's n-grams in the row."""
    share: float
    text: str
    """The beginning of the longest shared stretch, normalised."""


@dataclass
class _ItemOverlaps:
    covered: set[int] = field(default_factory=set)
    num_rows: int = 0
    rows: list[OverlappingRow] = field(default_factory=list)


class ContaminationReport:
    """Collects overlaps; memory grows with the benchmark, not with the training rows.

    Args:
        index: of the benchmark files.
    """

    def __init__(self, index: BenchmarkIndex) -> None:
        self.index = index
        self._found: dict[int, _ItemOverlaps] = {}

    def add(self, file: str, line: int, *, overlaps: Sequence[Overlap]) -> None:
        """Add what one training row shares; an item counts it once."""
        for overlap in overlaps:
            own = self._found.setdefault(overlap.item, _ItemOverlaps())
            own.covered |= overlap.ngrams
            own.num_rows += 1
            own.rows.append(OverlappingRow(file, line, len(overlap.ngrams), overlap.share, overlap.text))
            own.rows.sort(key=lambda row: -row.share)  # stable: of equals, the first row stays first
            del own.rows[ROWS_PER_ITEM:]

    def as_json(self) -> dict[str, Any]:
        """Return settings, counts for each benchmark file, and every item."""
        return {
            "ngram": self.index.ngram,
            "fields": list(self.index.fields) or "all",
            "max_items": self.index.max_items,
            "shortest_whole": SHORTEST_WHOLE,
            "rows_per_item": ROWS_PER_ITEM,
            "benchmarks": [self._counts(file) for file in self.index.sha256],
            "items": [self._item(number, item) for number, item in enumerate(self.index.items)],
        }

    def _counts(self, file: str) -> dict[str, Any]:
        numbers = [number for number, item in enumerate(self.index.items) if item.file == file]
        how = Counter(self.index.items[number].how for number in numbers)
        found = [self._found[number] for number in numbers if number in self._found]
        holders = self.index.holders
        checked, overlapping = how["ngrams"] + how["whole"], len(found)
        return {
            "file": file,
            "sha256": self.index.sha256[file],
            "items": len(numbers),
            "checked_by_ngrams": how["ngrams"],
            "checked_whole": how["whole"],
            "too_short": how["too short"],
            "common": how["common"],
            "unreadable": how["unreadable"],
            "checked": checked,
            "overlapping": overlapping,
            "overlapping_by_common_ngrams_only": sum(bool((holders[[*own.covered]] > COMMON).all()) for own in found),
            "share_of_checked": overlapping / checked if checked else 0.0,
        }

    def _item(self, number: int, item: BenchmarkItem) -> dict[str, Any]:
        own = self._found.get(number, _ItemOverlaps())
        return {
            **asdict(item),
            "covered": len(own.covered),
            "share": len(own.covered) / item.num_ngrams if item.num_ngrams else 0.0,
            "num_rows": own.num_rows,
            "rows": [asdict(row) for row in own.rows],
        }


def as_markdown(report: dict[str, Any], training: Sequence[dict[str, Any]]) -> str:
    """Return the report for people: both sides in counts, and the items that overlap most.

    Args:
        report: of `ContaminationReport.as_json`.
        training: `file`, `rows`, `overlapping`, `unreadable` of each training file.
    """
    lines = [
        "# Contamination report",
        "",
        f"An item overlaps where it shares a run of {report['ngram']} tokens with a training row (a token is one "
        "character of Chinese, Japanese or Thai, or one run of other letters and digits; NFKC, without upper case and "
        f"punctuation). Items whose texts are all shorter were looked for whole, from {SHORTEST_WHOLE} tokens on.",
        "",
        "| benchmark | items | by n-grams | whole | too short | common | unreadable | overlapping | share of checked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for own in report["benchmarks"]:
        names = ("items", "checked_by_ngrams", "checked_whole", "too_short", "common", "unreadable", "overlapping")
        cells = [own["file"], *(str(own[name]) for name in names), f"{own['share_of_checked']:.2%}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += common_hint(report)
    lines += ["", "| training file | rows | overlapping | unreadable |", "|---|---|---|---|"]
    lines += [f"| {own['file']} | {own['rows']} | {own['overlapping']} | {own['unreadable']} |" for own in training]
    worst = sorted((item for item in report["items"] if item["num_rows"]), key=lambda item: -item["share"])
    if worst:
        lines += ["", f"## The {min(len(worst), WORST_ITEMS)} of {len(worst)} items that overlap most"]
    for item in worst[:WORST_ITEMS]:
        lines += _item_lines(item)
    return "\n".join(lines) + "\n"


def common_hint(report: dict[str, Any]) -> list[str]:
    """Return what to say where items overlap by common n-grams only, one paragraph for each benchmark file."""
    return [
        f"\n{own['overlapping_by_common_ngrams_only']} of the {own['overlapping']} overlapping items of {own['file']} "
        f"share nothing but n-grams that more than {COMMON} items hold, such as a phrase that begins all questions; "
        f"`--max_items {COMMON}` leaves those n-grams out."
        for own in report["benchmarks"]
        if own["overlapping_by_common_ngrams_only"]
    ]


def _item_lines(item: dict[str, Any]) -> list[str]:
    best = item["rows"][0]
    rows = "1 row" if item["num_rows"] == 1 else f"{item['num_rows']} rows"
    return [
        "",
        f"### {item['file']} line {item['line']}",
        "",
        f"{item['covered']} of {item['num_ngrams']} n-grams ({item['share']:.0%}) in {rows}; the most in "
        f"{best['file']} line {best['line']} ({best['share']:.0%}).",
        "",
        f"- item: {_one_line(item['excerpt'])}",
        f"- shared: {_one_line(best['text'])}",
    ]


def _one_line(text: str) -> str:
    """Return a text between backticks, so that nothing in it is taken for Markdown."""
    return "`" + " ".join(text.replace("`", "'").split())[:200] + "`"
