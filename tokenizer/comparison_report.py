"""Writes a comparison as a table for people, as JSON, and as bars. SVG is written by hand and needs no package."""

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from tokenizer.comparison import Comparison

_COLUMNS = (
    ("characters_per_token", "chars/token", "{:.3f}"),
    ("bytes_per_token", "bytes/token", "{:.3f}"),
    ("tokens_per_record", "tokens/record", "{:.1f}"),
    ("unknown_rate", "unknown", "{:.3%}"),
    ("byte_rate", "bytes", "{:.3%}"),
)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""From the palette of Okabe and Ito, which people with any colour vision can tell apart."""
_TITLE = "Characters per token"
_LEFT, _PLOT, _RIGHT, _TOP, _BAR, _GAP, _FONT = 260, 480, 80, 48, 14, 14, 12
"""Pixels: room left of the bars, their width, room right and above, height of a bar, between sources, letters."""


def table(comparison: Comparison) -> list[list[str]]:
    """Return the rows of the table, the header first."""
    rows = [["source", "tokenizer", "size", "records", "tokens", *(title for _, title, _ in _COLUMNS)]]
    for source in comparison.sources:
        for one in comparison.tokenizers:
            counts = comparison.counts[one.name, source]
            rates = counts.rates()
            cells = [form.format(rates[name]) for name, _, form in _COLUMNS]
            rows.append([source, one.name, f"{one.size:,}", f"{counts.records:,}", f"{counts.tokens:,}", *cells])
    return rows


def as_text(comparison: Comparison) -> str:
    """Return the table with aligned columns."""
    rows = table(comparison)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(comparison: Comparison) -> str:
    """Return the table for a page, with what its columns mean."""
    header, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table(comparison)]
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    notes = [
        "`size` is the number of entries of the vocabulary, `unknown` the share of tokens that are the unknown,",
        "`bytes` the share of tokens that are single bytes (or, in a byte-level BPE, no whole characters).",
    ]
    return "\n".join(["# Comparison of tokenizers", "", *lines, "", *notes]) + "\n"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return all counts and rates as plain values."""
    results = [
        {"tokenizer": one.name, "source": source, **vars(counts), **counts.rates()}
        for source in comparison.sources
        for one in comparison.tokenizers
        for counts in [comparison.counts[one.name, source]]
    ]
    return {
        "format": 1,
        "tokenizers": [{"name": one.name, "size": one.size} for one in comparison.tokenizers],
        "results": results,
        "unreadable": comparison.unreadable,
    }


def as_svg(comparison: Comparison) -> str:
    """Return characters per token as bars, by source; the same comparison gives the same bytes."""
    names = [one.name for one in comparison.tokenizers]
    rates = {key: counts.rates()["characters_per_token"] for key, counts in comparison.counts.items()}
    ticks = _ticks(max(rates.values()))
    group = _BAR * len(names) + _GAP
    bottom = _TOP + group * len(comparison.sources)
    width, height = _LEFT + _PLOT + _RIGHT, bottom + 36 + 18 * len(names)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, Arial, sans-serif">',
        f"<title>{_TITLE}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 24, _TITLE, size=15),
    ]
    for tick in ticks:
        x = _LEFT + _PLOT * tick / ticks[-1]
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>')
        lines.append(_text(x, bottom + 16, f"{tick:g}", anchor="middle", colour="#666666"))
    for row, source in enumerate(comparison.sources):
        top = _TOP + group * row
        lines.append(_text(_LEFT - 8, top + _BAR * len(names) / 2 + 4, _shortened(source, 36), anchor="end"))
        for number, name in enumerate(names):
            lines += _bar(top + _BAR * number, rates[name, source], ticks[-1], number)
    for number, name in enumerate(names):
        y = bottom + 34 + 18 * number
        lines.append(f'<rect x="{_LEFT}" y="{y - 10}" width="12" height="12" fill="{_colour(number)}"/>')
        lines.append(_text(_LEFT + 18, y, _shortened(name, 70)))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bar(top: float, value: float, most: float, number: int) -> Sequence[str]:
    length = _PLOT * value / most
    return (
        f'<rect x="{_LEFT}" y="{top:.1f}" width="{length:.1f}" height="{_BAR - 2}" fill="{_colour(number)}"/>',
        _text(_LEFT + length + 5, top + _BAR - 4, f"{value:.2f}", colour="#444444", size=10),
    )


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _ticks(most: float) -> list[float]:
    """Return round values from 0 to the first that is not below the largest."""
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * number for number in range(max(1, math.ceil(most / step - 1e-9)) + 1)]


def _shortened(text: str, most: int) -> str:
    """Return a path without its beginning where it is long: its end tells files apart."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", size: int = _FONT, colour: str = "#222222"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}>{escape(content)}</text>"
