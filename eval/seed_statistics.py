"""Several seeds of one configuration: the mean of their scores, and its interval over what training leaves to chance.

An interval over items says how far other questions could move a score; this one, how far another seed could.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance

from eval.distributions import t_quantile, t_two_sided


@dataclass(frozen=True)
class SeedScore:
    """The scores of several seeds in one number."""

    scores: tuple[float, ...]
    """One per seed."""
    mean: float
    deviation: float
    """Standard deviation between seeds (divisor n - 1); NaN for one seed."""
    interval: tuple[float, float]
    """95 % interval of the mean by Student's t; NaN for one seed."""

    @property
    def num_seeds(self) -> int:
        """Number of scores."""
        return len(self.scores)


@dataclass(frozen=True)
class SeedDifference:
    """One configuration's mean over seeds less another's."""

    estimate: float
    interval: tuple[float, float]
    """95 % interval by Welch's t."""
    p_value: float
    """Two-sided, Welch's test; NaN where no two seeds of either configuration differ."""


def over_seeds(scores: Sequence[float]) -> SeedScore:
    """Return mean, deviation and interval of at least one score per configuration."""
    center, n = mean(scores), len(scores)
    if n == 1:
        return SeedScore(tuple(scores), center, math.nan, (math.nan, math.nan))
    deviation = math.sqrt(variance(scores))
    half = t_quantile(0.975, n - 1) * deviation / math.sqrt(n)
    return SeedScore(tuple(scores), center, deviation, (center - half, center + half))


def compare_seeds(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """Compare two configurations with two or more seeds each.

    B. L. Welch, Biometrika 34 (1947) 28-35: the spreads between seeds may differ.
    """
    estimate = mean(first) - mean(second)
    parts = [variance(own) / len(own) for own in (first, second)]
    if sum(parts) == 0:
        return SeedDifference(estimate, (math.nan, math.nan), math.nan)
    error = math.sqrt(sum(parts))
    degrees = sum(parts) ** 2 / sum(part**2 / (len(own) - 1) for part, own in zip(parts, (first, second), strict=True))
    half = t_quantile(0.975, degrees) * error
    return SeedDifference(estimate, (estimate - half, estimate + half), t_two_sided(estimate / error, degrees))
