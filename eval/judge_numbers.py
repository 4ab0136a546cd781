"""Reads one number at one place of a judge's reply, behind the label that announces it; never guesses.

`clean` puts a reply into the form that all parsers read. `read_after` answers what stands right behind a label such as
`得分` or `System 1`: a number and what it is out of, something that is no single number (a range, a list), or nothing.
"""

import re
import unicodedata
from dataclasses import dataclass

_SIGNS = str.maketrans(
    {"，": ", ", "−": "-", "∶": ":", "½": ".5", "¼": ".25", "¾": ".75", "∕": "/", "⁄": "/", "`": ""}
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", "")
)
"""Before NFKC: a Chinese comma is never a decimal comma, `8½` must not become `81⁄2`, and what has no width goes."""
_EMPHASIS = re.compile(r"\*\*|__|(?<=[=-])>(?=\s*\d)")
"""Bold marks, which may stand between a number and its `/10`, and the heads of arrows."""
_REASONING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", flags=re.DOTALL | re.IGNORECASE)
_REASONING_END = re.compile(r"\A.*</think(?:ing)?>", flags=re.DOTALL | re.IGNORECASE)

_REPEATED = re.compile(r"(.{1,16}?)\1{200,}", re.DOTALL)

_ONES = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_ARABIC = r"(?:\d+(?:\.\d+)?|\.\d+)"
_CHINESE = (
    r"(?:[一二三四五六七八九]?十[一二三四五六七八九]?|[零〇一二两三四五六七八九])(?:点[零〇一二三四五六七八九]+)?"
)
AMOUNT = rf"(?:{_ARABIC}|{_CHINESE})"
"""A number as judges write it, without sign."""

_BOUNDS = r"[01](?:\.0)?\s*分?\s*(?:[-~–—到至,、]|to)\s*(?P<top>1(?:\.0)?|5|10|100)(?:\.0)?\s*分?"
_SCALES = [
    re.compile(rf"[(\[{{【][^()\[\]【】\n]{{0,16}}?{_BOUNDS}\s*(?:之间|points?)?\s*[)\]}}】]", re.IGNORECASE),
    re.compile(
        rf"[(\[{{【]\s*(?:满分|总分|共|out of|max(?:imum)?|of)\s*(?:为|是|:)?\s*(?P<top>{AMOUNT})\s*(?:分|points?)?"
        r"\s*[)\]}】]",
        re.IGNORECASE,
    ),
    re.compile(r"[(\[【]?\s*(?P<top>十|百|五|10|100|5|1)\s*分制\s*[)\]】]?"),
    re.compile(rf"满分\s*(?:为|是|:)?\s*(?P<top>{AMOUNT})\s*分?\s*[,;]?"),
    re.compile(rf"{_BOUNDS}\s*(?:之间)?(?=\s*:)"),
]
"""What a judge restates of the scale between a label and its number; `top` is the best score."""

_TAG = re.compile(r"</?[A-Za-z]\w*>")
_MARKUP = re.compile(r"[\s*_`\"'“”‘’「」『』【】《》\[\](){#$~\\|/:=≈→•·,–—]")
_WORDS = re.compile(
    r"(?:应该|应当|可以|可能|大概|大约|如下|结果|情况|最终|最后|综合|总体|整体|总得分|总分|得分|评分|分数|打分|分值|數|数|值|得到|获得|给予|给出|评为|总|"
    r"中|应|为|是|的|约|得|给|打|我|也|可|了)"
    r"|(?:boxed|would|should|be|received|receives|receive|deserves|deserve|scored|scores|score|rating|rated|rate|overall"
    r"|total|final|approximately|about|gets|get|got|given|give|earns|with|the|is|of|at|an|a|it|this|s|I)(?![A-Za-z])",
    re.IGNORECASE,
)
_SUBJECTS = re.compile(
    r"(?:模型回答|模型|回答|该|此|这个|评价)|(?:for|this|that|response|answer|model|student|assistant|evaluation)(?![A-Za-z])",
    re.IGNORECASE,
)
"""What a score belongs to, where the whole reply is about one answer."""
_LONGEST_GAP = 60
_OPENINGS = frozenset("0123456789.-<>≤≥([{【满百十零〇一二两三四五六七八九fF")
"""What a number or a scale can begin with; nothing else is tried at other places."""

