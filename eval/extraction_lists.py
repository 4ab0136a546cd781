"""Reads the answers to several questions from one response: `（1）【答案】A（2）【答案】C`, `41. B 42. D`, `1-5 ABCDA`.

Each question gets its own `Extraction`. Numbers in the response decide which answer belongs where; without numbers the
answers must be as many as the questions, otherwise none is read.
"""

import re
from collections.abc import Callable, Sequence

from eval.extraction import Extraction, extract_letters
from eval.extraction_text import END, ascii_forms, without_markup, without_thought
from eval.extraction_vocabulary import MARKED_END, MARKER

Answers = dict[int, str]
"""Letters by number; an empty text where the response gives none."""


_PART = re.compile(
    r"^[ \t#>*-]*[(]?(?:第|问题|题目|Question[ \t]*)?(\d{1,3})[ \t]*(?:题|小题)?[ \t]*[).、:]", re.MULTILINE
)


def extract_answers(response: str, count: int, *, letters: Sequence[str] = "ABCD") -> tuple[Extraction, ...]:
    """Return what the response answers to each of its questions.

    Args:
        response: the generated text.
        count: number of questions, at least 1.
        letters: the upper-case letters of the options, the same for every question.
    """
    if count == 1:
        return (extract_letters(response, letters=letters, kind="single"),)
    text = without_thought(response)
    if text is None:
        return (Extraction(None, "unfinished_thought", "unparsed"),) * count
    text = without_markup(ascii_forms(text))
    for rule, read in _RULES.items():
        found = read(text, count, "".join(letters))
        if found is not None:
            return tuple(_extraction(given, rule) for given in found)
    return (Extraction(None, "no_list", "unparsed"),) * count


def _extraction(letters: str, rule: str) -> Extraction:
    return Extraction(letters, rule, "read") if letters else Extraction(None, rule, "unparsed")


def _marked(text: str, count: int, letters: str) -> list[str] | None:
    """Read one `【答案】` per question, numbered or in order."""
    markers = list(MARKER.finditer(text))
    if len(markers) < 2:
        return None
    given, numbers = [], []
    for marker in markers:
        stop = MARKED_END.search(text, marker.end())
        content = text[marker.end() : stop.start() if stop else len(text)]
        answer = extract_letters(f"【答案】{content}", letters=letters)
        given.append(answer.letters or "")
        number = re.search(r"(\d{1,3})[ \t]*[)）.、题:]*[ \t]*$", text[max(0, marker.start() - 12) : marker.start()])
        numbers.append(int(number[1]) if number else 0)
    if all(numbers) and (placed := _placed(list(zip(numbers, given, strict=True)), count)):
        return placed
    return given if len(given) == count else None


def _ranges(text: str, count: int, letters: str) -> list[str] | None:
    """Read an answer key such as `1-5 ABCDA 6-10 BBDCA`."""
    given: list[tuple[int, str]] = []
    key = rf"(\d{{1,3}})\s*[-~—–至到]+\s*(\d{{1,3}})\s*[):.、]*\s*((?:[{letters}][ \t,、]*)+)"
    for first, last, run in re.findall(key, text):
        answers = re.findall(f"[{letters}]", run)
        if len(answers) == int(last) - int(first) + 1:
            given.extend(enumerate(answers, int(first)))
    return _placed(given, count)


def _numbered(text: str, count: int, letters: str) -> list[str] | None:
    """Read the letters after each number: `41. B`, `(2) C`, `第3题:D`, `4. 答案是A`, `5. A and C`, `| 6 | D |`.

    Letters that begin a sentence (`A is wrong, so B`) are none. Where a number has none, its part may be prose.
    """
    given = []
    for found in re.finditer(_numbered_pattern(letters), text):
        named = re.findall(f"[{letters}]", found[2])
        if len(set(named)) == len(named) and ("".join(named) != found[2] or named == sorted(named)):
            given.append((int(found[1]), "".join(sorted(named))))
    heads = {int(head[1]) for head in _PART.finditer(text)}
    first = min((number for number, _ in given), default=0)
    while first - 1 in heads:  # `1. A or B`, `2. C`: the first question has no answer, and the second is not the first
        first -= 1
        given.append((first, ""))
    placed = _placed(given, count)
    if placed is None or all(placed):
        return placed
    parts = _segments(text, count, letters)
    return parts if parts and sum(map(bool, parts)) > sum(map(bool, placed)) else placed


