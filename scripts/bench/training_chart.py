"""The chart of `training.py`: bars of supervised tokens per second, one group per method, as SVG."""

from html import escape

BAR, GAP, LEFT, WIDTH = 22, 8, 430, 420
LIMIT, OWN, OTHER = "#9aa0a6", "#1f6feb", "#c9ced6"


def chart(rates: dict[str, dict[str, float]], titles: dict[str, str]) -> str:
    """Return a chart.

    Args:
        rates: per method, per runner the rate.
        titles: of runners.
    """
    lines: list[str] = []
    y = 34
    for method, own in rates.items():
        lines.append(f'<text x="10" y="{y}" font-weight="bold">{escape(method)}: supervised tokens per second</text>')
        y += 14
        most = max(own.values())
        for name, rate in sorted(own.items(), key=lambda item: item[1]):
            color = {"ift": OWN, "limit": LIMIT}.get(name, OTHER)
            length = WIDTH * rate / most
            lines.append(f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(titles.get(name, name))}</text>')
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{color}"/>')
            lines.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 16}">{rate:.0f}</text>')
            y += BAR + GAP
        y += 26
    size = f'width="{LEFT + WIDTH + 70}" height="{y}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14">',
            '<rect width="100%" height="100%" fill="white"/>',
            *lines,
            "</svg>\n",
        ]
    )
