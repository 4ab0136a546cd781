"""Finds the option letter in a written response; strict: what does not clearly name one option is unparsed.

An extractor is a function from a response and the option letters to one of them, or `None`. A benchmark names the one
it uses in its protocol, so that a wider extractor is a new function and a new protocol version, never a silent change.
"""

import re
import unicodedata
from collections.abc import Sequence

_OPENING = "(\\[【“\"'*"
_CLOSING = ")\\]】”\"'*.。,、:;!"


def extract_letter(response: str, letters: Sequence[str]) -> str | None:
    """Return the one option letter that the response names, or `None` where it names none or several.

    Accepted, after NFKC (so `Ａ` is `A` and `：` is `:`):

    - the letter alone, upper or lower case, with brackets, quotes or end punctuation around it: `A`, `b.`, `(C)`;
    - an upper-case letter declared as the answer: `答案是B`, `正确答案：C`, `选D`, `The answer is (A)`, `Answer: B`.

    Not accepted: a letter inside a word (`DNA`), a list (`答案是A和C`, `AC`), two declarations that disagree, an
    option's text, or a letter that is merely mentioned.

    Args:
        response: the generated text.
        letters: the upper-case letters of the options in question, for example `("A", "B", "C", "D")`.
    """
    text = unicodedata.normalize("NFKC", response).strip()
    one = "[" + "".join(letters) + "]"
    alone = re.fullmatch(rf"[{_OPENING}]*({one})[{_CLOSING}\s]*", text, flags=re.IGNORECASE)
    if alone:
        return alone[1].upper()
    named = {letter for found in _declarations(one).finditer(text) for letter in re.findall(one, found["letters"])}
    return named.pop() if len(named) == 1 else None


def _declarations(one: str) -> re.Pattern[str]:
    """Return the pattern of a declared answer; its group `letters` holds every letter of a list such as `A、C`."""
    chinese = r"(?:答案(?:的序号)?|选项|选择)\s*(?:应该|应当|应)?(?:是|为|选)?\s*:?|(?<!不)选"
    english = r"(?i:\b(?:answer|option|choice)\b(?:\s+is\b)?\s*:?)"
    separator = r"\s*(?:[,、/&+和与及或]|\band\b|\bor\b)?\s*"
    letters = rf"{one}(?:{separator}{one})*"
    return re.compile(rf"(?:{chinese}|{english})\s*[{_OPENING}]*(?P<letters>{letters})(?![A-Za-z0-9])")
