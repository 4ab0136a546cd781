"""What a benchmark's `score` gives back, and how it is summed up from single outcomes."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from eval.aggregation import MACRO, MICRO, Aggregation, Cell, group_macro, group_micro, macro, micro
from eval.bootstrap import Sample, bootstrap_intervals, enough_clusters
from eval.statistics import wilson_interval
from ift.errors import UserError
from ift.records import Prediction

Answers = Literal["ranked", "generated"]
Status = Literal["read", "unparsed", "tied", "excluded", "unread"]
Method = Literal["wilson", "bootstrap over items", "bootstrap over categories"]

_MEANS = (micro, macro, group_micro, group_macro)
"""What all comes to the same mean over the items where there is one category only."""


@dataclass(frozen=True)
class Outcome:
    """What became of one prediction."""

    id: str
    category: str
    """The finest part that is reported: a subject, a class."""
    correct: bool = False
    status: Status = "read"
    """`read`: an answer was found; `unparsed` and `tied`: none was, counted as wrong; `unread`: a judge's reply held no
    usable score, so that the item counts nowhere but is shown; `excluded`: the item itself cannot be used."""
    note: str = ""
    """The reason, where excluded or unread; the response, where unparsed."""
    value: float | None = None
    """The score, where it is not just right or wrong; then `correct` means nothing."""
    group: str = ""
    """The coarser part that the category belongs to: a discipline."""
    answer: str = ""
    """What was read from the response."""
    kinds: tuple[str, ...] = ()
    """Labels across categories that are reported apart: `single`, `multi`."""
    weight: int = 1
    """Number of units, such as characters, that the value is the mean of. `compare` weights by it, to give again what a
    benchmark averages over units; `summarize` averages over items."""

    @property
    def counts(self) -> bool:
        """Whether the item is part of the score."""
        return self.status not in ("excluded", "unread")

    @property
    def score(self) -> float:
        """The value, or 1 and 0 for right and wrong."""
        return float(self.correct) if self.value is None else self.value


@dataclass(frozen=True)
class Score:
    """A mean over n items, or an average of such means."""

    n: int
    score: float
    interval: tuple[float, float]
    """95 % interval; NaN where the items tell nothing about their spread."""
    method: Method = "wilson"
    """How the interval was computed."""


@dataclass(frozen=True)
class Rule:
    """What a rule for choosing by likelihood makes of the answers, beside the one that the report is made by."""

    average: str
    """Name of its score in `Report.aggregates`."""
    changed: int
    """Number of items with another answer than by the report's rule."""
    tied: int
    """Items whose best options are equal by it; counted as wrong."""


@dataclass(frozen=True)
class Report:
    """The result of a benchmark, before the command adds names and hashes."""

    aggregates: Mapping[str, Score]
    """Every named average; the first is the headline."""
    categories: Mapping[str, Score]
    groups: Mapping[str, Score]
    """Of the categories' groups, where there are any."""
    kinds: Mapping[str, Score]
    excluded: Mapping[str, int]
    """Reason and number of items whose reference cannot be used; they count nowhere else."""
    unread: Mapping[str, str]
    """Id and reason of the items for which a judge gave no usable score; they count nowhere else."""
    answers: Answers
    """Whether options were ranked by likelihood or responses were written."""
    unparsed: Mapping[str, str]
    """Id and response of the items in which no answer was found; counted as wrong."""
    items: Sequence[Outcome] = ()
    """All of them, in the order of the data."""
    tied: int = 0
    """Items whose best options had equal likelihood; counted as wrong."""
    finish_reasons: Mapping[str, int] = field(default_factory=dict)
    """Why responses ended; many `length` mean that answers were cut before they were given."""
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers, one sentence each."""
    scoring: str | None = None
    """Name of the rule that chose by likelihood (`eval/likelihood.py`), where the benchmark offers several."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    """By name, all that the predictions allow, where they were asked for every rule."""

    @property
    def headline(self) -> tuple[str, Score]:
        """Name and score of the number that stands for the whole."""
        return next(iter(self.aggregates.items()))

    @property
    def overall(self) -> Score:
        """Micro: over all items, whatever their category."""
        return self.aggregates["micro"]

    @property
    def macro(self) -> float:
        """Plain mean of the categories' scores."""
        return self.aggregates["macro"].score


