"""The answer rules of published benchmarks, word for word, to reproduce their numbers; never a default.

They guess where the default does not (any capital letter counts), so their names stand in the protocols that use them.
"""

import re

from eval.extraction import Extraction


def mmcu_first_match(response: str) -> Extraction:
    """Read as MMCU's own script does: the first run of 1 to 4 of A-D without a repeat, after `、 . , ; ，` are deleted.

    The letters keep the order of the response, because that script compares them as text.
    """
    runs = re.findall("[ABCD]{1,4}", re.sub("[、.,;，]", "", response))
    return _extraction(next((run for run in runs if len(set(run)) == len(run)), ""), "mmcu_first_match")


def last_letter(response: str) -> Extraction:
    """Read as GAOKAO-Bench does for one answer: the last A-D of the response."""
    return _extraction("".join(re.findall("[A-D]", response)[-1:]), "last_letter")


def gaokao_multi(response: str) -> Extraction:
    """Read as GAOKAO-Bench does for several answers: every A-D after the first `【答案】`.

    Without it, every A-D of the last 10 characters. White space does not count. A response that begins with `【答案】`
    counts as one without it, as in the original. The letters keep their order and repeats.
    """
    content = re.sub(r"\s+", "", response)
    place = content.find("【答案】")
    return _extraction("".join(re.findall("[A-D]", content[place:] if place > 0 else content[-10:])), "gaokao_multi")


def gaokao_sub_questions(response: str, count: int) -> list[str]:
    """Read as GAOKAO-Bench does for several questions on one text.

    The capital letters after `【答案】` where there are as many as questions, else the first `count` capital letters of
    the response (so that English words count, too); may be fewer than `count`.
    """
    marked = re.findall(r"【答案】\s*[:：]*\s*([A-Z])", response)
    return marked if len(marked) == count else re.findall("[A-Z]", response)[:count]


def gaokao_five_of_seven(response: str) -> list[str]:
    """Read as GAOKAO-Bench does where five gaps are filled from seven sentences: the first five letters A-G."""
    return re.findall("[A-G]", response)[:5]


def ceval_chain_of_thought(response: str) -> Extraction:
    """Read as C-Eval does after a chain of thought: the last `答案是X。`, else `答案为X。`, else `选项X是正确的。`.

    What stands there must be one letter A-D; the original compares it with the reference as text.
    """
    for pattern in ("答案是(.+?)。", "答案为(.+?)。", "选项(.+?)是正确的。"):
        if found := re.findall(pattern, response):
            letters = found[-1] if found[-1] in tuple("ABCD") else ""
            return _extraction(letters, "ceval_chain_of_thought")
    return _extraction("", "ceval_chain_of_thought")


def _extraction(letters: str, rule: str) -> Extraction:
    return Extraction(letters, rule, "read") if letters else Extraction(None, rule, "unparsed")
