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
    scores = _scores(prediction, options, rule)
    if rule.calibration is None:
        if baselines:
            raise UserError(f"scoring '{rule.name}' uses no prompt without content. Take one that ends in pmi.")
    elif rule.calibration == "pmi":
        if len(baselines) != 1:
            raise UserError(f"scoring '{rule.name}' needs one prompt without content, found {len(baselines)}.")
        base = _scores(baselines[0], options, rule)
        scores = {answer: score - base[answer] for answer, score in scores.items()}
    else:
        if not baselines:
            raise UserError(f"scoring '{rule.name}' needs at least one prompt without content, found none.")
        shares = [_log_shares(_scores(one, options, rule)) for one in baselines]
        means = {answer: log_sum([own[answer] for own in shares]) - math.log(len(shares)) for answer in scores}
        scores = {answer: score - means[answer] for answer, score in _log_shares(scores).items()}
    highest = max(scores.values())
    return Choice(scores, tuple(answer for answer, score in scores.items() if score == highest))


def log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of what the values are logarithms of, without overflow."""
    highest = max(values)
    if highest == -math.inf:
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))


def _scores(prediction: Prediction, options: Sequence[Option], rule: Scoring) -> dict[str, float]:
    """Return one score per answer, before calibration."""
    _check(prediction, options)
    spellings: dict[str, list[tuple[float, float]]] = {}
    scored = zip(options, prediction.option_scores, prediction.option_num_tokens, strict=True)
    for option, score, num_tokens in scored:
        if option.kind == rule.kind:
            length = _length(option.text, num_tokens, rule.length)
            spellings.setdefault(option.answer, []).append((score, length))
    if not spellings:
        raise UserError(f"scoring '{rule.name}': '{prediction.id}' was asked without options of kind '{rule.kind}'.")
    return {answer: _combined(own, rule.spellings) for answer, own in spellings.items()}


def _combined(spellings: Sequence[tuple[float, float]], rule: Spellings) -> float:
    """Return the score of an answer; its length is that of its likeliest spelling."""
    score, length = max(spellings, key=lambda one: one[0])
    return (log_sum([own for own, _ in spellings]) if rule == "sum" else score) / length


def _length(text: str, num_tokens: int, rule: Length | None) -> float:
    """Return what a log-likelihood is divided by; blanks around an answer are none of its characters."""
    if rule is None:
        return 1
    return {"tokens": num_tokens, "characters": len(text.strip()), "bytes": len(text.strip().encode())}[rule]


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
