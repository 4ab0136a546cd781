"""Charts of the audit as inline SVG, drawn by hand: no library, no script."""

import math
from collections.abc import Sequence
from html import escape

from ift.commands.audit_numbers import Bin, number, percent

_WIDTH, _HEIGHT = 640, 150
_LEFT, _BOTTOM, _TOP = 8, 26, 34
_MOST_LABELS = 12


def length_chart(bins: Sequence[Bin], max_length: int, label: str) -> str:
    """Return a histogram of lengths with `data.max_length` marked.

    Args:
        bins: neighbouring ones, as `histogram` returns them.
        max_length: in tokens.
        label: what the chart shows, for those who cannot see it.
    """
    reach = _reaching(bins, max_length)
    most, width = max(one.count for one in reach), (_WIDTH - 2 * _LEFT) / len(reach)
    floor, scale = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP
    parts = []
    every = math.ceil(len(reach) / _MOST_LABELS)
    for place, one in enumerate(reach):
        x, height = _LEFT + place * width, scale * one.count / most
        if one.count:
            height = max(height, 1.0)
            title = f"{number(one.lower)} to {number(one.upper - 1)} tokens: {number(one.count)} examples"
            parts.append(
                f'<rect class="bar" x="{x + 1:.1f}" y="{floor - height:.1f}" width="{width - 2:.1f}" '
                f'height="{height:.1f}"><title>{title}</title></rect>'
            )
            if width > 30:
                parts.append(_text(x + width / 2, floor - height - 4, number(one.count), "middle"))
        if place % every == 0:
            parts.append(_text(x, floor + 16, number(one.lower), "start"))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{floor}" y2="{floor}"/>')
    x = _LEFT + width * _behind(reach, max_length)
    parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{floor}"/>')
    anchor = "end" if x > _WIDTH / 2 else "start"
    limit = f"max_length {number(max_length)}" + (" →" if reach[-1].upper <= max_length else "")
    parts.append(_text(x + (-4 if anchor == "end" else 4), 10, limit, anchor, "limit"))
    return _svg("".join(parts), _WIDTH, _HEIGHT, label)


def share_chart(shares: Sequence[tuple[str, float]], label: str) -> str:
    """Return one horizontal bar per name, of which a share from 0 to 1 is filled."""
    step, left, right = 24, 56, 70
    size = _WIDTH - left - right
    parts = []
    for place, (name, share) in enumerate(shares):
        y = place * step + 4
        parts += [
            _text(left - 8, y + 12, name, "end"),
            f'<rect class="rest" x="{left}" y="{y}" width="{size}" height="16"/>',
            f'<rect class="part" x="{left}" y="{y}" width="{size * share:.1f}" height="16"/>',
            _text(left + size + 8, y + 12, percent(share), "start"),
        ]
    return _svg("".join(parts), _WIDTH, step * len(shares) + 6, label)


def _reaching(bins: Sequence[Bin], max_length: int) -> list[Bin]:
    """Return the bins, followed by empty ones up to that of `max_length` unless it is far away."""
    # No example is longer, so the bin of `max_length` ends with it.
    reach = [Bin(one.lower, min(one.upper, max_length + 1), one.count) for one in bins]
    while reach[-1].upper <= max_length and len(reach) < len(bins) + 8:
        lower = reach[-1].upper
        reach.append(Bin(lower, min(max(lower + 1, round(lower * math.sqrt(2))), max_length + 1), 0))
    return reach


def _behind(bins: Sequence[Bin], length: int) -> int:
    """Return where examples of this length end, in bins from the left; the right end where it is farther away."""
    return next((place for place, one in enumerate(bins, 1) if length < one.upper), len(bins))


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(content: str, width: float, height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">{content}</svg>'
    )
