"""The likelihood of given continuations, each token run through the model once.

What several options have in common is computed once: the prompt of a question, and the examples and the wording that
stand before several questions. Their keys and values are kept, cut to what is shared, and the rest is run behind them,
padded on the right, without gaps; so positions, masks and windows are those of each text alone. A model that cannot be
called so (virtual tokens, states other than keys and values, frequencies that depend on the length) runs every text in
full; the scores are the same up to rounding. Where a model reads prompts in both directions, nothing is cut within one:
options share their prompt, and prompts share nothing. Logits are made where they are needed only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch.nn import functional as F

from ift.inference.shared_prefixes import Past, Row, can_share, common_length, group_by_prefix
from ift.models.calling import calling_of

_MOST_LOGITS = 2**27
"""Numbers in the logits of one forward, 512 MB in float32, unless one text alone needs more."""
_LEAST_SAVED_TOKENS = 256
"""The beginning of several questions is run apart only where this saves more tokens: it takes a forward of its own, and
the questions behind it go together with these only, so that small groups are slower for it."""
_SLACK_TOKENS = 16
"""Tokens that may be run again so that the options of several questions go through the model together."""
_MOST_PADDING = 64
"""Tokens of padding that one more row may bring; above, another forward costs less."""


def option_scores(
    model: Any, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]], *, rows_at_once: int = 32
) -> list[list[float]]:
    """Return the summed natural-log likelihood of each option's tokens after its prompt.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids of `n` prompts, none empty.
        options: for each prompt, the token ids of its options (as a response has them, without end-of-text).
        rows_at_once: texts that go through the model together at most.

    Returns:
        For each prompt, one score per option; log-softmax in float32.
    """
    return Scorer(model, rows_at_once=rows_at_once).scores(prompts, options)


class Scorer:
    """Scores options with one model.

    Args:
        model: a causal language model in evaluation mode.
        rows_at_once: texts that go through the model together at most.
        shares: whether to compute shared beginnings once; found out from the model where not given.
        least_saved: the beginning of several questions is run apart where this saves more tokens.
    """

    def __init__(
        self, model: Any, *, rows_at_once: int, shares: bool | None = None, least_saved: int = _LEAST_SAVED_TOKENS
    ) -> None:
        self._model, self._rows_at_once, self._least_saved = model, rows_at_once, least_saved
        self._calling = calling_of(model)
        self._shares = shares

    @property
    def shares(self) -> bool:
        """Whether beginnings that texts share are computed once; found out with a trial at first."""
        if self._shares is None:
            self._shares = can_share(self._model, self._trial)
        return self._shares

    @torch.no_grad()
    def scores(self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """Return for each prompt one score per option, as `option_scores`."""
        found = _Sums(self._calling.settled_length)
        questions = [
            found.rows(prompt, own_options) for prompt, own_options in zip(prompts, options, strict=True) if own_options
        ]
        if self.shares:
            self._share(questions, found)
        else:
            for chunk in self._chunks([row for rows in questions for row in rows], start=0):
                self._forward(chunk, found, Past())
        sums = iter(found.values)
        return [[next(sums) for _ in own_options] for own_options in options]

    def _trial(self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> tuple[list[float], ...]:
        """Return the scores with shared beginnings, and those of each text in full."""
        both = []
        for shares in (True, False):
            scorer = Scorer(self._model, rows_at_once=self._rows_at_once, shares=shares, least_saved=0)
            both.append([score for own in scorer.scores(prompts, options) for score in own])
        return tuple(both)

    def _share(self, questions: list[list[Row]], found: "_Sums") -> None:
        stems = [stem for rows in questions for stem in self._forked(rows)]
        whole = [stem for stem in stems if self._calling.settled_length(stem.row.ids)]
        if whole:
            self._stems(whole, Past(), found)
        stems = [stem for stem in stems if not self._calling.settled_length(stem.row.ids)]
        # Up to the first position that is asked about: of what is shared, which is run apart, no logits are made.
        texts = [stem.row.ids[: stem.row.places[0] + 1] if stem.row.places else stem.row.ids for stem in stems]
        for group, length in group_by_prefix(texts, least_saved=self._least_saved):
            past = Past()
            if length:
                past = self._forward([Row(stems[group[0]].row.ids[:length])], found, past, keep=True)
            self._stems([stems[number] for number in group], past, found)

    def _forked(self, rows: list[Row]) -> list["_Stem"]:
        """Return a question, or its rows one by one where they part within a prompt that is read in both directions."""
        stem = _Stem.of(rows)
        if max(self._calling.settled_length(row.ids) for row in rows) > len(stem.row.ids):
            return [_Stem(row, ()) for row in rows]
        return [stem]

    def _stems(self, stems: list["_Stem"], past: Past, found: "_Sums") -> None:
        """Run what the options of each question share, behind a past that the questions share."""
        alone = [stem.row for stem in stems if not stem.branches]
        for rows in self._chunks(alone, start=past.length):
            self._forward(rows, found, past.repeated(len(rows)))
        forked = {id(stem.row): stem for stem in stems if stem.branches}
        for rows in self._chunks([stem.row for stem in forked.values()], start=past.length):
            whole = self._forward(rows, found, past.repeated(len(rows)), keep=True)
            self._branches([forked[id(row)] for row in rows], whole, found)

    def _branches(self, stems: list["_Stem"], past: Past, found: "_Sums") -> None:
        """Run the options, each behind the past of its question, cut where the shortest of these ends."""
        numbered = sorted(enumerate(stems), key=lambda one: len(one[1].row.ids))
        while numbered:
            shortest = len(numbered[0][1].row.ids)
            near = list(takewhile(partial(self._may_end, length=shortest), numbered))
            numbered = numbered[len(near) :]
            places = {id(row): number for number, stem in near for row in stem.branches}
            for rows in self._chunks([row for _, stem in near for row in stem.branches], start=shortest):
                own = past.selected([places[id(row)] for row in rows], length=shortest)
                self._forward(rows, found, own)

    def _may_end(self, numbered: tuple[int, "_Stem"], *, length: int) -> bool:
        """Whether the options of a question are run behind its first `length` ids, with those of others."""
        ids = numbered[1].row.ids
        return len(ids) <= length + _SLACK_TOKENS and self._calling.settled_length(ids) <= length

    def _chunks(self, rows: list[Row], *, start: int) -> Iterator[list[Row]]:
        """Yield rows that go through the model together: alike in length, and no more than memory holds."""
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        kept_only = self._calling.keep_only
        chunk: list[Row] = []
        logits = 0
        for row in sorted(rows, key=lambda row: len(row.ids)):
            own = (len(row.places) if kept_only else len(row.ids) - start) * vocabulary
            full = len(chunk) == self._rows_at_once or logits + own > _MOST_LOGITS
            if chunk and (full or len(chunk) * (len(row.ids) - len(chunk[-1].ids)) > _MOST_PADDING):
                yield chunk
                chunk, logits = [], 0
            chunk.append(row)
            logits += own
        if chunk:
            yield chunk

    def _forward(self, rows: list[Row], found: "_Sums", past: Past, *, keep: bool = False) -> Past:
        """Run rows behind a past that holds their first ids, and count what they want.

        Args:
            rows: longer than the past.
            found: gets the likelihoods.
            past: of as many rows; changed, as the model appends to it.
            keep: whether the new past is wanted.

        Returns:
            The past with the rows appended, with padding on the right.
        """
        start = past.length
        width = max(len(row.ids) for row in rows) - start
        input_ids = torch.zeros((len(rows), width), dtype=torch.int64)
        kept = torch.zeros_like(input_ids, dtype=torch.bool)
        for number, row in enumerate(rows):
            input_ids[number, : len(row.ids) - start] = torch.tensor(row.ids[start:])
            kept[number, [place - start for place in row.places]] = True
        if not kept.any():
            kept[0, -1] = True  # a head that is applied to nothing is no case that models are tried with
        device = self._model.device
        # Padding on the right of a causal model: nothing that counts attends to it, so no mask is needed.
        inputs: dict[str, Any] = {"input_ids": input_ids.to(device), "use_cache": keep or bool(start)}
        if inputs["use_cache"]:
            inputs["past_key_values"] = past.cache()
        if start and self._calling.both_ways is not None:
            texts = [F.pad(torch.tensor(row.ids), (0, start + width - len(row.ids))) for row in rows]
            inputs["layout_ids"] = torch.stack(texts).to(device)
        logits = self._calling.logits(self._model, inputs, kept.to(device))
        found.add(rows, logits)
        after = Past(inputs.get("past_key_values"))
        if keep and after.length != start + width:
            raise NotImplementedError("the model keeps its states elsewhere")
        return after


@dataclass(frozen=True)
class _Stem:
    """A question: what its options share, and what then parts."""

    row: Row
    branches: tuple[Row, ...]
    """Longer than `row`; none where there is one row only."""

    @classmethod
    def of(cls, rows: list[Row]) -> "_Stem":
        """Return what the rows begin with in common, and how each goes on."""
        if len(rows) == 1:
            return cls(rows[0], ())
        shared = common_length(rows[0].ids, rows[1].ids)
        for row in rows[2:]:
            shared = min(shared, common_length(rows[0].ids, row.ids))
        wanted = tuple(want for row in rows for want in row.wanted if want[0] < shared)
        branches = (Row(row.ids, tuple(want for want in row.wanted if want[0] >= shared)) for row in rows)
        return cls(Row(rows[0].ids[:shared], wanted), tuple(branch for branch in branches if branch.wanted))


class _Sums:
    """Summed log-likelihoods of all options, in the order in which they were asked for.

    Args:
        settled_length: of a text, the first ids that must be run together.
    """

    def __init__(self, settled_length: Callable[[Sequence[int]], int]) -> None:
        self.values: list[float] = []
        self._settled_length = settled_length

    def rows(self, prompt: list[int], options: Sequence[list[int]]) -> list[Row]:
        """Return the fewest texts that have all that the options ask for: one for options of one token."""
        contexts: list[tuple[list[int], list[tuple[int, int, int]]]] = []
        numbers = range(len(self.values), len(self.values) + len(options))
        self.values += [0.0] * len(options)
        for number, option in sorted(zip(numbers, options, strict=True), key=lambda one: -len(one[1])):
            before = option[:-1]  # the logits at a position are about the next one
            wanted = [(len(prompt) - 1 + place, token, number) for place, token in enumerate(option)]
            for context, own in contexts:
                if self._is_in(before, context, prompt):
                    own += wanted
                    break
            else:
                contexts.append((before, wanted))
        return [Row(prompt + context, tuple(wanted)) for context, wanted in contexts]

    def _is_in(self, before: list[int], context: list[int], prompt: list[int]) -> bool:
        """Whether a text has what is asked about a beginning of it; not where more of it is read in both directions."""
        if context[: len(before)] != before:
            return False
        return len(before) == len(context) or self._settled_length([*prompt, *context]) <= len(prompt)

    def add(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Count what the rows want.

        Args:
            rows: as they went through the model.
            logits: `(kept, vocabulary)`: at each row's places, in order.
        """
        lines, tokens, numbers = [], [], []
        first = 0
        for row in rows:
            line = {place: first + index for index, place in enumerate(row.places)}
            first += len(line)
            lines += [line[place] for place, _, _ in row.wanted]
            tokens += [token for _, token, _ in row.wanted]
            numbers += [number for _, _, number in row.wanted]
        if not numbers:
            return
        normalizers = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, 256)])
        chosen = torch.tensor(lines, device=logits.device)
        found = logits[chosen, torch.tensor(tokens, device=logits.device)].float() - normalizers[chosen]
        for number, value in zip(numbers, found.tolist(), strict=True):
            self.values[number] += value
