import itertools

import pytest

from eval.extraction_legacy import mmcu_first_match
from eval.mmcu_rules import (
    original_label,
    original_option,
    split_options,
    strict_answer,
    strict_gold,
    strict_option,
)

FOUR = ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("A、甲", "甲"),
        ("B.乙", "乙"),
        ("Ｃ、丙", "丙"),
        ("Ｃ．丙", "Ｃ．丙"),  # the full-width full stop is only deleted after a blank
        ("D ．丁", "丁"),
        ("DNA", "N"),
        ("维生素A", "维生素"),
        ("  戊 ", "戊"),
        ("a. 己", "a. 己"),
        ("E. 庚", "E. 庚"),
        ("3", "3"),
        (None, "nan"),
    ],
)
def test_option_clean_up_of_the_original_with_its_damage(found: str | None, kept: str) -> None:
    assert original_option(found) == kept


@pytest.mark.parametrize(
    ("found", "kept"),
    [(" A C", "AC"), ("Ｂ", "B"), ("A,C", "AC"), ("D\u3000", "D"), ("AC\n", "AC\n"), ("c", "c"), ("A，C", "A，C")],
)
def test_label_clean_up_of_the_original(found: str, kept: str) -> None:
    assert original_label(found) == kept


@pytest.mark.parametrize(
    ("response", "letters"),
    [
        ("A", "A"),
        ("A、C", "AC"),
        ("A, C", "A"),  # the comma goes, the blank stays
        ("A和C", "A"),
        ("A C", "A"),
        ("答案是B.CPU", "BC"),
        ("D;B，A", "DBA"),
        ("AA 或 BC", "BC"),
        ("ABCDA", "ABCD"),
        ("ＡＢ", None),
        ("abc", None),
        ("未成功回答", None),
        ("", None),
        ("DNA疫苗，选C", "D"),
    ],
)
def test_first_run_of_letters_as_the_original_reads_it(response: str, letters: str | None) -> None:
    assert mmcu_first_match(response).letters == letters


def test_the_original_reads_its_own_answers_unchanged() -> None:
    for size in range(1, 5):
        for letters in itertools.permutations(FOUR, size):
            assert mmcu_first_match("".join(letters)).letters == "".join(letters)


@pytest.mark.parametrize(
    ("found", "letters", "remark"),
    [
        ("AC", "AC", ""),
        ("AC\n", "AC", "read as AC"),
        ("D\u3000", "D", "read as D"),
        ("c", "C", "read as C"),
        ("ACBD", "ABCD", "read as ABCD"),
        ("BCDD", "BCD", "read as BCD"),
        ("Ａ、Ｃ", "AC", "read as AC"),
        ("A,B；D", "ABD", "read as ABD"),
    ],
)
def test_answers_are_read_as_sets_and_what_was_mended_is_said(found: str, letters: str, remark: str) -> None:
    gold = strict_gold(found, FOUR)
    assert (gold.letters, gold.problem, gold.remark) == (frozenset(letters), "", remark)


@pytest.mark.parametrize(
    ("found", "letters", "problem"),
    [
        ("ABFD", FOUR, "names an option that is not there"),
        ("D", ("A", "B", "C"), "names an option that is not there"),
        ("", FOUR, "no answer is given"),
        (" \n", FOUR, "no answer is given"),
        ("对", FOUR, "not made of option letters"),
        ("A或B", FOUR, "not made of option letters"),
    ],
)
def test_answers_that_cannot_be_used_say_why(found: str, letters: tuple[str, ...], problem: str) -> None:
    gold = strict_gold(found, letters)
    assert not gold.letters
    assert problem in gold.problem


@pytest.mark.parametrize(
    ("found", "letter", "kept"),
    [
        ("A、DNA", "A", "DNA"),
        (" Ｂ． 维生素B", "B", "维生素B"),
        ("C:丙", "C", "丙"),
        ("D）丁", "D", "丁"),
        ("(A) DNA", "A", "DNA"),
        ("（Ｂ）乙", "B", "乙"),
        ("(A) DNA", "B", "(A) DNA"),
        ("A.A型血", "A", "A型血"),
        ("C.elegans", "A", "C.elegans"),
        ("AB型", "A", "AB型"),
        ("b. 乙", "B", "b. 乙"),
    ],
)
def test_only_an_options_own_label_is_taken_off(found: str, letter: str, kept: str) -> None:
    assert strict_option(found, letter) == kept


@pytest.mark.parametrize(
    ("joined", "texts"),
    [
        ("A:甲\nB:乙", ("甲", "乙")),
        ("Ａ：甲\nＢ：乙\nC、丙", ("甲", "乙", "丙")),
        ("\nA:甲\n又一行\nB:乙\n", ("甲\n又一行", "乙")),
        ("A:甲\nB:\nC:丙", ("甲", None, "丙")),
        ("A:甲", ()),
        ("甲\n乙", ()),
        ("A:甲\nC:丙", ()),
        ("A:甲\nB:乙\nB:乙", ()),
        ("以下\nA:甲\nB:乙", ()),
        ("", ()),
    ],
)
def test_options_of_one_string_are_told_apart_or_not_at_all(joined: str, texts: tuple[str | None, ...]) -> None:
    assert split_options(joined) == texts


@pytest.mark.parametrize(
    ("response", "letters"),
    [
        ("AC", "AC"),
        ("C、A", "AC"),
        ("Ａ，Ｃ。", "AC"),
        ("A C\n", "AC"),
        ("答案是B", "B"),
        ("bad", None),
        ("AA", None),
        ("E", None),
        ("未成功回答", None),
        ("", None),
    ],
)
def test_replies_are_read_as_sets(response: str, letters: str | None) -> None:
    assert strict_answer(response, FOUR) == (None if letters is None else frozenset(letters))
