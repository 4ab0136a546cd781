"""The row function of OpenAssistant: a tree of messages, out of which every thread becomes a conversation."""

from collections.abc import Iterator, Mapping
from typing import Any

from ift.data.conversation import Conversation, Message, Role
from ift.data.layouts.fields import Row, RowError, found_fields, identifier, rest

_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}
_DEEPEST = 1000
"""Messages in a thread; real trees hold fewer than 20."""

_Path = tuple[Mapping[str, Any], ...]


def oasst(row: Row) -> Iterator[Conversation | RowError]:
    """Read a tree: `prompt` with nested `replies`, or the root message itself; one conversation per thread.

    A thread leads from the root to a message without usable replies. Siblings come in the order of `rank`, best first,
    those without one last. Messages that are deleted or did not pass the review are left out with all their replies,
    and counted. A thread that ends with the prompter is cut back to the assistant's last message; the same thread is
    not given twice.
    """
    root = row.get("prompt", row)
    if not isinstance(root, Mapping) or not isinstance(root.get("text"), str):
        raise RowError(f"layout 'oasst' needs a tree 'prompt' with 'text' and 'replies'; found {found_fields(row)}")
    if row.get("parent_id") is not None or "replies" not in root:
        raise RowError("a message without its tree; layout 'oasst' needs the files of trees, with nested 'replies'")
    return _threads(row, root)


def _threads(row: Row, root: Mapping[str, Any]) -> Iterator[Conversation | RowError]:
    """Walk the tree without recursion, since a file may nest as deeply as it likes."""
    meta = rest(row, "prompt", "message_tree_id") if "prompt" in row else {}
    given: set[int] = set()
    seen: set[int | str] = set()
    waiting: list[_Path] = [(root,)]
    while waiting:
        path = waiting.pop()
        problem = _problem(path, seen)
        if problem:
            yield RowError(problem)
            continue
        usable, num_unusable = _in_order(path[-1].get("replies") or [])
        for _ in range(num_unusable):
            yield RowError("a reply is no message with text and a list of replies")
        waiting += [(*path, reply) for reply in reversed(usable) if not _left_out(reply)]
        for reply in filter(_left_out, usable):
            yield RowError(_left_out(reply))
        if not any(not _left_out(reply) for reply in usable):
            yield from _thread(path, given, meta)


def _problem(path: _Path, seen: set[int | str]) -> str:
    """Say what is wrong with the last message of a path; empty if nothing is."""
    message = path[-1]
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        return "a message has no role 'prompter' or 'assistant'"
    if _left_out(message):
        return _left_out(message)
    names: list[int | str] = [id(message), identifier(message, "message_id") or id(message)]
    if any(name in seen for name in names):
        return "a message occurs twice in its tree"
    seen.update(names)
    return "" if len(path) < _DEEPEST else f"a thread is longer than {_DEEPEST} messages"


def _left_out(message: Mapping[str, Any]) -> str:
    if message.get("deleted") is True:
        return "a message is deleted"
    return "a message did not pass the review" if message.get("review_result") is False else ""


def _in_order(replies: Any) -> tuple[list[Mapping[str, Any]], int]:
    """Return the replies that are messages, best rank first and those without rank last, and how many are none."""

    def rank(message: Mapping[str, Any]) -> float:
        value = message.get("rank")
        return value if isinstance(value, int) else float("inf")

    if not isinstance(replies, list | tuple):
        return [], 1
    usable = [r for r in replies if isinstance(r, Mapping) and isinstance(r.get("text"), str)]
    return sorted(usable, key=rank), len(replies) - len(usable)


def _thread(path: _Path, given: set[int], meta: dict[str, Any]) -> Iterator[Conversation | RowError]:
    while path and path[-1]["role"] != "assistant":
        path = path[:-1]
    if not path:
        yield RowError("a request has no response")
        return
    last = path[-1]
    if id(last) in given:
        return
    given.add(id(last))
    messages = tuple(Message(_ROLES[message["role"]], message["text"]) for message in path)
    kept = {key: last[key] for key in ("rank", "lang") if last.get(key) is not None}
    yield Conversation(messages, id=identifier(last, "message_id"), meta={**meta, **kept})
