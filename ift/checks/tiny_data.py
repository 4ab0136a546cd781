"""Rows for a check, written here: conversations with difficult texts, and rows that are no conversation."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = ("river", "stone", "lamp", "cloud", "paper", "green", "seven", "music", "winter", "bread")
CHINESE = ("河流", "石头", "灯光", "云彩", "纸张", "绿色", "音乐", "冬天", "面包", "朋友")
DIFFICULT = (
    "plain words",
    "绿色的河流，面包。",
    "two\nlines\n\nand a third",
    "tabs\tand 12,345.67",
    "emoji 🙂 and é",
    "</s> and <s> and <|im_end|> are text",
    "{text} {context} {}",
    "### Response: ### Instruction:",
    "inner   blanks stay",
)
"""Texts that a careless encoder changes, cuts or takes for special tokens."""


@dataclass(frozen=True)
class Talk:
    """A conversation that a check writes down, and so knows what is to be learned of it."""

    requests: tuple[str, ...]
    responses: tuple[str, ...]
    system: str = ""

    def row(self) -> dict[str, Any]:
        """Return it in the layout `messages`."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for request, response in zip(self.requests, self.responses, strict=True):
            messages += [{"role": "user", "content": request}, {"role": "assistant", "content": response}]
        return {"messages": messages}


def talks(number: int, *, seed: int = 0) -> list[Talk]:
    """Return conversations of one to three turns, no two alike."""
    draw = random.Random(seed)
    found = []
    for place in range(number):
        turns = 1 + place % 3 % 2 + (place % 5 == 0)
        texts = [DIFFICULT[(place + 2 * turn) % len(DIFFICULT)] for turn in range(2 * turns)]
        requests = tuple(f"Request {place}.{turn}: {texts[2 * turn]}" for turn in range(turns))
        responses = tuple(f"{draw.choice(WORDS)} {place} {texts[2 * turn + 1]} {turn}" for turn in range(turns))
        found.append(Talk(requests, responses, system=f"System {place}." if place % 4 == 1 else ""))
    return found


def training_rows(number: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return alpaca rows of varied length, half of them with an input, in two languages."""
    draw = random.Random(seed)
    rows = []
    for place in range(number):
        words = " ".join(draw.choices(WORDS, k=1 + draw.randrange(9)))
        chinese = "、".join(draw.choices(CHINESE, k=1 + draw.randrange(6)))
        if place % 2:
            rows.append({"instruction": f"Repeat item {place}.", "input": words, "output": words})
        else:
            rows.append({"instruction": f"请重复第{place}项：{chinese}", "input": "", "output": chinese})
    return rows


def damaged_rows(number: int, *, long: str) -> list[Any]:
    """Return alpaca rows of which some can be used and others not, in turn; `long` fits no example."""
    kinds: tuple[Any, ...] = (
        {"instruction": "Say {n}.", "input": "", "output": "{n}"},
        {"instruction": "Say {n}.", "input": ""},
        {"instruction": "Say {n}.", "input": "", "output": ""},
        {"instruction": "Say {n}.", "input": "", "output": ["a list"]},
        {"instruction": "Say {n}.", "input": "", "output": long},
        "only a text",
        {"instruction": "Say the same.", "input": "", "output": "twice"},
    )
    rows = []
    for place in range(number):
        text = json.dumps(kinds[place % len(kinds)])
        rows.append(json.loads(text.replace("{n}", str(place))))
    return rows


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def all_texts(number: int) -> list[str]:
    """Return texts that hold what the rows hold, to train a tokenizer on."""
    found = [json.dumps(row, ensure_ascii=False) for row in training_rows(number)]
    found += [text for talk in talks(number) for text in (*talk.requests, *talk.responses, talk.system)]
    return [*found, "Below is an instruction that describes a task. ### Instruction: ### Input: ### Response:"]
