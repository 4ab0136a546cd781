"""A benchmark's parts as bars with intervals, or as a radar chart: SVG written by hand, readable on light and dark.

It needs no package and has the same bytes for the same numbers.
"""

import math
from collections.abc import Sequence
from typing import Literal
from xml.sax.saxutils import escape

from eval.comparison.grids import width
from eval.comparison.numbers import BenchmarkTable, Entry, Row
from eval.comparison.tables import shown_parts, title_of
from eval.comparison.wording import interval, number

_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")
"""From the palette of Okabe and Ito, which people with any colour vision can tell apart; grey for its black."""
_DARK = ("#4aa3df", "#ff8c42", "#2fc79a", "#e8a0c8", "#ffc04d", "#9bd8f9", "#c8c8c8")
_DASHES = ("", "7 4", "2 3")
"""For more systems than colours."""
_FEWEST, _MOST = 3, 12
"""Corners of a radar chart that can be read."""
_FONT = "DejaVu Sans, Noto Sans CJK SC, Noto Sans SC, Microsoft YaHei, PingFang SC, WenQuanYi Zen Hei, sans-serif"
_LETTER = 6.6
"""Pixels that one narrow letter of size 12 takes; a wide one takes two."""
_PLOT, _BAR, _GAP, _RIGHT = 560, 13, 12, 40
"""Pixels: width of the plot, height of a bar, between two parts, right of the plot."""
_RADIUS = 190
_FILLED = 3
"""Systems up to which the areas of a radar chart are tinted; more would cover one another."""


def chart(table: BenchmarkTable, kind: Literal["radar", "bar"] | None) -> str:
    """Return the chart of a benchmark's parts.

    Args:
        table: the comparison.
        kind: `radar` shows the parts only, `bar` the whole too, and intervals; `None`: radar for 3 to 12 parts.
    """
    parts = shown_parts(table)
    if kind is None:
        kind = "radar" if _FEWEST <= len(parts) <= _MOST else "bar"
    if kind == "radar" and len(parts) >= _FEWEST:
        return _radar(table, parts)
    return _bars(table, [table.rows[0], *(parts if len(parts) > 1 else [])])


# Bars ----------------------------------------------------------------------------------------------------------------


def _bars(table: BenchmarkTable, rows: Sequence[Row]) -> str:
    left = 24 + _LETTER * max(width(_label(row)) for row in rows)
    names = [entry.system for entry in rows[0].entries]
    step = _BAR * len(names) + _GAP
    top = 56 + 20 * len(names)
    bottom = top + step * len(rows)
    ticks = _ticks([bound for row in rows for entry in row.entries for bound in (entry.score, *entry.interval)])
    parts = _legend(names, 14, 50)
    for tick in ticks:
        x = _place(tick, ticks, left)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top - 8}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 18, _tick(tick, table), anchor="middle", kind="muted"))
    for number_of_row, row in enumerate(rows):
        y = top + step * number_of_row
        parts.append(_text(left - 10, y + _BAR * len(names) / 2 + 4, _label(row), anchor="end"))
        for place, entry in enumerate(row.entries):
            parts += _bar(entry, place, table, ticks=ticks, left=left, y=y + _BAR * place)
    note = "Lines: 95 % intervals." + (" Lower is better." if table.lower_is_better else "")
    parts.append(_text(left, bottom + 40, note, kind="muted"))
    return _svg(parts, table, size=(left + _PLOT + _RIGHT, bottom + 54))


def _bar(
    entry: Entry, place: int, table: BenchmarkTable, *, ticks: Sequence[float], left: float, y: float
) -> list[str]:
    zero, end = sorted((_place(0.0, ticks, left), _place(entry.score, ticks, left)))
    told = f"{number(entry.score, table.scale)} {interval(entry.interval, table.scale)}"
    lines = [
        f'<rect class="fill{place % len(_LIGHT)}" x="{zero:.1f}" y="{y + 1:.1f}" width="{end - zero:.1f}" '
        f'height="{_BAR - 2}"><title>{escape(f"{entry.system}: {told}")}</title></rect>'
    ]
    if not any(math.isnan(bound) for bound in entry.interval):
        low, high = (_place(bound, ticks, left) for bound in entry.interval)
        middle = y + _BAR / 2
        path = f"M{low:.1f} {middle:.1f}H{high:.1f}" + "".join(f"M{x:.1f} {middle - 3:.1f}v6" for x in (low, high))
        # The rim keeps the line apart from a bar of any colour.
        lines += [f'<path class="rim" d="{path}"/>', f'<path class="error" d="{path}"/>']
    return lines


def _label(row: Row) -> str:
    return f"overall ({row.name})" if row.kind == "overall" else row.name


def _place(value: float, ticks: Sequence[float], left: float) -> float:
    return left + _PLOT * (value - ticks[0]) / (ticks[-1] - ticks[0])


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers around the values and 0."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(0.0, *known), max(0.0, *known)
    rough = max(high - low, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), max(1, math.ceil(high / step - 1e-9))
    return [step * place for place in range(first, last + 1)]


