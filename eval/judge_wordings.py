"""Wordings of a judge's reply in which a system's number does not stand behind its name alone.

`8/10 for System1, 7/10 for System2`, `System1 and System2 both get 8` and `1: 8` per line. Each is read only where
the whole reply agrees with it; `is_anothers` tells where a number belongs to the system behind it.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.judge_numbers import AMOUNT, Reading, read_after
from eval.judge_scores import LABEL


@dataclass(frozen=True)
class Mention:
    """A system named in the text."""

    index: int
    start: int
    end: int


Found = tuple[int, str, Reading]
"""Number of the system, the text that the reading was taken from, and the reading."""

_CONNECTOR = (
    r"(?:(?:goes?|is|are|was)\s+)?(?:for|to|给予|给了|给|归|属于|\(|\[|->|=>|→|[:=\-–—])"
    r"\s*(?:the\s+)?[\"'*_]*"
)
_JOIN = re.compile(rf"[)\]*_]*\s*{_CONNECTOR}", re.IGNORECASE)
_BEFORE = re.compile(
    rf"(?<![A-Za-z0-9_./])(?<!/ )(?P<number>{AMOUNT})"
    rf"(?:\s*分|\s*points?|\s*pts?|\s*%|\s*(?:/|out of)\s*{AMOUNT}(?:\s*分)?)?"
    rf"[)\]*_]*\s*(?:(?:goes?|is|are)\s+)?(?:for|to|给予|给了|给|归|属于|\()\s*(?:the\s+)?[\"'*_]*\Z",
    re.IGNORECASE,
)
_LONGEST_BEFORE = 48
_INTRODUCED = re.compile(
    r"(?:^|[\n,;。.!、|(/]|[-•])\s*\Z"
    r"|(?:\band|\bbut|\bwhile|\bwith|\ba|\ban|\bof|\b(?:give|gives|gave|award|assign)|[和打评给得判])\s*\Z"
    r"|(?:得分|评分|分数|打分|scores?|ratings?)\s*(?:[:=是为]|is|are|of)?\s*\Z",
    re.IGNORECASE,
)
"""Before such a number; `rank 1 for System1` and `errors: 3 for System1` are no scores."""
_SEPARATOR = re.compile(r"[,\n|/;]")
_CLOSE_BEHIND = re.compile(r"[^,;。.\n|\d]{0,12}\Z")
_LEADING = re.compile(rf"(?<![A-Za-z0-9_./]){AMOUNT}(?:\s*分|\s*points?|\s*/\s*{AMOUNT})?[\s*_(\-–—=/|]*\Z")
"""Before the first system of a reply: its numbers may all stand before the names."""
_JOINED = re.compile(r"[\s,、/|和与及&*]*(?:and)?\s*", re.IGNORECASE)
_ALL = re.compile(
    r"[\s*,]*(?:(?:are|were|would|should|have)\s+)?(?:both|all|each|均|都|各|同样|同)(?![A-Za-z])", re.IGNORECASE
)
_FURTHER_NUMBER = re.compile(rf"\s*(?:[,、/]|and\b|or\b|和|与|或)\s*(?:{AMOUNT})", re.IGNORECASE)
_LINE = re.compile(
    rf"[\s\-*•]*(?P<index>\d|[A-H])[)*]*\s*:\s*(?P<number>{AMOUNT}(?:\s*分|\s*/\s*10|\s*points?)?)[\s*.。;]*"
)


def is_anothers(text: str, mentions: Sequence[Mention], gap: str, reading: Reading) -> bool:
    """Return whether a number that follows a system's name may be the next system's: `System1, 7 for System2`.

    Args:
        text: a reply through `clean`.
        mentions: where it names systems.
        gap: the text between the name and the number.
        reading: what was read behind the name.
    """
    place = bisect_left(mentions, reading.end, key=lambda one: one.start)
    if place == len(mentions):
        return False
    behind = mentions[place]
    between = text[reading.end : behind.start]
    if _JOIN.fullmatch(between) and not (reading.announced and _SEPARATOR.search(gap) is None):
        return True
    first = text[max(0, mentions[0].start - _LONGEST_BEFORE) : mentions[0].start]
    unsure = _SEPARATOR.search(gap) or (_LEADING.search(first) and not reading.announced)
    return bool(unsure) and not LABEL.search(gap) and _CLOSE_BEHIND.match(between) is not None


def numbers_may_lead(text: str, mentions: Sequence[Mention]) -> bool:
    """Return whether a number stands before the first name and none behind the last: each may be the next name's."""
    if not mentions or read_after(text, mentions[-1].end, whole_reply=False) is not None:
        return False
    return re.search(r"\d\D{0,12}\Z", text[max(0, mentions[0].start - 13) : mentions[0].start]) is not None


def before_names(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    """Read `8/10 for System1, 7/10 for System2`, where no number stands behind a name but the next one's."""
    pairs: list[tuple[Mention, Reading]] = []
    for mention in mentions:
        first = max(0, mention.start - _LONGEST_BEFORE)
        match = next(_BEFORE.finditer(text[first : mention.start]), None)
        if match is None:
            continue
        start = first + match.start()
        reading = read_after(text, start, whole_reply=False)
        introduced = _INTRODUCED.search(text[max(0, start - 24) : start])
        behind_name = any(0 <= start - one.end <= 2 and not text[one.end : start].strip() for one in mentions)
        if reading is None or reading.start != start or not (introduced or behind_name):
            return
        pairs.append((mention, reading))
    starts = {reading.start for _, reading in pairs}
    paired = {mention.start for mention, _ in pairs}
    for mention in mentions:
        behind = read_after(text, mention.end, whole_reply=False)
        if behind is None:
            continue
        separated = mention.start in paired or _SEPARATOR.search(text, mention.end, behind.start)
        if behind.start not in starts or not separated:
            return
    for mention, reading in pairs:
        yield mention.index, text, reading


def shared_number(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    """Read `System1 and System2 both get 8` for every system named in that row."""
    row: list[Mention] = []
    for mention in mentions:
        joined = row and _JOINED.fullmatch(text, row[-1].end, mention.start)
        row = [*row, mention] if joined else [mention]
        every = _ALL.match(text, mention.end)
        if len(row) < 2 or every is None:
            continue
        reading = read_after(text, every.end(), whole_reply=False)
        if reading is None or _FURTHER_NUMBER.match(text, reading.end):
            continue
        counted = re.compile(r"[ \t]+(?!points?|pts?|out|because|since|as|and|while|but)[a-z]").match(text, reading.end)
        if not counted and not is_anothers(text, mentions, text[every.end() : reading.start], reading):
            for one in row:
                yield one.index, text, reading


def numbered_lines(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    """Read a reply that is nothing but `1: 8` or `A: 8` per line, one for every system."""
    lines = [_LINE.fullmatch(line) for line in text.strip().split("\n") if line.strip()]
    matches = [match for match in lines if match is not None]
    names = [match["index"] for match in matches]
    orders = ("123456789"[:count], "ABCDEFGH"[:count])
    if len(matches) < len(lines) or len(names) != count or "".join(sorted(names)) not in orders:
        return
    for match in matches:
        name = match["index"]
        reading = read_after(match["number"], 0, whole_reply=False)
        if reading is not None:
            yield (int(name) if name.isdigit() else "ABCDEFGH".index(name) + 1), match["number"], reading
