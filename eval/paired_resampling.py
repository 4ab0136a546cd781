"""Resampling of two systems' answers to the same items: intervals and tests for differences of any average.

The interval is a percentile one, widened for small samples (T. C. Hesterberg, The American Statistician 69 (2015)
371-386, "expanded percentile": without it 95 % intervals from 20 items hold about 92 %). The test swaps the two
systems' answers at random, which is R. A. Fisher's randomization test; the observed one counts as a random one too (B.
Phipson and G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010) 39).

Where categories are a sample themselves, a whole category is drawn, its items as they are: drawing the items again too
would count their chance twice, as the spread between categories holds it already (A. C. Davison and D. V. Hinkley,
"Bootstrap Methods and their Application", 1997, section 3.8). A category that is alone in its group is fixed; there the
items are drawn.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.aggregation import Cell
from eval.distributions import normal_tail, t_quantile

RESAMPLES = 4000
PERMUTATIONS = 10_000
SEED = 20_231_011
_EXACT = 13
"""Up to so many units all 2ⁿ swaps are tried, which are fewer than the random ones."""
_DRAWS = 4_000_000
"""Numbers drawn at a time, which bounds the memory."""

Function = Callable[[Sequence[Cell]], float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairedSample:
    """Two systems' values on one category's items, in one order."""

    category: str
    group: str
    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.first)


def bootstrap_difference(
    samples: Sequence[PairedSample],
    function: Function,
    *,
    clustered: bool,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, tuple[float, float]]:
    """Return the first system's average less the second's, and its 95 % interval.

    Args:
        samples: one per category, each with at least one item.
        function: the average, of cells.
        clustered: whether whole categories are drawn, inside their groups.
        resamples: number of bootstrap samples.
        seed: the same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    whole = _drawn_whole(samples, clustered=clustered)
    counts = np.array([sample.n for sample in samples])
    totals = _totals(samples)
    estimate = _difference(samples, counts, totals, function)
    chosen = _choose(samples, whole, resamples, generator)
    drawn = np.broadcast_to(totals, (resamples, *totals.shape)).copy()
    for place, sample in enumerate(samples):
        if not whole[place]:
            drawn[:, place] = _draw_items(sample, resamples, generator)
    rows = np.arange(resamples)[:, None]
    differences = _differences(samples, chosen, counts, drawn[rows, chosen], function)
    return estimate, _interval(differences, _level(samples, whole))


def permutation_p_value(
    samples: Sequence[PairedSample],
    function: Function,
    *,
    clustered: bool,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
) -> tuple[float, bool]:
    """Return the two-sided p value of no difference, and whether all swaps were tried, which makes it exact.

    Args:
        samples: one per category, each with at least one item.
        function: the average, of cells.
        clustered: whether whole categories are swapped, inside groups that have several.
        permutations: number of random swaps, where not all are tried.
        seed: the same seed gives the same value.
    """
    whole = _drawn_whole(samples, clustered=clustered)
    units = [_swapped(sample, whole=one) for sample, one in zip(samples, whole, strict=True)]
    exact = sum(len(own) for own in units) <= _EXACT
    swapped = _all_swaps(units) if exact else _random_swaps(units, permutations, np.random.default_rng(seed))
    counts, totals = np.array([sample.n for sample in samples]), _totals(samples)
    observed = abs(_difference(samples, counts, totals, function))
    # A swap keeps the sum of both systems' totals, so that their difference says all.
    both = totals.sum(axis=1)
    drawn = np.stack([(both + swapped) / 2, (both - swapped) / 2], axis=2)
    chosen = np.broadcast_to(np.arange(len(samples)), swapped.shape)
    found = np.abs(_differences(samples, chosen, counts, drawn, function))
    # Equal but for rounding counts as equal.
    reached = int(np.sum(found >= observed * (1 - 1e-9) - 1e-12))
    return (reached / len(found), True) if exact else ((reached + 1) / (len(found) + 1), False)


def _drawn_whole(samples: Sequence[PairedSample], *, clustered: bool) -> list[bool]:
    groups = [sample.group for sample in samples]
    return [clustered and groups.count(group) > 1 for group in groups]


def _totals(samples: Sequence[PairedSample]) -> Array:
    return np.array([[math.fsum(sample.first), math.fsum(sample.second)] for sample in samples])


