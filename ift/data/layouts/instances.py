"""Row functions of data sets whose rows hold one request and several examples of it, or several answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ift.data.conversation import Conversation
from ift.data.layouts.fields import (
    Row,
    RowError,
    exchange,
    first_text,
    found_fields,
    identifier,
    needed,
    needed_list,
    not_blank,
    numbered,
    optional,
    rest,
    text_of,
)
from ift.data.layouts.pairs import p3

ReadItem = Callable[[Mapping[str, Any], int], Conversation]


def each_item(items: Sequence[Any], name: str, read: ReadItem) -> Iterator[Conversation | RowError]:
    """Yield a conversation per item, and the reason where an item is none; the others are not lost with it."""
    if not items:
        yield RowError(f"'{name}' is an empty list")
    for number, item in enumerate(items):
        try:
            if not isinstance(item, Mapping):
                raise RowError(f"an item of '{name}' must be an object, found {type(item).__name__}")
            yield read(item, number)
        except RowError as error:
            yield error


def self_instruct(row: Row) -> Iterator[Conversation | RowError] | Conversation:
    """Read `instruction` with `instances` of `input` and `output`, one conversation each (Self-Instruct's seeds).

    The generated data, `prompt` and `completion`, are read as `p3` reads them.
    """
    if "instances" not in row and "completion" in row:
        return p3(row)
    instruction = needed(row, "instruction", "self_instruct", needs="'instruction' and 'instances'")
    instances, meta = needed_list(row, "instances", "self_instruct"), rest(row, "id", "instruction", "instances")
    not_blank(instruction, "instruction")

    def read(item: Mapping[str, Any], number: int) -> Conversation:
        output = text_of(item.get("output"), "output")
        messages = exchange(instruction, output, context=optional(item, "input"))
        name = identifier(row) if len(instances) == 1 else numbered(identifier(row), number)
        return Conversation(messages, id=name, meta={**meta, **rest(item, "input", "output")})

    return each_item(instances, "instances", read)


def unnatural_instructions(row: Row) -> Iterator[Conversation | RowError]:
    """Read `instances` (and `reformulations`) of `instruction_with_input` and `output`, one conversation each.

    The request is `instruction_with_input`, the form in which the data set shows instruction and input together.
    """
    instances = list(needed_list(row, "instances", "unnatural_instructions"))
    if row.get("reformulations") is not None:
        instances += needed_list(row, "reformulations", "unnatural_instructions")
    meta = rest(row, "id", "instruction", "instances", "reformulations")

    def read(item: Mapping[str, Any], number: int) -> Conversation:
        request = text_of(item.get("instruction_with_input"), "instruction_with_input")
        messages = exchange(request, text_of(item.get("output"), "output"))
        kept = rest(item, "instruction", "input", "instruction_with_input", "output")
        return Conversation(messages, id=numbered(identifier(row), number), meta={**meta, **kept})

    return each_item(instances, "instances", read)


_INSTRUCTION = ("Definition", "Emphasis & Caution", "Things to Avoid", "Prompt")
"""What Natural Instructions v1 tells about a task, in the order of its paper; v2 has the definition only."""


def natural_instructions(row: Row) -> Iterator[Conversation | RowError] | Conversation:
    """Read a task file of Natural Instructions v1 or v2 (one conversation per instance), or one flat instance.

    The request is the definition, in v1 followed by what else the task file says (each on a line of its own, those
    that are `-` left out); the instance's `input` is the context, its first `output` the response. The examples are
    not used. The flat form is `definition`, `inputs`, `targets`.
    """
    if "Instances" not in row:
        return _flat(row)
    instances = needed_list(row, "Instances", "natural_instructions")
    instruction = "\n".join(filter(None, (_told(row, name) for name in _INSTRUCTION)))
    not_blank(instruction, "Definition")
    meta = {key: row[key] for key in ("Categories", "Title") if key in row}

    def read(item: Mapping[str, Any], number: int) -> Conversation:
        response = first_text(item.get("output"), "output")
        messages = exchange(instruction, response, context=text_of(item.get("input"), "input"))
        return Conversation(messages, id=identifier(item) or numbered(identifier(row), number), meta=meta)

    return each_item(instances, "Instances", read)


def _told(row: Row, name: str) -> str:
    value = row.get(name)
    lines = value if isinstance(value, list | tuple) else [value]
    text = "\n".join(text_of(line, name) for line in lines if line is not None)
    return "" if text.strip() in ("", "-") else text


def _flat(row: Row) -> Conversation:
    needs = "'Definition' and 'Instances', or 'definition', 'inputs' and 'targets'"
    fields = [needed(row, key, "natural_instructions", needs=needs) for key in ("definition", "inputs", "targets")]
    messages = exchange(not_blank(fields[0], "definition"), fields[2], context=fields[1])
    return Conversation(messages, id=identifier(row), meta=rest(row, "id", "definition", "inputs", "targets"))


def hc3(row: Row) -> Iterator[Conversation | RowError]:
    """Read `question` and `chatgpt_answers`, one conversation per answer; `human_answers` stay in `meta`."""
    question = needed(row, "question", "hc3", needs="'question' and 'chatgpt_answers'")
    not_blank(question, "question")
    answers = row.get("chatgpt_answers")
    if not isinstance(answers, list | tuple) or not answers:
        raise RowError(f"layout 'hc3' needs at least one of 'chatgpt_answers'; found {found_fields(row)}")
    name = identifier(row)
    meta = rest(row, "id", "question", "chatgpt_answers")
    return _answers(question, answers, meta, name=name)


def _answers(
    question: str, answers: Sequence[Any], meta: dict[str, Any], *, name: str
) -> Iterator[Conversation | RowError]:
    for number, answer in enumerate(answers):
        if isinstance(answer, str):
            identity = name if len(answers) == 1 else numbered(name, number)
            yield Conversation(exchange(question, answer), id=identity, meta=meta)
        else:
            yield RowError(f"an item of 'chatgpt_answers' must be text, found {type(answer).__name__}")
