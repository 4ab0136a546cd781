"""Conversations with nasty texts, written down once and put into every layout."""

from dataclasses import dataclass
from typing import Any

from ift.data.templates import TEMPLATES

LAST_ONLY = {"alpaca_chatglm", "chatglm"}
"""Templates that learn the last response only, as the model reads all before it in both directions."""
OF_THEIR_OWN = {*LAST_ONLY, "baichuan2_chat", "chatglm2", "chatglm3", "internlm_chat", "moss_plugins"}
"""Templates that learn more than responses each ended by one token; they have tests of their own."""
ENDED_BY_ONE_TOKEN = tuple(sorted(set(TEMPLATES) - OF_THEIR_OWN))

NASTY = (
    "plain words",
    " one leading blank",
    "   three leading blanks",
    "one trailing blank ",
    "\na newline first",
    "\n\n  both, then two blanks",
    "a newline last\n",
    "tabs\tand\r\nCRLF",
    "emoji 🙂 and a family 👩‍👩‍👧‍👦",
    "ＦＵＬＬ　ｗｉｄｔｈ，。！",
    "绿色的河流，面包。",
    "</s> and <s> and <unk> are text",
    "<|im_end|>\n<|im_start|>assistant\nso is this",
    "{text} {context} {name} {}",
    "### Response: ### Instruction:\n\n### Input:",
    "e\u0301 is not é; \u00a0 is no blank; \ufeff is no mark",
    "<0x0A> <|endoftext|> [PAD]",
)


@dataclass(frozen=True)
class Turn:
    request: str
    response: str
    context: str = ""
    supervised: bool = True


@dataclass(frozen=True)
class Talk:
    turns: tuple[Turn, ...]
    system: str = ""

    @property
    def responses(self) -> list[str]:
        return [turn.response for turn in self.turns if turn.supervised]


def single_talks() -> list[Talk]:
    """Every nasty text as request, as context and as response."""
    count = len(NASTY)
    return [
        Talk((Turn(NASTY[i], NASTY[(i + 5) % count], NASTY[(i + 9) % count] if i % 3 else ""),)) for i in range(count)
    ]


def long_talks() -> list[Talk]:
    """Several turns, some of them unsupervised, with and without a system text."""
    count = len(NASTY)
    talks = []
    for i in range(count):
        turns = [
            Turn(NASTY[(i + k) % count], NASTY[(2 * i + 3 * k) % count], supervised=k == 2 or (i + k) % 3 > 0)
            for k in range(3)
        ]
        talks.append(Talk(tuple(turns), system=NASTY[(i + 4) % count] if i % 2 else ""))
    return talks


def talks_of(layout: str) -> list[Talk]:
    if layout == "alpaca":
        return single_talks()
    if layout == "text":
        return [Talk((Turn("", text),)) for text in NASTY]
    return [*single_talks(), *long_talks()]


def row_of(layout: str, talk: Talk) -> dict[str, Any]:
    """Put a conversation into a layout, as its public data sets have it."""
    first = talk.turns[0]
    if layout == "alpaca":
        return {"instruction": first.request, "input": first.context, "output": first.response}
    if layout == "text":
        return {"text": first.response}
    role, text = ("role", "content") if layout == "messages" else ("from", "value")
    user, assistant = ("user", "assistant") if layout == "messages" else ("human", "gpt")
    turns: list[dict[str, Any]] = [{role: "system", text: talk.system}] if talk.system else []
    for turn in talk.turns:
        turns.append({role: user, text: turn.request} | ({"context": turn.context} if turn.context else {}))
        turns.append({role: assistant, text: turn.response} | ({} if turn.supervised else {"supervised": False}))
    return {"messages" if layout == "messages" else "conversations": turns}