def _tick(value: float, table: BenchmarkTable) -> str:
    return f"{100 * value:.6g} %" if table.scale.percent else f"{value:.6g}"


# Radar ---------------------------------------------------------------------------------------------------------------


def _radar(table: BenchmarkTable, rows: Sequence[Row]) -> str:
    names = [entry.system for entry in rows[0].entries]
    side = 30 + _LETTER * max(width(row.name) for row in rows)
    center = (side + _RADIUS, 56 + 20 * len(names) + 30 + _RADIUS)
    ticks = _ticks([entry.score for row in rows for entry in row.entries])
    parts = _legend(names, 14, 50)
    for tick in ticks[1:]:
        ring = _points([tick] * len(rows), ticks, center)
        parts.append(f'<polygon class="grid" points="{ring}"/>')
    for place, row in enumerate(rows):
        x, y = _corner(1.0, place, len(rows), center)
        parts.append(f'<line class="grid" x1="{center[0]:.1f}" y1="{center[1]:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>')
        x, y = _corner(1.06, place, len(rows), center)
        anchor = "middle" if abs(x - center[0]) < 12 else "start" if x > center[0] else "end"
        # The topmost name leaves room for the last tick.
        parts.append(_text(x, y + (4 if place else -2), row.name, anchor=anchor))
    filled = f'fill-opacity="{0.07 if len(names) <= _FILLED else 0}" '
    for place in range(len(names)):
        points = _points([row.entries[place].score for row in rows], ticks, center)
        parts.append(f'<polygon class="line{place % len(_LIGHT)}" points="{points}" {filled}{_dash(place)}/>')
    for tick in ticks:
        x, y = _corner((tick - ticks[0]) / (ticks[-1] - ticks[0]), 0, len(rows), center)
        parts.append(_text(x + 4, y + 4, _tick(tick, table), kind="muted rimmed", size=10))
    bottom = center[1] + _RADIUS + 44
    note = "Lower is better." if table.lower_is_better else "Intervals: see the tables."
    parts.append(_text(14, bottom, note, kind="muted"))
    return _svg(parts, table, size=(2 * center[0], bottom + 14))


def _corner(share: float, place: int, count: int, center: tuple[float, float]) -> tuple[float, float]:
    angle = 2 * math.pi * place / count
    return center[0] + _RADIUS * share * math.sin(angle), center[1] - _RADIUS * share * math.cos(angle)


def _points(values: Sequence[float], ticks: Sequence[float], center: tuple[float, float]) -> str:
    shares = [(value - ticks[0]) / (ticks[-1] - ticks[0]) for value in values]
    corners = [_corner(share, place, len(shares), center) for place, share in enumerate(shares)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


# Both ----------------------------------------------------------------------------------------------------------------


def _legend(names: Sequence[str], x: float, y: float) -> list[str]:
    parts = []
    for place, name in enumerate(names):
        middle = y + 20 * place
        parts.append(f'<path class="line{place % len(_LIGHT)} key" d="M{x} {middle}h26" {_dash(place)}/>')
        parts.append(_text(x + 34, middle + 4, name))
    return parts


def _dash(place: int) -> str:
    return f'stroke-dasharray="{_DASHES[place // len(_LIGHT) % len(_DASHES)]}"'


def _text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text class="{f"text {kind}".strip()}" {place}>{escape(content)}</text>'


def _style() -> str:
    def colours(palette: Sequence[str]) -> str:
        return "".join(
            f".fill{place}{{fill:{colour}}}.line{place}{{stroke:{colour};fill:{colour}}}"
            for place, colour in enumerate(palette)
        )

    plain = (
        "polygon,path{stroke-width:2}.key{stroke-width:6}polygon.grid{fill:none}"
        ".grid{stroke-width:1}.error{stroke-width:1.4}.rim{stroke-width:3.4;stroke-opacity:.75}"
        ".rimmed{paint-order:stroke;stroke-width:3}"
    )
    light = _theme(page="#fff", text="#222", muted="#666", grid="#ddd", error="#222")
    dark = _theme(page="#16181d", text="#e6e6e6", muted="#a5a5a5", grid="#3a3d44", error="#f2f2f2")
    return f"{plain}{light}{colours(_LIGHT)}@media (prefers-color-scheme:dark){{{dark}{colours(_DARK)}}}"


def _theme(*, page: str, text: str, muted: str, grid: str, error: str) -> str:
    return (
        f".page{{fill:{page}}}.text{{fill:{text}}}.muted{{fill:{muted}}}.grid{{stroke:{grid}}}"
        f".error{{stroke:{error}}}.rim,.rimmed{{stroke:{page}}}"
    )


def _svg(parts: Sequence[str], table: BenchmarkTable, size: tuple[float, float]) -> str:
    title = title_of(table)
    wide, high = max(size[0], 28 + 8.4 * width(title)), size[1]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high:.0f}" '
        f'viewBox="0 0 {wide:.0f} {high:.0f}" font-family="{_FONT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_style()}</style>",
        f'<rect class="page" width="{wide:.0f}" height="{high:.0f}"/>',
        _text(14, 26, title, size=15),
        *parts,
    ]
    return "\n".join([*lines, "</svg>"]) + "\n"
