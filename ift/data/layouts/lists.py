"""Row functions of data sets that hold the turns of a chat as plain texts, in lists or in numbered fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from ift.data.conversation import Conversation, Message, Role
from ift.data.layouts.fields import Row, RowError, exchange, found_fields, identifier, needed_list, rest, text_of
from ift.data.layouts.pairs import pclue

CAMEL_DONE = "<CAMEL_TASK_DONE>"


def _alternating(texts: Sequence[Any], key: str) -> tuple[Message, ...]:
    roles: tuple[Role, Role] = ("user", "assistant")
    return tuple(Message(roles[i % 2], text_of(text, f"{key}[{i}]")) for i, text in enumerate(texts))


def lima(row: Row) -> Conversation:
    """Read `conversations`: a list of plain texts, user first, in turn (LIMA)."""
    messages = _alternating(needed_list(row, "conversations", "lima"), "conversations")
    return Conversation(messages, id=identifier(row), meta=rest(row, "id", "conversations"))


def ultrachat(row: Row) -> Conversation:
    """Read `data`: a list of plain texts, user first, in turn (UltraChat)."""
    messages = _alternating(needed_list(row, "data", "ultrachat"), "data")
    return Conversation(messages, id=identifier(row), meta=rest(row, "id", "data"))


def chinese_vicuna(row: Row) -> Conversation:
    """Read `input` and `output`: two lists of equal length, the requests and their responses."""
    requests, responses = (needed_list(row, key, "chinese_vicuna") for key in ("input", "output"))
    if len(requests) != len(responses):
        raise RowError(f"'input' holds {len(requests)} requests, 'output' {len(responses)} responses")
    messages: list[Message] = []
    for i, pair in enumerate(zip(requests, responses, strict=True)):
        messages += exchange(text_of(pair[0], f"input[{i}]"), text_of(pair[1], f"output[{i}]"))
    return Conversation(tuple(messages), id=identifier(row), meta=rest(row, "id", "input", "output"))


def firefly(row: Row) -> Conversation:
    """Read `kind`, `input` and `target`, or `conversation`: a list of `{human, assistant}`."""
    if "conversation" not in row:
        return pclue(row)
    messages: list[Message] = []
    for number, pair in enumerate(needed_list(row, "conversation", "firefly")):
        if not isinstance(pair, Mapping):
            raise RowError(f"turn {number} needs 'human' and 'assistant'")
        messages += exchange(*(text_of(pair.get(key), f"{key} of turn {number}") for key in ("human", "assistant")))
    used = ("conversation_id", "conversation")
    return Conversation(tuple(messages), id=identifier(row, "conversation_id"), meta=rest(row, *used))


def camel(row: Row) -> Conversation:
    """Read `message_1`, `message_2`, ...: texts or objects with `content`, user first, in turn (CAMEL).

    A chat ends when the user says `CAMEL_DONE`; such a last message is no request and stays in `meta` as `done`.
    """
    texts: list[Any] = []
    while (value := row.get(f"message_{len(texts) + 1}")) is not None:
        texts.append(value.get("content") if isinstance(value, Mapping) else value)
    if len(texts) < 2:
        raise RowError(f"layout 'camel' needs 'message_1' and 'message_2'; found {found_fields(row)}")
    used = {f"message_{number}" for number in range(1, len(texts) + 1)}
    later = [key for key in row if str(key).startswith("message_") and key not in used and row[key] is not None]
    if later:
        raise RowError(f"'message_{len(texts) + 1}' is missing, but there is '{later[0]}'")
    messages, meta = _alternating(texts, "message"), rest(row, "id", *used)
    if messages[-1].role == "user" and CAMEL_DONE in messages[-1].text:
        meta["done"] = messages[-1].text
        messages = messages[:-1]
    return Conversation(messages, id=identifier(row), meta=meta)
