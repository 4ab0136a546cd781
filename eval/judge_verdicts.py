"""From a judge's reply to which of two answers it prefers, in MT-Bench's form `[[A]]`.

Nothing is guessed: verdicts that contradict each other are reported as such. Orders of several systems, such as
`Assistant 2 > Assistant 1`, are read by `ordering.py`.
"""

import re
from dataclasses import dataclass
from typing import Literal

from eval.judge_numbers import clean


@dataclass(frozen=True)
class Verdict:
    """Which of two answers a judge prefers."""

    winner: Literal["A", "B", "tie"] | None
    status: Literal["read", "unparsed", "contradictory"]


def parse_verdict(reply: str) -> Verdict:
    """Return the verdict of MT-Bench's form `[[A]]`, `[[B]]` or `[[C]]` (a tie).

    Where several different ones occur (a judge that repeats its instructions), the last line decides if it holds
    exactly one; else they contradict each other.
    """
    text = clean(reply)
    names: dict[str, Literal["A", "B", "tie"]] = {"A": "A", "B": "B", "C": "tie", "TIE": "tie"}
    pattern = re.compile(r"\[\[\s*(?:assistant\s+)?(A|B|C|tie)\s*\]\]", re.IGNORECASE)
    for part in (text, text.strip().rsplit("\n", 1)[-1]):
        found = {names[match[1].upper()] for match in pattern.finditer(part)}
        if len(found) == 1:
            return Verdict(found.pop(), "read")
    return Verdict(None, "contradictory" if pattern.search(text) else "unparsed")
