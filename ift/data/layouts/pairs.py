"""Row functions of data sets with one request and one response per row."""

from collections.abc import Mapping
from typing import Any

from ift.data.conversation import Conversation, Message
from ift.data.layouts.fields import (
    Row,
    RowError,
    exchange,
    found_fields,
    identifier,
    needed,
    not_blank,
    optional,
    rest,
    text_of,
)

_END_OF_TEXT = "<|endoftext|>"


def _pair(row: Row, layout: str, *, request: str, response: str, context: str = "") -> Conversation:
    """Build a conversation of one exchange out of the fields of these names.

    Args:
        row: the record.
        layout: name of the layout, for errors.
        request: field of the request; must not be blank.
        response: field of the response; a blank one is left to `check_turns`, since a prompt needs none.
        context: field of the context, which may be missing or null; empty where the layout has none.
    """
    needs = f"'{request}' and '{response}'"
    asked, answered = needed(row, request, layout, needs=needs), needed(row, response, layout, needs=needs)
    about = optional(row, context) if context else ""
    messages = exchange(not_blank(asked, request), answered, context=about)
    return Conversation(messages, id=identifier(row), meta=rest(row, "id", request, response, context))


def alpaca(row: Row) -> Conversation:
    """Read `instruction`, optional `input`, `output` (Stanford Alpaca).

    `history`, a list of `[request, response]` before the instruction, and `system` are read where a row has them.
    """
    needs = "'instruction' and 'output'"
    instruction = needed(row, "instruction", "alpaca", needs=needs)
    output = needed(row, "output", "alpaca", needs=needs)
    messages = exchange(not_blank(instruction, "instruction"), output, context=optional(row, "input"))
    system = optional(row, "system")
    used = ("id", "instruction", "input", "output", "system", "history")
    return Conversation((*_history(row), *messages), system=system, id=identifier(row), meta=rest(row, *used))


def _history(row: Row) -> list[Message]:
    earlier = row.get("history") or []
    if not isinstance(earlier, list | tuple):
        raise RowError(f"'history' must be a list, found {type(earlier).__name__}")
    messages: list[Message] = []
    for number, pair in enumerate(earlier):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"'history[{number}]' must be a list of a request and its response")
        request, response = (text_of(text, f"history[{number}][{place}]") for place, text in enumerate(pair))
        messages += exchange(request, response)
    return messages


def instruction_wild(row: Row) -> Conversation:
    """Read `instruction`, optional `input`, `output`; the seed files hold instructions without any `output`."""
    if row.get("output") is None and "instruction" in row:
        raise RowError("layout 'instruction_wild': there is no 'output', so there is nothing to learn from the row")
    return alpaca(row)


def evol_instruct(row: Row) -> Conversation:
    """Read `instruction` and `output` in small or capital first letters; the test set has an `Instruction` only."""
    renamed = {name: row[name.capitalize()] for name in ("instruction", "output") if name.capitalize() in row}
    if renamed.get("instruction") is not None and renamed.get("output") is None and row.get("output") is None:
        raise RowError("layout 'evol_instruct': there is no 'output', so there is nothing to learn from the row")
    kept = {key: value for key, value in row.items() if key not in ("Instruction", "Output")}
    return alpaca({**kept, **renamed})


def gpteacher(row: Row) -> Conversation:
    """Read `instruction`, optional `input`, `response`."""
    return _pair(row, "gpteacher", request="instruction", response="response", context="input")


def dolly(row: Row) -> Conversation:
    """Read `instruction`, optional `context`, `response` (databricks-dolly-15k)."""
    return _pair(row, "dolly", request="instruction", response="response", context="context")


def gpt4all(row: Row) -> Conversation:
    """Read `prompt` and `response`."""
    return _pair(row, "gpt4all", request="prompt", response="response")


def question_answer(row: Row) -> Conversation:
    """Read `question` and `answer`, both kept as they are (GSM8K and the like)."""
    return _pair(row, "question_answer", request="question", response="answer")


def prosocial_dialog(row: Row) -> Conversation:
    """Read one turn of a dialogue: `context`, which is what the user says, and `response`."""
    return _pair(row, "prosocial_dialog", request="context", response="response")


def stack_exchange_paired(row: Row) -> Conversation:
    """Read `question` and `response_j`, the better of two answers; `response_k` is not used."""
    return _pair(row, "stack_exchange_paired", request="question", response="response_j")


def pclue(row: Row) -> Conversation:
    """Read `input` and `target`."""
    return _pair(row, "pclue", request="input", response="target")


_PROMPTED = (("inputs_pretokenized", "targets_pretokenized"), ("inputs", "targets"), ("prompt", "completion"))


def p3(row: Row) -> Conversation:
    """Read `inputs` and `targets`, the same `_pretokenized`, or `prompt` and `completion`.

    A `<|endoftext|>` at the very end of a `completion` is a marker of the fine-tuning files of GPT-3 and is cut: the
    template writes the end of the text. All else is kept, a leading blank too.
    """
    for request, response in _PROMPTED:
        if row.get(request) is not None and row.get(response) is not None:
            conversation = _pair(row, "p3", request=request, response=response)
            return _without_end(conversation) if response == "completion" else conversation
    raise RowError(f"layout 'p3' needs 'inputs' and 'targets', or 'prompt' and 'completion'; found {found_fields(row)}")


def _without_end(conversation: Conversation) -> Conversation:
    request, response = conversation.messages
    messages = (request, Message("assistant", response.text.removesuffix(_END_OF_TEXT)))
    return Conversation(messages, id=conversation.id, meta=conversation.meta)


def webgpt(row: Row) -> Conversation:
    """Read a comparison: `question`, `answer_0`, `answer_1`, `score_0`, `score_1`; the better answer is the response.

    Of equal scores `answer_0` is taken, and `meta` says `tied`. `question` is text or holds `full_text`.
    """
    scores = [row.get("score_0"), row.get("score_1")]
    if not all(isinstance(score, int | float) and not isinstance(score, bool) for score in scores):
        raise RowError(f"layout 'webgpt' needs the numbers 'score_0' and 'score_1'; found {found_fields(row)}")
    better = "answer_1" if scores[1] > scores[0] else "answer_0"  # type: ignore[operator]
    question: Any = row.get("question")
    if isinstance(question, Mapping):
        question = question.get("full_text")
    flat = {**row, "question": question}
    conversation = _pair(flat, "webgpt", request="question", response=better)
    meta = {**conversation.meta, "tied": True} if scores[0] == scores[1] else conversation.meta
    return Conversation(conversation.messages, id=conversation.id, meta=meta)


def text(row: Row) -> Conversation:
    """Read `text`: a plain document, wholly supervised (language-model training)."""
    document = needed(row, "text", "text", needs="'text'")
    return Conversation((Message("assistant", document),), id=identifier(row), meta=rest(row, "id", "text"))
