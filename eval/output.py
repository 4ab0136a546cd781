"""Writes a report as `report.json` (for programs) and `report.md` (for people), both with the same facts."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.benchmark import Benchmark
from eval.report import Report, Score
from ift.errors import UserError

NAMES = ("report.json", "report.md")
_SHOWN_UNPARSED = 10


@dataclass(frozen=True)
class Sources:
    """What a report was computed from."""

    data: Path
    predictions: Path
    limit: int | None
    """Size of the sample of the data, `None` for all of it."""
    seed: int
    """Of the sample."""


def refuse_existing(folder: Path) -> None:
    """Refuse a folder that holds a report, and a file in its place.

    Raises:
        UserError: there is one.
    """
    for path in (folder, *(folder / name for name in NAMES)):
        if path.is_file():
            raise UserError(f"--output: {path} exists and nothing is overwritten. Give another folder, or remove it.")


def write_report(folder: Path, benchmark: Benchmark, report: Report, sources: Sources) -> dict[str, object]:
    """Write both files into a folder, each whole or not at all, and return what `report.json` holds."""
    refuse_existing(folder)
    facts = report_facts(benchmark, report, sources)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.json", json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    _write(folder / "report.md", report_markdown(benchmark, report, sources))
    return facts


def report_facts(benchmark: Benchmark, report: Report, sources: Sources) -> dict[str, object]:
    """Return what `report.json` holds; README.md describes it."""
    sample = {} if sources.limit is None else {"limit": sources.limit, "seed": sources.seed}
    num_items = report.overall.n + sum(report.excluded.values())
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "protocol_version": benchmark.version,
        "answers": report.answers,
        "data": {"path": str(sources.data), "sha256": _sha256(sources.data), "n": num_items, **sample},
        "predictions": {"path": str(sources.predictions), "sha256": _sha256(sources.predictions)},
        "overall": _score_facts(report.overall),
        "macro": report.macro,
        "categories": {name: _score_facts(score) for name, score in report.categories.items()},
        "excluded": dict(report.excluded),
        "unparsed": len(report.unparsed),
        "unparsed_responses": dict(report.unparsed),
        "tied": report.tied,
        "finish_reasons": dict(report.finish_reasons),
    }


def report_markdown(benchmark: Benchmark, report: Report, sources: Sources) -> str:
    """Return the text of `report.md`."""
    sample = "" if sources.limit is None else f", a sample of {sources.limit} rows (seed {sources.seed})"
    rows = [*report.categories.items(), ("**overall (micro)**", report.overall)]
    return "\n".join(
        [
            f"# {benchmark.name}",
            "",
            f"Protocol {benchmark.protocol}, version {benchmark.version}; answers {report.answers}.",
            "",
            "| category | n | score | 95 % interval |",
            "|---|---:|---:|---|",
            *(_table_row(name, score) for name, score in rows),
            f"| **macro (mean of categories)** | | {report.macro:.4f} | |",
            "",
            f"- data: `{sources.data}`{sample}, sha256 `{_sha256(sources.data)}`",
            f"- predictions: `{sources.predictions}`, sha256 `{_sha256(sources.predictions)}`",
            f"- excluded: {_counts(report.excluded)}",
            f"- unparsed, counted as wrong: {len(report.unparsed)}",
            f"- tied, counted as wrong: {report.tied}",
            f"- responses ended by: {_counts(report.finish_reasons)}",
            *_unparsed_lines(report.unparsed),
            "",
        ]
    )


def _score_facts(score: Score) -> dict[str, object]:
    return {"n": score.n, "score": score.score, "interval": list(score.interval)}


def _table_row(name: str, score: Score) -> str:
    low, high = score.interval
    return f"| {name.replace('|', '&#124;')} | {score.n} | {score.score:.4f} | {low:.4f} – {high:.4f} |"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "0"


def _unparsed_lines(unparsed: Mapping[str, str]) -> list[str]:
    if not unparsed:
        return []
    shown = list(unparsed.items())[:_SHOWN_UNPARSED]
    title = f"## Unparsed responses (first {len(shown)} of {len(unparsed)}; all in report.json)"
    return ["", title, "", *(f"- {name}: {json.dumps(response, ensure_ascii=False)}" for name, response in shown)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