_RANGE = re.compile(rf"\s{{0,2}}分?\s{{0,2}}(?:[-~–—]|到|至|或者|或|to\b|or\b)\s{{0,2}}(?:{_ARABIC})", re.IGNORECASE)
_NO_SINGLE_NUMBER = {
    "more than a decimal number": re.compile(
        r"[.,·•]\d| \.\d|\. \d(?=\s*(?:分|/|[,;。\n]|\Z))|(?<![\d.][\d.])(?<=0)。\d|\s*/\s*\d*\.?\d+\s*/\s*\d"
    ),
    "a bound": re.compile(r"\s*分?\s*(?:以上|以下|以内|\+(?!\s*\d))"),
    "a range": _RANGE,
    "a list of numbers": re.compile(rf"\s*分?\s*[,、]\s*{_ARABIC}\s*分?\s*(?:[,、;。\n]|\.?\s*\Z)"),
    "a sum": re.compile(rf"\s*分?\s*[+×*]\s*{_ARABIC}"),
}
_COUNTED = re.compile(
    r"\s*(?:个|处|条|点|道|种|次|句|段|步|字|年|月|号|名|位|倍|行|项|岁|天|小时|元|米|星)|(?!pts?\b|points?\b|out\b)[A-Za-z]"
)
"""Behind a number: it counts something else, or is an ordinal."""
_OUT_OF = [
    re.compile(rf"\s*分?\s*/\s*(?P<top>{_ARABIC})(?:\s*分)?"),
    re.compile(
        rf"\s*(?:points?|pts?|分)?\s*,?\s*\(?\s*(?:out\s+of|of)\s*(?:a\s+total\s+of\s*)?(?P<top>{_ARABIC})", re.I
    ),
    re.compile(rf"\s*分?[\s,;(/]*满分\s*(?:为|是|:)?\s*(?P<top>{AMOUNT})\s*分?\s*\)?"),
    re.compile(rf"\s*分?\s*[,(]\s*(?P<top>{AMOUNT})\s*分\s*(?:为|是)?\s*满分\s*\)?"),
    re.compile(rf"\s*分?\s*\(\s*(?:总分|共)\s*(?:为|是|:)?\s*(?P<top>{AMOUNT})\s*分?\s*\)"),
    re.compile(r"\s*分?[\s,;(]*(?P<top>十|百|五|10|100|5|1)\s*分制\s*\)?"),
]
_PERCENT = re.compile(r"\s*(?:%|percent\b)", re.IGNORECASE)
_UNIT = re.compile(r"\s*(?:分(?!钟|析|别|为|类|解|布)|points?\b|pts?\b)", re.IGNORECASE)
_SUM = re.compile(rf"{_ARABIC}(?:\s*[-+×*]\s*{_ARABIC})+\s*=\s*(?={_ARABIC})")
_FULL_MARKS = re.compile(r"满分(?!\s*(?:为|是|:|的|\d))|full marks?\b", re.IGNORECASE)
_CHINESE_END = re.compile(r"\s*分?\s*(?:[,.;:。、!)\]}】|*_`\"'\n(]|/|\Z)")


@dataclass(frozen=True)
class Reading:
    """What stands behind a label."""

    value: float | None
    """The number as written; `None` where it is no single number."""
    out_of: float | None
    """The best score, where the reply states it (`8/10`, `80%`, `满分1分`)."""
    problem: str
    """Why there is no single number; empty where there is."""
    start: int
    """Place of the first character of the number."""
    end: int
    """Place behind the number, its unit and its `out_of`."""
    announced: bool
    """Whether a colon, an equals sign or a verb stands before the number."""


def without_repeats(reply: str) -> str:
    """Return the reply with what repeats hundreds of times in a row (a model that does not stop) cut to 100 times.

    What is read stays the same (no number on a scale has 100 digits), but the work no longer grows with such runs.
    """
    return _REPEATED.sub(lambda match: match[1] * 100, reply)


def clean(reply: str) -> str:
    """Return the reply in Unicode form NFKC, without the reasoning block that some models write first."""
    text = _REASONING.sub("", without_repeats(reply))
    text = _REASONING_END.sub("", text).replace("&gt;", ">").replace("&lt;", "<").replace("&nbsp;", " ")
    return _EMPHASIS.sub("", unicodedata.normalize("NFKC", text.translate(_SIGNS)))


def to_number(text: str) -> float:
    """Return the value of an `AMOUNT`, in digits or in Chinese (`零点八`, `十`)."""
    if text[0].isdigit() or text[0] == ".":
        return float(text)
    if text == "百":
        return 100.0
    whole, _, decimals = text.partition("点")
    tens, ten, ones = whole.rpartition("十")
    value = 10.0 * (_ONES[tens] if tens else 1) + (_ONES[ones] if ones else 0) if ten else float(_ONES[whole])
    return float(f"{value:.0f}.{''.join(str(_ONES[digit]) for digit in decimals)}") if decimals else value


