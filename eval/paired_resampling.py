"""Resampling of two systems' answers to the same items: intervals and tests for differences of any average.

The interval is that of `bootstrap.py`. The test swaps the two
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
from eval.average_arrays import FAST, Array
from eval.bootstrap import choose_places, drawn_whole, expanded_tail, percentile_interval

RESAMPLES = 4000
PERMUTATIONS = 10_000
SEED = 20_231_011
_EXACT = 13
"""Up to so many units all 2ⁿ swaps are tried, which are fewer than the random ones."""
_ALIKE = 8
"""Items per distinct pair of values from which counting is faster than drawing."""
_DRAWS = 1_000_000
"""Numbers drawn at a time, which bounds the memory."""

Function = Callable[[Sequence[Cell]], float]


@dataclass(frozen=True)
class PairedSample:
    """Two systems' values on one category's items, in one order."""

    category: str
    group: str
    first: tuple[float, ...]
    second: tuple[float, ...]
    weights: tuple[int, ...] = ()
    """Number of units that each value is the mean of, where the average is over units; empty: one each."""

    @property
    def units(self) -> list[int]:
        """The weights, said for every item."""
        return list(self.weights or (1,) * len(self.first))


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
    groups = [sample.group for sample in samples]
    whole = drawn_whole(groups, clustered=clustered)
    totals = _totals(samples)
    estimate = _difference(samples, totals, function)
    chosen = choose_places(groups, whole, resamples, generator)
    drawn = np.broadcast_to(totals, (resamples, *totals.shape)).copy()
    for place, sample in enumerate(samples):
        if not whole[place]:
            drawn[:, place] = _draw_items(sample, resamples, generator)
    rows = np.arange(resamples)[:, None]
    differences = _differences(samples, chosen, drawn[rows, chosen], function)
    tail = expanded_tail([len(sample.first) for sample in samples], groups, whole)
    return estimate, percentile_interval(differences, tail)


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
    whole = drawn_whole([sample.group for sample in samples], clustered=clustered)
    signed = [_swapped(sample, whole=one) for sample, one in zip(samples, whole, strict=True)]
    exact = sum(len(own) for own in signed) <= _EXACT
    swapped = _all_swaps(signed) if exact else _random_swaps(signed, permutations, np.random.default_rng(seed))
    totals = _totals(samples)
    observed = abs(_difference(samples, totals, function))
    # A swap keeps the sum of both systems' totals, so that their difference says all.
    units, both = totals[:, 0], totals[:, 1:].sum(axis=1)
    drawn = np.stack([np.broadcast_to(units, swapped.shape), (both + swapped) / 2, (both - swapped) / 2], axis=2)
    chosen = np.broadcast_to(np.arange(len(samples)), swapped.shape)
    found = np.abs(_differences(samples, chosen, drawn, function))
    # Equal but for rounding counts as equal.
    reached = int(np.sum(found >= observed * (1 - 1e-9) - 1e-12))
    return (reached / len(found), True) if exact else ((reached + 1) / (len(found) + 1), False)


def _totals(samples: Sequence[PairedSample]) -> Array:
    """Return the units and both systems' sums over them, `(categories, 3)`."""
    return np.array([[math.fsum(column) for column in _table(sample).T] for sample in samples])


def _table(sample: PairedSample) -> Array:
    """Return the units of every item and both systems' sums over them, `(items, 3)`."""
    units = np.array(sample.units, dtype=np.float64)
    return np.stack([units, units * sample.first, units * sample.second], axis=1)


def _draw_items(sample: PairedSample, resamples: int, generator: np.random.Generator) -> Array:
    """Return units and totals over as many items drawn with replacement, `(resamples, 3)`."""
    table = _table(sample)
    rows, counts = np.unique(table, axis=0, return_counts=True)
    n = len(table)
    step = max(1, _DRAWS // n)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    if _ALIKE * len(rows) < n:  # how often each of a few is drawn, else which ones
        parts = [generator.multinomial(n, counts / n, size=size) @ rows for size in sizes]
    else:
        parts = [table[generator.integers(n, size=(size, n))].sum(axis=1) for size in sizes]
    return np.concatenate(parts)


def _swapped(sample: PairedSample, *, whole: bool) -> list[float]:
    """Return the differences whose signs the swaps change: of the category, or of its items where they differ."""
    differences = [
        unit * (one - other) for unit, one, other in zip(sample.units, sample.first, sample.second, strict=True)
    ]
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


def _difference(samples: Sequence[PairedSample], totals: Array, function: Function) -> float:
    return _average(samples, totals[:, 0], totals[:, 1], function) - _average(
        samples, totals[:, 0], totals[:, 2], function
    )


def _average(samples: Sequence[PairedSample], units: Array, totals: Array, function: Function) -> float:
    cells = zip(samples, units.tolist(), totals.tolist(), strict=True)
    return function([Cell(one.category, one.group, round(n), total) for one, n, total in cells])


def _differences(
    samples: Sequence[PairedSample], chosen: NDArray[np.int64], totals: Array, function: Function
) -> Array:
    """Return the difference of the averages for every row of chosen categories, their units and totals."""
    fast = FAST.get(function)
    if fast is not None:
        groups = [sample.group for sample in samples]  # a category is drawn into places of its own group only
        result: Array = fast(groups, totals[:, :, 0], totals[:, :, 1]) - fast(groups, totals[:, :, 0], totals[:, :, 2])
        return result
    return np.array(
        [_difference([samples[place] for place in row], own, function) for row, own in zip(chosen, totals, strict=True)]
    )
