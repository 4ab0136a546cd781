"""Pieces that share the best score of a BPE model, as those that Chinese-LLaMA appended to LLaMA's vocabulary do.

SentencePiece merges the pair with the best score, and of equal ones the leftmost; `tokenizers` gives every pair a rank
of its own. Where the best score belongs to one piece, that makes no difference. Where it belongs to thousands, most
lines of Chinese come out differently (2,109 of 3,445).

Merging the leftmost pair first, and again as long as there is one, reads a text from left to right as a stack: a
character is put on it, and the two topmost symbols become one while they make a piece of that score. So the symbol at
the bottom is in the end the longest beginning of the text that becomes a single symbol when it is read alone. These
words can thus be cut out of a text by a pattern, the longest first from left to right, before anything is merged.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Pair = tuple[str, str]
_LEAF = 16
"""Alternatives of a pattern that are tried one after another; more are halved, by a look at the next character."""


def leading_words(scores: Mapping[str, float]) -> dict[str, str]:
    """Return the words that the merges of the best score make, if more than one piece has it.

    Args:
        scores: learned pieces to scores.

    Returns:
        Each word with a pattern of where it may be cut out, empty for anywhere: a few can be joined with what stands
        beside them by merges of a lower score.
    """
    leading = _leading(scores)
    if len(leading) < 2:
        return {}
    words = {piece for piece in leading if len(_read(piece, leading)[0]) == 1}
    joined = _joined(scores, words, leading)
    return {word: _guard(word, joined.get(word, set())) for word in sorted(words)}


def _leading(scores: Mapping[str, float]) -> set[str]:
    best = max((score for piece, score in scores.items() if len(piece) > 1), default=0.0)
    leading = {piece for piece, score in scores.items() if score == best and len(piece) > 1}
    return {
        piece for piece in leading if scores.keys() >= set(piece)
    }  # `tokenizers` cannot merge what it does not know


def _read(text: str, leading: set[str]) -> tuple[list[str], list[Pair]]:
    """Return the symbols of a text after all merges of the best score, the leftmost always first, and those merges."""
    stack: list[str] = []
    merges = []
    for character in text:
        stack.append(character)
        while len(stack) > 1 and stack[-2] + stack[-1] in leading:
            merges.append((stack[-2], stack[-1]))
            stack[-2:] = [stack[-2] + stack[-1]]
    return stack, merges


def order_merges(merges: Sequence[Pair], scores: Mapping[str, float], words: Iterable[str]) -> list[Pair]:
    """Return merges in an order by which each word that is cut out becomes one symbol.

    By their pieces' order nearly all do (all but one of 11,193 in Chinese-LLaMA); the merges of the others come first.

    Args:
        merges: best first.
        scores: learned pieces to scores.
        words: as `leading_words` returned them.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    stuck = [word for word in words if len(word) > 2 and len(_merged(word, ranks)) > 1]
    leading = _leading(scores)
    first = dict.fromkeys(pair for word in stuck for pair in _read(word, leading)[1])
    return [*first, *(pair for pair in merges if pair not in first)]


def _merged(word: str, ranks: Mapping[Pair, int]) -> list[str]:
    """Return the symbols of a word as `tokenizers` merges them: the pair of the lowest rank first."""
    symbols = list(word)
    while True:
        known = [(ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not known:
            return symbols
        _, place = min(known)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def _joined(scores: Mapping[str, float], words: set[str], leading: set[str]) -> dict[str, set[tuple[str, str]]]:
    """Return the words that merges of a lower score join with a neighbour, and with which: `(before, after)`."""
    found: dict[str, set[tuple[str, str]]] = {}
    symbols = {piece for piece in scores if len(piece) == 1}  # all that merges of any score can make
    for piece in sorted(scores, key=len):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in pairs if symbols.issuperset(pair)]
        if pairs:
            symbols.add(piece)
        for left, right in pairs:
            if piece in leading and all(len(part) == 1 or part in words for part in (left, right)):
                continue  # then they would have been one word
            if left in words:
                found.setdefault(left, set()).add(("", right))
            if right in words:
                found.setdefault(right, set()).add((left, ""))
    return found


def _guard(word: str, neighbours: Iterable[tuple[str, str]]) -> str:
    """Return what must hold at the end of a word: none of these neighbours stands there."""
    parts = [f"(?<!{escaped(before + word)})" if before else f"(?!{escaped(after)})" for before, after in neighbours]
    return "".join(sorted(parts))


def longest_match(words: Mapping[str, str]) -> str:
    """Return a pattern of Oniguruma that matches the longest word at a place; fast, however many words there are.

    Args:
        words: each with a pattern of what must hold at its end.
    """
    root: dict[str, Any] = {}
    for word, guard in words.items():
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = guard
    return _pattern(root)


def _pattern(node: dict[str, Any]) -> str:
    following = sorted((character, child) for character, child in node.items() if character)
    if not following:
        return str(node.get("", ""))
    ends = "".join(escaped(character) for character, child in following if child == {"": ""})
    further = [(character, child) for character, child in following if child != {"": ""}]
    parts = [_alternatives(further)] if further else []
    parts += [f"[{ends}]"] if ends else []
    parts += [node[""]] if "" in node else []  # last: the longest word wins
    return f"(?:{'|'.join(parts)})"


def _alternatives(children: list[tuple[str, dict[str, Any]]]) -> str:
    if len(children) <= _LEAF:
        return "|".join(escaped(character) + _pattern(child) for character, child in children)
    middle = len(children) // 2
    return "|".join(
        f"(?=[{escaped(half[0][0])}-{escaped(half[-1][0])}])(?:{_alternatives(half)})"
        for half in (children[:middle], children[middle:])
    )


def escaped(text: str) -> str:
    """Return a text as a pattern of Oniguruma."""
    return "".join(
        character if character.isalnum() or ord(character) > 127 else f"\\x{ord(character):02x}" for character in text
    )
