"""Compares two systems that answered the same items: the difference, its 95 % interval, and a test against none.

Right or wrong answers: McNemar's test with exact mid-p (Q. McNemar, Psychometrika 12 (1947) 153-157), and the interval
of D. G. Bonett and R. M. Price, Journal of Educational and Behavioral Statistics 37 (2012) 479-488; M. W. Fagerland, S.
Lydersen and P. Laake, Statistics in Medicine 33 (2014) 2850-2875, recommend both. Any other score or average: see
`paired_resampling.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from eval.aggregation import Cell, micro
from eval.distributions import sign_test
from eval.paired_resampling import PairedSample, bootstrap_difference, permutation_p_value
from eval.statistics import Z_95

ALPHA = 0.05
"""A difference whose p value is below it is called distinguishable."""
Verdict = Literal["distinguishable", "not distinguishable"]


@dataclass(frozen=True)
class Difference:
    """One system's score less another's on the same items."""

    estimate: float
    interval: tuple[float, float]
    """95 % interval; NaN where there are too few items to tell."""
    p_value: float
    """Two-sided, against no difference."""
    wins: int
    """Items on which the first system is better: has the higher value, unless lower ones are better."""
    ties: int
    losses: int
    test: str
    """Name of the test."""
    method: str
    """Name of the interval."""
    adjusted: float | None = None
    """The p value after Holm's correction, where this is one of several comparisons."""

    @property
    def verdict(self) -> Verdict:
        """Whether the p value, adjusted where it has been, is below 0.05."""
        p_value = self.p_value if self.adjusted is None else self.adjusted
        return "distinguishable" if p_value < ALPHA else "not distinguishable"


def mcnemar_p_value(wins: int, losses: int, *, mid_p: bool = True) -> float:
    """Return the two-sided p value of McNemar's test, in which only items count that one system alone has right.

    Args:
        wins: items that only the first system has right.
        losses: items that only the second has right.
        mid_p: the exact conditional test is too cautious, as its level stays far below 5 % with few such items; mid-p
            mends this and hardly ever exceeds 5 % (M. W. Fagerland et al., BMC Medical Research Methodology 13:91).
    """
    return sign_test(wins, losses, mid_p=mid_p)


def proportions_interval(wins: int, losses: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Bonett and Price for a difference of paired proportions.

    Wald's interval after one item has been added to either kind of disagreement, so that it keeps its coverage for few
    items and is no point where the systems never disagree.
    """
    first, second = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = Z_95 * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    return max(-1.0, first - second - half), min(1.0, first - second + half)


def compare_right_or_wrong(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """Compare two systems whose answers are right or wrong, item by item."""
    wins = sum(one and not other for one, other in zip(first, second, strict=True))
    losses = sum(other and not one for one, other in zip(first, second, strict=True))
    n = len(first)
    return Difference(
        estimate=(wins - losses) / n,
        interval=proportions_interval(wins, losses, n),
        p_value=mcnemar_p_value(wins, losses),
        wins=wins,
        ties=n - wins - losses,
        losses=losses,
        test="McNemar, exact mid-p",
        method="Bonett-Price",
    )


def compare_scores(
    samples: Sequence[PairedSample],
    function: Callable[[Sequence[Cell]], float] = micro,
    *,
    clustered: bool = False,
) -> Difference:
    """Compare two systems by an average of any scores.

    Args:
        samples: both systems' values by category; the items of one category stand in the same order.
        function: the average.
        clustered: whether the categories of a group are a sample too (subjects of an exam) rather than fixed (classes
            of tasks); then whole categories are drawn and swapped.
    """
    estimate, interval = bootstrap_difference(samples, function, clustered=clustered)
    p_value, exact = permutation_p_value(samples, function, clustered=clustered)
    pairs = [pair for sample in samples for pair in zip(sample.first, sample.second, strict=True)]
    wins = sum(one > other for one, other in pairs)
    losses = sum(one < other for one, other in pairs)
    units = "categories" if clustered else "items"
    return Difference(
        estimate=estimate,
        interval=interval,
        p_value=p_value,
        wins=wins,
        ties=len(pairs) - wins - losses,
        losses=losses,
        test=f"permutation of {units}, {'exact' if exact else 'sampled'}",
        method=f"paired bootstrap over {units}",
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for their number, in their order (S. Holm, Scand. J. Statistics 6 (1979) 65-70).

    The chance of one or more false finds among all stays below the level that the adjusted values are held against.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def with_holm(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with p values adjusted for all of them."""
    adjusted = holm([one.p_value for one in differences])
    return [replace(one, adjusted=p_value) for one, p_value in zip(differences, adjusted, strict=True)]
