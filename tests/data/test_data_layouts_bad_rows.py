"""Whatever stands in a field, a row function says what is wrong; it never fails in another way."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from layout_outcomes import outcomes, reasons
from layout_samples import SAMPLES, Sample, reply

from ift.data.conversation import Conversation
from ift.data.layouts import LAYOUTS, RowError, detect_layout


def deep(levels: int = 3000) -> Any:
    value: Any = "end"
    for level in range(levels):
        value = [value] if level % 2 else {"replies": value, "a": value}
    return value


def cyclic() -> Any:
    value: dict[str, Any] = {"text": "x", "role": "prompter", "message_id": "m"}
    value["replies"] = [value, value]
    value["content"] = value["value"] = [value]
    return value


JUNK: list[Any] = [
    None, 3, -1.5, float("nan"), 10**400, True, [], {}, "", " \n", "\ud800", "x", ["x"], [None], [[]], [{}], {"x": {}},
    [{"from": [], "value": {}, "role": {}, "content": 3}], [{"role": "user", "content": [{"type": []}]}],
    [{"role": "assistant", "content": "x", "tool_calls": [deep()], "loss_weight": "1"}], deep(), cyclic(),
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every place in a row, fields and items."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(row: dict[str, Any], path: tuple[Any, ...], junk: Any) -> dict[str, Any]:
    result = copy.deepcopy(row)
    target: Any = result
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = junk
    return result


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.layout)
def test_junk_in_any_place_is_said_as_a_row_error(sample: Sample) -> None:
    num_refused = 0
    for path in places(sample.row):
        for junk in JUNK:
            row = changed(sample.row, path, junk)
            result = outcomes(sample.layout, row)
            assert result, "a row must not vanish"
            for one in result:
                assert isinstance(one, Conversation | RowError)
                num_refused += isinstance(one, RowError)
                assert not isinstance(one, RowError) or 5 < len(str(one)) < 400
    assert num_refused > 8, "junk in a field that is needed must be refused"


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_rows_of_other_layouts_are_refused_or_read(layout: str) -> None:
    for sample in SAMPLES:
        assert outcomes(layout, sample.row)
    assert reasons(layout, {}) and reasons(layout, {"x": 1})


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.layout)
def test_a_row_without_one_of_its_fields_is_refused_by_name(sample: Sample) -> None:
    """Each field by which the layout is known is needed, and the reason names what was found or what is missing."""
    signatures = [signature.fields for signature in LAYOUTS[sample.layout].signatures]
    for fields in signatures:
        if sample.layout == "guanaco" or not all(isinstance(sample.row.get(path), str) for path in fields):
            continue  # of guanaco's chats either field may be empty
        for path in {"instruction", "output", "response", "inputs", "targets", "question", "answer"} & set(fields):
            row = {key: value for key, value in sample.row.items() if key != path}
            result = outcomes(sample.layout, row)
            assert [one for one in result if isinstance(one, RowError) and "'" in str(one)] == result


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: type(junk).__name__)
def test_detection_survives_junk(junk: Any) -> None:
    for sample in SAMPLES[::3]:
        for path in places(sample.row):
            try:
                assert detect_layout([changed(sample.row, path, junk)]) in LAYOUTS
            except ValueError as error:
                assert str(error).startswith("layout: ")


def test_one_bad_instance_does_not_lose_the_others() -> None:
    instances: list[Any] = [
        {"input": "", "output": "a"},
        {"input": 3, "output": "b"},
        None,
        {"output": ""},
        {"output": "c"},
    ]
    result = outcomes("self_instruct", {"instruction": "Say.", "instances": instances})
    assert [one.response if isinstance(one, Conversation) else str(one) for one in result] == [
        "a",
        "'input' must be text, found int",
        "an item of 'instances' must be an object, found NoneType",
        "a response is empty",
        "c",
    ]


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("alpaca", {"q": "x", "a": "y"}, "layout 'alpaca' needs 'instruction' and 'output'; found 'q', 'a'"),
    ("alpaca", {"instruction": "a", "output": "b", "history": [["c"]]}, "'history[0]' must be a list of a request"),
    ("instruction_wild", {"instruction": "a"}, "there is no 'output'"),
    ("evol_instruct", {"idx": 1, "Instruction": "a"}, "there is no 'output'"),
    ("p3", {"prompt": "a", "completion": "<|endoftext|>"}, "a response is empty"),
    ("p3", {"prompt": "", "completion": "b"}, "'prompt' is empty"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}]* 2}, "must take turns"),
    ("lima", {"conversations": ["", "b"]}, "a request is empty"),
    ("lima", {"conversations": ["a", "b", "c"]}, "the last message must be a response"),
    ("chinese_vicuna", {"input": ["a", "b"], "output": ["c"]}, "'input' holds 2 requests, 'output' 1 responses"),
    ("alpaca_cot", {"instruction": "Human: a Assistant: b Human: c", "output": "d"}, "cannot be told apart"),
    ("alpaca_cot", {"instruction": "Human:a\nAssistant:b", "output": "d"}, "cannot be told apart"),
    ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c"}, "must take turns"),
    ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant:"}, "a response is empty"),
    ("hh_rlhf", {"chosen": "plain"}, "holds none of the markers Human and Assistant"),
    ("guanaco", {"instruction": "", "input": "System: x", "output": "y"}, "no 'User:' follows"),
    ("hc3", {"question": "a", "chatgpt_answers": []}, "at least one of 'chatgpt_answers'"),
    ("webgpt", {"question": "a", "answer_0": "b", "answer_1": "c", "score_0": "1", "score_1": 0}, "the numbers"),
    ("moss", {"chat": {"turn_1": {"Human": "a", "MOSS": "b"}, "turn_3": {"Human": "a", "MOSS": "b"}}}, "without a gap"),
    ("moss", {"chat": {"turn_1": {"Human": "a", "Commands": "f()", "MOSS": "b"}}}, "but no results"),
    ("moss", {"chat": {"turn_1": {"Human": "<|Human|>: a", "MOSS": "b"}}}, "does not end with <eoh>"),
    ("moss", {"plain_text": "[Human]: a <eoh> and more"}, "'plain_text' must hold turns"),
    ("gaokao", {"question": "a", "options": ["(A) b"], "label": []}, "needs 'label', 'standard_answer' or 'answer'"),
    ("coig", {"round_0": {"response": "{no json"}}, "'response of round_0' holds no valid JSON"),
    ("camel", {"message_1": "a", "message_2": "b", "message_4": "d"}, "'message_3' is missing"),
    ("csl", {"abst": "a", "title": "", "keywords": None}, "'title' and 'keywords' are empty"),
    ("natural_instructions", {"Definition": "a", "Instances": []}, "'Instances' is an empty list"),
    ("natural_instructions", {"Definition": "a", "Instances": [{"input": "b", "output": []}]}, "is an empty list"),
    ("oasst", {"message_id": "m", "parent_id": "n", "role": "assistant", "text": "a"}, "a message without its tree"),
    ("oasst", {"message_id": "m", "role": "prompter", "text": "a", "replies": []}, "a request has no response"),
    ("oasst", cyclic(), "occurs twice in its tree"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "row", "reason"), CASES)
def test_what_is_wrong_is_said(layout: str, row: dict[str, Any], reason: str) -> None:
    assert any(reason in said for said in reasons(layout, row))


def test_a_tree_as_deep_as_memory_allows() -> None:
    tree = reply("0", "prompter")
    leaf = tree
    for number in range(1, 5000):
        leaf["replies"].append(reply(str(number), ("prompter", "assistant")[number % 2]))
        leaf = leaf["replies"][0]
    assert reasons("oasst", tree) == ["a thread is longer than 1000 messages"]
