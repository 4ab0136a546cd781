import pytest

from eval.extraction import extract_letter

FOUND = [
    ("A", "A"),
    (" A.\n", "A"),
    ("Ａ", "A"),
    ("Ａ．", "A"),
    ("d", "D"),
    ("(C)", "C"),
    ("【B】", "B"),
    ("C：", "C"),
    ("**D**", "D"),
    ("答案是B", "B"),
    ("正确答案：C。因为前两项不对。", "C"),
    ("正确答案的序号是：D", "D"),
    ("正确答案为 Ｂ", "B"),
    ("我认为应该选D，理由如下", "D"),
    ("选择C。", "C"),
    ("The answer is C", "C"),
    ("The correct answer is (B).", "B"),
    ("Answer: A", "A"),
    ("Vitamin C and D are mentioned; the answer is A.", "A"),
    ("答案是A。所以选A。", "A"),
]
UNPARSED = [
    "",
    "   ",
    "AC",
    "A和C",
    "A, B",
    "答案是A和C",
    "答案是A、C",
    "答案是AC",
    "The answer is A or B",
    "答案是A。不，答案是B。",
    "答案不是A",
    "不选A",
    "The answer is not C",
    "DNA",
    "答案是DNA",
    "答案是BMW公司",
    "the answer is a car",
    "A good question.",
    "E",
    "答案是E",
    "维生素",
    "我不知道",
]


@pytest.mark.parametrize(("response", "letter"), FOUND)
def test_clear_answers_are_read(response: str, letter: str) -> None:
    assert extract_letter(response, "ABCD") == letter


@pytest.mark.parametrize("response", UNPARSED)
def test_nothing_is_guessed(response: str) -> None:
    assert extract_letter(response, "ABCD") is None


def test_only_letters_of_the_question_count() -> None:
    assert extract_letter("D", "AB") is None
    assert extract_letter("答案是D", "AB") is None
