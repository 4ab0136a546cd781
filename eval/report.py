"""What a benchmark's `score` gives back, and how it is summed up from single outcomes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from eval.statistics import wilson_interval
from ift.errors import UserError
from ift.records import Prediction

Answers = Literal["ranked", "generated"]
Status = Literal["read", "unparsed", "tied", "excluded"]


@dataclass(frozen=True)
class Outcome:
    """What became of one prediction."""

    id: str
    category: str
    correct: bool = False
    status: Status = "read"
    """`read`: an answer was found; `unparsed` and `tied`: none was, counted as wrong; `excluded`: not counted."""
    note: str = ""
    """The reason, where excluded; the response, where unparsed."""


@dataclass(frozen=True)
class Score:
    """The share of right answers among n."""

    n: int
    score: float
    """In [0, 1]."""
    interval: tuple[float, float]
    """95 % Wilson score interval."""


@dataclass(frozen=True)
class Report:
    """The result of a benchmark, before the command adds names and hashes."""

    overall: Score
    """Micro: over all items, whatever their category."""
    macro: float
    """Plain mean of the categories' scores, in [0, 1]."""
    categories: Mapping[str, Score]
    excluded: Mapping[str, int]
    """Reason and number of items whose reference cannot be used; they count nowhere else."""
    answers: Answers
    """Whether options were ranked by likelihood or responses were written."""
    unparsed: Mapping[str, str]
    """Id and response of the items in which no answer was found; counted as wrong."""
    tied: int = 0
    """Items whose best options had equal likelihood; counted as wrong."""
    finish_reasons: Mapping[str, int] = field(default_factory=dict)
    """Why responses ended; many `length` mean that answers were cut before they were given."""


def summarize(outcomes: Iterable[Outcome], predictions: Iterable[Prediction]) -> Report:
    """Return the report over outcomes.

    Args:
        outcomes: one per prediction.
        predictions: the same items, for the reasons why responses ended.

    Raises:
        UserError: every item is excluded, or some answers are ranked and others generated.
    """
    outcomes, predictions = list(outcomes), list(predictions)
    counted = [outcome for outcome in outcomes if outcome.status != "excluded"]
    excluded = Counter(outcome.note for outcome in outcomes if outcome.status == "excluded")
    if not counted:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in excluded.items())
        raise UserError(f"nothing to score: all {len(outcomes)} items are excluded: {reasons}. Check the data file.")
    names = dict.fromkeys(outcome.category for outcome in counted)
    categories = {name: _score([outcome for outcome in counted if outcome.category == name]) for name in names}
    return Report(
        overall=_score(counted),
        macro=sum(score.score for score in categories.values()) / len(categories),
        categories=categories,
        excluded=dict(excluded),
        answers=_answers(predictions),
        unparsed={outcome.id: outcome.note for outcome in counted if outcome.status == "unparsed"},
        tied=sum(outcome.status == "tied" for outcome in counted),
        finish_reasons=dict(Counter(item.finish_reason for item in predictions if item.finish_reason is not None)),
    )


def _answers(predictions: Iterable[Prediction]) -> Answers:
    kinds: set[Answers] = {"ranked" if item.option_scores else "generated" for item in predictions}
    if len(kinds) > 1:
        raise UserError("--predictions: some answers have 'option_scores', others a 'response'. Score them apart.")
    return kinds.pop()


def _score(outcomes: list[Outcome]) -> Score:
    right = sum(outcome.correct for outcome in outcomes)
    return Score(len(outcomes), right / len(outcomes), wilson_interval(right, len(outcomes)))
