from fractions import Fraction

import pytest

from eval.extraction_numbers import extract_number, flexible_extract, parse_number, same_as_reference, strict_match

# What lm-evaluation-harness 0.4.13 returns for these with its two filters (`[invalid]` is None).
FILTERS = [
    ("#### 18", "18", "18"),
    ("So 5 + 3 = 8.\n#### 1,234", "1,234", "1,234"),
    ("#### -7", "-7", "-7"),
    ("####18", None, "18"),
    ("#### $18", None, "$18"),
    ("#### 5 or #### 6", "5", "6"),
    ("The answer is $1,234.50.", None, "$1,234.50."),
    ("It costs 5 dollars", None, "5"),
    ("3/4", None, "4"),
    ("no number", None, None),
    ("Well...", None, "..."),
]


@pytest.mark.parametrize(("response", "strict", "flexible"), FILTERS)
def test_filters_of_the_harness(response: str, strict: str | None, flexible: str | None) -> None:
    assert (strict_match(response), flexible_extract(response)) == (strict, flexible)


@pytest.mark.parametrize(
    ("found", "reference", "same"),
    [
        ("1,234", "She has 1234.\n#### 1234", True),
        ("$18", "#### 18", True),
        ("18.", "#### 18", True),
        ("18.0", "#### 18", False),  # texts are compared, not numbers
        ("[invalid]", "#### 18", False),
        (None, "#### 18", False),
    ],
)
def test_comparison_of_the_harness(found: str | None, reference: str, same: bool) -> None:
    assert same_as_reference(found, reference) is same


@pytest.mark.parametrize(
    ("response", "value", "rule"),
    [
        ("48 / 2 = 24\n#### 24", "24", "strict"),
        ("#### $1,234.50", "1234.5", "strict"),
        ("Therefore $x = \\boxed{42}$ apples.", "42", "boxed"),
        ("\\boxed{\\frac{3}{4}}", "3/4", "boxed"),
        ("\\boxed{1{,}000}", "1000", "boxed"),
        ("The answer is 12 (from 3 * 4).", "12", "declared"),
        ("The answer is: \\( \\dfrac{7}{2} \\)", "7/2", "declared"),
        ("The final answer is x = -3.5%.", "-3.5", "declared"),
        ("答案是１２个。其中3个是红的。", "12", "declared"),
        ("答案：约3.5万元", "35000", "declared"),
        ("The answer is 5. No wait, the answer is 6.", "6", "declared"),
        ("共有 24 名学生", "24", "last_number"),
        ("He pays -$5", "-5", "last_number"),
        ("10-4=6", "6", "last_number"),
        ("气温是−4度", "-4", "last_number"),
        ("气温是负4度", "-4", "last_number"),
        ("2 1/2 cups", "5/2", "last_number"),
        ("1.5 × 10^3 m", "1500", "last_number"),
        ("1.5e3 m", "1500", "last_number"),
        ("about 1.2 million people", "1200000", "last_number"),
        ("€1,000,000.", "1000000", "last_number"),
        ("It is 50%", "50", "last_number"),
        ("<think>7</think>8", "8", "last_number"),
        ("At 12:30 he had 5 apples", "5", "last_number"),
        ("The area is 5 m^2", "5", "last_number"),
        ("She earns $18 for her work in 2 hours.", "18", "currency"),
        ("Each costs $3, so 5 of them cost 15.", "15", "last_number"),
        ("9" * 100, "9" * 100, "last_number"),
        ("1e100", "1e100", "last_number"),
    ],
)
def test_numbers_as_people_write_them(response: str, value: str, rule: str) -> None:
    found = extract_number(response)
    assert (found.value, found.rule, found.status) == (Fraction(value), rule, "read")


@pytest.mark.parametrize("response", ["", "no number", "1/0", "<think>the answer is 5", "十二", "5 or 1/0"])
def test_what_holds_no_number_is_unparsed(response: str) -> None:
    assert (extract_number(response).value, extract_number(response).status) == (None, "unparsed")


@pytest.mark.parametrize("head", ["", "#### ", "The answer is ", "答案是", "It was 5, then "])
@pytest.mark.parametrize("text", ["1.000.000", "2,5", "12:30", "√2", "\\sqrt{2}", "2√3", "2\\sqrt{3}", "2π", "2^10"])
def test_what_only_begins_or_ends_like_a_number_is_unparsed(head: str, text: str) -> None:
    found = extract_number(head + text)
    assert (found.value, found.status) == (None, "unparsed"), found
    assert parse_number(text) is None


@pytest.mark.parametrize("head", ["", "#### ", "The answer is ", "It was 5, then "])
@pytest.mark.parametrize(
    "text",
    [
        *("9" * 6000, "1e999999", "1e" + "9" * 6000, "1/" + "9" * 6000, "\\frac{1}{" + "9" * 6000 + "}"),
        *("0." + "1" * 6000, "2 1/" + "9" * 6000, "1 × 10^" + "9" * 6000, "1" + ",000" * 3000, "-" + "8" * 5000 + "万"),
    ],
    ids=lambda text: text[:8],
)
def test_what_is_longer_than_numbers_are_is_unparsed(head: str, text: str) -> None:
    found = extract_number(head + text)
    assert (found.value, found.status) == (None, "unparsed")
    assert parse_number(text) is None
    assert same_as_reference(flexible_extract(text), "5") is same_as_reference(strict_match(text), "5") is False


def test_values_are_exact() -> None:
    assert parse_number("0.1") == Fraction(1, 10)
    assert parse_number("0.30") == parse_number("3/10") == parse_number("\\frac{3}{10}") == parse_number("０．３")
    assert parse_number("1,234") == parse_number("$1234.00") == 1234
    assert parse_number("1/3") == Fraction(1, 3)
    assert parse_number("12345678901234567890.1") == Fraction("12345678901234567890.1")


@pytest.mark.parametrize("text", ["", "5 apples", "five", "1,23", "1.2.3", "3/0"])
def test_what_is_not_one_number_is_none(text: str) -> None:
    assert parse_number(text) is None