def read_after(text: str, place: int, *, whole_reply: bool) -> Reading | None:
    """Return what stands behind a label that ends at `place`, or `None` where no number does.

    Args:
        text: a reply through `clean`.
        place: where the label ends.
        whole_reply: whether the reply is about one answer, so that words such as `该回答` may stand between.
    """
    top: float | None = None
    at, announced = place, False
    at += text.startswith(">", place) and _in_tag(text, place)
    while at - place <= _LONGEST_GAP:
        if dash := _dash(text, at):
            at = dash.end()
            continue
        if text[at : at + 1] in _OPENINGS:
            found = _number(text, at, announced=announced, gap=text[place:at], top=top)
            if found is not None:
                return found
            scale = next((match for pattern in _SCALES if (match := pattern.match(text, at))), None)
            if scale is not None:
                top, at = to_number(scale["top"]), scale.end()
                continue
        step = _TAG.match(text, at) or _MARKUP.match(text, at) or _WORDS.match(text, at)
        if step is None and whole_reply:
            step = _SUBJECTS.match(text, at)
        if step is None:
            return None
        announced = announced or step[0] in ":=是为" or step[0].lower() in ("is", "gets", "of", "be")
        at = step.end()
    return None


def _in_tag(text: str, place: int) -> bool:
    """Return whether a label is the name of a tag, as in `<score>0.8</score>`."""
    return re.search(r"<[^<>\n]{0,30}\Z", text[max(0, place - 31) : place]) is not None


def _dash(text: str, at: int) -> re.Match[str] | None:
    """Return a dash that separates; one right before a digit is a sign where a blank or a separator precedes it."""
    match = re.compile(r"[-➔]").match(text, at)
    if match and re.match(r"\d|\.\d", text[at + 1 : at + 3]) and (at == 0 or text[at - 1] in " \t\n:=*"):
        return None
    return match


def _number(text: str, at: int, *, announced: bool, gap: str, top: float | None) -> Reading | None:
    bound = re.compile(rf"(?:<=|>=|[<>≤≥])\s*{_ARABIC}(?!\s*>)").match(text, at)
    if bound:
        return Reading(None, None, "a bound", at, bound.end(), announced)
    if full := _FULL_MARKS.match(text, at):
        return Reading(1.0, 1.0, "", at, full.end(), announced)
    start = at
    if (total := _SUM.match(text, at)) is not None:
        start = total.end()
    if text.startswith("<", at) and re.compile(rf"<\s*{_ARABIC}\s*>").match(text, at):
        start = at + 1
    percent = text.startswith("百分之", at)
    start += 3 if percent else 0
    match = re.compile(rf"-?(?:{_ARABIC})|{_CHINESE}").match(text, start)
    if match is None or (at > 0 and text[at - 1].isdigit()):
        return None
    if any(pattern.match(text, at) for pattern in _SCALES):
        return None
    chinese = match[0][0] in "十零〇一二两三四五六七八九"
    if (chinese and not percent and not _CHINESE_END.match(text, match.end())) or _is_list(text, match, gap):
        return None
    value = -to_number(match[0][1:]) if match[0][0] == "-" else to_number(match[0])
    return _with_context(text, match, value=value, top=100.0 if percent else top, announced=announced)


def _with_context(
    text: str, match: re.Match[str], *, value: float, top: float | None, announced: bool
) -> Reading | None:
    """Return the number with what follows it taken into account."""
    end = match.end()
    for problem, pattern in _NO_SINGLE_NUMBER.items():
        if found := pattern.match(text, end):
            return Reading(None, None, problem, match.start(), found.end(), announced)
    if _COUNTED.match(text, end) or (not announced and re.match(r"[ \t]*:", text[end : end + 4])):
        return None
    if percent := _PERCENT.match(text, end):
        return Reading(value, 100.0, "", match.start(), percent.end(), announced)
    for pattern in _OUT_OF:
        if found := pattern.match(text, end):
            top = to_number(found["top"])
            problem = "a range" if top < 1 else ""
            return Reading(None if problem else value, top, problem, match.start(), found.end(), announced)
    unit = _UNIT.match(text, end)
    return Reading(value, top, "", match.start(), unit.end() if unit else end, announced)


def _is_list(text: str, match: re.Match[str], gap: str) -> bool:
    """Return whether the number is the `1.` that opens a list of reasons or aspects."""
    if match[0] not in ("1", "一"):
        return False
    marker = re.compile(r"[.、)](?!\d)").match(text, match.end())
    if marker is None or (marker[0] == ")" and "(" in gap):
        return False
    if "\n" in gap and text[marker.end() :].strip():
        return True
    rest = text[marker.end() :]
    second = re.search(r"(?:^|[\s。;,])(?:2|二)[.、)](?!\d)", rest)
    return second is not None and not re.search(r"(?<![\d.])(?:1|一)[.、)](?!\d)", rest[: second.start()])
