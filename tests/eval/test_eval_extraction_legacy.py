"""Rules of published benchmarks: checked on what evaluation.md says they do, quirks included."""

import pytest

from eval.extraction_legacy import (
    ceval_chain_of_thought,
    gaokao_five_of_seven,
    gaokao_multi,
    gaokao_sub_questions,
    last_letter,
    mmcu_first_match,
)


@pytest.mark.parametrize(
    ("response", "letters"),
    [
        ("A", "A"),
        ("A、C", "AC"),
        ("C，A", "CA"),  # the order stays, because texts are compared
        ("A和C", "A"),
        ("A C", "A"),
        ("A.CPU是中央处理器", "AC"),  # the deleted full stop glues the letter to the text
        ("b", None),
        ("Ｂ", None),
        ("AA", None),
        ("AAB和C", "C"),
        ("ABCDA", "ABCD"),
        ("A Better choice is C", "A"),
        ("我不知道", None),
        ("DNA复制，选B", "D"),
    ],
)
def test_mmcu_first_match(response: str, letters: str | None) -> None:
    found = mmcu_first_match(response)
    assert (found.letters, found.status) == (letters, "read" if letters else "unparsed")


def test_last_letter_takes_any() -> None:
    assert last_letter("选A，不选D").letters == "D"
    assert last_letter("【答案】A、B、C <eoa>").letters == "C"
    assert last_letter("【答案】无").letters is None


def test_gaokao_multi_takes_all_after_the_marker_or_the_last_ten() -> None:
    assert gaokao_multi("【解析】A错\n【答案】 B D <eoa>").letters == "BD"
    assert gaokao_multi("【解析】x【答案】AC【答案】C").letters == "ACC"
    assert gaokao_multi("ABCD都可能，但是综合来看应该选择 A C").letters == "AC"
    assert gaokao_multi("【答案】AB，一二三四五六七八九十").letters is None  # a marker at the very start is not seen


def test_gaokao_lists() -> None:
    assert gaokao_sub_questions("（1）【答案】: A\n（2）【答案】B", 2) == ["A", "B"]
    assert gaokao_sub_questions("The first is A", 2) == ["T", "A"]
    assert gaokao_five_of_seven("【答案】 E B G F A C") == list("EBGFA")


def test_ceval_chain_of_thought() -> None:
    assert ceval_chain_of_thought("A不对。所以答案是B。").letters == "B"
    assert ceval_chain_of_thought("答案是A。再想想，答案是C。").letters == "C"
    assert ceval_chain_of_thought("答案为D。").letters == "D"
    assert ceval_chain_of_thought("选项A是正确的。").letters == "A"
    assert ceval_chain_of_thought("所以答案是B").letters is None  # it needs the full stop
    assert ceval_chain_of_thought("答案是选项B。").letters is None
