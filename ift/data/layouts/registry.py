"""All layouts by name: the row function, the fields by which its rows are known, and a note for people."""

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ift.data.layouts import chats, chinese, instances, lists, marked, pairs
from ift.data.layouts.fields import RowFunction
from ift.data.layouts.moss import moss
from ift.data.layouts.oasst import oasst
from ift.errors import UserError, unknown_name

Number = (int, float)
Requirement = type | tuple[type, ...] | re.Pattern[str]
"""What a field must be: of a type (`object`: anything but null), or text in which a pattern is found."""


@dataclass(frozen=True)
class Signature:
    """The fields by which the rows of a layout are known."""

    fields: Mapping[str, Requirement]
    """Path to requirement. `a.b` is a field of the object `a`, `a[]` the first item of the list `a`."""
    share: float = 0.5
    """How many of the rows must have them, from 0 to 1."""


@dataclass(frozen=True)
class Layout:
    """A row function and what is known about it."""

    function: RowFunction
    note: str
    """What the layout is, in half a sentence, for the table of layouts."""
    signatures: tuple[Signature, ...] = ()
    """The forms of its rows; none where it is another layout's form under a name of its own."""


def _known(*forms: Mapping[str, Requirement], share: float = 0.5) -> tuple[Signature, ...]:
    return tuple(Signature(form, share) for form in forms)


