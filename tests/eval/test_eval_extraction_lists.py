import pytest

from eval.extraction import extract_letters
from eval.extraction_lists import extract_answers

READ = [
    ("（1）【答案】 A <eoa>\n（2）【答案】 B <eoa>", "ABCD", "AB"),
    ("（1）由原文可知……【答案】A <eoa>\n（2）……【答案】D <eoa>\n（3）【答案】C <eoa>", "ABCD", "ADC"),
    ("【解析】一<eoe>\n【答案】A<eoa>\n【解析】二<eoe>\n【答案】D<eoa>", "ABCD", "AD"),
    ("（41）【答案】A <eoa>（42）【答案】C <eoa>（43）【答案】D <eoa>", "ABCD", "ACD"),
    ("（2）【答案】B <eoa>（1）【答案】A <eoa>", "ABCD", "AB"),
    ("【答案】 A B C D E <eoa>", "ABCDEFG", "ABCDE"),
    ("【答案】EBGFA<eoa>", "ABCDEFG", "EBGFA"),
    ("【答案】36.E 37.F 38.B 39.A 40.G<eoa>", "ABCDEFG", "EFBAG"),
    ("36. E\n37. B\n38. G\n39. F\n40. A", "ABCDEFG", "EBGFA"),
    ("41. A 42. B 43. C 44. D", "ABCD", "ABCD"),
    ("1-5 ABCDA 6-10 BBDCA", "ABCD", "ABCDABBDCA"),
    ("第1题选A，第2题选D，第3题选C", "ABCD", "ADC"),
    ("1. 文章第一段提到了A公司，因此选B。\n2. 由第二段可知选C。", "ABCD", "BC"),
    ("The answers are: 1) A 2) B", "ABCD", "AB"),
    ("答案：ACB", "ABCD", "ACB"),
    ("（1）A；（2）B；（3）D", "ABCD", "ABD"),
    ("<think>1. B 2. B</think>1. C\n2. D", "ABCD", "CD"),
    ("1. G\n2. A\n3. E\n4. C\n5. F", "ABCDEFG", "GAECF"),
    ("【答案】GAECF", "ABCDEFG", "GAECF"),
    ("1-5 GAECF", "ABCDEFG", "GAECF"),
    ("|1|A|\n|2|C|\n|3|D|", "ABCD", "ACD"),
    ("| 题号 | 答案 |\n|---|---|\n| 1 | B |\n| 2 | D |", "ABCD", "BD"),
    ("The answers are: A, B, C, D", "ABCD", "ABCD"),
    ("Answers: B C A", "ABCD", "BCA"),
    ("1. A is wrong because it is too broad, so B.\n2. The answer is C.\n3. D", "ABCD", "BCD"),
    ("1. A\n2. B is right.\n3. The answer is D.", "ABCD", "ABD"),
    ("1、A，2、B，3、D", "ABCD", "ABD"),
]

SEVERAL = [
    ("【答案】(1)B (2)C (3)AD", ["B", "C", "AD"]),
    ("1. B\n2. A and C", ["B", "AC"]),
    ("1. B\n2. A、C\n3. D,B", ["B", "AC", "BD"]),
    ("1. BA\n2. C\n3. D", ["AB", "C", "D"]),
    ("1. A、B、C都错，选D\n2. C", ["D", "C"]),
    ("1. A和B相比，选A\n2. C", ["A", "C"]),
    ("1. A or B\n2. C\n3. D", [None, "C", "D"]),
    ("1. A或B\n2. C\n3. D", [None, "C", "D"]),
    ("1. A and the rest\n2. B\n3. C", [None, "B", "C"]),
    ("1. 无\n2. C\n3. D", [None, "C", "D"]),
]


@pytest.mark.parametrize(("response", "letters", "expected"), READ)
def test_answers_are_read_in_order(response: str, letters: str, expected: str) -> None:
    found = extract_answers(response, len(expected), letters=letters)
    assert [answer.letters for answer in found] == list(expected), found


@pytest.mark.parametrize(("response", "expected"), SEVERAL)
def test_an_answer_may_hold_several_letters(response: str, expected: list[str | None]) -> None:
    found = extract_answers(response, len(expected))
    assert [answer.letters for answer in found] == expected, found


def test_a_question_without_an_answer_is_unparsed_and_moves_no_other() -> None:
    found = extract_answers("（1）【答案】A <eoa>（2）【答案】无 <eoa>（3）【答案】C <eoa>", 3)
    assert [(answer.letters, answer.status) for answer in found] == [("A", "read"), (None, "unparsed"), ("C", "read")]
    assert [answer.letters for answer in extract_answers("1. A\n2. B\n4. D", 4)] == ["A", "B", None, "D"]


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("【答案】A <eoa>【答案】B <eoa>", 3),  # nothing tells which question is left out
        ("【答案】A <eoa>【答案】B <eoa>【答案】C <eoa>", 2),
        ("A", 3),
        ("1. A", 5),
        ("我不知道", 2),
        ("Unit 1 is about DNA. In 2019 A man came.", 2),
        ("", 2),
    ],
)
def test_answers_that_cannot_be_placed_are_unparsed(response: str, count: int) -> None:
    found = extract_answers(response, count)
    assert len(found) == count
    assert {answer.status for answer in found} == {"unparsed"}, found


def test_answers_to_questions_that_were_not_asked_do_not_count() -> None:
    found = extract_answers("（1）【答案】A <eoa>（2）【答案】B <eoa>（3）【答案】C <eoa>", 2)
    assert [answer.letters for answer in found] == ["A", "B"]


def test_one_question_is_read_like_any_other() -> None:
    assert extract_answers("选项A错误，故选C。", 1) == (extract_letters("选项A错误，故选C。", kind="single"),)
