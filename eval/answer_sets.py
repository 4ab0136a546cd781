"""Likelihood of answers that may be one option letter or several: which set of letters does a model give?

Ranking the texts `A`, `AB`, `ABC` by likelihood would never prefer the longer one, as it cannot be likelier than its
beginning; the mean over tokens prefers long ones, whose last letters can be foreseen. What is compared here is the
likelihood that a response begins with these letters and does not go on with another: that of the text less those of
the texts with one letter more. How the response ends does not matter: end-of-text, a line break and a full stop all
count. Only letters in order are looked at; `CA` counts as `C`.

Where a tokenizer writes `AB` as one token, that is no continuation of the token `A`, and nothing is taken off: a text
goes on from another where it has more tokens.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ift.errors import UserError
from ift.records import Prediction

_SPELLINGS = ("", " ")
"""What may stand before the letters: nothing, or the blank that worked examples have there."""


def answer_sets(letters: Sequence[str]) -> tuple[str, ...]:
    """Return every answer that there can be, single letters first: `A`, `B`, …, `AB`, …, `ABCD`."""
    return tuple("".join(own) for size in range(1, len(letters) + 1) for own in combinations(letters, size))


def options_of_sets(letters: Sequence[str]) -> tuple[str, ...]:
    """Return the texts to rank: every answer in every spelling, so that nothing tells how many letters are right."""
    return tuple(before + answer for before in _SPELLINGS for answer in answer_sets(letters))


def best_sets(prediction: Prediction, letters: Sequence[str]) -> list[str]:
    """Return the likeliest answers: one, or several that are tied.

    Args:
        prediction: of a prompt with `options_of_sets(letters)`.
        letters: of the question's options.

    Raises:
        UserError: the prediction is not about these options, or lacks a score or a number of tokens.
    """
    expected, scores, sizes = options_of_sets(letters), prediction.option_scores, prediction.option_num_tokens
    if prediction.options != expected or not len(scores) == len(sizes) == len(expected) or any(map(math.isnan, scores)):
        raise UserError(
            f"--predictions: '{prediction.id}' needs a score and a number of tokens for each of the {len(expected)} "
            f"options that `prepare` wrote; found {len(scores)} scores and {len(sizes)} numbers for "
            f"{list(prediction.options)}."
        )
    answers = answer_sets(letters)
    per_spelling = [
        _complete(answers, scores[start : start + len(answers)], sizes[start : start + len(answers)])
        for start in range(0, len(expected), len(answers))
    ]
    likelihoods = np.logaddexp.reduce(per_spelling, axis=0)
    return [answer for answer, value in zip(answers, likelihoods, strict=True) if value == max(likelihoods)]


def _complete(answers: Sequence[str], scores: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Return the log-likelihood of each answer being complete."""
    at = {answer: index for index, answer in enumerate(answers)}
    found = []
    for answer, score, size in zip(answers, scores, sizes, strict=True):
        longer = [at[own] for own in answers if own[:-1] == answer and sizes[at[own]] > size]
        goes_on = sum(math.exp(scores[index] - score) for index in longer) if score > -math.inf else 1.0
        found.append(score + math.log1p(-goes_on) if goes_on < 1 else -math.inf)
    return found
