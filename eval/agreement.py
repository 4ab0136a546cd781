"""How far two raters of the same items agree: a judge and people, two judges, one judge asked twice. numpy only.

Spearman's and Pearson's correlation tell whether they rank alike, kappa whether they give the same scores beyond what
chance would, the mean absolute difference how far apart they are on the scale. Each has a 95 % bootstrap interval over
the items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ift.errors import UserError

RESAMPLES = 2000
SEED = 20_231_011
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Coefficient:
    """One measure of agreement."""

    value: float
    """NaN where it is not defined: a rater who gives every item the same score has no correlation."""
    interval: tuple[float, float]
    """95 % percentile bootstrap over items; NaN likewise."""


@dataclass(frozen=True)
class Agreement:
    """All measures for two raters."""

    n: int
    """Items that both have scored."""
    spearman: Coefficient
    pearson: Coefficient
    kappa: Coefficient
    """Cohen's, unweighted: only equal scores agree."""
    weighted_kappa: Coefficient
    """Cohen's with quadratic weights on the scale of the scores."""
    mean_absolute_difference: Coefficient


def agreement(
    first: Mapping[str, float], second: Mapping[str, float], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Agreement:
    """Return how far two raters agree on the items that both have scored.

    Args:
        first: item ids to scores.
        second: likewise, on the same scale.
        resamples: number of bootstrap samples.
        seed: the same seed gives the same intervals.

    Raises:
        UserError: they share fewer than two items.
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        raise UserError(f"agreement: the raters share {len(shared)} items; at least 2 are needed.")
    left = np.array([first[name] for name in shared], dtype=np.float64)
    right = np.array([second[name] for name in shared], dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(shared), size=(resamples, len(shared)))

    def measured(function: Callable[[Values, Values], float]) -> Coefficient:
        draws = np.array([function(left[row], right[row]) for row in rows])
        draws = draws[~np.isnan(draws)]
        value = function(left, right)
        if np.isnan(value) or not len(draws):
            return Coefficient(float("nan"), (float("nan"), float("nan")))
        low, high = np.quantile(draws, [0.025, 0.975]).tolist()
        return Coefficient(value, (low, high))

    return Agreement(
        len(shared),
        measured(spearman),
        measured(pearson),
        measured(cohen_kappa),
        measured(lambda one, other: cohen_kappa(one, other, weights="quadratic")),
        measured(lambda one, other: float(np.abs(one - other).mean())),
    )


def spearman(first: Sequence[float] | Values, second: Sequence[float] | Values) -> float:
    """Return Spearman's rank correlation; ties share the mean of their ranks."""
    return pearson(mid_ranks(first), mid_ranks(second))


def pearson(first: Sequence[float] | Values, second: Sequence[float] | Values) -> float:
    """Return Pearson's correlation, NaN where one of them is constant."""
    left, right = (np.asarray(values, dtype=np.float64) for values in (first, second))
    # Compared before the mean is taken off, whose rounding would make a constant look as if it varied.
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    left, right = left - left.mean(), right - right.mean()
    return float((left @ right) / np.sqrt((left @ left) * (right @ right)))


def mid_ranks(values: Sequence[float] | Values) -> Values:
    """Return ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Values = (last - (counts - 1) / 2)[place]
    return ranks


def cohen_kappa(
    first: Sequence[float] | Values,
    second: Sequence[float] | Values,
    *,
    weights: Literal["none", "quadratic"] = "none",
) -> float:
    """Return Cohen's kappa: 1 - observed / expected disagreement, NaN where none is expected.

    J. Cohen, "A coefficient of agreement for nominal scales" (1960) and "Weighted kappa" (1968). Quadratic weights are
    the squared differences of the scores themselves, so that halves and quarters keep their distance; on equally spaced
    scores that is the usual weighting by rank of category.
    """
    left, right = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if weights == "quadratic":
        observed = float(((left - right) ** 2).mean())
        # The mean over all pairs, without building them: E(a - b)² = var a + var b + (mean a - mean b)².
        expected = float(left.var() + right.var() + (left.mean() - right.mean()) ** 2)
    else:
        values, codes = np.unique(np.concatenate([left, right]), return_inverse=True)
        observed = float((left != right).mean())
        counts = [np.bincount(own, minlength=len(values)) for own in (codes[: len(left)], codes[len(left) :])]
        expected = 1 - int(counts[0] @ counts[1]) / len(left) ** 2
    return float("nan") if expected < 1e-15 else 1 - observed / expected
