"""Merges of a SentencePiece BPE model whose best pieces share one score, as a vocabulary merged for Chinese has them.

SentencePiece merges the pair of neighbours whose result scores best, and among equals the leftmost. `tokenizers` ranks
its merges and knows no equals. Where thousands of pieces have the same score (Chinese-LLaMA gave 0 to all its new
ones), ranks in any order cut most lines of Chinese otherwise than SentencePiece does. What it does with the tied pieces
can be said in another way, though:

- Merging the leftmost pair again and again is the same as going from left to right, taking one character after the
  other, and merging the last two symbols while they make a tied piece. So, before any other merge, a text is cut by
  *longest match* over those tied pieces that come out whole when their own characters are merged in this way.
- A matched piece stays as it is unless a larger piece is made of it. Those that stay (nearly all) are cut out of the
  text by a regular expression, and found as a whole in the vocabulary. The merges of the few others are put in an
  order that never lets a merge take what one to its left would have taken.
- A piece that SentencePiece cannot make at all (意大利, where neither 意大 nor 大利 is a piece) must not be found as a
  whole either: what is left between cuts and spells such a piece is cut once more.

Where one of these cannot be had, `TieRules.problems` says so, and ids may differ from SentencePiece's in rare places.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

Merge = tuple[str, str]
_MAX_LINEAR = 8
"""Alternatives that a regular expression tries one after the other, before it is made a binary search."""


@dataclass(frozen=True)
class TieRules:
    """How `tokenizers` is to treat a BPE vocabulary."""

    merges: list[Merge]
    """Best first."""
    patterns: tuple[str, ...] = ()
    """Regular expressions (Oniguruma) of what is cut out before merging, one after the other; a part that is a piece is
    then taken whole (`ignore_merges`). Empty where merges alone do."""
    problems: tuple[str, ...] = ()
    """Why ids may differ from SentencePiece's in rare places; empty where they are equal on every text."""


def tie_rules(scores: Mapping[str, float], *, never: Iterable[str] = ()) -> TieRules:
    """Return merges, and what has to be cut out first, for exactly SentencePiece's ids.

    Args:
        scores: the pieces that merging makes, and characters, with their scores as they compare in SentencePiece, in
            the order of their ids.
        never: the other entries of the vocabulary, which a text that spells them does not become (`<0x0A>`).
    """
    best = max(scores.values(), default=0.0)
    tied = [piece for piece, score in scores.items() if score == best]
    others = sorted((piece for piece, score in scores.items() if score != best), key=lambda piece: -scores[piece])
    problems = _lower_ties(others, scores)
    if sum(len(piece) > 1 for piece in tied) < 2:
        return TieRules([split for piece in [*tied, *others] for split in splits(piece, scores)], (), problems)
    return _Ties(tied, others, scores).rules(never, problems)


def splits(piece: str, pieces: Mapping[str, float]) -> list[Merge]:
    """Return the pairs of pieces that make a piece."""
    cuts = range(1, len(piece))
    return [(piece[:cut], piece[cut:]) for cut in cuts if piece[:cut] in pieces and piece[cut:] in pieces]


def sentencepiece_merge(text: str, scores: Mapping[str, float]) -> list[str]:
    """Return a short text as SentencePiece cuts it: the best merge first, among equals the leftmost.

    Args:
        text: one piece long.
        scores: as they compare in SentencePiece (`sentencepiece_models.merging_score`).
    """
    symbols = list(text)
    while len(symbols) > 1:
        merged = map("".join, pairwise(symbols))
        found = [(-scores[piece], place) for place, piece in enumerate(merged) if piece in scores]
        if not found:
            break
        place = min(found)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    return symbols


def _lower_ties(others: Sequence[str], scores: Mapping[str, float]) -> tuple[str, ...]:
    """Say whether pieces below the best share scores in a way that matters: two merges that want the same symbol."""
    groups: dict[float, list[str]] = defaultdict(list)
    for piece in others:
        if len(piece) > 1:
            groups[scores[piece]].append(piece)
    for score, pieces in groups.items():
        merges = [split for piece in pieces for split in splits(piece, scores)]
        lefts = {left for left, _ in merges}
        if len(pieces) > 1 and any(right in lefts for _, right in merges) and not _are_repetitions(pieces, merges):
            return (f"{len(pieces)} pieces share the score {score:g}, which is not the best",)
    return ()


