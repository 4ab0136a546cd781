"""How numbers of a comparison are written for people."""

import math

from eval.paired import Difference

MISSING = "–"


def number(value: float, *, percent: bool, sign: bool = False) -> str:
    """Return a score: a share as a percentage with two decimals, anything else with four digits or so."""
    if math.isnan(value):
        return MISSING
    shown = value * 100 if percent else value
    digits = 2 if percent or abs(shown) >= 10 else 3 if abs(shown) >= 1 else 4
    text = f"{shown:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", "−") if shown < 0 else f"+{text}" if sign else text


def interval(bounds: tuple[float, float], *, percent: bool, sign: bool = False) -> str:
    """Return an interval in brackets."""
    if any(math.isnan(bound) for bound in bounds):
        return MISSING
    low, high = (number(bound, percent=percent, sign=sign) for bound in bounds)
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
