"""Where a chat template puts the texts of a conversation, found with placeholders and kept for all of the same shape.

The shape of a conversation is the roles of its messages and which of them hold a thought. A template is rendered once
per shape with a unique placeholder in the place of each text; the placeholders give the borders, and the same rendering
up to each response gives the prompt that the template makes at inference. Whether a conversation really is rendered as
its shape says, is compared for each conversation (`chat_templates`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ift.data.layouts import RowError

Part = Literal["content", "reasoning_content"]
ChatMessage = dict[str, str]
"""What chat templates read: `role`, `content`, and `reasoning_content` for a thought."""
Apply = Callable[[list[ChatMessage], bool], str]
"""Render messages; whether with the prompt for generation."""

# From Unicode's private use area, so that no text has them by accident, and no change of case or blanks touches them.
_MARKS: dict[Part, str] = {"content": "\ue0f1", "reasoning_content": "\ue0f2"}
_PARTS = {mark: part for part, mark in _MARKS.items()}
_PLACEHOLDER_PATTERN = re.compile("([\ue0f1\ue0f2])(\\d+)\ue0f3")


@dataclass
class Slot:
    """A place for a text, and what the template writes before it."""

    number: int
    """Of the message."""
    part: Part
    fixed: str
    """All that the template writes since the text before."""
    before: str
    """What of it the model reads, up to the end of the prompt for generation, from the end of a response before on."""
    written: str = ""
    """What of it the model writes as a part of its response: the marks of a thought. Mere blanks are in neither, as the
    model goes on right after its prompt."""


@dataclass(frozen=True)
class Structure:
    """How a template renders every conversation of one shape."""

    slots: tuple[Slot, ...]
    after: str
    """Written after the last text."""
    problems: dict[int, str] = field(default_factory=dict)
    """Number of a message of the assistant to the reason why it cannot be learned from."""


def find_structure(chat: Sequence[ChatMessage], apply: Apply, *, thinks: bool) -> Structure:
    """Render placeholders in the shape of a conversation and see where they come out.

    Args:
        chat: a conversation of that shape.
        apply: the template.
        thinks: whether a response without a thought may begin with what the template writes for an empty one.

    Raises:
        RowError: the template refuses the shape, or leaves out a message.
    """
    masked = [_masked(message, number) for number, message in enumerate(chat)]
    whole = apply(masked, chat[-1]["role"] != "assistant")
    pieces = _PLACEHOLDER_PATTERN.split(whole)
    slots = [
        Slot(int(number), _PARTS[mark], fixed, fixed)
        for fixed, mark, number in zip(pieces[0:-1:3], pieces[1::3], pieces[2::3], strict=True)
    ]
    _check_all_written(chat, slots)
    for slot, previous in zip(slots[1:], slots, strict=False):
        if slot.number == previous.number:  # the model goes on after its thought
            slot.before, slot.written = "", slot.before
    structure = Structure(tuple(slots), pieces[-1])
    for number, message in enumerate(chat):
        if message["role"] == "assistant" and number > 0:
            problem = _take_over(structure, masked, number, whole=whole, apply=apply, thinks=thinks)
            if problem:
                structure.problems[number] = problem
    return structure


def _masked(message: ChatMessage, number: int) -> ChatMessage:
    return message | {part: _placeholder(part, number) for part in _MARKS if part in message}


def _placeholder(part: Part, number: int) -> str:
    return f"{_MARKS[part]}{number}\ue0f3"


def _check_all_written(chat: Sequence[ChatMessage], slots: Sequence[Slot]) -> None:
    for number, message in enumerate(chat):
        times = sum(slot.number == number and slot.part == "content" for slot in slots)
        if times != 1:
            did = "leaves out" if times == 0 else f"writes {times} times"
            raise RowError(f"the tokenizer's chat template {did} the message of role '{message['role']}'")


def _take_over(
    structure: Structure, masked: list[ChatMessage], number: int, *, whole: str, apply: Apply, thinks: bool
) -> str:
    """Find where the model takes over from the prompt before a response; return why it cannot be learned from."""
    own = [slot for slot in structure.slots if slot.number == number]
    start = whole.index(_placeholder(own[0].part, number))
    prompt = apply(masked[:number], True)
    if not whole.startswith(prompt) or len(prompt) > start:
        if number == len(masked) - 1:
            return (
                "the tokenizer's chat template writes another prompt for generation than it writes before a response, "
                "so training and prediction would differ"
            )
        return (
            "the tokenizer's chat template writes a response otherwise when others follow it, so only the last can be "
            "learned from (data.train_on: last_output)"
        )
    if "reasoning_content" in masked[number] and len(own) == 1:
        return "the tokenizer's chat template leaves out the thought before a response"
    extra = whole[len(prompt) : start]
    own[0].before = own[0].fixed.removesuffix(extra)
    if extra.strip(" ") == "":
        return ""
    own[0].written = extra
    if "reasoning_content" in masked[number] or thinks:
        return ""
    return (
        f"the tokenizer's chat template writes {extra!r} between its prompt for generation and a response without a "
        "thought, so training and prediction would differ"
    )
