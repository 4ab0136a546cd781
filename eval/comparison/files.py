"""Writes a comparison: Markdown and LaTeX for people, CSV and JSON for programs, a chart per benchmark."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from eval.comparison.charts import chart
from eval.comparison.grids import latex, markdown, terminal
from eval.comparison.numbers import Entry
from eval.comparison.tables import READING, Comparison, grids, wide_tables
from ift.errors import UserError

_WIDE = 12
"""Parts up to which a table of systems by parts fits a page."""
_PREAMBLE = (
    "% Needs the packages booktabs and longtable; names in Chinese also ctex, compiled with XeLaTeX or LuaLaTeX.\n"
    "% Scores, differences and p values are those of compare.csv.\n"
)
_ENTRY_COLUMNS = (
    "score", "low", "high", "num_seeds", "deviation_over_seeds",
    "difference", "difference_low", "difference_high", "p_value", "p_value_holm", "wins", "ties", "losses",
    "test", "interval_method", "verdict",
    "seed_difference", "seed_difference_low", "seed_difference_high", "seed_p_value",
)  # fmt: skip
Kind = Literal["radar", "bar"]


def as_text(comparison: Comparison) -> str:
    """Return all tables for a terminal."""
    return "\n\n".join([*(terminal(grid) for grid in grids(comparison)), fill(READING, 110)])


def write_files(folder: Path, comparison: Comparison, kind: Kind | None) -> list[Path]:
    """Write all files and return their paths.

    Args:
        folder: is made where it is missing.
        comparison: what to write.
        kind: of the charts; `None` for the one that fits the number of parts.

    Raises:
        UserError: one of the files exists.
    """
    texts = {
        "compare.md": as_markdown(comparison),
        "compare.tex": as_latex(comparison),
        "compare.csv": as_csv(comparison),
        "compare.json": json.dumps(as_json(comparison), ensure_ascii=False, indent=2) + "\n",
    }
    if comparison.damage:
        texts["damage.csv"] = changes_csv(comparison)
    for table in comparison.tables:
        texts[f"{_file_name(table.label)}.svg"] = chart(table, kind)
    paths = [folder / name for name in texts]
    for path in (folder, *paths):
        if path.is_file():
            raise UserError(f"--output: {path} exists and nothing is overwritten. Give another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    return paths


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "_", label).strip("_")


def as_markdown(comparison: Comparison) -> str:
    """Return all tables and charts as a Markdown document."""
    charts = [f"![{table.label}]({_file_name(table.label)}.svg)\n" for table in comparison.tables]
    head = f"# {' / '.join(comparison.systems)}\n\nBaseline: {comparison.baseline}. {READING}\n"
    return "\n".join([head, *(markdown(grid) for grid in grids(comparison)), "## Charts\n", *charts])


def as_latex(comparison: Comparison) -> str:
    """Return all tables as LaTeX, with one of systems by parts for each benchmark whose parts fit a page."""
    return "\n".join([_PREAMBLE, *(latex(grid) for grid in [*wide_tables(comparison, _WIDE), *grids(comparison)])])


def as_csv(comparison: Comparison) -> str:
    """Return one line per benchmark, part and system, in full precision and not in percent."""
    columns = ("benchmark", "part", "name", "n", "system", "baseline", *_ENTRY_COLUMNS)
    rows = [
        (table.label, row.kind, row.name, row.n, entry.system, comparison.baseline, *_facts(entry).values())
        for table in comparison.tables
        for row in table.rows
        for entry in row.entries
    ]
    return _csv(columns, rows)


def changes_csv(comparison: Comparison) -> str:
    """Return one line per system and benchmark against the untuned base."""
    rows = list(_changes(comparison))
    return _csv(tuple(rows[0]), [tuple(row.values()) for row in rows])


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return everything, in full precision and not in percent; what is unknown is null."""
    return {
        "systems": list(comparison.systems),
        "baseline": comparison.baseline,
        "benchmarks": [
            {
                "benchmark": table.label,
                "measured": dict(table.identity),
                "lower_is_better": table.lower_is_better,
                "items_left_out": table.left_out,
                "notes": list(table.notes),
                "rows": [
                    {
                        "part": row.kind,
                        "name": row.name,
                        "n": row.n,
                        "systems": {entry.system: _facts(entry) for entry in row.entries},
                    }
                    for row in table.rows
                ],
            }
            for table in comparison.tables
        ],
        "changes": list(_changes(comparison)),
    }


def _facts(entry: Entry) -> dict[str, Any]:
    difference, seeds = entry.difference, entry.seed_difference
    values: list[Any] = [entry.score, *entry.interval, entry.seeds.num_seeds, entry.seeds.deviation]
    if difference is None:
        values += [None] * 11
    else:
        values += [difference.estimate, *difference.interval, difference.p_value, difference.adjusted]
        values += [difference.wins, difference.ties, difference.losses, difference.test, difference.method]
        values += [difference.verdict]
    values += [None] * 4 if seeds is None else [seeds.estimate, *seeds.interval, seeds.p_value]
    return {name: _known(value) for name, value in zip(_ENTRY_COLUMNS, values, strict=True)}


def _changes(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for one in comparison.damage.changes if comparison.damage else ():
        facts = _facts(one.after)
        facts |= {"p_value_holm": one.difference.adjusted, "verdict": one.difference.verdict} if one.difference else {}
        yield {
            "system": one.system,
            "base": one.base,
            "benchmark": one.label,
            "kind": "damage" if one.is_skill else "gain",
            "lower_is_better": one.lower_is_better,
            "gain": one.gain,
            "ratio": _known(one.ratio),
            "base_score": one.before.score,
            **facts,
        }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()
