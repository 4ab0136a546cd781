"""From a judge's reply about several systems to one score per system. Pure functions on text.

Systems stand under numbers from 1 (`System1`, `系统 1`, `Assistant 1`, `助手1`, `模型一`) or letters; which model
stands under which is told by the judge prompt's `meta`. Nothing is guessed: what the reply does not say of a system,
says twice with different numbers, or puts outside the scale, is reported for that system alone; the others stay.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence

from eval.judge_numbers import AMOUNT, Reading, clean, read_after
from eval.judge_scores import LABEL, JudgeScore, to_score
from eval.judge_wordings import (
    Found,
    Mention,
    before_names,
    is_anothers,
    numbered_lines,
    numbers_may_lead,
    shared_number,
)

_NAMES = r"systems?|assistants?|models?|系统|助手|助理|模型|回答|答案|answer|response"
_INDEX = r"\d{1,2}|[一二三四五六七八九十]|(?-i:[A-H])(?![A-Za-z])"
_ANCHOR = re.compile(
    rf"(?<![A-Za-z])(?:(?P<name>{_NAMES}|(?-i:S)(?=\d))\s*(?:[-_#]|No\.?)?\s*|\"(?:system|assistant|model|系统|模型)\"\s*:\s*\"?)"
    rf"(?P<index>{_INDEX})(?![\d.]\d)"
    r"|第\s*(?P<ordinal>\d|[一二三四五六七八九十])\s*个?\s*(?P<kind>系统|助手|模型|回答|答案)",
    re.IGNORECASE,
)
_INDICES = {name: value for row in ("一二三四五六七八九十", "ABCDEFGH") for value, name in enumerate(row, 1)}
_FAMILIES = ("systems?|系统", "assistants?|助手|助理", "models?|模型", ".*")
"""A reply that names systems is read by these alone: `answer 5` in its prose is then no fifth system."""
_LINE_START = re.compile(r"[\s*_`#>|\-•·\d.、)(\[【]{0,16}")
_TOTAL = re.compile(r"(?:总|综合|最终|整体|总体|overall|total|final)[\s\w]{0,10}\Z", re.IGNORECASE)
_TOTAL_LABEL = re.compile(
    r"总得分|总分|综合得分|综合评分|最终得分|最终评分|overall(?: score| rating)?|total(?: score)?|final score", re.I
)
_JOINED = re.compile(r"[\s,、/|和与及&*]*(?:and)?\s*", re.IGNORECASE)
_JOINT_GAP = (
    r"[\s:|\-*=(的,]|得分|分数|评分|分别|为|是|得|打|scores?\b|ratings?\b|are\b|is\b|get\b|receive\b|respectively\b"
)
"""Between several systems named in a row, and before their numbers."""
_NUMBER_BEFORE = re.compile(r"(?:^|\s)[*_]*\d+(?:\.\d+)?(?:\s*分|\s*/\s*10)?[\s*_:\-–—]*\Z")
_POINTS = re.compile(
    r"(?<![\d.零一二两三四五六七八九十点])(?<!扣)(?<!扣了)(?<!满分)(?<!满分为)(?<!每题)(?<!总分)"
    rf"(?={AMOUNT}\s*(?:分(?!钟|析|别|为|类|解|布|之)|/\s*10(?!\d)|out of 10\b))"
)
"""Before a number that is a score by its unit, in a part about one system."""
_EARNED = re.compile(
    rf"\b(?:gets?|got|receives?|earns?|deserves?|awarded)\s+(?={AMOUNT}\s*points?\b(?!\s+(?:of|wrong|right|correct)))",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"\A(?:(?:the\s+)?(?:scores|ratings)(?:\s+are)?|得分|评分|分数|打分)\s*:\s*", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:neither|nor|not)\s+\Z", re.IGNORECASE)
_LONGEST_BEFORE = 24
_PROSE = re.compile(
    r"[ \t]+(?!points?|pts?|out|because|since|as|and|while|whereas|but|due|for|with|vs|versus|system|assistant)[a-z]"
)
"""A lower-case word right behind a bare number: `3 errors`, no score."""


def parse_system_scores(
    reply: str, count: int, *, maximum: float = 10.0, minimum: float = 0.0
) -> tuple[JudgeScore, ...]:
    """Return one score per system, in the order of their numbers.

    Read as, whichever the reply is: JSON; a table with a column of scores or a column per system; numbers beside the
    systems' names, behind or before them; a section per system with one labelled score; a line per system or a
    first line of exactly `count` numbers.

    Args:
        reply: the judge's raw text.
        count: number of systems that the judge was shown.
        maximum: best score of the scale.
        minimum: worst score of the scale.
    """
    text = clean(reply)
    found: dict[int, list[JudgeScore]] = {index: [] for index in range(1, count + 1)}
    mentions = [mention for mention in system_mentions(text) if mention.index <= count]
    for index, part, reading in _first_found(text, mentions, count):
        found[index].append(to_score(part, reading, minimum=minimum, maximum=maximum))
    for index, scores in found.items():
        if not scores:
            found[index] = _from_section(text, mentions, index, minimum=minimum, maximum=maximum)
    named = {mention.index for mention in mentions}
    return tuple(_agreed(scores, named=index in named) for index, scores in found.items())


def _first_found(text: str, mentions: Sequence[Mention], count: int) -> list[Found]:
    """Return what the first of the wordings that fits the reply finds."""
    for source in (_from_json, _from_header_table, _from_joint_list, before_names):
        if pairs := list(source(text, mentions, count)):
            return pairs
    if pairs := [*_beside_names(text, mentions, count), *shared_number(text, mentions, count)]:
        return pairs
    return list(numbered_lines(text, mentions, count)) or list(_from_first_line(text, mentions, count))


def _agreed(scores: Sequence[JudgeScore], *, named: bool) -> JudgeScore:
    if not scores:
        return JudgeScore(None, "unparsed", note="named without a score") if named else JudgeScore(None, "missing")
    values = {(score.value, score.status) for score in scores}
    if len(values) == 1:
        return scores[0]
    return JudgeScore(None, "contradictory", note=", ".join(dict.fromkeys(score.found for score in scores)))


def system_mentions(text: str) -> list[Mention]:
    """Return where a cleaned reply names systems, in order."""
    matches = list(_ANCHOR.finditer(text))
    for family in _FAMILIES:
        chosen = [
            match
            for match in matches
            if re.fullmatch(family, match["name"] or match["kind"] or "system", re.IGNORECASE)
        ]
        if chosen:
            return [Mention(_index(match), match.start(), match.end()) for match in chosen]
    return []


def _index(match: re.Match[str]) -> int:
    index = match.group("index") or match.group("ordinal")
    return _INDICES.get(index) or int(index)


def _from_json(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    for value in _json_values(text):
        for key, score in _json_pairs(value):
            match = _ANCHOR.search(key) or _ANCHOR.match(f"System{key.strip()}")
            index = _index(match) if match else 0
            reading = read_after(str(score), 0, whole_reply=False)
            if 1 <= index <= count and reading is not None:
                yield index, str(score), reading


def _json_values(text: str) -> Iterator[object]:
    """Yield the JSON objects and arrays of a text: the whole, a fenced block, or one per line."""
    decoder, at = json.JSONDecoder(), 0
    while (opening := re.compile(r"[{\[]").search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):  # also a number of thousands of digits
            at = opening.end()
            continue
        if isinstance(value, dict | list):
            yield value


def _json_pairs(value: object) -> Iterator[tuple[str, object]]:
    """Yield name and score of `{"System1": 8}`, `{"System1": {"score": 8}}` and `{"system": 1, "score": 8}`."""
    if isinstance(value, list):
        for part in value:
            yield from _json_pairs(part)
        return
    if not isinstance(value, dict):
        return
    name = next((value[key] for key in value if re.fullmatch(f"name|id|{_NAMES}", key, re.I)), None)
    score = next((value[key] for key in value if LABEL.search(key) and not isinstance(value[key], dict | list)), None)
    if isinstance(name, str | int) and score is not None:
        yield str(name), score
        return
    for key, part in value.items():
        if _ANCHOR.search(key) and isinstance(part, dict):
            labelled = [part[inner] for inner in part if LABEL.search(inner)]
            yield from ((key, one) for one in labelled)
        elif (_ANCHOR.search(key) or all(one.isdigit() for one in value)) and not isinstance(part, list):
            yield key, part
        else:
            yield from _json_pairs(part)


def _cells(line: str) -> list[str]:
    return [re.sub(r"[*_`\s]+", " ", cell).strip() for cell in line.strip().strip("|").split("|")]


def _from_header_table(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    """Read a Markdown table by its header: a column of scores, or a column per system and a row of scores."""
    lines = [line for line in text.split("\n") if line.count("|") >= 2]
    rows = [_cells(line) for line in lines if not re.fullmatch(r"[\s|:\-]+", line)]
    if len(rows) < 2:
        return
    header, body = rows[0], rows[1:]
    systems = {column: match for column, cell in enumerate(header) if (match := _ANCHOR.fullmatch(cell))}
    labels = [column for column, cell in enumerate(header) if LABEL.search(cell) or _TOTAL_LABEL.search(cell)]
    totals = [column for column in labels if _TOTAL_LABEL.search(header[column])] or labels
    if len(systems) >= 2:
        named = [row for row in body if LABEL.search(row[0]) or _TOTAL_LABEL.search(row[0])]
        chosen = [row for row in named if _TOTAL_LABEL.search(row[0])] or named or (body if len(body) == 1 else [])
        cells = [(match, row[column]) for row in chosen for column, match in systems.items() if column < len(row)]
    elif len(totals) == 1:
        cells = [
            (match, row[totals[0]])
            for row in body
            if len(row) > totals[0] and (match := next((m for cell in row if (m := _ANCHOR.match(cell))), None))
        ]
    else:
        return
    for match, cell in cells:
        index = _index(match)
        reading = read_after(cell, 0, whole_reply=False)
        if index <= count and reading is not None:
            yield index, cell, reading


def _from_joint_list(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    """Read `System1, System2, System3: 8, 7, 9`: every system named in a row, then exactly as many numbers."""
    number = r"\d+(?:\.\d+)?"
    further = rf"(?:(?:\s*[,、/;和|]\s*(?:and\s+)?|\s+and\s+|\s+){number}(?:\s*分)?)"
    values = rf"(?P<values>{number}(?:\s*分)?{further}{{{count - 1}}})(?!\s*[,、/|]?\s*{number}|\.\d|\d)"
    for place in range(len(mentions) - count + 1):
        row = mentions[place : place + count]
        between = [text[left.end : right.start] for left, right in itertools.pairwise(row)]
        if not all(_JOINED.fullmatch(part) for part in between):
            continue
        match = re.compile(rf"(?:{_JOINT_GAP}){{0,30}}?{values}", re.IGNORECASE).match(text, row[-1].end)
        if match and len({mention.index for mention in row}) == count and count > 1:
            parts = re.findall(number, match["values"])
            for mention, part in zip(row, parts, strict=True):
                yield mention.index, part, Reading(float(part), None, "", 0, len(part), True)
            return


def _beside_names(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    shifted = numbers_may_lead(text, mentions)
    for place, mention in enumerate(mentions):
        reading = read_after(text, mention.end, whole_reply=False)
        if reading is None or any(mention.end <= other.start < reading.start for other in mentions[place + 1 :][:1]):
            continue
        previous = mentions[place - 1] if place else None
        # `System1 and System2: 8` may mean both, or an incomplete list: nobody's.
        if previous and _JOINED.fullmatch(between := text[previous.end : mention.start]) and "\n" not in between:
            continue
        gap = text[mention.end : reading.start]
        labelled = LABEL.search(gap) or reading.out_of is not None
        denied = _DENIED.search(text[max(0, mention.start - _LONGEST_BEFORE) : mention.start])
        if denied or is_anothers(text, mentions, gap, reading):
            continue
        if shifted and not (reading.announced or LABEL.search(gap)):
            continue
        if not labelled and (_PROSE.match(text, reading.end) or _is_enumeration(text, gap, reading)):
            continue
        # `8 System1` on a line: the numbers stand before the names, and the next line's is another system's.
        before = text[text.rfind("\n", 0, mention.start) + 1 : mention.start]
        if "\n" in gap and _NUMBER_BEFORE.search(before[-_LONGEST_BEFORE:]):
            continue
        yield mention.index, text, reading


def _is_enumeration(text: str, gap: str, reading: Reading) -> bool:
    """Return whether the number is another system's, as in `Assistants 1, 3, and 4` or `系统1，2都好`."""
    if gap.strip() != "," or text[reading.start : reading.end].endswith("分"):
        return False
    further = re.compile(r"\s*[,、]?\s*(?:and|or|和|与|及|&)\s*\d")
    return further.match(text, reading.end) is not None or not re.match(r"\s*(?:[,;\n|]|\Z)", text[reading.end :])


