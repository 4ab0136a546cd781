"""Reads how a judge orders several systems, `Assistant 2 > Assistant 1 = Assistant 3`, and averages the ranks.

Ranks are competition ranks: systems that tie share the best rank of their group, and the next group counts them all
(1, 1, 3, 3). This is the form of LLMZoo's published judge replies.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from eval.extraction_text import ascii_forms, without_markup, without_thought
from eval.judge_numbers import without_repeats

_ROLE = (
    r"(?:(?:AI[ \t]+)?(?:assistants?|systems?|models?|answers?|responses?|candidates?|chatbots?|bots?)|"
    r"(?:AI|智能)?(?:助手|助理|系统|模型|回答|答案|回复|候选))"
)
_SYSTEM = (
    rf"[\[(\"']{{0,3}}(?:{_ROLE})?[ \t]*[#_]?[ \t]*"
    r"(?:\d{1,2}(?![\d.]{0,9}\d)|(?-i:[A-H])(?![A-Za-z\d]))[\])\"']{0,3}"
)
_BETTER, _WORSE = "优于|好于|强于|胜过", "不如|劣于|差于|逊于"
_SIGN = rf"{_BETTER}|{_WORSE}|" + r"&gt;=?|&lt;=?|>{1,3}=?|<{1,3}=?|={1,3}|[≥≤≫≪≈~]"
_CHAIN = re.compile(rf"(?<![A-Za-z0-9_.]){_SYSTEM}(?:\s*(?:{_SIGN})\s*{_SYSTEM})+", re.IGNORECASE)
_NAMED = re.compile(_ROLE, re.IGNORECASE)
_INDEX = re.compile(r"\d{1,2}|[A-H]")
_NEGATION = re.compile(
    r"\bnot\b|n['’]t\b|\bneither\b|\b(?:false|wrong)\s+(?:that|to)\b|不(?![过仅但错愧])|并非|没有(?!疑|问)|未",
    re.IGNORECASE,
)
_HANGING = re.compile(rf"\S[ \t]*(?<![-=])(?:{_SIGN})\s*\Z")
"""Before a chain: a comparison whose left side is not a system's name, of which the chain is only the end."""
_COMPARISON = re.compile(_SIGN)


@dataclass(frozen=True)
class Ordering:
    """How one reply ranks the systems it was shown."""

    ranks: tuple[int, ...] | None
    """The competition rank of each system, from 1, in the order of the message; `None` unless read."""
    status: Literal["read", "unparsed"]


def extract_ordering(reply: str, count: int) -> Ordering:
    """Return the ranks of the last chain in a reply that orders every system once.

    `>=` and `>>` count as `>`, as in LLMZoo; `<` is read from the right. A chain that leaves a system out, names one
    twice or mixes directions is none; neither is one that a `not` denies. Systems may have letters, A to H.

    Args:
        reply: the raw text of the judge.
        count: number of systems in the message.
    """
    said = without_thought(without_repeats(reply))
    if said is None:
        return Ordering(None, "unparsed")
    text = without_markup(ascii_forms(said))
    for chain in reversed(list(_CHAIN.finditer(text))):
        ranks = _ranks(chain[0], count)
        # Bare numbers are arithmetic (`3 > 1`) unless the chain has its line, or the end of one, to itself.
        if ranks is not None and _whole(text, chain) and (_NAMED.search(chain[0]) or _alone(text, chain)):
            return Ordering(ranks, "read")
    return Ordering(None, "unparsed")


def competition_ranks(groups: Sequence[Sequence[int]], count: int) -> tuple[int, ...]:
    """Return the rank of each system, given groups of tied systems (counted from 1) from best to worst."""
    ranks = [0] * count
    better = 0
    for group in groups:
        for system in group:
            ranks[system - 1] = better + 1
        better += len(group)
    return tuple(ranks)


def mean_rank(ranks: Sequence[int]) -> Fraction:
    """Return the mean of one system's ranks over all questions."""
    return Fraction(sum(ranks), len(ranks))


def mean_rank_score(ranks: Sequence[int], *, best: int = 10) -> Fraction:
    """Return the mean of `best` / rank over all questions, LLMZoo's second aggregate."""
    return sum((Fraction(best, rank) for rank in ranks), Fraction(0)) / len(ranks)


def _whole(text: str, chain: re.Match[str]) -> bool:
    """Return whether the chain is neither denied nor a part of a longer comparison."""
    before = text[: chain.start()].rpartition("\n")[2][-200:]
    clause = re.split(r"[.:,;!?。、]", before)[-1]
    further = re.match(rf"[ \t]*(?:{_SIGN})", text[chain.end() : chain.end() + 20])
    return not (_NEGATION.search(clause) or _HANGING.search(before) or further)


def _alone(text: str, chain: re.Match[str]) -> bool:
    before = text[: chain.start()].rpartition("\n")[2].rstrip()
    after = text[chain.end() :].partition("\n")[0]
    return (not before or before.endswith(":")) and not after.strip(" .。")


def _ranks(chain: str, count: int) -> tuple[int, ...] | None:
    names = _INDEX.findall(_NAMED.sub("", chain))
    if len({name.isdigit() for name in names}) > 1:
        return None
    systems = [int(name) if name.isdigit() else "ABCDEFGH".index(name) + 1 for name in names]
    signs = [_direction(sign) for sign in _COMPARISON.findall(chain)]
    if sorted(systems) != list(range(1, count + 1)) or {"<", ">"} <= set(signs):
        return None
    groups = [[systems[0]]]
    for sign, system in zip(signs, systems[1:], strict=True):
        if sign == "=":
            groups[-1].append(system)
        else:
            groups.append([system])
    return competition_ranks(groups[::-1] if "<" in signs else groups, count)


def _direction(sign: str) -> str:
    if sign[0] in "<≤≪" or sign.startswith("&lt") or re.fullmatch(_WORSE, sign):
        return "<"
    return ">" if sign[0] in ">≥≫&" or re.fullmatch(_BETTER, sign) else "="
