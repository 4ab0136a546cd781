"""Bootstrap intervals of aggregated scores: items drawn again inside their categories, and categories too if asked.

B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), percentile intervals; two-stage resampling of
clustered data as in A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.aggregation import Cell

RESAMPLES = 2000
SEED = 20_231_011


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
        clustered: whether the categories of a group are themselves a sample (subjects of an exam) and drawn again too;
            otherwise they are fixed (task classes) and only their items are.
        resamples: number of bootstrap samples.
        seed: the same seed gives the same intervals.
    """
    generator = np.random.default_rng(seed)
    drawn = _draw_clusters(samples, resamples, generator) if clustered else [list(samples)] * resamples
    totals = _draw_totals(samples, drawn, generator)
    results: dict[str, list[float]] = {name: [] for name in functions}
    for chosen, sums in zip(drawn, totals, strict=True):
        cells = [
            Cell(sample.category, sample.group, len(sample.values), total)
            for sample, total in zip(chosen, sums, strict=True)
        ]
        for name, function in functions.items():
            results[name].append(function(cells))
    return {name: _percentiles(values) for name, values in results.items()}


def _draw_clusters(samples: Sequence[Sample], resamples: int, generator: np.random.Generator) -> list[list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    drawn: list[list[Sample]] = [[] for _ in range(resamples)]
    for own in groups.values():
        choices = generator.integers(len(own), size=(resamples, len(own)))
        for row, numbers in zip(drawn, choices.tolist(), strict=True):
            row.extend(own[number] for number in numbers)
    return drawn


def _draw_totals(
    samples: Sequence[Sample], drawn: Sequence[Sequence[Sample]], generator: np.random.Generator
) -> list[list[float]]:
    """Return the sum of a fresh draw of items for every place in every resample."""
    places: dict[tuple[str, str], list[tuple[int, int]]] = {(sample.group, sample.category): [] for sample in samples}
    for row, chosen in enumerate(drawn):
        for column, sample in enumerate(chosen):
            places[sample.group, sample.category].append((row, column))
    totals = [[0.0] * len(chosen) for chosen in drawn]
    for sample in samples:
        own = places[sample.group, sample.category]
        for (row, column), total in zip(own, _sums(sample.values, len(own), generator).tolist(), strict=True):
            totals[row][column] = total
    return totals


def _sums(values: Sequence[float], times: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return `times` sums of as many values drawn with replacement: a multinomial over the distinct ones."""
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    result: NDArray[np.float64] = generator.multinomial(len(values), counts / len(values), size=times) @ distinct
    return result


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return math.nan, math.nan
    low, high = np.quantile(kept, [0.025, 0.975]).tolist()
    return low, high
