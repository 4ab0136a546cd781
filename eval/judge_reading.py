"""Reads scores out of a judge's reply: the one place through which the judged benchmarks do so; never guesses.

What cannot be read, and what is out of range, is a `Reading` without a value and with the reason; nothing is clamped.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBER = r"(?<![\d.])(\d+(?:\.\d+)?)"
_TAG = re.compile(r"\[\[\s*(.+?)\s*\]\]")


@dataclass(frozen=True)
class Reading:
    """What a reply says about one system."""

    value: float | None
    problem: str = ""
    """Why there is no value."""


def read_class_score(reply: str) -> Reading:
    """Return the score after the first `得分`, from 0 to 1: `0.8`, `0.8分`, `0.8/1`, `80%`."""
    found = re.search(rf"得分\s*:?\s*{_NUMBER}\s*(%)?", unicodedata.normalize("NFKC", reply))
    if not found:
        return Reading(None, "no score in the reply")
    value = float(found[1])
    return _within(value / 100 if found[2] else value, 0, 1)


def read_system_scores(reply: str, count: int) -> list[Reading]:
    """Return the scores after `System1:`, `System2:` and so on, from 0 to 10; the last line about a system counts."""
    text = unicodedata.normalize("NFKC", reply)
    return [_system_score(text, number) for number in range(1, count + 1)]


def read_rating(reply: str) -> Reading:
    """Return the rating in `[[8]]`, from 1 to 10; the last one counts."""
    found = _TAG.findall(unicodedata.normalize("NFKC", reply))
    if not found or not re.fullmatch(r"\d+(?:\.\d+)?", found[-1]):
        return Reading(None, "no rating in the reply")
    return _within(float(found[-1]), 1, 10)


def read_choice(reply: str, names: Sequence[str]) -> str | None:
    """Return the one name that the reply chooses: alone, or in double square brackets; upper and lower case differ."""
    tagged = [name for name in _TAG.findall(reply) if name in names]
    if tagged:
        return tagged[0] if len(set(tagged)) == 1 else None
    alone = reply.strip().strip("\"'`*.()")
    return alone if alone in names else None


def _system_score(text: str, number: int) -> Reading:
    pattern = rf"^\W*System\s*{number}\s*(?:得分|分数)?\s*[:\-]?\s*\**\s*{_NUMBER}"
    found = re.findall(pattern, text, flags=re.IGNORECASE | re.MULTILINE)
    return _within(float(found[-1]), 0, 10) if found else Reading(None, "no score in the reply")


def _within(value: float, low: float, high: float) -> Reading:
    if low <= value <= high:
        return Reading(value)
    return Reading(None, f"{value:g} is out of the range {low:g} to {high:g}")
