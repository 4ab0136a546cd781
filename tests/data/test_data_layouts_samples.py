"""A row of every layout becomes exactly the conversations it holds, and is detected."""

import copy
from typing import Any

import pytest
from layout_outcomes import outcomes
from layout_samples import SAMPLES, Sample

from ift.data.conversation import Conversation
from ift.data.layouts import LAYOUTS, detect_layout

each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.layout)


def test_every_layout_has_a_sample() -> None:
    assert {sample.layout for sample in SAMPLES} == set(LAYOUTS)


@each_sample
def test_a_row_becomes_its_conversations(sample: Sample) -> None:
    before = copy.deepcopy(sample.row)
    result = [one for one in outcomes(sample.layout, sample.row) if isinstance(one, Conversation)]
    assert [list(one.messages) for one in result] == sample.conversations
    assert {one.system for one in result} == {sample.system}
    assert [one.id for one in result] == (sample.ids or [""] * len(result))
    assert sample.row == before, "a row function must not change its row"


@each_sample
def test_what_is_not_used_stays_in_meta(sample: Sample) -> None:
    """Nothing is both in the conversation and in `meta`, but for what several conversations share."""
    for one in outcomes(sample.layout, sample.row):
        assert isinstance(one, Conversation)
        texts = [text for message in one.messages for text in (message.text, message.context) if len(text) > 4]
        assert not [value for value in one.meta.values() if isinstance(value, str) and value in texts]
        assert all(key in sample.row or key in str(sample.row) or key == "tied" for key in one.meta)


def test_fields_that_are_not_used_are_kept() -> None:
    row = {"instruction": "a", "input": "b", "output": "c", "id": "d", "extra": [1], "language": "en"}
    (one,) = outcomes("alpaca", row)
    assert isinstance(one, Conversation) and one.meta == {"extra": [1], "language": "en"}
    row = {"kind": "k", "input": "a", "target": "b"}
    (one,) = outcomes("firefly", row)
    assert isinstance(one, Conversation) and one.meta == {"kind": "k"}


@each_sample
def test_a_row_is_detected(sample: Sample) -> None:
    """And the detected layout reads the row as its own does."""
    found = detect_layout([sample.row])
    assert found == (sample.detected or sample.layout)
    assert outcomes(found, sample.row) == outcomes(sample.layout, sample.row)


def surrounded(sample: Sample, text: str) -> Any:
    """Put a text into every place of a row that holds one of the sample's messages."""

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        if isinstance(value, str):
            for word in ("Good day", "Good bye", "red"):
                value = value.replace(word, f"{text}{word}{text}")
        return value

    return change(sample.row)


@pytest.mark.parametrize("text", ["  ", "\u3000", "é 🙂", "{x} %s </s> <|im_end|>", "###", "Human"])
@each_sample
def test_responses_are_kept_to_the_letter(sample: Sample, text: str) -> None:
    """Blanks and odd characters around a response survive; markers take only the one blank that is their own."""
    changed = outcomes(sample.layout, surrounded(sample, text))
    expected = [[m.text for m in messages if m.role == "assistant"] for messages in sample.conversations]
    for conversation, responses in zip(changed, expected, strict=True):
        assert isinstance(conversation, Conversation), conversation
        found = [message.text for message in conversation.messages if message.role == "assistant"]
        for response, original in zip(found, responses, strict=True):
            for word in ("Good day", "Good bye", "red"):
                original = original.replace(word, f"{text}{word}{text}")
            assert response == original