def _choose(
    samples: Sequence[PairedSample], whole: Sequence[bool], resamples: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return which category stands in every place of every resample, `(resamples, places)`."""
    chosen = np.tile(np.arange(len(samples)), (resamples, 1))
    for group in dict.fromkeys(sample.group for sample, one in zip(samples, whole, strict=True) if one):
        own = np.array([place for place, sample in enumerate(samples) if sample.group == group])
        chosen[:, own] = own[generator.integers(len(own), size=(resamples, len(own)))]
    return chosen


def _draw_items(sample: PairedSample, resamples: int, generator: np.random.Generator) -> Array:
    """Return both systems' totals over as many items drawn with replacement, `(resamples, 2)`."""
    pairs, counts = np.unique(np.array([sample.first, sample.second]).T, axis=0, return_counts=True)
    step = max(1, _DRAWS // len(pairs))
    parts = [
        generator.multinomial(sample.n, counts / sample.n, size=min(step, resamples - start)) @ pairs
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def _swapped(sample: PairedSample, *, whole: bool) -> list[float]:
    """Return the differences whose signs the swaps change: of the category, or of its items where they differ."""
    differences = [one - other for one, other in zip(sample.first, sample.second, strict=True)]
    return [one for one in ([math.fsum(differences)] if whole else differences) if one != 0]


def _all_swaps(units: Sequence[Sequence[float]]) -> Array:
    values = np.array([value for own in units for value in own])
    signs = np.array(list(itertools.product((1, -1), repeat=len(values)))).reshape(2 ** len(values), len(values))
    ends = np.cumsum([0, *(len(own) for own in units)])
    return np.stack([(signs * values)[:, low:high].sum(axis=1) for low, high in itertools.pairwise(ends)], axis=1)


def _random_swaps(units: Sequence[Sequence[float]], permutations: int, generator: np.random.Generator) -> Array:
    """Return the sums of differences with random signs, `(permutations, categories)`."""
    columns = []
    for own in units:
        sizes, counts = np.unique(np.abs(own), return_counts=True)
        step = max(1, _DRAWS // max(1, len(sizes)))
        parts = [
            (2 * generator.binomial(counts, 0.5, size=(min(step, permutations - start), len(sizes))) - counts) @ sizes
            for start in range(0, permutations, step)
        ]
        columns.append(np.concatenate(parts))
    return np.stack(columns, axis=1)


def _difference(samples: Sequence[PairedSample], counts: NDArray[np.int64], totals: Array, function: Function) -> float:
    first, second = (
        function(
            [
                Cell(one.category, one.group, int(n), float(total))
                for one, n, total in zip(samples, counts, own, strict=True)
            ]
        )
        for own in totals.T
    )
    return first - second


def _differences(
    samples: Sequence[PairedSample],
    chosen: NDArray[np.int64],
    counts: NDArray[np.int64],
    totals: Array,
    function: Function,
) -> Array:
    """Return the difference of the averages for every row of chosen categories and their totals."""
    weights = _weights(samples, counts, totals[0], function)
    if weights is not None and bool((chosen == np.arange(len(samples))).all()):
        result: Array = (totals[:, :, 0] - totals[:, :, 1]) @ weights
        return result
    return np.array(
        [
            _difference([samples[place] for place in row], counts[row], own, function)
            for row, own in zip(chosen, totals, strict=True)
        ]
    )


def _weights(
    samples: Sequence[PairedSample], counts: NDArray[np.int64], totals: Array, function: Function
) -> Array | None:
    """Return what one more in each category's total adds to an average, `None` where this is not so simple.

    Averages over fixed cells are weighted sums of the totals; those that round on the way are not.
    """

    def at(values: Array) -> float:
        return function(
            [
                Cell(one.category, one.group, int(n), float(total))
                for one, n, total in zip(samples, counts, values, strict=True)
            ]
        )

    origin = at(np.zeros(len(samples)))
    weights = np.array([at(row) - origin for row in np.eye(len(samples))])
    linear = all(math.isclose(at(own), origin + float(own @ weights), rel_tol=1e-9, abs_tol=1e-12) for own in totals.T)
    return weights if linear else None


def _level(samples: Sequence[PairedSample], whole: Sequence[bool]) -> float | None:
    """Return the tail that the percentiles leave out on either side; `None` where nothing varies.

    Hesterberg's: as Student's t with the variance's divisor n instead of n - 1, here with as many means as there are
    categories (or, drawn whole, groups of them).
    """
    if any(whole):
        groups = {sample.group for sample, one in zip(samples, whole, strict=True) if one}
        n, means = sum(whole), len(groups)
    else:
        n, means = sum(sample.n for sample in samples), len(samples)
    if n == means:
        return None
    return normal_tail(math.sqrt(n / (n - means)) * t_quantile(0.975, n - means))


def _interval(differences: Array, level: float | None) -> tuple[float, float]:
    kept = differences[~np.isnan(differences)]
    if level is None or not len(kept):
        return math.nan, math.nan
    low, high = np.quantile(kept, [level, 1 - level]).tolist()
    return low, high
