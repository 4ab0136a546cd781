"""From a judge's reply to what it prefers: MT-Bench's `[[A]]`, and orders such as `Assistant 2 > Assistant 1`.

Pure functions on text. Nothing is guessed: verdicts that contradict each other, and chains over a part of the systems,
are reported as such.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.judge_numbers import clean
from eval.judge_systems import system_mentions


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


@dataclass(frozen=True)
class Order:
    """The systems ranked by a judge."""

    ranks: tuple[int, ...] | None
    """Rank of each system in the order of their numbers, 1 the best; equal ones share the better rank (1, 1, 3)."""
    status: Literal["read", "unparsed"]
    note: str = ""


def parse_order(reply: str, count: int) -> Order:
    """Return the ranks of a reply that ends in `Assistant 2 > Assistant 1 = Assistant 3`.

    The last chain that names every system exactly once is the verdict; chains over a part of them are not completed.
    """
    text = clean(reply)
    relation = re.compile(
        r"[\s*_`\"'()\[\]]*(>+=?|<+=?|=+|≈|≥|≤|优于|好于|等于)[\s*_`\"'()\[\]]*(?:the\s+)?", re.IGNORECASE
    )
    chains: list[tuple[list[int], list[str]]] = []
    last_end: int | None = None
    for mention in system_mentions(text):
        link = relation.fullmatch(text[last_end : mention.start]) if last_end is not None else None
        if link and chains:
            chains[-1][0].append(mention.index)
            chains[-1][1].append({"优": ">", "好": ">", "等": "="}.get(link[1][0], link[1]))
        else:
            chains.append(([mention.index], []))
        last_end = mention.end
    complete = [chain for chain in chains if sorted(chain[0]) == list(range(1, count + 1)) and (chain[1] or count == 1)]
    ranked = [ranks for chain in complete if (ranks := _ranks(*chain)) is not None]
    if not ranked:
        longest = max((len(systems) for systems, links in chains if links), default=0)
        return Order(None, "unparsed", f"the longest chain names {longest} of {count}" if longest else "no chain")
    return Order(ranked[-1], "read", "" if len(set(ranked)) == 1 else "several chains; the last counts")


def _ranks(systems: Sequence[int], links: Sequence[str]) -> tuple[int, ...] | None:
    """Return competition ranks, or `None` where the chain runs both ways or leaves ties open (`>=`)."""
    strict = {link[0] for link in links if link[0] in "<>"}
    if len(strict) > 1 or any(link in ("≥", "≤", ">=", "<=") for link in links):
        return None
    if strict == {"<"}:
        systems, links = list(reversed(systems)), list(reversed(links))
    ranks = {systems[0]: 1}
    for place, (system, link) in enumerate(zip(systems[1:], links, strict=True), 2):
        ranks[system] = place if link[0] in "<>" else ranks[systems[place - 2]]
    return tuple(ranks[index] for index in sorted(ranks))
