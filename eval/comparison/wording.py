"""How numbers of a comparison are written for people."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from eval.paired import Difference

MISSING = "–"


@dataclass(frozen=True)
class Scale:
    """How a benchmark's scores are shown."""

    percent: bool
    """Whether they are shares, which people read as percentages."""
    digits: int = 2
    """After the point."""

    @classmethod
    def of(cls, scores: Iterable[float], *, percent: bool) -> "Scale":
        """Return the scale on which the largest score has about four digits."""
        most = max((abs(score) for score in scores), default=0.0)
        return cls(percent, 2 if percent or most >= 10 else 3 if most >= 1 else 4)


def number(value: float, scale: Scale, *, sign: bool = False) -> str:
    """Return a score."""
    if math.isnan(value):
        return MISSING
    text = f"{100 * value if scale.percent else value:.{scale.digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", "−") if value < 0 else f"+{text}" if sign else text


def interval(bounds: tuple[float, float], scale: Scale, *, sign: bool = False) -> str:
    """Return an interval in brackets."""
    if any(math.isnan(bound) for bound in bounds):
        return MISSING
    low, high = (number(bound, scale, sign=sign) for bound in bounds)
    return f"[{low}, {high}]"


def p_value(value: float) -> str:
    """Return a p value with three decimals, or that it is smaller."""
    if math.isnan(value):
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def verdict(difference: Difference | None, *, lower_is_better: bool) -> str:
    """Return whether a difference can be told from chance, and its direction if so."""
    if difference is None:
        return "not tested"
    if difference.verdict == "not distinguishable":
        return difference.verdict
    better = (difference.estimate > 0) is not lower_is_better
    return f"{difference.verdict}, {'better' if better else 'worse'}"
