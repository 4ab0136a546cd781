"""The losses of a chain of stages as curves: one per validation set, over the stages. SVG written by hand.

It needs no package and has the same bytes for the same numbers.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""From the palette of Okabe and Ito, which people with any colour vision can tell apart."""
_DASHES = ("", "6 3", "2 3")
"""For more curves than colours."""
_STEP, _PLOT, _TOP, _LEFT, _RIGHT, _BOTTOM, _FONT = 120, 260, 48, 60, 190, 44, 12
"""Pixels: between two stages, height of the plot, room around it, size of the letters."""
_TITLE = "Validation loss on each stage's data, after every stage"


def svg(names: Sequence[str], values: Mapping[tuple[int, int], float]) -> str:
    """Return the chart.

    Args:
        names: of the stages, in order.
        values: loss after stage j (from 0, before the first) on the data of stage i (from 1), by (j, i).
    """
    most = max([value for value in values.values() if math.isfinite(value)], default=1.0)
    ticks = _ticks(most)
    width, height = _LEFT + _STEP * len(names) + _RIGHT, _TOP + max(_PLOT, 18 * len(names)) + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, Arial, sans-serif">',
        f"<title>{_TITLE}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 24, _TITLE, size=15),
        *_axes(names, ticks),
    ]
    for of, name in enumerate(names, 1):
        lines += _curve(name, of, values, ticks[-1])
        lines += _legend(name, of, _LEFT + _STEP * len(names) + 24)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _ticks(most: float) -> list[float]:
    """Return round values from 0 to the first that is not below the largest loss."""
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * number for number in range(max(1, math.ceil(most / step - 1e-9)) + 1)]


def _axes(names: Sequence[str], ticks: Sequence[float]) -> list[str]:
    right, lines = _LEFT + _STEP * len(names), []
    for tick in ticks:
        y = _height(tick, ticks[-1])
        lines.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#dddddd"/>')
        lines.append(_text(_LEFT - 8, y + 4, f"{tick:.6g}", anchor="end", colour="#666666"))
    for after in range(len(names) + 1):
        label = _shortened(f"{after} {names[after - 1]}" if after else "before", 16)
        lines.append(_text(_LEFT + _STEP * after, _TOP + _PLOT + 22, label, anchor="middle", colour="#666666"))
    return lines


def _height(loss: float, most: float) -> float:
    return _TOP + _PLOT * (1 - loss / most)


def _style(of: int) -> str:
    dash = _DASHES[(of - 1) // len(_COLOURS) % len(_DASHES)]
    return f'stroke="{_COLOURS[(of - 1) % len(_COLOURS)]}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'


def _curve(name: str, of: int, values: Mapping[tuple[int, int], float], most: float) -> list[str]:
    """Draw the measured losses, joined where they follow one another; a large dot is the stage of these data."""
    points = [
        (_LEFT + _STEP * after, _height(loss, most), after, loss)
        for (after, one), loss in sorted(values.items())
        if one == of and math.isfinite(loss)
    ]
    joined = [
        f'<polyline points="{x:.1f},{y:.1f} {x2:.1f},{y2:.1f}" {_style(of)}/>'
        for (x, y, after, _), (x2, y2, following, _) in pairwise(points)
        if following == after + 1
    ]
    colour = _COLOURS[(of - 1) % len(_COLOURS)]
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if after == of else 3}" fill="{colour}">'
        f"<title>{escape(name)}: {loss:.4f}</title></circle>"
        for x, y, after, loss in points
    ]
    return [*joined, *dots]


def _legend(name: str, of: int, x: float) -> list[str]:
    y = _TOP + 8 + 18 * (of - 1)
    return [
        f'<line x1="{x:.1f}" y1="{y}" x2="{x + 24:.1f}" y2="{y}" {_style(of)}/>',
        _text(x + 32, y + 4, _shortened(f"{of} {name}", 18)),
    ]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", size: int = _FONT, colour: str = "#222222"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(content)}</text>'
