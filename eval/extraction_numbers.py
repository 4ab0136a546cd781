"""Reads the number that a response gives as its answer, and compares numbers exactly.

`strict_match` and `flexible_extract` are lm-evaluation-harness's filters of these names for GSM8K (version 3 of the
task), with `same_as_reference` for its comparison of texts. `extract_number` is our own and knows how people write
numbers.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from eval.extraction_text import MARKER, ascii_forms, without_markup, without_thought

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", "(?s).*#### ", r"\.$"))

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGN = r"(?:(?<![\w)\]])[-−–]|负|(?i:\bminus[ \t]))?"
_CURRENCY = r"(?:[€£¥₹]|US(?=\d)|USD|RMB|CNY)?"
_UNIT = r"(?:[ \t]*(?:万亿|亿|万|千(?!克|米|瓦|卡)|million\b|billion\b|thousand\b))?"
_POWER = r"(?:[ \t]*(?:[×x*]|\\times)[ \t]*10[ \t]*\^[ \t]*\{?(?P<power>[-−]?\d+)\}?|[eE](?P<exponent>[-+]?\d+))?"
NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})[ \t]*{_CURRENCY}[ \t]*(?P<inner>[-−]?)"
    rf"(?:\\[dt]?frac\{{[ \t]*(?P<top>[-−]?\d+)[ \t]*\}}\{{[ \t]*(?P<bottom>\d+)[ \t]*\}}"
    rf"|(?P<whole>\d+)[ \t]+(?P<above>\d+)/(?P<below>\d+)|(?P<over>{_DIGITS})[ \t]*/[ \t]*(?P<under>\d+)(?![/\d])"
    rf"|(?P<plain>{_DIGITS}){_POWER})(?P<unit>{_UNIT})"
)
_UNITS = {"千": 3, "万": 4, "亿": 8, "万亿": 12, "thousand": 3, "million": 6, "billion": 9}
_DECLARED = re.compile(
    r"(?:(?i:\b(?:final[ \t]+)?answer(?:[ \t]+(?:is|would be|should be|=)|[ \t]*:)"
    r"(?:[ \t]+(?:therefore|thus))?[ \t]*:?)"
    r"|答案(?:应该|应|就)?(?:是|为|等于)?[ \t]*:?|答[ \t]*:)"
    r"[ \t]*(?:[a-zA-Z]{1,3}[ \t]*=|约|大约|about|approximately)?[ \t]*"
)


@dataclass(frozen=True)
class NumberExtraction:
    """The number read from a response."""

    value: Fraction | None
    """Exact: `1/3` stays a third, and `0.1` is a tenth. A percent sign or a currency does not change it."""
    rule: str
    """Which rule read it."""
    status: Literal["read", "unparsed"]


def strict_match(response: str) -> str | None:
    """Return what follows the first `#### `, as lm-evaluation-harness's `strict-match`; `None` for its `[invalid]`."""
    found = _STRICT.search(response)
    return found[1].strip() if found else None


def flexible_extract(response: str) -> str | None:
    """Return the last thing that looks like a number, as lm-evaluation-harness's `flexible-extract`."""
    found = _FLEXIBLE.findall(response)
    return next(part for part in found[-1] if part).strip() if found else None


def same_as_reference(found: str | None, reference: str) -> bool:
    """Compare texts as lm-evaluation-harness does for GSM8K: without `,`, `$`, all up to `#### `, and a last full stop.

    Args:
        found: what a filter returned.
        reference: the whole reference with its `#### n`, or `n` alone.
    """
    return found is not None and _stripped(found) == _stripped(reference)


def _stripped(text: str) -> str:
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def parse_number(text: str) -> Fraction | None:
    r"""Return the value of a text that is one number: `-1,234.50`, `$5`, `１２％`, `3/4`, `\frac{1}{2}`, `1.2万`."""
    plain = without_markup(ascii_forms(text)).replace("$", "").strip()
    found = NUMBER.match(plain)
    rest = plain[found.end() :] if found else ""
    return _value(found) if found and re.fullmatch(r"[ \t]*(?:%|\\%)?[.。]?", rest) else None


