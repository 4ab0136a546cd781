"""From option likelihoods to a choice: every rule has a name, and none needs the model again.

A benchmark asks for options with `spelled` (or its own list of `Option`), puts their `texts` into
`PromptRecord.options` and gives the same options with the prediction to `choose`. Several spellings of one answer are
several options; with a SentencePiece tokenizer "A" and " A" are different tokens, and which of them a model expects
behind "答案：" depends on the model. (They must then be
tokenized as a continuation: `"join_options": True` in a prompt's `meta` says so. To responses of their own,
SentencePiece adds a blank, also to "A".)

Rules, by name, in any combination that `scoring` accepts, such as `letter_sum` or `text_max_characters`:

- `letter` or `text`: options of that kind only, where a question was asked with both.
- `sum` or `max` over the spellings of an answer: their probabilities added, or the likeliest one (first of equals).
- `tokens`, `characters`, `bytes`: log-likelihood divided by the answer's length (lm-evaluation-harness: `acc_norm` is
  by characters); otherwise the summed log-likelihood (`acc`).
- `pmi`: less the same answer's log-likelihood after a prompt that asks nothing, such as "答案：" alone
  (domain-conditional PMI, Holtzman et al. 2021, "Surface Form Competition").
- `contextual`: the shares of the answers divided by their mean shares after content-free inputs (Zhao et al. 2021,
  "Calibrate Before Use").

Equal best scores are a tie, and reported as one; nothing is drawn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Literal

from ift.errors import UserError, unknown_name
from ift.records import Prediction

Kind = Literal["letter", "text"]
Spellings = Literal["sum", "max"]
Length = Literal["tokens", "characters", "bytes"]
Calibration = Literal["pmi", "contextual"]

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Inputs in the place of a question for `contextual` (Zhao et al. 2021, section 5)."""


@dataclass(frozen=True)
class Option:
    """A text to rank, and what it stands for."""

    text: str
    """As in `PromptRecord.options`."""
    answer: str
    """The answer that it is one spelling of: the letter."""
    kind: Kind = "letter"


@dataclass(frozen=True)
class Scoring:
    """A rule for choosing."""

    kind: Kind = "letter"
    spellings: Spellings = "sum"
    length: Length | None = None
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """As in `SCORINGS`."""
        return "_".join(part for part in (self.kind, self.spellings, self.length, self.calibration) if part)


def _scorings() -> dict[str, Scoring]:
    kinds: tuple[Kind, ...] = ("letter", "text")
    spellings: tuple[Spellings, ...] = ("sum", "max")
    lengths: tuple[Length | None, ...] = (None, "tokens", "characters", "bytes")
    calibrations: tuple[Calibration | None, ...] = (None, "pmi", "contextual")
    found = (Scoring(*rule) for rule in product(kinds, spellings, lengths, calibrations))
    # A calibrated score is a ratio of probabilities of the same text: its length is taken out already.
    return {one.name: one for one in found if not (one.length and one.calibration)}


SCORINGS: Mapping[str, Scoring] = _scorings()
"""All rules by name."""
DEFAULT = "letter_sum"


@dataclass(frozen=True)
class Choice:
    """What a rule makes of a prediction."""

    scores: Mapping[str, float]
    """Of each answer, in the order of the options; natural logarithms."""
    best: tuple[str, ...]
    """The answers with the highest score: one, or several that are tied."""

    @property
    def answer(self) -> str | None:
        """The one best answer; none where several are tied."""
        return self.best[0] if len(self.best) == 1 else None


def scoring(name: str) -> Scoring:
    """Return the rule of that name.

    Raises:
        UserError: there is none.
    """
    if name not in SCORINGS:
        raise unknown_name("scoring", name, SCORINGS)
    return SCORINGS[name]


def spelled(answers: Mapping[str, str] | Sequence[str], *, blanks: Sequence[str] = ("", " ")) -> tuple[Option, ...]:
    """Return the options for letters, or for the full texts of the letters where a mapping gives them.

    Args:
        answers: letters; or letters and the text of each.
        blanks: what stands before an answer, one spelling each: nothing, and one blank.
    """
    if isinstance(answers, Mapping):
        return tuple(
            Option(blank + text.strip(), letter, "text") for letter, text in answers.items() for blank in blanks
        )
    return tuple(Option(blank + letter, letter) for letter in answers for blank in blanks)


def texts(options: Sequence[Option]) -> tuple[str, ...]:
    """Return the options as `PromptRecord.options` takes them."""
    return tuple(option.text for option in options)


def choose(
    prediction: Prediction,
    options: Sequence[Option],
    rule: Scoring = SCORINGS[DEFAULT],
    *,
    baselines: Sequence[Prediction] = (),
) -> Choice:
    """Return the answer that a rule chooses.

    Args:
        prediction: with scores for the texts of the options.
        options: as they were asked for.
        rule: how to choose.
        baselines: the same options after prompts without content: one for `pmi`, one or more for `contextual`.

    Raises:
        UserError: the prediction's options are others, a score is missing or no number, or baselines do not fit the
            rule.
    """
    if rule.calibration is None and baselines:
        raise UserError(f"scoring '{rule.name}' uses no prompt without content. Take one that ends in pmi.")
    return Chooser(prediction, options, {rule.calibration: baselines} if rule.calibration else {}).choose(rule)


