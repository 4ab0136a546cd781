"""How single scores become one number: the named aggregations that the literature uses, each over cells.

A cell is one category (a subject, a class) with its number of items and the sum of their values. Two averages of the
same answers can differ by several points, so every report says which one it shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One category's answers."""

    category: str
    group: str
    """The coarser part that the category belongs to, such as a discipline; empty where there is none."""
    n: int
    total: float
    """Sum of the items' values."""

    @property
    def mean(self) -> float:
        """Mean value of the items."""
        return self.total / self.n


@dataclass(frozen=True)
class Aggregation:
    """A named way from cells to one number."""

    name: str
    function: Callable[[Sequence[Cell]], float]
    """Takes at least one cell, each with at least one item. In resampling a category may occur several times, each
    one a cell of its own, so that it must count cells and not names."""


def micro(cells: Sequence[Cell]) -> float:
    """Return the mean over all items."""
    return sum(cell.total for cell in cells) / sum(cell.n for cell in cells)


def macro(cells: Sequence[Cell]) -> float:
    """Return the plain mean of the categories' means."""
    return sum(cell.mean for cell in cells) / len(cells)


def group_macro(cells: Sequence[Cell]) -> float:
    """Return the mean over groups of the mean over their categories' means."""
    return _over_groups(cells, macro)


def group_micro(cells: Sequence[Cell]) -> float:
    """Return the mean over groups of the mean over their items."""
    return _over_groups(cells, micro)


def _over_groups(cells: Sequence[Cell], inside: Callable[[Sequence[Cell]], float]) -> float:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return sum(inside(own) for own in groups.values()) / len(groups)


MICRO = Aggregation("micro", micro)
MACRO = Aggregation("macro", macro)
GROUP_MACRO = Aggregation("group_macro", group_macro)
GROUP_MICRO = Aggregation("group_micro", group_micro)
