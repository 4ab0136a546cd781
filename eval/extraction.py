"""Finds the option letters that a written response gives as its answer; what does not clearly give one is unparsed.

A response is read in the order of `_STEPS`: the letters alone, what it declares (the last declaration wins, so that a
chain of thought may come first), a verdict on every option, a letter that leads the response, the one option it calls
right, the text of an option, an emphasised letter. Negations, questions, suppositions and mere mentions are no answers,
and nothing is guessed on purpose. An extractor is part of a benchmark's protocol: a change that can change a reading
raises the versions of those that use it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.extraction_letters import BULLET, DENIED, LetterList, only_letters, scan_list
from eval.extraction_phrases import Reading, declarations, truth_claims
from eval.extraction_text import END, ascii_forms, without_markup, without_thought
from eval.extraction_vocabulary import JUDGED, REFUSED, RETRACTED

Status = Literal["read", "unparsed", "refused", "contradictory"]
Kind = Literal["single", "multi", "unknown"]


@dataclass(frozen=True)
class Extraction:
    """What was read from a response."""

    letters: str | None
    """The option letters, sorted (`AC`), or in the order of the response by a legacy rule; `None` unless read."""
    rule: str
    """Which rule read them, or why none did."""
    status: Status


@dataclass(frozen=True)
class _Question:
    letters: str
    kind: Kind
    options: tuple[str, ...]


def extract_letters(
    response: str, *, letters: Sequence[str] = "ABCD", kind: Kind = "unknown", options: Sequence[str] = ()
) -> Extraction:
    """Return the set of option letters that the response gives as its answer.

    Args:
        response: the generated text.
        letters: the upper-case letters of the options in question, from `A` to at most `H`.
        kind: whether the question has one answer or may have several. Several letters stay several even where one is
            right; the kind only decides what a list of options or several claims mean.
        options: the texts of the options, in the order of `letters`, so that a response may give a text instead.
    """
    question = _Question("".join(letters), kind, tuple(_folded(option) for option in options))
    text = without_thought(response)
    if text is None:
        return _unparsed("unfinished_thought")
    text = ascii_forms(text)
    run_on = _RUN_ON.search(text)
    if run_on and text[: run_on.start()].strip():
        before = _extract(text[: run_on.start()], question)
        if before.status == "read":
            return before
    return _extract(text, question)


def _extract(ascii_text: str, question: _Question) -> Extraction:
    text = without_markup(ascii_text).strip()
    for step in _STEPS:
        found = step(text, question)
        if found is not None:
            return _checked(found, question)
    emphasised = _EMPHASISED.finditer(ascii_text)
    stressed = {found["letter"] for found in emphasised if not DENIED.match(ascii_text, found.end())}
    if len(stressed) == 1:
        return _checked(_read(stressed.pop(), "emphasised"), question)
    if REFUSED.search(text):
        return Extraction(None, "refusal", "refused")
    return _unparsed("mention_only" if re.search(r"(?<![A-Za-z])[A-H](?![A-Za-z])", text) else "nothing")


def _checked(found: Extraction, question: _Question) -> Extraction:
    """Turn a reading that names letters outside the question, or all that speaks for none, into none."""
    if found.letters is not None and not set(found.letters) <= set(question.letters):
        return _unparsed("no_such_option")
    return found


def _read(letters: str, rule: str) -> Extraction:
    return Extraction("".join(sorted(letters)), rule, "read")


def _unparsed(rule: str) -> Extraction:
    return Extraction(None, rule, "unparsed")


def _alone(text: str, question: _Question) -> Extraction | None:
    text = _NUMBER_BEFORE.sub("", text.replace(END, "\n").strip(), count=1)
    text = _FILLER_AFTER.sub("", _FILLER_BEFORE.sub("", text, count=1), count=1)
    letters = only_letters(text)
    if letters:
        return _unparsed("every_option") if _is_every(letters, question) else _read(letters, "letters_only")
    found = scan_list(text, 0)
    hedged = found and found.alternatives and not text[found.end :].strip(" .。")
    return Extraction(None, "alternatives", "contradictory") if hedged else None


def _is_every(letters: str, question: _Question) -> bool:
    """Return whether the letters, with no word of an answer, are all the options of a question with one answer."""
    return question.kind == "single" and set(letters) == set(question.letters)


def _declared(text: str, question: _Question) -> Extraction | None:
    readings = [*declarations(text), *_last_lines(text)]
    if not readings:
        return None
    last = max(readings, key=_place)
    if last.found is None:
        return _option_text(text, question) or Extraction(None, last.rule, "refused")
    if last.found.alternatives or _is_another_choice(text, last, readings):
        return Extraction(None, "alternatives", "contradictory")
    if last.rule == "last_line" and _is_every(last.found.letters, question):
        return _unparsed("every_option")
    if last.rule == "marked" and _marks_differ(text, readings):
        return Extraction(None, "several_marked", "contradictory")
    retracted = RETRACTED.search(text, last.end)
    if retracted:
        later = _claimed(text[retracted.start() :], question)
        return later or Extraction(None, "retracted", "contradictory")
    if _names_other_text(text, last.found, question):
        return Extraction(None, "letter_and_text_differ", "contradictory")
    return _read(last.found.letters, last.rule)


def _is_another_choice(text: str, last: Reading, readings: Sequence[Reading]) -> bool:
    """Return whether the last declaration stands beside an earlier one: `可能选B，也可能选C`."""
    if _ALSO_AFTER.match(text, last.end):
        return True
    others = [
        other
        for other in readings
        if other.found and last.found and not set(other.found.letters) & set(last.found.letters)
    ]
    return bool(others) and bool(_ALSO.search(text, max(0, last.start - 12), last.start))


def _marks_differ(text: str, readings: Sequence[Reading]) -> bool:
    """Return whether several `【答案】` give different letters, and no word between them corrects the first ones."""
    marked = sorted((reading for reading in readings if reading.rule == "marked"), key=_place)
    given = [(mark, "".join(sorted(mark.found.letters))) for mark in marked if mark.found]
    last, letters = given[-1]
    other = next((mark for mark, named in reversed(given) if named != letters), None)
    if other is None:
        return False
    between = text[other.end : last.end]
    return not (RETRACTED.search(between) or _CORRECTED.search(between))


def _place(reading: Reading) -> tuple[int, int]:
    """Return what orders readings: where the letters end; the longer phrase names the rule where several fit."""
    return reading.found.end if reading.found else reading.end, -reading.start


def _last_lines(text: str) -> list[Reading]:
    """Return the letters that stand alone in the last line, or in all of the last lines."""
    lines = text.replace(END, "     ").rstrip().split("\n")
    taken = len(lines)
    while taken > 0 and only_letters("\n".join(lines[taken - 1 :])):
        taken -= 1
    if taken == len(lines):
        return []
    letters = only_letters("\n".join(lines[taken:])) or ""
    start = len("\n".join(lines[:taken]))
    end = len("\n".join(lines))
    return [Reading("last_line", start, end, LetterList(letters, start, end))]


def _names_other_text(text: str, found: LetterList, question: _Question) -> bool:
    """Return whether the words after a single letter are the text of another option."""
    if len(found.letters) != 1 or found.letters not in question.letters:
        return False
    rest = re.match(r"[ \t]*[.、:)\]}]*[ \t]*([^\n。]*)", text[found.end :])
    words = _folded(rest[1]) if rest else ""
    own = question.letters.index(found.letters)
    others = [option for index, option in enumerate(question.options) if index != own]
    return bool(words) and words in others and question.options[own] != words


def _judged(text: str, question: _Question) -> Extraction | None:
    """Return the one option called right where each is judged: `A. 错误 B. 正确`; several only where they are ticked.

    Of several that are called right nothing tells whether the question asks for these.
    """
    if not _ALL_JUDGED.fullmatch(text):
        return None
    verdicts = [(found["letter"], found["verdict"].lower()) for found in _JUDGED_OPTION.finditer(text)]
    if sorted(letter for letter, _ in verdicts) != sorted(question.letters):
        return None
    right = "".join(letter for letter, verdict in verdicts if verdict in _RIGHT)
    ticked = question.kind != "single" and all(verdict in _TICKS for _, verdict in verdicts)
    return _read(right, "judged_options") if len(right) == 1 or (right and ticked) else None


def _leading(text: str, question: _Question) -> Extraction | None:
    found_lines = list(_LABEL_LINE.finditer(text))
    labels = "".join(line[1] for line in found_lines)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(labels) > 1:
        judged = any(JUDGED.match(text, line.end()) for line in found_lines)
        chosen = len(labels) == len(lines) and len(set(labels)) == len(labels) < len(question.letters) and not judged
        return _read(labels, "option_lines") if chosen and question.kind != "single" else None
    if len(set(_ANY_LABEL.findall(text))) > 1:
        return None  # `A、C错误\nB. …`: not even the lines of options are told apart
    found = _lead(text)
    if found is None:
        return _label_line(labels, lines)
    rest = text[found.end :]
    if _VERDICT.match(rest) and _OTHER_LABEL.search(rest):
        return None
    if _names_other_text(text, found, question):
        return Extraction(None, "letter_and_text_differ", "contradictory")
    claims = {"".join(sorted(claim.found.letters)) for claim in truth_claims(rest) if claim.found}
    if len(claims) == 1 and claims != {"".join(sorted(found.letters))}:
        return Extraction(None, "lead_and_claim_differ", "contradictory")
    return _read(found.letters, "leading_letter")


def _lead(text: str) -> LetterList | None:
    """Return the letters that the text begins with, set off from what follows as an answer is."""
    bullet = BULLET.match(text)
    found = None if _INITIALS.match(text) else scan_list(text, bullet.end() if bullet else 0)
    if found is None or found.alternatives or DENIED.match(text, found.end):
        return None
    return found if _LEAD_END.match(text, found.end) or text[found.end - 1] in ")]】" else None


def _label_line(labels: str, lines: list[str]) -> Extraction | None:
    """Return the letter of the one line that looks like an option, where it is the last line."""
    last = _LABEL_LINE.match(lines[-1]) if lines else None
    return _read(labels, "label_line") if labels and last else None


def _claimed(text: str, question: _Question) -> Extraction | None:
    """Return the letters that the text calls right, where it calls only these so."""
    claims = [claim for claim in truth_claims(text) if claim.found]
    named = {"".join(sorted(claim.found.letters)): claim for claim in claims if claim.found}
    if len(named) > 1:
        return Extraction(None, "several_claims", "contradictory" if question.kind == "single" else "unparsed")
    for letters, claim in named.items():
        if len(letters) == 1 or not _DENIED_OPTION.search(text):
            return _read(letters, claim.rule)
    return None


def _option_text(text: str, question: _Question) -> Extraction | None:
    """Return the one option whose text is the response, or is what the response declares, or all it mentions."""
    words = _folded(text)
    exact = [index for index, option in enumerate(question.options) if option and option == words]
    declared = _DECLARED_TEXT.findall(text)
    if not exact and declared:
        told = _folded(declared[-1])
        exact = [index for index, option in enumerate(question.options) if option and option == told]
    if not exact and "\n" not in text and not re.search(r"不|非|\bnot\b|n't", text):
        exact = [index for index, option in enumerate(question.options) if len(option) > 1 and option in words]
    return _read(question.letters[exact[0]], "option_text") if len(exact) == 1 else None


def _folded(text: str) -> str:
    """Return letters and digits of a text only, in lower case, to compare option texts."""
    return re.sub(r"[^\w+\-*/=<>]|_", "", without_markup(ascii_forms(text)).lower())


_RUN_ON = re.compile(
    r"\n\s*(?:(?:题目|问题|例题|Question|Human|User|用户|Instruction)\s*\d*\s*[:：]|###|以下是|请阅读以下|"
    r"<\|im_start\|>)",
    re.IGNORECASE,
)
_LABEL_LINE = re.compile(
    r"^[-*•>#\s]*\(?([A-H])\)?[ \t]*[.、:)][ \t]*(?=\S)"
    r"(?!\(?[A-H](?:\)|选?项|[ \t]*(?:[.、,;:+=/&]|$|[和与及]|[两二三四](?:项|个)|and\b|or\b)))",
    re.MULTILINE,
)
_ANY_LABEL = re.compile(r"^[-*•>#\s]*\(?([A-H])\)?[ \t]*[.:)][ \t]*(?=\S)", re.MULTILINE)
_ALSO = re.compile(
    r"(?:[也还又亦](?:有)?(?:可能|可以|或许|许|能|行|大概)[是为]?|或者?|\bor(?: maybe| perhaps)?)[ \t]*$"
)
_ALSO_AFTER = re.compile(
    r"[,;。]?[ \t]*(?:[也还又亦]有?|或者?)(?:可能|可以|或许|许)[是为选]*[ \t]*[A-H](?![A-Za-z0-9])"
)
_CORRECTED = re.compile(
    r"更正|修正|改正|纠正|订正|重新|有误|算错|改为|改选|应为|(?i:\b(?:correct(?:ed|ion)|revised|instead|mistake)\b)"
)
_TICKS = "√✓✔✅✗✘✖❌×"
_RIGHT = ("√", "✓", "✔", "✅", "正确", "对", "true", "correct", "right")
_JUDGED_OPTION = re.compile(
    r"(?:选项|(?i:option)[ \t]+)?\(?(?P<letter>[A-H])\)?(?:选?项)?[ \t]*[.、:)]?[ \t]*(?:[是为]|(?i:is)[ \t])?"
    rf"(?P<verdict>[{_TICKS}]|不正确|不对|正确|错误|错|对|(?i:true|false|correct|incorrect|wrong|right))的?"
)
_ALL_JUDGED = re.compile(rf"(?:{re.sub('[?]P<[a-z]+>', '?:', _JUDGED_OPTION.pattern)}[ \t]*(?:[,;.。、\n]\s*)?){{2,8}}")
_LEAD_END = re.compile(
    r"[ \t]*(?:\n|[.](?![A-Z]\.)|[。:;)\]<]|、(?![A-H])|[-–—]+[ \t]|\((?!\s*\d+,)"
    r"|,?[ \t]*(?:because|since|as\b|因|由于|理由|原因|这|解析|解释|说明|选项[,。是])"
    r"|,?[ \t]*(?:而不是|而非|并非|rather than\b)|,[ \t]*(?:不是|不选|(?:and )?not\b))"
)
_NUMBER_BEFORE = re.compile(r"^[(]?\d{1,3}[).、:][ \t]*(?=[^\n]*$)")
_FILLER_BEFORE = re.compile(
    r"(?:only|both|just|probably|maybe|perhaps|likely|definitely|clearly|(?:it|that)(?:'s| is| would be)|i think|"
    r"应该|可能|大概|我觉得|我认为|只有|就?是)[ \t,]*(?=[(\[\"'“]?[A-H](?![A-Za-z]))",
    re.IGNORECASE,
)
_FILLER_AFTER = re.compile(
    r"(?<=[A-H])[ \t]*(?:,?[ \t]*(?:only|both|i think|i guess|i believe)|吧|呢|[两二三四]项)?[.。!]?$", re.IGNORECASE
)
_INITIALS = re.compile(r"[A-Z]\.[A-Z]\.")
_VERDICT = re.compile(rf"[ \t]*[.、:)]{JUDGED.pattern}", re.IGNORECASE)
_OTHER_LABEL = re.compile(r"(?<![A-Za-z])[A-H](?:[ \t]*[.、:)]|选项|项)")
_DENIED_OPTION = re.compile(rf"(?<![A-Za-z])[A-H](?:选项|项)?(?:{DENIED.pattern})", re.IGNORECASE)
_DECLARED_TEXT = re.compile(
    r"(?:答案(?:应该|应当|应)?(?:是|为|选)|答案[ \t]*:|】[ \t]*:?|选择?(?:的是)?|(?i:answer)(?:[ \t]+is|[ \t]*:))"
    r"[ \t]*[\"“'「]?([^\n。.<\"”」]+)"
)
_EMPHASISED = re.compile(
    r"(?:\*\*|__)[ \t]*\(?(?P<letter>[A-H])(?:\)|[ \t]*[.、:)](?!\w*\*\*\w)[^*_\n]{0,120})?[ \t]*[.。]?(?:\*\*|__)"
    r"(?:选项|项)?"
)
_STEPS: tuple[Callable[[str, _Question], Extraction | None], ...] = (
    _alone,
    _declared,
    _judged,
    _leading,
    _claimed,
    _option_text,
)
