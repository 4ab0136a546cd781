"""Layouts are told by fields, foreign fields are mapped, and the table for the documentation is whole."""

from typing import Any

import pytest
from layout_outcomes import outcomes
from layout_samples import SAMPLES

from ift.data.conversation import Conversation
from ift.data.layouts import LAYOUTS, RowError, detect_layout, layout_table, map_columns, resolve_layout
from ift.errors import UserError

ALPACA = {"instruction": "a", "output": "b"}
FLAT = {"instruction": "Human:a\nAssistant:b\nHuman:c\nAssistant:", "output": "d"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([ALPACA] * 9 + [{}], "alpaca"),
        ([ALPACA] * 5 + [{"q": 1}] * 5, "alpaca"),
        ([ALPACA, None, "text", 3], "alpaca"),
        ([ALPACA] * 9 + [FLAT], "alpaca_cot"),
        ([ALPACA] * 90 + [FLAT], "alpaca"),
        ([ALPACA] * 100 + [{"text": "x"}] * 10_000, "alpaca"),
        ([{"text": "### Human: x"}] + [{"text": "y"}] * 9, "text"),
        ([{**ALPACA, "text": "all of it"}], "alpaca"),
        ([{**ALPACA, "trans_instruction": "c", "trans_output": "d"}], "coig"),
        ([{"question": "a", "options": ["(A) b"], "answer": "c"}], "gaokao"),
        ([{"instruction": "a", "instances": [{"input": "", "output": "b"}]}], "self_instruct"),
    ],
)
def test_the_layout_of_several_rows(rows: list[Any], expected: str) -> None:
    assert detect_layout(rows) == expected


def test_what_is_said_where_no_layout_fits() -> None:
    with pytest.raises(UserError) as caught:
        detect_layout([{"instruction_text": "a", "output": "b", "q": 1}], key="data.sources[2].layout")
    said = str(caught.value)
    assert said.startswith(
        "data.sources[2].layout: no layout is known by the fields 'instruction_text', 'output', 'q'."
    )
    assert "'alpaca' (lacks 'instruction')" in said and "'columns'" in said and "dotted path" in said
    with pytest.raises(UserError, match=r"Nearest: .*'question_answer' \(lacks 'answer'\), "):
        detect_layout([{"question": "a", "std_answer": "b", "class": "c"}])
    with pytest.raises(UserError, match="there is no row"):
        detect_layout([])
    with pytest.raises(UserError, match="no layout is known by the fields 'x'. Name a layout"):
        detect_layout([{"x": 1}])


def test_every_signature_tells_its_own_layout_apart() -> None:
    """No signature is a dead letter: some sample is detected by each layout that has signatures."""
    found = {detect_layout([sample.row]) for sample in SAMPLES} | {"instruction_wild"}
    assert detect_layout([{"instruction": "a"}]) == "instruction_wild"
    assert found == {name for name, layout in LAYOUTS.items() if layout.signatures}


def test_the_table_names_every_layout_with_its_fields() -> None:
    head, rule, *lines = layout_table().splitlines()
    assert head.count("|") == rule.count("|") == 4 and [line.split("`")[1] for line in lines] == sorted(LAYOUTS)
    rows = {line.split("`")[1]: line for line in lines}
    assert "`instruction`, `output`" in rows["alpaca"] and "as `alpaca`" in rows["code_alpaca"]
    assert "as `p3`" in rows["xp3"] and "`conversation[].human`" in rows["firefly"]


def test_a_layout_is_resolved_to_its_function() -> None:
    assert all(resolve_layout("layout", name) is layout.function for name, layout in LAYOUTS.items())


def test_columns_are_moved() -> None:
    row = {"data": {"question": "a", "more": 1}, "a": "b", "extra": [1]}
    mapped = map_columns(row, {"instruction": "data.question", "output": "a"})
    assert mapped == {"data": row["data"], "extra": [1], "instruction": "a", "output": "b"}
    assert row == {"data": {"question": "a", "more": 1}, "a": "b", "extra": [1]}
    (one,) = outcomes("alpaca", mapped)
    assert isinstance(one, Conversation) and one.response == "b" and one.meta["extra"] == [1]


def test_columns_may_be_swapped_and_used_twice() -> None:
    assert map_columns({"input": "a", "output": "b"}, {"input": "output", "output": "input"}) == {
        "input": "b",
        "output": "a",
    }
    assert map_columns({"t": "a"}, {"instruction": "t", "output": "t"}) == {"instruction": "a", "output": "a"}
    assert map_columns({"a.b": "literal", "a": {"b": "nested"}}, {"text": "a.b"})["text"] == "literal"
    assert map_columns({"text": "a"}, {"text": "text"}) == {"text": "a"}


@pytest.mark.parametrize("path", ["q", "data.q", "a.b", "data.question.deeper", "", "data."])
def test_a_missing_column_is_named_with_those_found(path: str) -> None:
    with pytest.raises(RowError) as caught:
        map_columns({"data": {"question": "a"}, "a": "b"}, {"instruction": path})
    assert str(caught.value) == f"'columns' names a field '{path}', which is missing; found 'data', 'a'"


@pytest.mark.parametrize(("path", "meant"), [("dat.question", "data.question"), ("data.qestion", "data.question")])
def test_the_nearest_column_is_named(path: str, meant: str) -> None:
    with pytest.raises(RowError, match=f"'{path}', which is missing; .*; did you mean '{meant}'\\?$"):
        map_columns({"data": {"question": "a"}, "a": "b"}, {"instruction": path})