def _are_repetitions(pieces: Sequence[str], merges: Sequence[Merge]) -> bool:
    """Whether tied pieces repeat one character (LLaMA's runs of blanks) and ranks cut every length of it as ties do."""
    if len(set("".join(pieces))) > 1:
        return False
    ranks = {merge: -float(rank) for rank, merge in enumerate(merges)}
    equal = dict.fromkeys(pieces, 0.0)
    longest, character = max(map(len, pieces)), pieces[0][0]
    runs = [character * length for length in range(2, 4 * longest)]
    return all(sentencepiece_merge(run, equal) == _merge_by_rank(run, ranks) for run in runs)


def _merge_by_rank(text: str, ranks: Mapping[Merge, float]) -> list[str]:
    symbols = list(text)
    while found := [(-ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        place = min(found)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    return symbols


class _Ties:
    """What follows from a group of tied pieces that score best."""

    def __init__(self, tied: Sequence[str], others: Sequence[str], scores: Mapping[str, float]) -> None:
        self._scores, self._others = scores, others
        self._tied = set(tied)
        self._lower = [split for piece in others for split in splits(piece, scores)]
        self._last_merge: dict[str, Merge] = {}
        """Of each piece that its own characters make: the last pair."""
        for piece in tied:
            if len(piece) > 1:
                self._reduce(piece)
        self._longest = max(map(len, self._last_merge), default=1)
        rest = [piece for piece in [*tied, *others] if len(piece) > 1 and piece not in self._last_merge]
        self._live = [piece for piece in rest if len(sentencepiece_merge(piece, scores)) == 1]
        """Pieces that are made after the matching."""
        live = set(self._live)
        self._dead = [piece for piece in rest if piece not in live]
        matched = (symbol for piece in self._live for symbol in self._matched(piece))
        self._taken = dict.fromkeys(symbol for symbol in matched if len(symbol) > 1)
        """Matched pieces that larger pieces are made of."""

    def _reduce(self, piece: str) -> None:
        """Merge from left to right, as SentencePiece does in effect, and remember a piece that comes out whole."""
        symbols: list[str] = []
        last = ("", "")
        for character in piece:
            symbols.append(character)
            while len(symbols) > 1 and symbols[-2] + symbols[-1] in self._tied:
                right = symbols.pop()
                last = (symbols[-1], right)
                symbols[-1] += right
        if len(symbols) == 1:
            self._last_merge[piece] = last

    def _matched(self, text: str) -> Iterator[str]:
        """Cut by longest match."""
        position = 0
        while position < len(text):
            ends = range(min(len(text), position + self._longest), position + 1, -1)
            end = next((end for end in ends if text[position:end] in self._last_merge), position + 1)
            yield text[position:end]
            position = end

    def rules(self, never: Iterable[str], problems: tuple[str, ...]) -> TieRules:
        """Return the merges, the pattern, and why they may not do."""
        isolated = [piece for piece in self._last_merge if piece not in self._taken]
        merges, unordered = self._ordered()
        cuts, uncut = self._cuts(never)
        hidden = [(piece, start) for piece in self._taken for start in _hidden_starts(piece, isolated)]
        ends = {piece[start:] for piece in isolated for start in range(1, len(piece))}
        confused = {piece for piece, start in hidden if any(piece[:length] in ends for length in range(1, start))}
        confused |= {piece for piece, _ in hidden if any(_overlap(other, piece) for other in self._taken)}
        patterns = [_isolating(isolated, list(self._taken), hidden)] if isolated else []
        if cuts:
            patterns.append(_cutting(cuts))
        if wrong := unordered | confused:
            found = f"no order of merges is right for {len(wrong)} of the pieces that share the best score"
            problems = (*problems, f"{found}, such as '{min(wrong)}'")
        if uncut:
            problems = (
                *problems,
                f"{len(uncut)} entries that no text should become may be found, such as '{uncut[0]}'",
            )
        return TieRules([*merges, *self._lower], tuple(patterns), problems)

    def _cuts(self, never: Iterable[str]) -> tuple[dict[str, int], list[str]]:
        """Return after how many characters to cut each entry that no text becomes, and those that cannot be cut."""
        cuts, uncut = {}, []
        entries = [*self._dead, *never]
        known = {*self._scores, *entries}
        for piece in entries:
            if len(piece) == 1 or any(len(symbol) > 1 and symbol not in self._taken for symbol in self._matched(piece)):
                continue  # cut by the pieces that are isolated
            if place := self._place(piece, known):
                cuts[piece] = place
            else:
                uncut.append(piece)
        return cuts, uncut

    def _place(self, piece: str, known: Set[str]) -> int | None:
        """Return after how many characters an entry that stands alone can be cut, to become what it should."""
        symbols = sentencepiece_merge(piece, self._scores)
        for number in range(1, len(symbols)):
            halves = symbols[:number], symbols[number:]
            if all(self._stays(half, known) for half in halves):
                return len("".join(halves[0]))
        return None

    def _stays(self, symbols: Sequence[str], known: Set[str]) -> bool:
        text = "".join(symbols)
        return len(symbols) == 1 or (text not in known and sentencepiece_merge(text, self._scores) == list(symbols))

    def _ordered(self) -> tuple[list[Merge], set[str]]:
        """Return the merges of tied pieces that are not isolated, and the pieces for which no order is right."""
        taken = list(dict.fromkeys(merge for piece in self._taken for merge in self._derivation(piece)))
        late = [split for piece in self._live if piece in self._tied for split in splits(piece, self._scores)]
        order, dropped = _sorted([*taken, *late], self._orders(taken, late))
        ranks = {merge: -float(rank) for rank, merge in enumerate([*order, *self._lower])}
        pairs = [tuple(map("".join, pair)) for pair in dropped]
        broken = {first for first, second in pairs if not self._is_sound_repetition(first, second, ranks)}
        broken |= {piece for piece in self._taken if len(_merge_by_rank(piece, ranks)) > 1}
        return order, broken | {piece for piece in self._live if any(one not in self._scores for one in piece)}

    def _level(self, piece: str) -> float:
        """Return the worst score among the merges that make a piece; that of a character is the best."""
        symbols, level = list(piece), math.inf
        while len(symbols) > 1:
            found = [
                (self._scores.get(left + right, -math.inf), -place)
                for place, (left, right) in enumerate(pairwise(symbols))
            ]
            score, place = max(found)
            level = min(level, score)
            symbols[-place : 2 - place] = ["".join(symbols[-place : 2 - place])]
        return level

    def _is_sound_repetition(self, first: str, second: str, ranks: Mapping[Merge, float]) -> bool:
        """Whether two pieces repeat the same character, and every length of it is cut as it should be."""
        if len(set(first + second)) > 1:
            return False
        runs = [first[0] * length for length in range(2, 4 * self._longest)]
        return all(_merge_by_rank(run, ranks) == sentencepiece_merge(run, self._scores) for run in runs)

    def _derivation(self, piece: str) -> Iterator[Merge]:
        """Yield the merges that make a matched piece of its characters."""
        if piece in self._last_merge:
            left, right = self._last_merge[piece]
            yield from self._derivation(left)
            yield from self._derivation(right)
            yield left, right

    def _orders(self, taken: Sequence[Merge], late: Sequence[Merge]) -> dict[Merge, dict[Merge, None]]:
        """Return the merges that have to come before each: those to its left that want its first symbol too.

        They are keys, not a set, so that their order is the same in every run.
        """
        before: dict[Merge, dict[Merge, None]] = defaultdict(dict)
        by_left: dict[str, list[Merge]] = defaultdict(list)
        for merge in [*taken, *late]:
            by_left[merge[0]].append(merge)
        for merge in taken:
            for rival in by_left[merge[1]]:
                before[rival] |= {one: None for one in self._derivation("".join(merge)) if one != rival}
        late_ones = set(late)
        for merge in late:
            middle = merge[1]
            if len(middle) == 1 or middle in self._last_merge:
                continue  # the pair would have been merged before
            for rival in by_left[middle]:
                # Both pairs wait for the middle only where it is the last of the three to be made.
                is_last = self._level(middle) <= min(self._level(merge[0]), self._level(rival[1]))
                if rival in late_ones and rival != merge and is_last:
                    before[rival][merge] = None
        return before


def _sorted(
    order: Sequence[Merge], before: Mapping[Merge, Mapping[Merge, None]]
) -> tuple[list[Merge], set[tuple[Merge, Merge]]]:
    """Return the merges in an order that keeps what has to come before each, and the pairs where it does not."""
    graph = {merge: dict(before.get(merge, {})) for merge in order}
    dropped: set[tuple[Merge, Merge]] = set()
    while True:
        try:
            return list(TopologicalSorter(graph).static_order()), dropped
        except CycleError as error:
            first, second = error.args[1][:2]
            dropped.add((first, second))
            del graph[second][first]


def _isolating(isolated: Sequence[str], taken: Sequence[str], hidden: Sequence[tuple[str, int]]) -> str:
    """Return what finds the isolated pieces by longest match."""
    found = _guard(isolated, taken) + _longest_of(isolated)
    if not hidden:
        return found
    # Within a taken piece none begins, unless the beginning of that piece went into the one before.
    within = "|".join(f"(?<={_literal(piece[:start])}){_literal(piece[start:])}" for piece, start in hidden)
    return f"(?:\\G|(?!{within})){found}"


def _cutting(cuts: Mapping[str, int]) -> str:
    """Return what finds the first part of entries that stand alone."""
    by_first: dict[str, list[str]] = defaultdict(list)
    for piece, place in cuts.items():
        by_first[piece[0]].append(f"{_literal(piece[:place])}(?={_literal(piece[place:])}\\z)")
    return rf"\A(?:{_search(sorted(by_first), lambda first: '|'.join(by_first[first]))})"


def _hidden_starts(piece: str, isolated: Iterable[str]) -> list[int]:
    """Return where in a taken piece an isolated one could begin, though not where the piece itself begins."""
    starts = range(1, len(piece))
    return [start for start in starts if any(_begins(piece[start:], other) for other in isolated)]


def _overlap(left: str, right: str) -> bool:
    """Whether the right piece could begin within the left one."""
    return any(_begins(left[start:], right) for start in range(1, len(left)))


def _begins(text: str, piece: str) -> bool:
    """Whether a piece could stand at the beginning of a text of which more may follow."""
    return text.startswith(piece) or piece.startswith(text)


def _guard(isolated: Sequence[str], taken: Sequence[str]) -> str:
    """Return what refuses an isolated piece where a taken one that begins with it is the longest match."""
    pieces = set(isolated)
    longer = []
    for piece in taken:
        if any(piece[:length] in pieces for length in range(2, len(piece))):
            rests = [other[len(piece) :] for other in isolated if other.startswith(piece)]
            longer.append(_literal(piece) + (f"(?!{_longest_of(rests)})" if rests else ""))
    return f"(?!{'|'.join(longer)})" if longer else ""


def _longest_of(words: Iterable[str]) -> str:
    """Return a regular expression of the longest of these words."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branches(root)


def _branches(node: Mapping[str, Any]) -> str:
    """Return what matches the rest of a word, as a tree of characters; a word may end where others go on."""
    characters = sorted(character for character in node if character)
    if not characters:
        return ""
    last = [character for character in characters if list(node[character]) == [""]]
    longer = [character for character in characters if list(node[character]) != [""]]
    found = [f"[{''.join(map(_literal, last))}]"] if last else []
    if longer:
        found.append(_search(longer, lambda character: _literal(character) + _branches(node[character])))
    return f"(?:{'|'.join(found)})" + ("?" if "" in node else "")


def _search(characters: Sequence[str], expression: Callable[[str], str]) -> str:
    """Return alternatives that begin with different characters, found in a few steps."""
    if len(characters) <= _MAX_LINEAR:
        return "|".join(map(expression, characters))
    half = (len(characters) + 1) // 2
    lower = f"(?=[\\x{{0}}-{_literal(characters[half - 1])}])(?:{_search(characters[:half], expression)})"
    return f"{lower}|{_search(characters[half:], expression)}"


def _literal(text: str) -> str:
    """Return a text as a regular expression that is valid in a class of characters too."""
    return "".join(one if one.isalnum() and one.isascii() else f"\\x{{{ord(one):x}}}" for one in text)