class Chooser:
    """A prediction's options, from which any rule can choose; what the rules share is computed once.

    Args:
        prediction: with scores for the texts of the options.
        options: as they were asked for.
        baselines: by the calibration that takes them, the same options after prompts without content.

    Raises:
        UserError: the options of one of these predictions are others, or a score is missing or no number.
    """

    def __init__(
        self,
        prediction: Prediction,
        options: Sequence[Option],
        baselines: Mapping[Calibration, Sequence[Prediction]] = MappingProxyType({}),
    ) -> None:
        self._id, self._answers = prediction.id, _answers(prediction, options)
        self._baselines = {name: [_answers(one, options) for one in own] for name, own in baselines.items()}

    @property
    def rules(self) -> list[str]:
        """The names of the rules that need no more than was asked."""
        return [
            name
            for name, rule in SCORINGS.items()
            if rule.kind in self._answers and (rule.calibration is None or rule.calibration in self._baselines)
        ]

    def choose(self, rule: Scoring) -> Choice:
        """Return the answer that a rule chooses.

        Raises:
            UserError: what the rule needs was not asked.
        """
        if rule.kind not in self._answers:
            raise UserError(f"scoring '{rule.name}': '{self._id}' was asked without options of kind '{rule.kind}'.")
        scores = _scores(self._answers, rule)
        baselines = self._baselines.get(rule.calibration, []) if rule.calibration else []
        if rule.calibration == "pmi":
            if len(baselines) != 1:
                raise UserError(f"scoring '{rule.name}' needs one prompt without content, found {len(baselines)}.")
            base = _scores(baselines[0], rule)
            scores = {answer: score - base[answer] for answer, score in scores.items()}
        elif rule.calibration == "contextual":
            if not baselines:
                raise UserError(f"scoring '{rule.name}' needs at least one prompt without content, found none.")
            shares = [_log_shares(_scores(one, rule)) for one in baselines]
            means = {answer: log_sum([own[answer] for own in shares]) - math.log(len(shares)) for answer in scores}
            scores = {answer: score - means[answer] for answer, score in _log_shares(scores).items()}
        highest = max(scores.values())
        return Choice(scores, tuple(answer for answer, score in scores.items() if score == highest))


def log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of what the values are logarithms of, without overflow."""
    highest = max(values)
    if highest == -math.inf:
        return highest
    if len(values) == 2:  # by far the most frequent case: with and without a blank
        return highest + math.log1p(math.exp(min(values) - highest))
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


@dataclass(frozen=True)
class _Answer:
    """One answer in all of its spellings."""

    summed: float
    """The logarithm of its spellings' probabilities, added up."""
    highest: float
    """That of the likeliest spelling."""
    text: str
    """The likeliest spelling."""
    num_tokens: int
    """Of the likeliest spelling."""

    def length(self, rule: Length | None) -> int:
        """Return what a log-likelihood is divided by; blanks around an answer are none of its characters."""
        if rule is None:
            return 1
        if rule == "tokens":
            return self.num_tokens
        text = self.text.strip()
        return len(text) if rule == "characters" else len(text.encode())


def _answers(prediction: Prediction, options: Sequence[Option]) -> dict[Kind, dict[str, _Answer]]:
    """Return every answer of each kind, in the order of the options."""
    _check(prediction, options)
    spellings: dict[Kind, dict[str, list[int]]] = {}
    for place, option in enumerate(options):
        spellings.setdefault(option.kind, {}).setdefault(option.answer, []).append(place)
    return {
        kind: {answer: _answer(prediction, options, places) for answer, places in own.items()}
        for kind, own in spellings.items()
    }


def _answer(prediction: Prediction, options: Sequence[Option], places: Sequence[int]) -> _Answer:
    scores = [prediction.option_scores[place] for place in places]
    highest = max(scores)
    best = places[scores.index(highest)]
    return _Answer(log_sum(scores), highest, options[best].text, prediction.option_num_tokens[best])


def _scores(answers: Mapping[Kind, Mapping[str, _Answer]], rule: Scoring) -> dict[str, float]:
    """Return one score per answer, before calibration."""
    own, length = answers[rule.kind], rule.length
    if rule.spellings == "sum":
        return {name: one.summed / one.length(length) for name, one in own.items()}
    return {name: one.highest / one.length(length) for name, one in own.items()}


def _log_shares(scores: Mapping[str, float]) -> dict[str, float]:
    total = log_sum(list(scores.values()))
    return {answer: score - total for answer, score in scores.items()}


def _check(prediction: Prediction, options: Sequence[Option]) -> None:
    found = (prediction.option_scores, prediction.option_num_tokens)
    complete = all(len(own) == len(options) for own in found) and all(map(math.isfinite, prediction.option_scores))
    if prediction.options != texts(options) or not complete:
        raise UserError(
            f"--predictions: '{prediction.id}' needs a finite score and a number of tokens for each of the options "
            f"{list(texts(options))}; found {list(prediction.options)} with {list(prediction.option_scores)}."
        )
