"""The sizes of collections as horizontal bars on a logarithmic scale: SVG written by hand, PNG through matplotlib.

The SVG needs no package and has the same bytes for the same catalogue.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from xml.sax.saxutils import escape

from ift.data.catalogue_schema import GENERATIONS, Collection, Generation
from ift.errors import UserError

_TITLE = "Instruction collections by number of records"
_COLOURS: dict[Generation, str] = {"HG": "#009e73", "SI": "#0072b2", "MIX": "#e69f00", "COL": "#cc79a7"}
"""From the palette of Okabe and Ito, which people with any colour vision can tell apart."""
_ROW, _BAR, _TOP, _LEFT, _PLOT, _RIGHT, _FONT = 17, 12, 84, 230, 620, 110, 11
"""Pixels: height of a row and of its bar, room above, left and right of the bars, their width, size of the letters."""


@dataclass(frozen=True)
class _Scale:
    """Powers of ten at both ends of the axis."""

    low: int
    high: int

    @classmethod
    def of(cls, collections: Sequence[Collection]) -> "_Scale":
        sizes = [collection.records or 1 for collection in collections]
        low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
        # A bar begins one power below the smallest, so that this one can be seen too.
        return cls(max(0, low - 1) if min(sizes) == 10**low else low, max(high, low + 1))

    def position(self, value: float) -> float:
        """Return where a value lies between the ends, from 0 to 1."""
        return (math.log10(value) - self.low) / (self.high - self.low)


def _largest_first(collections: Sequence[Collection]) -> list[Collection]:
    return sorted(collections, key=lambda collection: (-(collection.records or 0), collection.name))


def _label(power: int) -> str:
    names = {0: "1", 3: "1K", 6: "1M", 9: "1B"}
    base = power - power % 3
    return names[base].replace("1", f"{10 ** (power - base)}") if base in names else f"1e{power}"


def _size(collection: Collection) -> str:
    return f"{'~' if collection.rounded else ''}{collection.records:,}"


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", size: int = _FONT, colour: str = "#222222"
) -> str:
    # A white rim keeps grid lines out of the letters.
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" stroke="#ffffff" stroke-width="3" paint-order="stroke"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(content)}</text>'


def svg(collections: Sequence[Collection], *, unsized: Sequence[str] = ()) -> str:
    """Return the chart as SVG.

    Args:
        collections: with a known number of records, at least one.
        unsized: names of those that have none, for a note below the bars.
    """
    ordered, scale = _largest_first(collections), _Scale.of(collections)
    bottom = _TOP + _ROW * len(ordered)
    note = wrap(f"Size unknown: {', '.join(unsized)}", 150) if unsized else []
    width, height = _LEFT + _PLOT + _RIGHT, bottom + 34 + 15 * len(note)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, Arial, sans-serif">',
        f"<title>{_TITLE}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 24, f"{_TITLE} ({len(ordered)}, logarithmic scale)", size=16),
        *_legend(),
        *_axis(scale, bottom),
    ]
    for row, collection in enumerate(ordered):
        lines += _bar(collection, _TOP + _ROW * row, scale)
    lines += [_text(12, bottom + 42 + 15 * n, line, colour="#666666") for n, line in enumerate(note)]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _legend() -> list[str]:
    lines, x = [], 12.0
    for tag, meaning in GENERATIONS.items():
        text = f"{tag}: {meaning}"
        lines.append(f'<rect x="{x:.1f}" y="38" width="{_BAR}" height="{_BAR}" fill="{_COLOURS[tag]}"/>')  # type: ignore[index]
        lines.append(_text(x + _BAR + 5, 48, text))
        x += _BAR + 5 + 6.2 * len(text) + 20
    return lines


def _axis(scale: _Scale, bottom: int) -> list[str]:
    lines = []
    for power in range(scale.low, scale.high + 1):
        x = _LEFT + _PLOT * scale.position(10**power)
        lines.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{bottom + 4}" stroke="#dddddd" stroke-width="1"/>'
        )
        lines += [_text(x, y, _label(power), anchor="middle", colour="#666666") for y in (_TOP - 9, bottom + 18)]
    return lines


def _bar(collection: Collection, top: int, scale: _Scale) -> list[str]:
    length = _PLOT * scale.position(collection.records or 1)
    baseline = top + _BAR - 2
    return [
        _text(_LEFT - 8, baseline, collection.name, anchor="end"),
        f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_BAR}" '
        f'fill="{_COLOURS[collection.generation]}"><title>{escape(collection.title)}</title></rect>',
        _text(_LEFT + length + 6, baseline, _size(collection), colour="#444444"),
    ]


def draw_svg(collections: Sequence[Collection], path: Path, *, unsized: Sequence[str]) -> None:
    """Write the chart as SVG."""
    path.write_text(svg(collections, unsized=unsized), encoding="utf-8")


def draw_png(collections: Sequence[Collection], path: Path, *, unsized: Sequence[str]) -> None:
    """Write the chart as PNG.

    Raises:
        UserError: matplotlib, which this library does not depend on, is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise UserError(
            f"data chart --output: '{path}' needs matplotlib, which is not installed. Install it, or give a .svg."
        ) from error
    ordered, scale = _largest_first(collections), _Scale.of(collections)
    note = wrap(f"Size unknown: {', '.join(unsized)}", 120) if unsized else []
    figure = Figure(figsize=(10, 1.6 + 0.18 * len(ordered) + 0.16 * len(note)), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    colours = [_COLOURS[collection.generation] for collection in ordered]
    axes.barh(range(len(ordered)), [collection.records or 1 for collection in ordered], color=colours, zorder=2)
    axes.set_yticks(range(len(ordered)), [collection.name for collection in ordered], fontsize=7)
    for row, collection in enumerate(ordered):
        axes.annotate(_size(collection), (collection.records or 1, row), (3, 0), textcoords="offset points",
                      va="center", fontsize=6.5)  # fmt: skip
    axes.set(xscale="log", xlim=(10**scale.low, 10 ** (scale.high + 0.5)), ylim=(len(ordered) - 0.4, -0.6))
    axes.set_title(f"{_TITLE} ({len(ordered)}, logarithmic scale)", loc="left", fontsize=11)
    axes.grid(axis="x", color="#dddddd", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    patches = [Patch(color=_COLOURS[tag], label=f"{tag}: {GENERATIONS[tag]}") for tag in _COLOURS]
    axes.legend(handles=patches, loc="lower right", fontsize=7)
    axes.set_xlabel("\n".join(note), fontsize=6.5, color="#666666", loc="left")
    figure.savefig(path, dpi=150)
