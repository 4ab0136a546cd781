"""Reads scores out of a judge's reply: the one place through which the judged benchmarks do so; never guesses.

What cannot be read, and what is out of range, is a `Reading` without a value and with the reason; nothing is clamped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from eval.judge_scores import JudgeScore, parse_rating, parse_score
from eval.judge_systems import parse_system_scores

_TAG = re.compile(r"\[\[\s*(.+?)\s*\]\]")


@dataclass(frozen=True)
class Reading:
    """What a reply says about one system."""

    value: float | None
    problem: str = ""
    """Why there is no value."""


def read_class_score(reply: str) -> Reading:
    """Return the score after the first `得分`, from 0 to 1 (`eval/judge_scores.py` has the rules)."""
    return _reading(parse_score(reply))


def read_system_scores(reply: str, count: int) -> list[Reading]:
    """Return the scores of `System1`, `System2` and so on, from 0 to 10 (`eval/judge_systems.py` has the rules)."""
    return [_reading(score) for score in parse_system_scores(reply, count)]


def read_rating(reply: str) -> Reading:
    """Return the rating in `[[8]]`, from 1 to 10, the first where there are several, as FastChat does."""
    return _reading(parse_rating(reply))


def read_choice(reply: str, names: Sequence[str]) -> str | None:
    """Return the one name that the reply chooses: alone, or in double square brackets; upper and lower case differ."""
    tagged = [name for name in _TAG.findall(reply) if name in names]
    if tagged:
        return tagged[0] if len(set(tagged)) == 1 else None
    alone = reply.strip().strip("\"'`*.()")
    return alone if alone in names else None


def _reading(score: JudgeScore) -> Reading:
    if score.value is not None:
        return Reading(score.value)
    return Reading(None, f"{score.status}: {score.note}" if score.note else score.status)
