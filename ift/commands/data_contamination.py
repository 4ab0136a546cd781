"""`ift data contamination`: which training rows overlap with which items of a benchmark, and a copy without them."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ift.artifacts import write_json
from ift.commands.option_parser import OptionParser
from ift.commands.row_files import (
    UNREADABLE,
    FileCounts,
    Write,
    add_input_options,
    check_new,
    json_lines,
    sift,
    sources_of,
)
from ift.data.benchmark_index import DEFAULT_NGRAM, index_benchmarks
from ift.data.contamination import ContaminationFilter, Overlap, find_overlaps
from ift.data.contamination_report import ContaminationReport, as_markdown, common_hint
from ift.data.conversation import Conversation
from ift.data.row_conversations import Reject
from ift.data.rows import RawRow, Source


class ContaminationJudge:
    """Leaves out a row one of whose conversations is contaminated, and reports every overlap.

    Args:
        chosen: the filter that decides.
        report: gets every overlap.
        write: gets one object for each row that overlaps.
    """

    def __init__(self, chosen: ContaminationFilter, report: ContaminationReport, write: Write) -> None:
        self._filter, self._report, self._write = chosen, report, write
        self.overlapping: Counter[str] = Counter()
        """File to the number of rows that overlap."""

    def __call__(self, conversations: Sequence[Conversation], row: RawRow, source: Source) -> Reject | None:
        """Return why a row is left out, or `None`."""
        overlaps = self._merged([find_overlaps(self._filter.index, conversation) for conversation in conversations])
        if not overlaps:
            return None
        self.overlapping[source.path] += 1
        self._report.add(source.path, row.line, overlaps=overlaps)
        self._write({"file": source.path, "line": row.line, "items": [self._item(overlap) for overlap in overlaps]})
        reason = self._filter.reason(overlaps)
        return Reject.of(row, source.path, kind=self._filter.name, reason=reason) if reason else None

    def _merged(self, found: Sequence[Sequence[Overlap]]) -> list[Overlap]:
        """Return one overlap for each item, of all conversations of a row."""
        merged: dict[int, Overlap] = {}
        for overlap in (overlap for own in found for overlap in own):
            other = merged.get(overlap.item)
            ngrams = overlap.ngrams | other.ngrams if other else overlap.ngrams
            text = max(other.text, overlap.text, key=len) if other else overlap.text
            share = len(ngrams) / self._filter.index.items[overlap.item].num_ngrams
            merged[overlap.item] = Overlap(overlap.item, ngrams, share, text)
        return [merged[item] for item in sorted(merged)]

    def _item(self, overlap: Overlap) -> dict[str, Any]:
        item = self._filter.index.items[overlap.item]
        own = {"covered": len(overlap.ngrams), "num_ngrams": item.num_ngrams, "share": overlap.share}
        return {"file": item.file, "line": item.line, **own, "text": overlap.text}


def parser() -> OptionParser:
    """Return the options."""
    result = OptionParser(
        "ift data contamination",
        "Report, item by item, the n-grams that training rows share with benchmark files. The report folder holds "
        "report.md to read, report.json with every item, and overlaps.jsonl with every training row that overlaps.",
    )
    add_input_options(result)
    result.add_argument("--benchmark", nargs="+", required=True, metavar="FILE", help="benchmark files, in any layout")
    result.add_argument(
        "--fields", default="", metavar="A,B", help="fields of the benchmark rows that count (default: all texts)"
    )
    result.add_argument(
        "--ngram",
        type=int,
        default=DEFAULT_NGRAM,
        metavar="N",
        help="tokens of an n-gram: characters in Chinese, words in English (default: %(default)s)",
    )
    result.add_argument(
        "--max_items",
        type=int,
        default=None,
        metavar="N",
        help="n-grams that more than N items hold do not count (default: all count)",
    )
    result.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the report")
    result.add_argument(
        "--kept",
        metavar="FILE",
        help="also write the training rows that stay to this new file, and the others to removed.jsonl in the folder",
    )
    result.add_argument(
        "--min_share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --kept: least share of an item's n-grams for which a row is left out (default: any overlap)",
    )
    return result


def run(subcommand: str, arguments: list[str]) -> None:
    """Run `contamination`.

    Raises:
        UserError: an option or a file that is wrong.
    """
    options = parser().parse(arguments)
    sources = sources_of(options.input, options.layout)
    benchmarks = sources_of(options.benchmark, None, key="--benchmark")
    check_new({"kept": options.kept}, folders={"output": options.output})
    fields = [name.strip() for name in options.fields.split(",") if name.strip()]
    index = index_benchmarks(
        benchmarks, ngram=options.ngram, fields=fields, max_items=options.max_items, key="--benchmark"
    )
    chosen = ContaminationFilter(index, min_share=options.min_share)
    folder = Path(options.output).expanduser()
    report = ContaminationReport(index)
    with ExitStack() as files:
        judge = ContaminationJudge(chosen, report, files.enter_context(json_lines(folder / "overlaps.jsonl")))
        keep = files.enter_context(json_lines(options.kept)) if options.kept else _nowhere
        remove = files.enter_context(json_lines(folder / "removed.jsonl")) if options.kept else _nowhere
        all_counts = sift(sources, judge, keep=keep, remove=remove)
    training = [_training(counts, judge.overlapping[counts.file], removes=bool(options.kept)) for counts in all_counts]
    described = report.as_json()
    write_json(folder / "report.json", {"training": training, "min_share": options.min_share, **described})
    (folder / "report.md").write_text(as_markdown(described, training), encoding="utf-8", errors="backslashreplace")
    _print(described, training, options.output, options.kept)


def _nowhere(value: Any) -> None:
    """Take what nobody asked to be written."""


def _training(counts: FileCounts, overlapping: int, *, removes: bool) -> dict[str, Any]:
    """Return the counts of a training file; without `--kept` no row is removed."""
    own = {
        "file": counts.file,
        "rows": counts.rows,
        "overlapping": overlapping,
        "unreadable": counts.removed[UNREADABLE],
    }
    return own | ({"kept": counts.kept, "removed": dict(counts.removed)} if removes else {})


def _print(report: dict[str, Any], training: Sequence[dict[str, Any]], output: str, kept: str | None) -> None:
    for own in training:
        print(f"{own['file']}: {own['rows']} rows, {own['overlapping']} overlap, {own['unreadable']} unreadable")
    for own in report["benchmarks"]:
        print(
            f"{own['file']}: {own['items']} items, {own['checked']} checked, {own['too_short']} too short to check, "
            f"{own['unreadable']} unreadable; {own['overlapping']} overlap ({own['share_of_checked']:.2%} of those)"
        )
    for hint in common_hint(report):
        print(hint.strip())
    print(f"report: {output}/report.md")
    if kept is not None:
        removed = sum(sum(own["removed"].values()) for own in training)
        print(f"kept {sum(own['kept'] for own in training)} rows: {kept}")
        print(f"removed {removed} rows: {output}/removed.jsonl")
