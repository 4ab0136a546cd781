"""Row functions of Chinese collections with fields of their own: COIG, GAOKAO, CSL, medical dialogue."""

from collections.abc import Iterator, Mapping
from typing import Any

from ift.data.conversation import Conversation, Message
from ift.data.layouts.fields import (
    Row,
    RowError,
    exchange,
    found_fields,
    from_json,
    identifier,
    needed,
    needed_list,
    not_blank,
    numbered,
    optional,
    rest,
    text_of,
)
from ift.data.layouts.instances import each_item
from ift.data.layouts.pairs import alpaca

CSL_TITLE = "请根据以下论文摘要，写出论文的标题。"
CSL_KEYWORDS = "请从以下论文摘要中提取关键词，用“；”隔开。"


def coig(row: Row) -> Conversation:
    r"""Read the collections of COIG.

    Translated: `trans_instruction`, `trans_input`, `trans_output`. Exams and human values: the request is
    `textbox_q_instruction`, its context `textbox_q_context` and `textbox_question` on lines of their own, the response
    `textbox_answer` and, on the next line, `textbox_answer_analysis`; what is empty is left out. Counterfactual chats:
    `conversations` of `{question, answer}`, or `round_0`, `round_1`, ... whose `response` is JSON of Q and A. The rest
    (leetcode, human values) is alpaca.
    """
    if "trans_output" in row:
        used = ("trans_instruction", "trans_input", "trans_output")
        renamed = {key.removeprefix("trans_"): row.get(key) for key in used}
        return alpaca({**rest(row, *used, "instruction", "input", "output"), **renamed})
    if "textbox_question" in row or "textbox_answer" in row:
        return _exam(row)
    if "conversations" in row or any(str(key).startswith("round_") for key in row):
        return _rounds(row)
    return alpaca(row)


def _exam(row: Row) -> Conversation:
    def part(key: str) -> str:
        # The published files write an analysis that does not exist as an empty list.
        return "" if row.get(key) == [] else optional(row, key)

    instruction, request = part("textbox_q_instruction"), ("textbox_q_context", "textbox_question")
    question = "\n".join(filter(str.strip, map(part, request)))
    response = "\n".join(filter(str.strip, map(part, ("textbox_answer", "textbox_answer_analysis"))))
    if not question and not instruction.strip():
        raise RowError("'textbox_question' is empty")
    messages = (
        exchange(instruction, response, context=question) if instruction.strip() else exchange(question, response)
    )
    used = ("textbox_q_instruction", *request, "textbox_answer", "textbox_answer_analysis")
    return Conversation(messages, id=identifier(row), meta=rest(row, "id", *used))


def _rounds(row: Row) -> Conversation:
    used = ["conversations"]
    if "conversations" in row:
        pairs = [(turn, "question", "answer") for turn in needed_list(row, "conversations", "coig")]
    else:
        used = sorted((str(key) for key in row if str(key).startswith("round_")), key=lambda key: (len(key), key))
        pairs = [(_round(row[key], key), "Q", "A") for key in used]
    messages: list[Message] = []
    for number, (turn, question, answer) in enumerate(pairs):
        if not isinstance(turn, Mapping):
            raise RowError(f"round {number} needs '{question}' and '{answer}'")
        messages += exchange(text_of(turn.get(question), question), text_of(turn.get(answer), answer))
    system = optional(row, "instruction")
    meta = rest(row, "id", "instruction", *used)
    return Conversation(tuple(messages), system=system, id=identifier(row), meta=meta)


def _round(value: Any, key: str) -> Any:
    response = value.get("response") if isinstance(value, Mapping) else None
    return from_json(text_of(response, f"response of {key}"), f"response of {key}")


def gaokao(row: Row) -> Iterator[Conversation | RowError] | Conversation:
    """Read a question of AGIEval or GAOKAO-Bench, or a whole file of the latter (`example`).

    The request is `passage` (where there is one), `question` and `options`, each on a line of its own; the response is
    `label`, else `standard_answer`, else `answer`; of a list, its letters one after another. `analysis` is not used.
    """
    if "example" not in row or "question" in row:
        return _question(row)
    shared = rest(row, "example")
    return each_item(
        needed_list(row, "example", "gaokao"), "example", lambda example, _: _question({**shared, **example})
    )


def _question(row: Row) -> Conversation:
    question = needed(row, "question", "gaokao", needs="'question' and 'options', 'label' or 'standard_answer'")
    options = row.get("options") or []
    if not isinstance(options, list | tuple):
        raise RowError(f"'options' must be a list, found {type(options).__name__}")
    lines = [optional(row, "passage"), question, *(text_of(option, "options") for option in options)]
    request = not_blank("\n".join(filter(str.strip, lines)), "question")
    key = next((key for key in ("label", "standard_answer", "answer") if row.get(key) not in (None, [])), None)
    if key is None:
        raise RowError(f"layout 'gaokao' needs 'label', 'standard_answer' or 'answer'; found {found_fields(row)}")
    letters = row[key] if isinstance(row[key], list | tuple) else [row[key]]
    response = "".join(text_of(letter, key) for letter in letters)
    meta = rest(row, "id", "passage", "question", "options", key)
    return Conversation(exchange(request, response), id=identifier(row), meta=meta)


def csl(row: Row) -> Iterator[Conversation]:
    """Read `abst` (or `abstract`) with `title` and `keywords`: one request for the title, one for the keywords.

    The requests are `CSL_TITLE` and `CSL_KEYWORDS`; a list of keywords is joined by ；, a text is kept.
    """
    about = "abst" if "abst" in row else "abstract"
    abstract = not_blank(needed(row, about, "csl", needs="'abst' and 'title' or 'keywords'"), about)
    title, keywords = optional(row, "title"), row.get("keywords")
    if isinstance(keywords, list | tuple):
        keywords = "；".join(text_of(word, "keywords") for word in keywords)
    wanted = [(CSL_TITLE, title), (CSL_KEYWORDS, "" if keywords is None else text_of(keywords, "keywords"))]
    wanted = [(request, response) for request, response in wanted if response.strip()]
    if not wanted:
        raise RowError("'title' and 'keywords' are empty")
    meta, name = rest(row, "id", about, "title", "keywords"), identifier(row)
    return (
        Conversation(exchange(request, response, context=abstract), id=numbered(name, number), meta=meta)
        for number, (request, response) in enumerate(wanted)
    )


def chinese_medical_dialogue(row: Row) -> Conversation:
    """Read `ask` (or `question`) and `answer`; `title` is the request where there is no question."""
    key = next((key for key in ("ask", "question", "title") if optional(row, key).strip()), None)
    if key is None or "answer" not in row:
        raise RowError(
            f"layout 'chinese_medical_dialogue' needs 'ask' or 'title', and 'answer'; found {found_fields(row)}"
        )
    answer = needed(row, "answer", "chinese_medical_dialogue", needs="'ask' and 'answer'")
    return Conversation(exchange(row[key], answer), id=identifier(row), meta=rest(row, "id", key, "answer"))