def extract_number(response: str) -> NumberExtraction:
    """Return the number that the response gives: after `####`, in a box, declared, else the last one.

    The last of several declarations counts. Full-width digits, thousands separators, currencies, signs, fractions,
    powers of ten and `万`/`million` are understood; `50%` is 50. What only begins or ends like a number (`1.000.000`,
    `2,5`, `12:30`, `√2`, `2^10`) is none, and where it stands in the place of the answer nothing is read. The last
    number is a convention, not a declaration: only `$18 in 2 hours` is known to give the 18.
    """
    said = without_thought(response)
    if said is None:
        return NumberExtraction(None, "unfinished_thought", "unparsed")
    text = without_markup(ascii_forms(said))
    plain = text.replace("$", "")
    for rule, pattern in (("strict", _HASHES), ("boxed", _BOX), ("declared", _DECLARED)):
        for head in reversed(list(pattern.finditer(plain))):
            if found := NUMBER.match(plain, head.end()):
                return _extraction(_whole_value(plain, found), rule)
    numbers = _numbers(plain)
    if not numbers:
        return NumberExtraction(None, "no_number", "unparsed")
    amount = _amount(text)
    return _extraction(amount, "currency") if amount is not None else _extraction(numbers[-1], "last_number")


def _extraction(value: Fraction | None, rule: str) -> NumberExtraction:
    if value is None:
        return NumberExtraction(None, "no_plain_number", "unparsed")
    return NumberExtraction(value, rule, "read")


def _numbers(text: str) -> list[Fraction | None]:
    """Return the values of all that looks like a number, `None` for what is no plain one; `m^2` holds none."""
    values, position = [], 0
    while found := NUMBER.search(text, position):
        position = found.end()
        while more := _GOES_ON.match(text, position):
            position = more.end()
        if not _EXPONENT.search(text, max(0, found.start() - _REACH), found.start()):
            values.append(_whole_value(text, found))
    return values


def _whole_value(text: str, found: re.Match[str]) -> Fraction | None:
    """Return the value of a match of `NUMBER`; `None` where the text around makes it a part of something else."""
    before = text[max(0, found.start() - _REACH) : found.start()]
    return None if _GOES_ON.match(text, found.end()) or _ROOT.search(before) else _value(found)


def _amount(text: str) -> Fraction | None:
    """Return the sum of money of a last sentence `$18 … in 2 hours`, which holds no third number."""
    sentences = [part for part in re.split(r"(?<=[。!?\n])|(?<=\.)\s", text) if NUMBER.search(part)]
    last = sentences[-1].strip()
    found = _MONEY.match(last)
    numbers = _numbers(last.replace("$", ""))
    return numbers[0] if found and last.count("$") <= 1 and len(numbers) == 2 else None


def _value(found: re.Match[str]) -> Fraction | None:
    """Return the value of a match of `NUMBER`; `None` for a fraction over zero and for what is longer than numbers are.

    Python refuses to convert thousands of digits, and a power of a million would fill the memory.
    """
    value: Fraction
    below = found["bottom"] or found["below"] or found["under"]
    power = (found["power"] or found["exponent"] or "0").replace("−", "-")
    if len(found[0].strip()) > _LONGEST or abs(int(power)) > _LARGEST_POWER or (below and int(below) == 0):
        return None
    if found["top"]:
        value = Fraction(int(found["top"].replace("−", "-")), int(below))
    elif found["whole"]:
        value = Fraction(int(found["whole"])) + Fraction(int(found["above"]), int(below))
    elif found["over"]:
        value = Fraction(found["over"].replace(",", "")) / int(below)
    else:
        value = Fraction(found["plain"].replace(",", "")) * Fraction(10) ** int(power)
    value *= Fraction(10) ** _UNITS.get(found["unit"].strip().lower(), 0)
    return -value if bool(found["sign"].strip()) != bool(found["inner"]) else value


_LONGEST = 100
"""Characters of a number."""
_LARGEST_POWER = 100
_REACH = 12
"""How many characters before a number can make it a part of something else."""
_GOES_ON = re.compile(r"[.,:]\d+|[ \t]*(?:√|\\sqrt\b|π|\\pi\b)[ \t]*\{?\d*|[ \t]*\^[ \t]*\{?[-−]?\d*")
_ROOT = re.compile(r"(?:√|\\sqrt)[ \t]*[({]?[ \t]*$")
_EXPONENT = re.compile(r"[A-Za-z)\]][ \t]*\^[ \t]*[({]?[ \t]*$")
_MONEY = re.compile(
    r"[^\d$€£¥]*[$€£¥][ \t]*[\d.,]+\b[^\d$€£¥]*\b(?:in|within|over|after|during|every|for|per)[ \t]+(?:the[ \t]+)?"
    r"\d[\d,.]*[ \t]+[a-z]+[.!]?$"
)
_HASHES = re.compile(r"####[ \t]*")
_BOX = re.compile(rf"{MARKER}[ \t]*(?:[a-zA-Z][ \t]*=)?[ \t]*")
