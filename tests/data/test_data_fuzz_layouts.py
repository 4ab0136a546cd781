"""Rows of the wildest shapes through every layout: a conversation or a reason, never an error of Python's own."""

import ast
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ift.data import layouts
from ift.data.conversation import Conversation
from ift.data.layouts import LAYOUTS, RowError, resolve_layout
from ift.data.row_conversations import to_conversations
from ift.data.rows import RawRow

NAMES = sorted(LAYOUTS)
ROWS_PER_LAYOUT = 400
SPEAKERS = ["user", "assistant", "system", "human", "gpt", "Human", "prompter", "tool", "robot", "", "用户"]
TEXTS = [
    "",
    " ",
    "yes",
    "Human: a\nAssistant: b",
    "中文",
    "\ud800",
    "a\0b",
    "<|Human|>: x<eoh>",
    "\n\nHuman: a",
    "9" * 5000,
]


def words_in_source() -> list[str]:
    """Return the words that the layouts' code holds as texts: field names and speakers are among them."""
    source = Path(layouts.__file__)
    files = sorted(source.parent.rglob("*.py")) if source.name == "__init__.py" else [source]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return sorted(text for text in texts if re.fullmatch(r"[A-Za-z_][\w.-]{0,30}", text))


WORDS = words_in_source()


def own_words(name: str) -> list[str]:
    """Return the words of a layout's own function and of those that it calls, as far as its code names them."""
    code = resolve_layout("k", name).__code__  # type: ignore[attr-defined]
    constants = [constant for constant in code.co_consts if isinstance(constant, str) and constant in WORDS]
    return constants or WORDS


def random_value(generator: random.Random, words: list[str], depth: int = 0) -> Any:
    kind = generator.randrange(9 if depth < 5 else 5)
    if kind < 2:
        return generator.choice(TEXTS + SPEAKERS)
    if kind == 2:
        return None
    if kind == 3:
        return generator.choice([0, -1, 2.5, float("nan"), float("inf"), True, 10**30, b"\xff"])
    if kind == 4:
        return generator.choice([[], {}, "", [None], [[]], [{}], {"": None}])
    if kind < 7:
        return [random_value(generator, words, depth + 1) for _ in range(generator.randrange(4))]
    return random_row(generator, words, depth + 1)


def random_row(generator: random.Random, words: list[str], depth: int = 0) -> dict[str, Any]:
    chosen = generator.choices(words, k=generator.randrange(1, 7)) + generator.choices(WORDS, k=generator.randrange(2))
    return {name: random_value(generator, words, depth) for name in chosen}


def nested(levels: int, key: str) -> dict[str, Any]:
    value: Any = "end"
    for _ in range(levels):
        value = {key: [value], "text": "x", "role": "prompter"}
    return {key: value}


def tree(number: int, *, parents: list[Any], text: str = "word") -> list[dict[str, Any]]:
    roles = ["prompter", "assistant"]
    return [
        {
            "message_id": f"m{i}",
            "parent_id": parents[i % len(parents)],
            "text": text,
            "role": roles[i % 2],
            "rank": generator_rank(i),
            "lang": "en",
            "deleted": False,
            "replies": [],
        }
        for i in range(number)
    ]


def generator_rank(number: int) -> Any:
    return [None, 0, 1, "first", -1, 2.5, float("nan")][number % 7]


def chain(levels: int) -> dict[str, Any]:
    """A conversation tree that is one branch, deeper than Python's calls may nest."""
    messages = tree(levels, parents=[None])
    for upper, lower in pairwise(messages):
        upper["replies"] = [lower]
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": messages[0]}


def bush(width: int) -> dict[str, Any]:
    """A tree whose replies are one and the same object, so that its threads are far more than its messages."""
    node: Any = tree(2, parents=[None])[1]
    for level in range(6):
        node = {**tree(2, parents=[None])[level % 2], "replies": [node] * width}
    return {"message_tree_id": "t", "prompt": {**node, "role": "prompter"}}


def hostile_rows() -> list[dict[str, Any]]:
    cycles = [["m1", "m0"], ["m0"], ["m2", "m0", "m1"], ["none"], [None], [None, "m0", "m1"], [7], [["m0"]]]
    flat = [tree(9, parents=parents) for parents in cycles]
    rows: list[dict[str, Any]] = [{"messages": one} for one in flat] + [
        {"prompt": one[0], "replies": one} for one in flat
    ]
    rows += [{"prompt": {**one[0], "replies": one}} for one in flat]
    rows += [chain(5000), bush(2), {"prompt": chain(50)["prompt"]}, {"prompt": {"replies": [None, 3, "x", [], {}]}}]
    rows += [
        nested(5000, key) for key in ("messages", "conversations", "prompt", "replies", "input", "meta", "chat", "id")
    ]
    huge = "so on " * 200_000
    rows += [{"instruction": huge, "output": huge}, {"messages": [{"role": "user", "content": huge}] * 3}]
    rows += [{f"key{i}": i for i in range(5000)}, {"k" * 100_000: 1}, {"\ud800\n\x1b[31m": None}, {"": ""}, {}]
    return rows


def check(row: Any, name: str) -> list[Conversation | RowError]:
    function = resolve_layout("k", name)
    found = to_conversations(RawRow(3, row, file="f"), function, needs_response=True)
    assert found
    for one in found:
        assert isinstance(one, Conversation | RowError)
        if isinstance(one, Conversation):
            assert all(isinstance(message.text, str) for message in one.messages)
            continue
        reason = str(one)
        assert reason and reason.isprintable() and len(reason) < 1000
        assert "the row function" not in reason, (name, reason)
        assert "Traceback" not in reason and " at 0x" not in reason
    return found


@pytest.mark.parametrize("name", NAMES)
def test_random_rows(name: str) -> None:
    generator, words = random.Random(name), own_words(name)
    for _ in range(ROWS_PER_LAYOUT):
        check(random_row(generator, words), name)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_rows(name: str) -> None:
    for row in hostile_rows():
        check(row, name)


@pytest.mark.parametrize("value", [None, 3, 2.5, True, "text", [], [{}], b"x"])
def test_what_is_no_object(value: Any) -> None:
    for name in NAMES:
        (reason,) = check(value, name)
        assert "a row must be a JSON object" in str(reason)
