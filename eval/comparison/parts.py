"""The parts of a benchmark that are compared: the whole, its groups, kinds and categories."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.aggregation import MICRO, Cell
from eval.bootstrap import enough_clusters
from eval.comparison.averages import Average, cells_of, find_average
from eval.comparison.reports import Item, RunReport
from eval.comparison.systems import Contest

PartKind = Literal["overall", "group", "kind", "category"]
_MEAN = Average(MICRO.name, MICRO.function, exact=True)


@dataclass(frozen=True)
class Part:
    """Some of the items and how they become one number."""

    kind: PartKind
    name: str
    """Empty for the whole."""
    items: tuple[Item, ...]
    average: Average | None
    """`None` where no function at hand gives the reported numbers."""
    clustered: bool
    """Whether its categories are taken as a sample too."""

    @property
    def key(self) -> tuple[str, str]:
        """Of the part in reports."""
        return self.kind, self.name


def parts_of(contest: Contest) -> Iterator[Part]:
    """Yield the parts that have items, the whole first, then in the order of the data."""
    items, first = contest.items, contest.first
    average = _average(contest, first.headline, ("overall", ""), lambda item: True)
    yield Part("overall", "", items, average, _several(items, clustered=first.clustered))
    for group in dict.fromkeys(item.group for item in items if item.group):
        own = tuple(item for item in items if item.group == group)
        average = _average(contest, "", ("group", group), lambda item, name=group: item.group == name)  # type: ignore[misc]
        yield Part("group", group, own, average, _several(own, clustered=first.clustered))
    for kind in dict.fromkeys(kind for item in items for kind in item.kinds):
        yield Part("kind", kind, tuple(item for item in items if kind in item.kinds), _MEAN, False)
    places = {(item.group, item.category) for item in items}
    for group, category in dict.fromkeys((item.group, item.category) for item in items):
        # What is a whole group, or everything, stands there already.
        if len(places) > 1 and (not group or sum(own == group for own, _ in places) > 1):
            own = tuple(item for item in items if (item.group, item.category) == (group, category))
            yield Part("category", category, own, _MEAN, False)


def _several(items: Sequence[Item], *, clustered: bool) -> bool:
    groups = [group for group, _ in {(item.group, item.category) for item in items}]
    return clustered and enough_clusters(groups)


def _average(contest: Contest, name: str, key: tuple[str, str], belongs: Callable[[Item], bool]) -> Average | None:
    """Return the average that gives what all reports say of a part; none: the mean where items were left out."""
    runs = [run for own in contest.reports.values() for run in own if key in run.parts]
    found = find_average(name, [(_cells(run, belongs), run.parts[key].score) for run in runs])
    return found or (_MEAN if contest.left_out else None)


def _cells(run: RunReport, belongs: Callable[[Item], bool]) -> list[Cell]:
    items = [item for item in run.items.values() if item.value is not None and belongs(item)]
    return cells_of(items, [item.value for item in items if item.value is not None])