def _from_first_line(text: str, mentions: Sequence[Mention], count: int) -> Iterator[Found]:
    """Read a first line that holds exactly as many numbers as there are systems: `8 7.5 9`, `Scores: 8, 7.5, 9`."""
    line = _LABELLED.sub("", text.strip().split("\n")[0].strip()).strip("[]().。 ")
    parts = re.split(r"\s*[,;、/]\s*|\s+", line)
    if count > 1 and len(parts) == count and all(re.fullmatch(r"\d+(?:\.\d+)?", part) for part in parts):
        for index, part in enumerate(parts, 1):
            yield index, part, Reading(float(part), None, "", 0, len(part), True)


def _from_section(
    text: str, mentions: Sequence[Mention], index: int, *, minimum: float, maximum: float
) -> list[JudgeScore]:
    """Return the labelled scores of the part that a system's name at the start of a line heads."""
    heads = [one for one in mentions if _LINE_START.fullmatch(text, text.rfind("\n", 0, one.start) + 1, one.start)]
    scores: list[JudgeScore] = []
    totals: list[JudgeScore] = []
    for place, head in enumerate(heads):
        if head.index != index:
            continue
        stop = next((other.start for other in heads[place + 1 :] if other.index != index), len(text))
        part = text[head.end : stop]
        inner = system_mentions(part)
        for match in LABEL.finditer(part):
            reading = read_after(part, match.end(), whole_reply=True)
            if reading is not None and not is_anothers(part, inner, ",", reading):
                score = to_score(part, reading, minimum=minimum, maximum=maximum)
                (totals if _TOTAL.search(part[max(0, match.start() - 12) : match.start()]) else scores).append(score)
        for match in re.finditer(r"总分", part):
            if reading := read_after(part, match.end(), whole_reply=True):
                totals.append(to_score(part, reading, minimum=minimum, maximum=maximum))
        other = next((one.start for one in mentions if one.start >= head.end and one.index != index), len(text))
        near = part[: max(0, other - head.end)]
        points = () if totals or scores else (*_POINTS.finditer(near), *_EARNED.finditer(near))
        for match in points:
            reading = read_after(part, match.end(), whole_reply=False)
            if reading is not None and not is_anothers(part, inner, ",", reading):
                scores.append(to_score(part, reading, minimum=minimum, maximum=maximum))
    return totals or scores
