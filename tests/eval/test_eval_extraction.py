"""The default extractor: a table of replies with what must be read from each, and what holds for any reply."""

from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import yaml

from eval.extraction import Extraction, extract_letters

TABLE = yaml.safe_load((Path(__file__).parent / "data" / "extraction_replies.yaml").read_text(encoding="utf-8"))
CASES = [
    pytest.param(reply, expected, rest[0] if rest else {}, id=f"{group}: {reply[:40]!r}")
    for group, cases in TABLE.items()
    for reply, expected, *rest in cases
]
STATUSES = ("unparsed", "refused", "contradictory")


def result(found: Extraction) -> str:
    return found.status if found.letters is None else found.letters


def test_the_table_is_large_and_holds_every_outcome() -> None:
    assert len(CASES) >= 400
    assert len({(case.values[0], str(case.values[2])) for case in CASES}) == len(CASES)
    assert {case.values[1] for case in CASES} > set(STATUSES)


@pytest.mark.parametrize(("reply", "expected", "question"), CASES)
def test_reply(reply: str, expected: str, question: dict[str, Any]) -> None:
    found = extract_letters(reply, **question)
    assert result(found) == expected, found
    assert (found.status == "read") == (found.letters is not None)


@pytest.mark.parametrize("before", ["", "选项A太绝对。", "A项错误，B项错误。\n", "Let me think. A is too broad.\n\n"])
@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize(
    "phrase", ["答案是{}。", "故选{}", "The answer is {}.", "【答案】 {} <eoa>", "\\boxed{{{}}}", "**{}**"]
)
def test_a_declaration_at_the_end_is_read_whatever_stands_before(before: str, letter: str, phrase: str) -> None:
    assert extract_letters(before + "\n" + phrase.format(letter)).letters == letter


@pytest.mark.parametrize("phrase", ["答案是{}。", "选{}", "The answers are {}.", "{}", "【答案】{}<eoa>", "答案：{}\n"])
@pytest.mark.parametrize("joint", ["", "、", ",", "，", " ", "和", ", ", " and ", "/"])
def test_every_way_to_write_a_set_gives_the_same_set(phrase: str, joint: str) -> None:
    for chosen in ("AB", "AC", "BCD", "ABD"):
        for order in (chosen, chosen[::-1]):
            assert extract_letters(phrase.format(joint.join(order))).letters == chosen


def test_letters_outside_the_question_are_never_read() -> None:
    for letter, phrase in product("CDEFGH", ["{}", "答案是{}", "The answer is {}", "{}. text", "选项{}正确"]):
        assert extract_letters(phrase.format(letter), letters="AB").letters is None
        assert extract_letters(phrase.format(letter), letters="ABCDEFGH").letters == letter


def test_full_width_forms_change_nothing() -> None:
    for case in CASES:
        reply, expected, question = case.values
        if not any(mark in reply for mark in "<\\*#`~{$|"):  # markup is ASCII
            wide = "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in reply)
            assert result(extract_letters(wide, **question)) == expected, wide


def test_a_text_that_names_no_option_is_never_read() -> None:
    """A text in which no letter of an option stands alone or in a run of such letters cannot be an answer."""
    words = ["答案是", "选", "The answer is", "正确", "DNA", "维生素K", "because", "无", "ATP", "1", "。", "\n", "："]
    for three in product(words, repeat=3):
        assert extract_letters("".join(three)).letters is None, three


def test_a_long_reply_is_read_in_good_time() -> None:
    """Patterns must not backtrack without end on what models write when they run wild."""
    repeated = {
        "答案应该应该": None,
        "A、B、C、": None,
        "选项A正确": "A",
        "therefore ": None,
        "【答案】": None,
        "(": None,
        "A\n": "A",
        "**A": "A",
        "选A的": None,
        "不": None,
        " ": None,
        "\n": None,
        "A√ ": "A",
        "A. 错误\n": None,
        "也可能选B，": "B",
        "【答案】A\n【答案】B\n": None,
    }
    for part, letters in repeated.items():
        start = perf_counter()
        assert extract_letters(part * 1000).letters == letters, part
        assert perf_counter() - start < 20, part
