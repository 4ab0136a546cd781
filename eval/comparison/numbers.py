"""Computes the comparison: every part's score, difference to the baseline, test and verdict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from eval.aggregation import MICRO
from eval.comparison.averages import cells_of, paired_samples
from eval.comparison.parts import Part, PartKind, parts_of
from eval.comparison.reports import Reported, RunReport
from eval.comparison.systems import Contest
from eval.comparison.wording import Scale
from eval.paired import Difference, compare_right_or_wrong, compare_scores, with_holm
from eval.paired_resampling import bootstrap_difference
from eval.seed_statistics import SeedDifference, SeedScore, compare_seeds, over_seeds
from eval.statistics import wilson_interval

_ROUNDED = "is rounded on the way"


@dataclass(frozen=True)
class Entry:
    """One system on one part."""

    system: str
    score: float
    interval: tuple[float, float]
    """95 %: over items for one run; over seeds for several."""
    seeds: SeedScore
    difference: Difference | None = None
    """Against the baseline, on the items' means over seeds; `None` for the baseline itself, and where the average
    cannot be computed again."""
    seed_difference: SeedDifference | None = None
    """Against the baseline, where both have several seeds."""


@dataclass(frozen=True)
class Row:
    """One part of a benchmark, for all systems."""

    kind: PartKind
    name: str
    """Of the part; of the average for the whole."""
    n: int
    entries: tuple[Entry, ...]
    """In the order of the systems."""


@dataclass(frozen=True)
class BenchmarkTable:
    """The comparison on one benchmark."""

    label: str
    identity: Mapping[str, str]
    scale: Scale
    lower_is_better: bool
    rows: tuple[Row, ...]
    """The whole first."""
    left_out: int
    """Items that count for some run only."""
    notes: tuple[str, ...]


def compare(contest: Contest, baseline: str, *, overall_only: bool = False) -> BenchmarkTable:
    """Compare all systems with the baseline on one benchmark; p values are not adjusted yet.

    Args:
        contest: the benchmark and its reports.
        baseline: the system that the others are held against.
        overall_only: whether the parts are left out.
    """
    headline = contest.first.headline
    lower = lower_is_better(headline)
    values = {name: [run.counted for run in runs] for name, runs in contest.reports.items()}
    shares = all(0 <= run[item.id] <= 1 for own in values.values() for run in own for item in contest.items)
    parts = list(islice(parts_of(contest), 1 if overall_only else None))
    rows = tuple(_row(part, contest, values, baseline) for part in parts)
    return BenchmarkTable(
        label=contest.label,
        identity=contest.first.identity,
        scale=Scale.of((entry.score for row in rows for entry in row.entries), percent=shares and not lower),
        lower_is_better=lower,
        rows=rows,
        left_out=contest.left_out,
        notes=(*contest.notes, *_notes(parts, headline)),
    )


def lower_is_better(average: str) -> bool:
    """Return whether an average of that name is better when lower."""
    return average.startswith(("bits_per_", "nats_per_")) or average.endswith(("perplexity", "loss"))


def with_adjusted(tables: Sequence[BenchmarkTable]) -> list[BenchmarkTable]:
    """Return the tables with p values after Holm's correction.

    The overall scores of all systems and benchmarks are one family, the parts of each benchmark another: looking into
    parts does not make the finding on the whole weaker.
    """
    families: dict[str, list[Difference]] = {}
    for table in tables:
        for row in table.rows:
            own = families.setdefault(_family(table, row), [])
            own += [entry.difference for entry in row.entries if entry.difference is not None]
    adjusted = {family: iter(with_holm(own)) for family, own in families.items()}

    def changed(row: Row, differences: Iterator[Difference]) -> Row:
        entries = (replace(one, difference=next(differences)) if one.difference else one for one in row.entries)
        return replace(row, entries=tuple(entries))

    return [
        replace(table, rows=tuple(changed(row, adjusted[_family(table, row)]) for row in table.rows))
        for table in tables
    ]


def _family(table: BenchmarkTable, row: Row) -> str:
    return "" if row.kind == "overall" else table.label


def _notes(parts: Sequence[Part], headline: str) -> list[str]:
    notes = []
    overall = parts[0].average
    if overall is None:
        notes.append(f"'{headline}' cannot be computed from the items, so that its differences are not tested.")
    elif not overall.exact:
        notes.append(f"'{headline}' {_ROUNDED}; difference, interval and p are those of '{overall.name}'.")
    names = {part.average.name for part in parts if part.kind == "group" and part.average and not part.average.exact}
    if names:
        notes.append(f"The groups' average {_ROUNDED}; their tests are those of '{', '.join(sorted(names))}'.")
    return notes


def _row(part: Part, contest: Contest, values: Mapping[str, Sequence[Mapping[str, float]]], baseline: str) -> Row:
    entries = {
        name: _entry(name, part, runs, values[name], restricted=contest.left_out > 0)
        for name, runs in contest.reports.items()
    }
    against = entries[baseline].seeds
    means = {name: _means(part, own) for name, own in values.items()}
    for name, entry in entries.items():
        if name == baseline:
            continue
        several = min(entry.seeds.num_seeds, against.num_seeds) > 1
        difference = _difference(part, means[name], means[baseline])
        if difference is not None and lower_is_better(contest.first.headline):
            difference = replace(difference, wins=difference.losses, losses=difference.wins)
        entries[name] = replace(
            entry,
            difference=difference,
            seed_difference=compare_seeds(entry.seeds.scores, against.scores) if several else None,
        )
    label = contest.first.headline if part.kind == "overall" else part.name
    return Row(part.kind, label, len(part.items), tuple(entries.values()))


def _entry(
    name: str, part: Part, runs: Sequence[RunReport], values: Sequence[Mapping[str, float]], *, restricted: bool
) -> Entry:
    scores = [
        _computed(part, [own[item.id] for item in part.items])
        if restricted or part.key not in run.parts
        else run.parts[part.key]
        for run, own in zip(runs, values, strict=True)
    ]
    seeds = over_seeds([one.score for one in scores])
    return Entry(name, seeds.mean, scores[0].interval if len(scores) == 1 else seeds.interval, seeds)


def _means(part: Part, runs: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the items' means over seeds."""
    means: list[float] = np.mean([[run[item.id] for item in part.items] for run in runs], axis=0).tolist()
    return means


def _computed(part: Part, values: Sequence[float]) -> Reported:
    """Compute a score and its interval as a report of these items would have them."""
    assert part.average is not None
    score = part.average.function(cells_of(part.items, values))
    if _plain(part) and _right_or_wrong(values):
        return Reported(score, wilson_interval(round(sum(values)), len(values)))
    # Against a system that has nothing, the difference is the score.
    samples = paired_samples(part.items, values, [0.0] * len(values))
    return Reported(score, bootstrap_difference(samples, part.average.function, clustered=part.clustered)[1])


def _difference(part: Part, first: Sequence[float], second: Sequence[float]) -> Difference | None:
    if part.average is None:
        return None
    if _plain(part) and _right_or_wrong([*first, *second]):
        return compare_right_or_wrong([value == 1 for value in first], [value == 1 for value in second])
    samples = paired_samples(part.items, first, second)
    return compare_scores(samples, part.average.function, clustered=part.clustered)


def _plain(part: Part) -> bool:
    """Return whether the part's number is the mean over its items, each by itself and as much as another."""
    mean_of_items = part.average is not None and part.average.function is MICRO.function
    return mean_of_items and not part.clustered and all(item.weight == 1 for item in part.items)


def _right_or_wrong(values: Sequence[float]) -> bool:
    return all(value in (0, 1) for value in values)