def summarize(
    outcomes: Iterable[Outcome],
    predictions: Iterable[Prediction],
    *,
    aggregations: Sequence[Aggregation] = (MICRO, MACRO),
    clustered: bool = False,
    group_score: Aggregation = MICRO,
    notes: Iterable[str] = (),
) -> Report:
    """Return the report over outcomes.

    A share of right answers that is no average of parts has a Wilson interval; everything else is bootstrapped: over
    whole categories where `clustered` and there are enough of them, else over items.

    Args:
        outcomes: one per prediction.
        predictions: the same items, for the reasons why responses ended.
        aggregations: the averages to report, the headline first; `micro` and `macro` are added where they are missing.
        clustered: whether the categories are a sample of what could have been asked (subjects of an exam) rather than
            fixed classes.
        group_score: how a group's score is made of its categories.
        notes: sentences for the report.

    Raises:
        UserError: nothing counts, or some answers are ranked and others generated.
    """
    outcomes, predictions = list(outcomes), list(predictions)
    counted = [outcome for outcome in outcomes if outcome.counts]
    excluded = Counter(outcome.note for outcome in outcomes if outcome.status == "excluded")
    unread = {outcome.id: outcome.note for outcome in outcomes if outcome.status == "unread"}
    if not counted:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in {**excluded, **Counter(unread.values())}.items())
        raise UserError(f"nothing to score: all {len(outcomes)} items are excluded: {reasons}. Check the data file.")
    averages = {one.name: one.function for one in (*aggregations, MICRO, MACRO)}
    return Report(
        aggregates=_scores(counted, averages, clustered=clustered),
        categories={name: _mean(own) for name, own in _parts(counted, lambda item: (item.category,)).items()},
        groups={
            name: _scores(own, {"group": group_score.function}, clustered=clustered)["group"]
            for name, own in _parts(counted, lambda item: (item.group,) if item.group else ()).items()
        },
        kinds={name: _mean(own) for name, own in _parts(counted, lambda item: item.kinds).items()},
        excluded=dict(excluded),
        unread=unread,
        answers=_answers(predictions),
        unparsed={outcome.id: outcome.note for outcome in counted if outcome.status == "unparsed"},
        items=tuple(outcomes),
        tied=sum(outcome.status == "tied" for outcome in counted),
        finish_reasons=dict(Counter(item.finish_reason for item in predictions if item.finish_reason is not None)),
        notes=tuple(notes),
    )


def score_of(outcomes: Iterable[Outcome], aggregation: Aggregation, *, clustered: bool) -> Score:
    """Return one average with its interval, as `summarize` has it.

    Args:
        outcomes: at least one that counts.
        aggregation: the average.
        clustered: as for `summarize`.
    """
    counted = [outcome for outcome in outcomes if outcome.counts]
    return _scores(counted, {aggregation.name: aggregation.function}, clustered=clustered)[aggregation.name]


def samples_of(outcomes: Iterable[Outcome]) -> list[Sample]:
    """Return the values of the items that count, by category."""
    counted = [outcome for outcome in outcomes if outcome.counts]
    parts: dict[tuple[str, str], list[float]] = {}
    for outcome in counted:
        parts.setdefault((outcome.group, outcome.category), []).append(outcome.score)
    return [Sample(category, group, tuple(values)) for (group, category), values in parts.items()]


def _parts(outcomes: Sequence[Outcome], names: Callable[[Outcome], tuple[str, ...]]) -> dict[str, list[Outcome]]:
    parts: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        for name in names(outcome):
            parts.setdefault(name, []).append(outcome)
    return parts


def _scores(
    outcomes: Sequence[Outcome], functions: Mapping[str, Callable[[Sequence[Cell]], float]], *, clustered: bool
) -> dict[str, Score]:
    samples = samples_of(outcomes)
    clustered = clustered and enough_clusters([sample.group for sample in samples])
    cells = [sample.cell for sample in samples]
    means = _MEANS if len(cells) == 1 else (micro,)
    plain = {name for name, function in functions.items() if not clustered and function in means}
    others = {name: function for name, function in functions.items() if name not in plain}
    intervals = bootstrap_intervals(samples, others, clustered=clustered) if others else {}
    method: Method = "bootstrap over categories" if clustered else "bootstrap over items"
    return {
        name: _mean(outcomes)
        if name in plain
        else _honest(Score(len(outcomes), function(cells), intervals[name], method), outcomes)
        for name, function in functions.items()
    }


def _honest(score: Score, outcomes: Sequence[Outcome]) -> Score:
    """Return a score without the certainty that a bootstrap gives where it has nothing to draw from.

    Right or wrong answers that are all alike say as much as their share does; where other values do not vary, or stand
    alone, nothing is known about their spread.
    """
    low, high = score.interval
    if low != high and not (math.isnan(low) and _right_or_wrong(outcomes)):
        return score
    if not _right_or_wrong(outcomes):
        return replace(score, interval=(math.nan, math.nan))
    return replace(score, interval=_mean(outcomes).interval, method="wilson")


def _right_or_wrong(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.value is None for outcome in outcomes)


def _mean(outcomes: Sequence[Outcome]) -> Score:
    if _right_or_wrong(outcomes):
        right = sum(outcome.correct for outcome in outcomes)
        return Score(len(outcomes), right / len(outcomes), wilson_interval(right, len(outcomes)))
    sample = Sample("", "", tuple(outcome.score for outcome in outcomes))
    interval = bootstrap_intervals([sample], {"mean": MICRO.function}, clustered=False)["mean"]
    return _honest(Score(len(outcomes), sample.cell.mean, interval, "bootstrap over items"), outcomes)


def _answers(predictions: Iterable[Prediction]) -> Answers:
    kinds: set[Answers] = {"ranked" if item.option_scores else "generated" for item in predictions}
    if len(kinds) > 1:
        raise UserError("--predictions: some answers have 'option_scores', others a 'response'. Score them apart.")
    return kinds.pop()