def _holds(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


LAYOUTS: dict[str, Layout] = {
    "alpaca": Layout(
        pairs.alpaca,
        "Stanford Alpaca; `input`, `history` and `system` may be missing",
        _known({"instruction": str, "output": str}),
    ),
    "messages": Layout(
        chats.messages,
        "OpenAI's chat layout, with parts, reasoning, tool calls and flags per turn",
        _known({"messages[].role": str, "messages[].content": object}),
    ),
    "sharegpt": Layout(
        chats.sharegpt,
        "ShareGPT, with function calls and observations",
        _known(
            {"conversations[].from": str, "conversations[].value": object},
            {"conversations[].role": str, "conversations[].content": object},
        ),
    ),
    "text": Layout(pairs.text, "plain text, all of it learned", _known({"text": str})),
    "alpaca_cot": Layout(
        marked.alpaca_cot,
        "Alpaca-CoT: `Human:` and `Assistant:` inside `instruction`; other rows as `alpaca`",
        # One dialogue among ten rows is enough, since the function reads the plain rows too.
        _known({"instruction": _holds(r"\A\s*Human:[\s\S]*Assistant:"), "output": str}, share=0.1),
    ),
    "baize": Layout(marked.baize, "Baize: marked turns inside `input`", _known({"input": _holds(r"\[\|Human\|\]")})),
    "belle": Layout(
        marked.belle,
        "BELLE, single and several turns: each row as `alpaca`, `alpaca_cot` or `sharegpt`, whichever it is",
    ),
    "camel": Layout(
        lists.camel,
        "CAMEL, `message_1` to `message_n`",
        _known({"message_1": object, "message_2": object}),
    ),
    "chinese_medical_dialogue": Layout(
        chinese.chinese_medical_dialogue,
        "Chinese medical dialogue: the question alone is the request, title and department stay in `meta`",
        _known(
            {"ask": str, "answer": str},
            {"department": str, "question": str, "answer": str},
        ),
    ),
    "chinese_vicuna": Layout(
        lists.chinese_vicuna, "Chinese-Vicuna's parallel lists", _known({"input[]": str, "output[]": str})
    ),
    "code_alpaca": Layout(pairs.alpaca, "Code Alpaca"),
    "coig": Layout(
        chinese.coig,
        "COIG: translated, exams, human values, counterfactual chats, leetcode",
        _known(
            {"trans_instruction": str, "trans_output": _holds(r"\S")},
            {"textbox_question": str, "textbox_answer": str},
            {"conversations[].question": str, "conversations[].answer": str},
            {"round_0.response": str},
            {"round_1.response": str},
        ),
    ),
    "csl": Layout(
        chinese.csl,
        "CSL: two conversations per paper, title and keywords out of the abstract",
        _known({"abst": str, "title": str}, {"abstract": str, "title": str}, {"abst": str, "keywords": object}),
    ),
    "dolly": Layout(pairs.dolly, "Dolly 2.0", _known({"instruction": str, "response": str, "context": str})),
    "evol_instruct": Layout(
        pairs.evol_instruct,
        "Evol-Instruct (WizardLM); chats are `sharegpt`; the test set has no responses and is refused",
        _known({"Instruction": str}),
    ),
    "firefly": Layout(
        lists.firefly,
        "Firefly, single and several turns",
        _known(
            {"kind": str, "input": str, "target": str},
            {"conversation[].human": str, "conversation[].assistant": str},
        ),
    ),
    "flan": Layout(pairs.p3, "FLAN"),
    "gaokao": Layout(
        chinese.gaokao,
        "GAOKAO multiple choice, as AGIEval or GAOKAO-Bench has it; the response is the letters",
        _known(
            {"question": str, "options[]": str},
            {"question": str, "standard_answer": object},
            {"example[].question": str},
        ),
    ),
    "gpt4all": Layout(pairs.gpt4all, "GPT4All", _known({"prompt": str, "response": str})),
    "gpteacher": Layout(pairs.gpteacher, "GPTeacher", _known({"instruction": str, "response": str})),
    "guanaco": Layout(
        marked.guanaco,
        "GuanacoDataset's chats (`User:` inside `input`) and openassistant-guanaco (`### Human:` inside `text`)",
        (
            Signature({"instruction": str, "input": _holds(r"\A(?:User|System):"), "output": str}, share=0.1),
            Signature({"text": _holds(r"\A### Human:")}),
        ),
    ),
    "hc3": Layout(
        instances.hc3,
        "HC3: one conversation per answer of ChatGPT",
        _known({"question": str, "chatgpt_answers[]": str}),
    ),
    "hh_rlhf": Layout(
        marked.hh_rlhf,
        "hh-rlhf: the chosen dialogue",
        _known({"chosen": _holds(r"(?:\A|\n\n)Human:"), "rejected": str}),
    ),
    "huatuo": Layout(pairs.alpaca, "Huatuo (BenTsao)"),
    "instruction_wild": Layout(
        pairs.instruction_wild,
        "InstructionWild; its seed files have no responses and are refused",
        _known({"instruction": str}),
    ),
    "lima": Layout(lists.lima, "LIMA: plain texts in turn", _known({"conversations[]": str})),
    "moss": Layout(
        moss,
        "MOSS, plain and with plugins",
        _known({"chat.turn_1.Human": str, "chat.turn_1.MOSS": str}, {"plain_text": _holds(r"\A\[Human\]:")}),
    ),
    "natural_instructions": Layout(
        instances.natural_instructions,
        "Natural Instructions v1: one conversation per instance; or flat, one instance per row",
        _known(
            {"Definition": str, "Instances[].input": str, "Instances[].output": object},
            {"definition": str, "inputs": str, "targets": str},
        ),
    ),
    "oasst": Layout(
        oasst,
        "OpenAssistant trees: one conversation per thread, best rank first",
        _known({"prompt.text": str, "prompt.replies": list}, {"message_id": str, "role": str, "text": str}),
    ),
    "oig": Layout(
        marked.oig,
        "Open Instruction Generalist: `<human>:` and `<bot>:` inside `text`",
        _known({"text": _holds(r"\A<human>:")}),
    ),
    "p3": Layout(
        pairs.p3,
        "P3 and T0",
        _known(
            {"inputs": str, "targets": str},
            {"inputs_pretokenized": str, "targets_pretokenized": str},
            {"prompt": str, "completion": str},
        ),
    ),
    "pclue": Layout(
        pairs.pclue, "pCLUE", _known({"input": str, "target": str, "type": str}, {"input": str, "target": str})
    ),
    "prosocial_dialog": Layout(
        pairs.prosocial_dialog,
        "ProsocialDialog: each row one exchange",
        _known(
            {"context": str, "response": str, "rots": object}, {"context": str, "response": str, "safety_label": str}
        ),
    ),
    "question_answer": Layout(
        pairs.question_answer, "GSM8K and the like; the answer as it is", _known({"question": str, "answer": str})
    ),
    "self_instruct": Layout(
        instances.self_instruct,
        "Self-Instruct's seeds: one conversation per instance",
        _known({"instruction": str, "instances[].input": str, "instances[].output": str}),
    ),
    "stack_exchange_paired": Layout(
        pairs.stack_exchange_paired, "StackLLaMA: the better answer", _known({"question": str, "response_j": str})
    ),
    "super_natural_instructions": Layout(
        instances.natural_instructions,
        "Super-Natural Instructions (v2) task files: one conversation per instance, its first output",
        _known({"Definition[]": str, "Instances[].input": str, "Instances[].output": object}),
    ),
    "ultrachat": Layout(lists.ultrachat, "UltraChat: plain texts in turn", _known({"data[]": str})),
    "unnatural_instructions": Layout(
        instances.unnatural_instructions,
        "Unnatural Instructions: one conversation per instance and reformulation",
        _known(
            {
                "instruction": str,
                "instances[].input": str,
                "instances[].instruction_with_input": str,
                "instances[].output": str,
            }
        ),
    ),
    "webgpt": Layout(
        pairs.webgpt,
        "webGPT comparisons: the better answer; of equal ones the first, marked `tied`",
        _known({"answer_0": str, "answer_1": str, "score_0": Number, "score_1": Number}),
    ),
    "xp3": Layout(pairs.p3, "xP3"),
}


def _described_fields(layout: Layout) -> Iterator[str]:
    """Yield the fields of each form of a layout, as one reads them: `instruction`, `output`."""
    for signature in layout.signatures:
        yield ", ".join(f"`{field}`" for field in signature.fields)


def layout_table() -> str:
    """Return the table of all layouts as Markdown: name, fields, note."""
    lines = ["| layout | fields | what it is |", "|---|---|---|"]
    for name in sorted(LAYOUTS):
        layout = LAYOUTS[name]
        alike = (other for other, one in LAYOUTS.items() if one.function is layout.function and one.signatures)
        fields = "; ".join(_described_fields(layout)) or f"as {next((f'`{other}`' for other in alike), 'described')}"
        lines.append(f"| `{name}` | {fields} | {layout.note} |")
    return "\n".join(lines) + "\n"


def resolve_layout(key: str, name: str) -> RowFunction:
    """Return the row function of a layout name or dotted path.

    Args:
        key: where the name stands in the configuration, for the error.
        name: one of `LAYOUTS`, or `package.module.function`.

    Raises:
        UserError: unknown name, or a path that leads to no function.
    """
    if name in LAYOUTS:
        return LAYOUTS[name].function
    module, _, attribute = name.rpartition(".")
    if not module:
        raise unknown_name(key, name, LAYOUTS, hint="A row function of your own is named by its dotted path.")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}: '{name}' cannot be imported ({error}). Give 'package.module.function'.") from error
    if not callable(function):
        raise UserError(f"{key}: '{name}' is no function; a row function takes a mapping and returns a Conversation.")
    result: RowFunction = function
    return result
