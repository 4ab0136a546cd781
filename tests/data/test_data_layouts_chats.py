"""Chats with flags, parts, thoughts and calls, and dialogues written into one text."""

from typing import Any

import pytest
from layout_outcomes import outcomes, reasons

from ift.data.conversation import Conversation, Message, supervise


def read(layout: str, row: Any) -> Conversation:
    (one,) = outcomes(layout, row)
    assert isinstance(one, Conversation), one
    return one


def chat(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


USER: dict[str, Any] = {"role": "user", "content": "a"}
BOT: dict[str, Any] = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("flag", ["supervised", "loss_weight", "weight", "train"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, False), (1, True), (0.0, False), (1.0, True), (True, True), (False, False), (None, None)],
)
def test_a_turn_says_whether_it_counts(flag: str, value: Any, expected: bool | None) -> None:
    one = read("messages", chat(USER, {**BOT, flag: value}, USER, BOT))
    assert [message.supervised for message in one.messages] == [None, expected, None, None]
    counted = [message.supervised for message in supervise(one, "outputs").messages]
    assert counted == [False, expected is not False, False, True]


@pytest.mark.parametrize("value", [0.5, 2, -1, float("nan"), "1", [], {}])
def test_a_weight_between_is_refused(value: Any) -> None:
    (said,) = reasons("messages", chat(USER, {**BOT, "loss_weight": value}))
    assert "turn 1: 'loss_weight' must be 0 or 1" in said


def test_flags_that_contradict_are_refused() -> None:
    assert read("messages", chat(USER, {**BOT, "weight": 1, "train": True})).messages[1].supervised is True
    (said,) = reasons("messages", chat(USER, {**BOT, "weight": 1, "train": False}))
    assert said == "turn 1: weight and train contradict one another"


CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
RESULT: dict[str, Any] = {"role": "tool", "content": "r"}
WRITTEN = '{"name": "f", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    ("turn", "text", "thought"),
    [
        ({"content": None, "tool_calls": [CALL]}, WRITTEN, ""),
        ({"content": "", "tool_calls": [CALL, CALL]}, f"{WRITTEN}\n{WRITTEN}", ""),
        ({"content": "Let me see.", "tool_calls": [CALL]}, f"Let me see.\n{WRITTEN}", ""),
        ({"content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}, WRITTEN, ""),
        ({"content": [{"type": "reasoning", "value": "h"}, {"type": "tool_call", "value": WRITTEN}]}, WRITTEN, "h"),
        ({"content": [{"type": "thinking", "thinking": "h"}, {"type": "tool_call", "text": "f()"}]}, "f()", "h"),
        ({"content": None, "reasoning": "h", "tool_calls": [CALL]}, WRITTEN, "h"),
    ],
)
def test_calls_of_tools(turn: dict[str, Any], text: str, thought: str) -> None:
    one = read("messages", chat(USER, {"role": "assistant", **turn}, RESULT, BOT))
    assert one.messages[1] == Message("assistant", text, thought=thought, call=True)
    assert [message.role for message in one.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((USER, {**BOT, "tool_calls": [CALL]}, BOT), "a call of a tool is followed by its result"),
        ((USER, {**BOT, "tool_calls": [CALL]}, RESULT, RESULT, BOT), "must take turns"),
        ((USER, {**BOT, "tool_calls": [{"function": {}}]}, RESULT, BOT), "needs 'name' and 'arguments'"),
        ((USER, {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, RESULT), "no valid JSON"),
        ((USER, {**BOT, "tool_calls": {}}, RESULT, BOT), "'tool_calls' must be a list, found dict"),
        (({**USER, "reasoning": "h"}, BOT), "turn 0 of user calls a tool or thinks"),
        (({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, BOT), "a part of 'image_url'"),
        (({"role": "user", "content": [{"type": "text"}]}, BOT), "neither 'text' nor 'value'"),
        ((USER, {**BOT, "reasoning": "h", "thinking": "other"}), "two different thoughts"),
        (({"role": "system", "content": "s"}, {"role": "system", "content": "t"}, USER, BOT), "turn 1 has role 'sys"),
        (({"role": "system", "content": "s", "loss_weight": 1}, USER, BOT), "nor does the loss count it"),
        ((USER, {"role": ["assistant"], "content": "b"}), "turn 1 has role of type list; known: system (first), user"),
    ],
)
def test_what_no_conversation_can_hold_is_refused(turns: tuple[dict[str, Any], ...], reason: str) -> None:
    (said,) = reasons("messages", chat(*turns))
    assert reason in said


def test_two_system_texts_are_refused_unless_equal() -> None:
    system = {"role": "system", "content": "s"}
    assert read("messages", chat(system, USER, BOT, system="s")).system == "s"
    assert reasons("messages", chat(system, USER, BOT, system="t")) == [
        "there are two system texts: field 'system' and the first turn"
    ]


def test_the_keys_of_one_chat_layout_are_read_in_the_other() -> None:
    assert read("sharegpt", {"conversations": [USER, BOT]}).messages == read("messages", chat(USER, BOT)).messages
    swapped = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert read("messages", {"messages": swapped}).messages == read("messages", chat(USER, BOT)).messages


def texts(layout: str, row: Any) -> list[str]:
    return [message.text for message in read(layout, row).messages]


def test_markers_take_one_blank_and_one_newline() -> None:
    row = {"instruction": "\nHuman:  a\n\nAssistant:b \nHuman:c: Human: d\nAssistant: ", "output": " e"}
    assert texts("alpaca_cot", row) == [" a\n", "b ", "c: Human: d", " e"]
    row = {"instruction": "\n\nHuman: a\nb\n\nAssistant: c\n\n\nHuman: d\n\nAssistant:", "output": "e"}
    assert texts("alpaca_cot", row) == ["a\nb", "c\n", "d", "e"]
    row = {"chosen": "\n\nHuman:  a\nAssistant: no\n\n\nAssistant: b\n\nHuman: c\n\nAssistant:\nd"}
    assert texts("hh_rlhf", row) == [" a\nAssistant: no\n", "b", "c", "\nd"]
    row = {"input": "Talk.\n[|Human|] a\n[|AI|]  b\n\n[|Human|] "}
    assert texts("baize", row) == ["a", " b\n"]
    assert texts("guanaco", {"text": "### Human: a ### Assistant: b\n"}) == ["a ", "b\n"]


def test_a_row_that_only_mentions_the_markers_is_plain() -> None:
    for instruction in ("Continue.\nHuman: a\nAssistant: b", "Human: who?", "What does Assistant: mean?"):
        assert texts("alpaca_cot", {"instruction": instruction, "output": "x"}) == [instruction, "x"]


def test_the_better_of_two_answers() -> None:
    row = {"question": "q", "answer_0": "zero", "answer_1": "one"}
    for scores, better in [((1, 0), "zero"), ((0, 1), "one"), ((-1, -0.5), "one"), ((0.0, 0), "zero")]:
        one = read("webgpt", {**row, "score_0": scores[0], "score_1": scores[1]})
        assert one.response == better and one.meta.get("tied", False) == (scores[0] == scores[1])


def test_the_end_of_a_camel_chat_is_no_request() -> None:
    row = {f"message_{number}": text for number, text in enumerate(("a", "b", "<CAMEL_TASK_DONE>"), 1)}
    one = read("camel", row)
    assert [message.text for message in one.messages] == ["a", "b"] and one.meta == {"done": "<CAMEL_TASK_DONE>"}
    assert reasons("camel", {**row, "message_3": "and c?"}) == ["the last message must be a response of the assistant"]
