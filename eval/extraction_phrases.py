"""Finds where a plain text declares its answer, and which options it calls right."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eval.extraction_letters import LetterList, only_letters, read_list, scan_list, stands_apart
from eval.extraction_vocabulary import (
    ANSWER_CLAIMS,
    BARE_HEADS,
    BEFORE_CLAIM,
    CONCLUDING,
    DOUBTED,
    FIRST_LETTER,
    HEADS,
    JUDGED,
    MARKED_END,
    MARKED_NONE,
    MARKER,
    REFUSED,
    REFUSED_HERE,
    RESTATED,
    TRUTH_CLAIMS,
    VOID_BEFORE_CLAIM,
    VOID_BEFORE_HEAD,
)

_REACH = 40
"""How many characters before a declaration can make it void."""
_REFUSING_HEADS = ("answer_zh", "answer_colon", "answer_en")
_HEADS = {rule: re.compile(pattern) for rule, pattern in (HEADS | BARE_HEADS).items()}
_ANSWER_CLAIMS = {rule: re.compile(pattern) for rule, pattern in ANSWER_CLAIMS.items()}
_TRUTH_CLAIMS = {rule: re.compile(pattern) for rule, pattern in TRUTH_CLAIMS.items()}
_OPTION_LINE = re.compile(r"[-*•> \t]*\(?(?P<letter>[A-H])\)?[ \t]*[.、:)](?P<text>[^\n]*)(?:\n|$)")


@dataclass(frozen=True)
class Reading:
    """A place of a text where an answer is given, or refused where `found` is `None`."""

    rule: str
    start: int
    end: int
    found: LetterList | None


def declarations(text: str) -> Iterator[Reading]:
    """Yield what the text declares to be the answer, in no order."""
    yield from _marked(text)
    for rule, pattern in _HEADS.items():
        for head in pattern.finditer(text):
            yield from _after_head(text, rule, head)
    for rule, pattern in _ANSWER_CLAIMS.items():
        yield from _claims(text, rule, pattern)
    for rule, pattern in _TRUTH_CLAIMS.items():
        for claim in _claims(text, rule, pattern):
            if CONCLUDING.search(text, max(0, claim.start - _REACH), claim.start):
                yield claim


def truth_claims(text: str) -> Iterator[Reading]:
    """Yield which options the text calls right (`B选项正确`): analysis, and an answer only where it is one option."""
    for rule, pattern in _TRUTH_CLAIMS.items():
        yield from _claims(text, rule, pattern)
    for head in RESTATED.finditer(text):
        if found := read_list(text, head.end()):
            yield Reading("restated_question", found.start, found.end, found)


def _marked(text: str) -> Iterator[Reading]:
    """Yield the answers in `【答案】…<eoa>` and its like."""
    for marker in MARKER.finditer(text):
        stop = MARKED_END.search(text, marker.end())
        content = text[: stop.start() if stop else len(text)]
        found = _marked_letters(content, marker.end())
        if found:
            yield Reading("marked", marker.start(), found.end, found)
        elif MARKED_NONE.match(content, marker.end()) or REFUSED.search(content, marker.end()):
            yield Reading("marked", marker.start(), marker.end(), None)


def _marked_letters(content: str, start: int) -> LetterList | None:
    """Return the letters at the start of what a marker encloses; the marker itself tells that letters are meant."""
    if alone := only_letters(content[start:]):
        return LetterList(alone, start, len(content))
    if strict := read_list(content, start):
        return strict
    lenient = scan_list(content, start)
    return lenient if lenient and stands_apart(content, lenient) else None


def _after_head(text: str, rule: str, head: re.Match[str]) -> Iterator[Reading]:
    if VOID_BEFORE_HEAD.search(text, max(0, head.start() - _REACH), head.start()):
        return
    found = _lines_of_options(text, head) or read_list(text, head.end(), bare=rule in BARE_HEADS)
    if found:
        yield Reading(rule, head.start(), found.end, found)
    elif rule in _REFUSING_HEADS and (refusal := REFUSED_HERE.match(text, head.end())):
        yield Reading(rule, head.start(), refusal.end(), None)


def _lines_of_options(text: str, head: re.Match[str]) -> LetterList | None:
    """Return the letters of several lines `A. text` that follow a head on lines of their own."""
    if "\n" not in head[0]:
        return None
    lines: list[re.Match[str]] = []
    while line := _OPTION_LINE.match(text, lines[-1].end() if lines else head.end()):
        lines.append(line)
    letters = "".join(line["letter"] for line in lines)
    if len(lines) < 2 or len(set(letters)) < len(letters) or any(JUDGED.match(line["text"]) for line in lines):
        return None
    return LetterList(letters, lines[0].start(), lines[-1].end())


def _claims(text: str, rule: str, tail: re.Pattern[str]) -> Iterator[Reading]:
    """Yield the letter lists that stand before the words of a claim."""
    taken = 0
    for start in FIRST_LETTER.finditer(text):
        if start.start() < taken or VOID_BEFORE_CLAIM.search(text, max(0, start.start() - _REACH), start.start()):
            continue
        found = scan_list(text, start.start())
        if not found or not (found.marked or BEFORE_CLAIM.search(text, max(0, start.start() - _REACH), start.start())):
            continue
        if claim := tail.match(text, found.end):
            taken = found.end
            if not DOUBTED.match(text, claim.end()):
                yield Reading(rule, found.start, claim.end(), found)
