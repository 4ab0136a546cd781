"""Row functions of a user's own that fail in any way: what came before is used, the rest is one reason in a line."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from ift.data.conversation import Conversation, Message
from ift.data.layouts import RowError
from ift.data.row_conversations import to_conversations
from ift.data.rows import RawRow

GOOD = Conversation((Message("user", "a"), Message("assistant", "b")))


def threads_then_error(row: Mapping[str, Any]) -> Iterator[Any]:
    yield GOOD
    yield RowError("this one\nis empty")
    yield GOOD
    raise KeyError("parent")


def called(function: Callable[..., Any], row: Any = None) -> list[Conversation | RowError]:
    return to_conversations(RawRow(1, {} if row is None else row), function, needs_response=True)


def test_what_came_before_an_error_is_used() -> None:
    found = called(threads_then_error)
    assert [one for one in found if isinstance(one, Conversation)] == [GOOD, GOOD]
    assert [str(one) for one in found if isinstance(one, RowError)] == [
        "this one is empty",
        "the row function failed: KeyError: 'parent'",
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("text", "gave str, not a Conversation"),
        ({"messages": []}, "gave dict, not a Conversation"),
        (None, "gave NoneType, not a Conversation"),
        ([], "the row holds no conversation"),
        (Conversation(({"role": "user"},)), "gave a Conversation that is none"),  # type: ignore[arg-type]
        (Conversation(None), "gave a Conversation that is none"),  # type: ignore[arg-type]
        (Conversation((Message("user", None), Message("assistant", "b"))), "text is no str"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_conversation(given: Any, reason: str) -> None:
    (error,) = called(lambda row: given)
    assert isinstance(error, RowError) and reason in str(error)


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (RowError("two\nlines\t\x1b[31m"), "two lines \\u001b[31m"),
        (RowError("half \ud83d of a pair"), "half \\ud83d of a pair"),
        (ValueError(f"cannot use {object()}"), "the row function failed: ValueError: cannot use <object object>"),
        (RecursionError("deep"), "the row function failed: RecursionError: deep"),
    ],
)
def test_reasons_are_one_line_that_any_file_takes(raised: Exception, shown: str) -> None:
    def failing(row: Mapping[str, Any]) -> Conversation:
        raise raised

    (error,) = called(failing)
    assert isinstance(error, RowError) and str(error) == shown
    assert str(error).encode()


def test_a_reason_is_not_as_long_as_its_row() -> None:
    def failing(row: Mapping[str, Any]) -> Conversation:
        raise RowError("no " * 100_000 + "end")

    (error,) = called(failing)
    assert len(str(error)) < 1000 and str(error).endswith("end")
