"""Finds the function behind an average that a report names, so that resampling can compute it again.

A report holds names and numbers, no functions. One is taken only if it gives the numbers of all reports at hand.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import mul

import eval as benchmarks_folder
from eval.aggregation import GROUP_MACRO, GROUP_MICRO, MACRO, MICRO, Aggregation, Cell
from eval.comparison.reports import Item
from eval.paired_resampling import PairedSample

_PLAIN = (MICRO, MACRO, GROUP_MACRO, GROUP_MICRO)
_NEAR = 0.01
"""Averages of rounded averages, as some tables publish them, stay within 1 % of the same without rounding."""


@dataclass(frozen=True)
class Average:
    """An average and how it relates to the reported one."""

    name: str
    function: Callable[[Sequence[Cell]], float]
    exact: bool
    """Whether it gives the reported numbers; otherwise it is the nearest that does not round on the way."""


def paired_samples(items: Iterable[Item], first: Sequence[float], second: Sequence[float]) -> list[PairedSample]:
    """Return two systems' values by category.

    Args:
        items: those that count.
        first: one value per item.
        second: the same of the other system.
    """
    parts: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    for item, one, other in zip(items, first, second, strict=True):
        parts.setdefault((item.group, item.category), []).append((one, other, item.weight))
    samples = []
    for (group, category), own in parts.items():
        values, others, weights = zip(*own, strict=True)
        samples.append(PairedSample(category, group, values, others, weights))
    return samples


def cells_of(items: Iterable[Item], values: Sequence[float]) -> list[Cell]:
    """Return the sums of one system's values by category; the number of units stands for that of the items."""
    return [
        Cell(one.category, one.group, sum(one.units), math.fsum(map(mul, one.units, one.first)))
        for one in paired_samples(items, values, values)
    ]


def find_average(name: str, reported: Sequence[tuple[Sequence[Cell], float]]) -> Average | None:
    """Return the average that gives what was reported.

    The plain averages come first, as these resample fast; then one of that name that a benchmark defines, if it does
    not round on the way; then the nearest plain one.

    Args:
        name: as the reports call it; empty where they do not.
        reported: cells and number of every report.
    """
    plain = sorted(_PLAIN, key=lambda one: one.name != name)
    for one in plain:
        if all(_equal(one.function(cells), number) for cells, number in reported):
            return Average(one.name, one.function, exact=True)
    for one in _defined(name):
        if all(_equal(one.function(cells), number) for cells, number in reported) and not _rounds(one, reported):
            return Average(one.name, one.function, exact=True)
    nearest = min(plain, key=lambda one: _distance(one, reported))
    return Average(nearest.name, nearest.function, exact=False) if _distance(nearest, reported) <= _NEAR else None


def _equal(value: float, number: float) -> bool:
    return math.isclose(value, number, rel_tol=1e-9, abs_tol=1e-12)


def _distance(one: Aggregation, reported: Sequence[tuple[Sequence[Cell], float]]) -> float:
    return max(abs(one.function(cells) - number) / (abs(number) or 1.0) for cells, number in reported)


def _rounds(one: Aggregation, reported: Sequence[tuple[Sequence[Cell], float]]) -> bool:
    """Return whether an average does not notice that every total shrinks by a millionth."""
    return any(
        one.function(cells) == one.function([Cell(c.category, c.group, c.n, c.total * (1 - 1e-6)) for c in cells])
        for cells, number in reported
        if number
    )


def _defined(name: str) -> Iterator[Aggregation]:
    """Yield the averages of that name that the modules of this program hold."""
    for module in pkgutil.iter_modules(benchmarks_folder.__path__):
        if module.ispkg or module.name.startswith("_"):  # packages need torch, and hold no benchmark
            continue
        for value in vars(importlib.import_module(f"eval.{module.name}")).values():
            if isinstance(value, Aggregation) and value.name == name:
                yield value
