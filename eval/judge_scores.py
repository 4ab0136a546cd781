"""From a judge's reply to one number: Belle-Eval's `得分: 0.8`, MT-Bench's `[[8]]`. Pure functions on text.

Rules (evaluation.md names no parser of the original projects, so these are ours):

- the first label (`得分`, `评分`, `分数`, `打分`, `分值`, `score`, `rating`) that a number follows decides; later
  ones are counted in `note`. So where a reply rates several aspects, the first aspect counts, unless a total with a
  number stands anywhere (`总得分`, `最终得分`, `综合得分`; `总分` behind at least two labels): it wins.
- a label without a number (`得分点`, `评分标准`, the scale restated) is passed over.
- a stated fraction is brought to the scale: `8/10`, `80%`, `8分（满分10分）` are 0.8 of 1. A bare `8` on a scale of 1
  is `out of range`, never clamped and never divided.
- a range (`0.7-0.8`), a bound or a list is no number: `unparsed`, with the reason in `note`.
- without any label, `给0.8分`, `得0.8分` or a reply that is nothing but a number is read, where all of them agree.
"""

import re
from dataclasses import dataclass
from typing import Literal

from eval.judge_numbers import AMOUNT, Reading, clean, read_after

ScoreStatus = Literal["read", "unparsed", "out of range", "contradictory", "missing"]


@dataclass(frozen=True)
class JudgeScore:
    """One score as read from a reply."""

    value: float | None
    """On the scale asked for; `None` unless `status` is `read`."""
    status: ScoreStatus
    """`unparsed`: no single number; `contradictory`: two different ones for one system; `missing`: a system that the
    reply does not name."""
    found: str = ""
    """The text that was read as the number."""
    note: str = ""
    """Why there is no value, or what else the reply holds."""


LABEL = re.compile(
    r"得\s?分|评分|評分|分数|分數|打分|给分|給分|分值|(?<![A-Za-z])(?:scored|scores|score|rating|rated|grade|rate(?=\s+(?:it|this|the)\b))(?![A-Za-z])(?!_?\d+\s*:)",
    re.IGNORECASE,
)
_TOTAL = re.compile(r"(?:总体?|最终|最后|综合)(?:的)?\Z")
_TOTAL_BARE = re.compile(r"(?<![(\[【])(?:总分|总成绩)(?=\s*(?:[:=为是]|\d))")
_DECLARED = re.compile(
    rf"(?<!扣)(?:得到|获得|给予|给出|评为|得|打|给|评|判)(?:了|其|它|出|个|该回答|模型回答|模型|回答)?\s*(?={AMOUNT}\s*分(?!钟|析|别|类))"
)


def parse_score(reply: str, *, maximum: float = 1.0, minimum: float = 0.0) -> JudgeScore:
    """Return the score of a reply about one answer.

    Args:
        reply: the judge's raw text.
        maximum: best score of the scale.
        minimum: worst score of the scale.
    """
    text = clean(reply)
    readings, totals = _labelled(text)
    if readings or totals:
        readings = [*totals, *readings]
        first = to_score(text, readings[0], minimum=minimum, maximum=maximum)
        return _with_count(first, {to_score(text, one, minimum=minimum, maximum=maximum).value for one in readings})
    whole = read_after(text.strip(), 0, whole_reply=False)
    if whole is not None and not text.strip()[whole.end :].strip(" \n\t.。*_`)]}"):
        return to_score(text.strip(), whole, minimum=minimum, maximum=maximum)
    declared = [read_after(text, match.end(), whole_reply=False) for match in _DECLARED.finditer(text)]
    scores = {to_score(text, one, minimum=minimum, maximum=maximum) for one in declared if one is not None}
    if len({(score.value, score.status) for score in scores}) == 1:
        return min(scores, key=lambda score: score.found)
    return JudgeScore(None, "unparsed", note="several scores and no label" if scores else "no score")


def _labelled(text: str) -> tuple[list[Reading], list[Reading]]:
    """Return what stands behind the labels of a reply, and behind those of a total."""
    readings: list[Reading] = []
    totals: list[Reading] = []
    for match in LABEL.finditer(text):
        reading = read_after(text, match.end(), whole_reply=True)
        if reading is not None:
            (totals if _TOTAL.search(text[max(0, match.start() - 4) : match.start()]) else readings).append(reading)
    # `总分` alone also states the scale (`总分：1分`): only behind several aspects is it their total.
    for match in () if totals else _TOTAL_BARE.finditer(text):
        reading = read_after(text, match.end(), whole_reply=True)
        if reading is not None and sum(one.end <= match.start() for one in readings) >= 2:
            totals.append(reading)
    return readings, totals


def to_score(text: str, reading: Reading, *, minimum: float, maximum: float) -> JudgeScore:
    """Return a reading on the scale from `minimum` to `maximum`."""
    found = text[reading.start : reading.end].strip()
    if reading.value is None or reading.out_of == 0:
        return JudgeScore(None, "unparsed", found, reading.problem or "out of nothing")
    value = reading.value
    # Multiplied first: 7 of 10 on a scale of 10 stays 7, and 8 of 10 on a scale of 1 is the nearest double to 0.8.
    value = value if reading.out_of in (None, maximum) else value * maximum / reading.out_of
    if not minimum <= value <= maximum:
        return JudgeScore(None, "out of range", found, f"{value:g} is outside {minimum:g} to {maximum:g}")
    return JudgeScore(value, "read", found)


def parse_rating(reply: str, *, maximum: float = 10.0, minimum: float = 1.0) -> JudgeScore:
    """Return the rating of MT-Bench's form `[[8]]`, the first where there are several; `[8]` where there is no `[[`.

    The same order as FastChat's `gen_judgment`; single brackets count only where all of them agree, for they may also
    be citations.
    """
    text = clean(reply).replace("\\[", "[").replace("\\]", "]")
    for opening, closing, several in ((r"\[\[", r"\]\]", True), (r"(?<!\[)\[", r"\](?!\])", False)):
        scores = [
            to_score(match[1], reading, minimum=minimum, maximum=maximum)
            for match in re.finditer(rf"{opening}([^\[\]\n]{{1,40}}){closing}", text)
            if (reading := read_after(match[1], 0, whole_reply=False))
        ]
        values = {score.value for score in scores}
        if scores and (several or len(values) == 1):
            return _with_count(scores[0], values)
    return JudgeScore(None, "unparsed", note="no [[rating]]")


def _with_count(score: JudgeScore, values: set[float | None]) -> JudgeScore:
    if len(values) == 1 or score.note:
        return score
    return JudgeScore(score.value, score.status, score.found, f"{len(values)} different scores; the first counts")
