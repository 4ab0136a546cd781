"""Bootstrap intervals of aggregated scores: items drawn again inside their categories, or whole categories.

B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), percentile intervals, widened for small
samples (T. C. Hesterberg, The American Statistician 69 (2015) 371-386, "expanded percentile": without it 95 % intervals
from 20 items hold about 93 %). Where categories are a sample themselves, whole categories are drawn, their items as
they are: drawing the items again too would count their chance twice, as the spread between categories holds it already
(A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.aggregation import Cell
from eval.average_arrays import FAST, Array
from eval.distributions import normal_tail, t_quantile

RESAMPLES = 2000
SEED = 20_231_011
FEWEST_CLUSTERS = 12
"""Categories from which they are taken as a sample. The least p value of swapping n of them is 2 / 2ⁿ, so that with
fewer the plainest difference would be lost in a correction for a hundred comparisons. Fewer are taken as fixed."""


@dataclass(frozen=True)
class Sample:
    """The values of one category's items."""

    category: str
    group: str
    values: tuple[float, ...]

    @property
    def cell(self) -> Cell:
        """The sums of the values as they were found."""
        return Cell(self.category, self.group, len(self.values), math.fsum(self.values))


def bootstrap_intervals(
    samples: Sequence[Sample],
    functions: Mapping[str, Callable[[Sequence[Cell]], float]],
    *,
    clustered: bool,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval of each function of the cells.

    Args:
        samples: one per category, each with at least one value.
        functions: by name; a resample for which one returns NaN counts for none.
        clustered: whether the categories are themselves a sample (subjects of an exam) and drawn whole, inside their
            groups; otherwise they are fixed (task classes) and their items are drawn. A category that is alone in its
            group is always fixed.
        resamples: number of bootstrap samples.
        seed: the same seed gives the same intervals.
    """
    generator = np.random.default_rng(seed)
    groups = [sample.group for sample in samples]
    whole = drawn_whole(groups, clustered=clustered)
    chosen = choose_places(groups, whole, resamples, generator)
    totals = np.array([sample.cell.total for sample in samples])[chosen]
    for place, sample in enumerate(samples):
        if not whole[place]:
            totals[:, place] = _sums(sample.values, resamples, generator)
    counts = np.array([float(len(sample.values)) for sample in samples])[chosen]
    # A category is drawn into places of its own group only, so that the groups of the places stay.
    results = {name: FAST[function](groups, counts, totals) for name, function in functions.items() if function in FAST}
    slow = {name: function for name, function in functions.items() if name not in results}
    results |= _one_by_one(samples, slow, chosen, totals) if slow else {}
    tail = expanded_tail([len(sample.values) for sample in samples], groups, whole)
    return {name: percentile_interval(results[name], tail) for name in functions}


def _one_by_one(
    samples: Sequence[Sample],
    functions: Mapping[str, Callable[[Sequence[Cell]], float]],
    chosen: NDArray[np.int64],
    totals: Array,
) -> dict[str, Array]:
    """Return each function's values, one per row of chosen categories and their totals."""
    results: dict[str, list[float]] = {name: [] for name in functions}
    for numbers, sums in zip(chosen.tolist(), totals.tolist(), strict=True):
        drawn = [samples[number] for number in numbers]
        cells = [Cell(one.category, one.group, len(one.values), total) for one, total in zip(drawn, sums, strict=True)]
        for name, function in functions.items():
            results[name].append(function(cells))
    return {name: np.array(values) for name, values in results.items()}


def enough_clusters(groups: Sequence[str]) -> bool:
    """Return whether there are enough categories to take them as a sample, given the group of each."""
    return sum(groups.count(group) > 1 for group in groups) >= FEWEST_CLUSTERS


def drawn_whole(groups: Sequence[str], *, clustered: bool) -> list[bool]:
    """Return whether each category is drawn whole, given their groups: one that is alone in its group never is."""
    return [clustered and groups.count(group) > 1 for group in groups]


def choose_places(
    groups: Sequence[str], whole: Sequence[bool], resamples: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return which category stands in every place of every resample, `(resamples, places)`."""
    chosen = np.tile(np.arange(len(groups)), (resamples, 1))
    for group in dict.fromkeys(group for group, drawn in zip(groups, whole, strict=True) if drawn):
        own = np.array([place for place, name in enumerate(groups) if name == group])
        chosen[:, own] = own[generator.integers(len(own), size=(resamples, len(own)))]
    return chosen


def expanded_tail(sizes: Sequence[int], groups: Sequence[str], whole: Sequence[bool]) -> float | None:
    """Return the tail that the percentiles leave out on either side; `None` where nothing can vary.

    Hesterberg's: as Student's t with the variance's divisor n instead of n - 1, here with as many means as there are
    categories (or, drawn whole, groups of them).

    Args:
        sizes: items of each category.
        groups: of each category.
        whole: whether it is drawn whole.
    """
    if any(whole):
        n, means = sum(whole), len({group for group, one in zip(groups, whole, strict=True) if one})
    else:
        n, means = sum(sizes), len(sizes)
    if n == means:
        return None
    return normal_tail(math.sqrt(n / (n - means)) * t_quantile(0.975, n - means))


def percentile_interval(values: Array, tail: float | None) -> tuple[float, float]:
    """Return the values between the tails; NaN where there are none, or no tail."""
    kept = values[~np.isnan(values)]
    if tail is None or not len(kept):
        return math.nan, math.nan
    low, high = np.quantile(kept, [tail, 1 - tail]).tolist()
    return low, high


def _sums(values: Sequence[float], times: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return `times` sums of as many values drawn with replacement: a multinomial over the distinct ones."""
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    result: NDArray[np.float64] = generator.multinomial(len(values), counts / len(values), size=times) @ distinct
    return result