def _numbered_pattern(letters: str) -> str:
    one = f"[{letters}]"
    return (
        r"(?<![\w.])第?(\d{1,3})[ \t]*(?:题|小题|空)?[ \t]*[)）.、:|-]*[ \t]*(?:(?:正确)?答案|选|(?i:answer))?[ \t]*"
        r"(?:是|为|选|应选|(?i:is))?[ \t]*[:=]?[ \t]*[(\[]?"
        rf"(?>({one}{{2,8}}|{one}(?:(?:[ \t]*[、,&和与及][ \t]*|[ \t]+and[ \t]+){one}(?![A-Za-z0-9_]))*))[)\]]?"
        rf"(?![A-Za-z0-9_])(?!(?:选项|项)?[ \t]*(?:都|均|全)?(?:不|错|是错)|[ \t]*(?:或|相比|之间)"
        rf"|[ \t]+(?:{_PROSE})\b)"
    )


def _segments(text: str, count: int, letters: str) -> list[str] | None:
    """Read each numbered part of the response as a response of its own."""
    heads = list(_PART.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    given = [
        (int(head[1]), extract_letters(text[head.end() : end], letters=letters).letters or "")
        for head, end in zip(heads, ends[: len(heads)], strict=True)
    ]
    return _placed(given, count)


def _in_order(text: str, count: int, letters: str) -> list[str] | None:
    """Read letters alone, as many as questions: `A B C D E`, after a marker or as the whole response."""
    markers = list(MARKER.finditer(text))
    content = text[markers[-1].end() :] if markers else _LIST_HEAD.sub("", text, count=1)
    stop = MARKED_END.search(content)
    content = (content[: stop.start()] if stop else content).replace(END, "")
    alone = re.fullmatch(rf"(?:[\s,，、;.。/|()\[\]-]*[{letters}])+[\s,，、;.。/|()\[\]]*", content)
    given = re.findall(f"[{letters}]", content) if alone else []
    return given if len(given) == count else None


def _placed(given: Sequence[tuple[int, str]], count: int) -> list[str] | None:
    """Return the answers of `count` consecutive numbers, the last one of each, or `None` where most are missing.

    The numbers begin at 1, or at the smallest one found (`41. B`). Answers to questions that were not asked do not
    count, but numbers with gaps between them are no numbers of questions.
    """
    answers: Answers = {}
    for number, letters in given:
        if letters or number not in answers:
            answers[number] = letters
    if not answers:
        return None
    first = 1 if 1 in answers else min(answers)
    wanted = [answers.get(number, "") for number in range(first, first + count)]
    consecutive = max(answers) < first + max(count, len(answers))
    return wanted if min(answers) == first and consecutive and 2 * sum(map(bool, wanted)) > count else None


_LIST_HEAD = re.compile(
    r"^[^\n:]{0,12}答案[^\n:]{0,6}:|^[ \t]*(?i:(?:so |therefore,? |thus,? )?(?:(?:the|my) )?(?:final |correct )?"
    r"answers?(?: are| is)?(?: as follows)?(?::|(?<=are)))"
)
_PROSE = (
    "is|are|was|were|has|have|had|does|do|did|can|cannot|could|would|should|will|may|might|seems?|says|means|refers|"
    "describes|contradicts|and|or|nor|but|which|who|in|of|at|on"
)
_RULES: dict[str, Callable[[str, int, str], list[str] | None]] = {
    "marked": _marked,
    "answer_key": _ranges,
    "in_order": _in_order,
    "numbered": _numbered,
    "numbered_parts": _segments,
}
