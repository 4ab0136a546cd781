"""MMCU's rules on single texts: labels, option texts and replies, as the original has them and as we have them.

What begins with `original_` does what MMCU's scripts do, their damage included (Felixgithub2017/MMCU @ bd5b2a1).
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from eval.extraction import extract_letters

LETTERS = "ABCDEFGH"
"""Option letters by column."""
_SEPARATORS = re.compile(r"[\s,.;、]+")
_LABEL = re.compile(r"\s*(?:[(（]\s*)?(?P<letter>[A-HＡ-Ｈ])\s*[、．.:：)）]\s*")


# As MMCU's scripts have it -------------------------------------------------------------------------------------------


def original_label(answer: str) -> str:
    """Return the label as MMCU's scripts clean it.

    Blanks, ideographic spaces and ASCII commas go, full-width A to D become ASCII. Line ends, order and case stay.
    """
    for text in (" ", "\u3000", ","):
        answer = answer.replace(text, "")
    return answer.translate(str.maketrans("ＡＢＣＤ", "ABCD"))


def original_option(option: str | None) -> str:
    """Return the option text as MMCU's scripts clean it.

    After the labels, every capital A, B, C and D inside the text goes too (`DNA` becomes `N`), and an empty cell is
    `nan`, as pandas writes it.
    """
    if option is None:
        return "nan"
    option = option.replace(" ．", "")
    for end in ("、", ".", ""):
        for letter in "ABCD":
            option = option.replace(letter + end, "")
    for letter in "ＡＢＣＤ":
        option = option.replace(letter + "、", "")
    return option.strip()


# As the strict protocol has it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gold:
    """What an answer cell says."""

    letters: frozenset[str]
    """The right options; empty where the answer cannot be used."""
    problem: str = ""
    """Why it cannot be used."""
    remark: str = ""
    """What had to be mended to read it."""


def strict_gold(answer: str, letters: Sequence[str]) -> Gold:
    """Return the right options that an answer names.

    Unicode form NFKC, upper case, without white space and separators; order does not count.

    Args:
        answer: as found.
        letters: of the question's options.
    """
    text = _SEPARATORS.sub("", unicodedata.normalize("NFKC", answer)).upper()
    found = frozenset(text)
    if not text:
        return Gold(frozenset(), "no answer is given")
    if not found <= set(LETTERS):
        return Gold(frozenset(), "the answer is not made of option letters")
    if not found <= set(letters):
        return Gold(frozenset(), "the answer names an option that is not there")
    right = "".join(sorted(found))
    return Gold(found, remark="" if right == answer else f"read as {right}")


def strict_option(option: str, letter: str) -> str:
    """Return the option text without its own label in front; only blanks at its ends change besides.

    `A.DNA` in place A is `DNA`; `C.elegans` in place A stays.
    """
    label = _LABEL.match(option)
    if label and unicodedata.normalize("NFKC", label["letter"]) == letter:
        return option[label.end() :].strip()
    return option.strip()


def strict_answer(response: str, letters: Sequence[str], texts: Sequence[str] = ()) -> frozenset[str] | None:
    """Return the options that a reply names, or `None` where it names none clearly.

    Args:
        response: the reply.
        letters: of the question's options.
        texts: of the options, in the order of `letters`, which the reply may give instead; empty where unknown.
    """
    found = extract_letters(response, letters=letters, options=texts).letters
    return None if found is None else frozenset(found)


def split_options(joined: str) -> tuple[str | None, ...]:
    """Return the option texts of one string `A:…`, `B:…`, each label at the beginning of a line.

    A line without a label continues its option; a label without a text gives `None`. Returns nothing where the labels
    are not A, B, C and so on, or where there are fewer than two: what cannot be told apart is not guessed.
    """
    texts: list[str] = []
    for line in joined.split("\n"):
        label = _LABEL.match(line)
        if label:
            if unicodedata.normalize("NFKC", label["letter"]) != LETTERS[len(texts) : len(texts) + 1]:
                return ()
            texts.append(line[label.end() :])
        elif texts:
            texts[-1] += "\n" + line
        elif line.strip():
            return ()
    return tuple(text.strip() or None for text in texts) if len(texts) > 1 else ()
