"""How MMCU's three protocols score predictions, question by question and on average."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from eval.aggregation import GROUP_MACRO, GROUP_MICRO, Aggregation, Cell
from eval.answer_sets import best_sets
from eval.extraction_legacy import mmcu_first_match
from eval.mmcu_questions import Key
from eval.mmcu_rules import LETTERS, strict_answer, strict_gold
from eval.mmcu_subjects import DISCIPLINES
from eval.report import Outcome, Report, summarize
from eval.rounding import exact_mean, half_up
from ift.errors import UserError
from ift.records import Prediction

_SHOWN_NOTES = 50
_DISPUTED = {"mmcu-传染病学-0124": "'A' until 2023-05-12, 'B' since"}
"""Questions whose answer changed between published files."""

Judge = Callable[[Prediction, Key], Outcome]


# Averages ------------------------------------------------------------------------------------------------------------


def readme_subject(cell: Cell) -> Decimal:
    """Return MMCU's score of a subject: three decimals as its scripts print the float, which is not half up.

    55 of 176 (0.3125) is 0.312 and 423 of 2,000 (0.2115) is 0.211 in the published table.
    """
    return Decimal(f"{cell.total / cell.n:.3f}")


def readme_discipline(cells: Sequence[Cell]) -> float:
    """Return MMCU's score of a discipline: the mean of its subjects' scores with three decimals, halves up."""
    return float(half_up(exact_mean(map(readme_subject, cells)), 3))


def readme_overall(cells: Sequence[Cell]) -> float:
    """Return MMCU's average: the mean of the published scores of the disciplines, with three decimals."""
    return _mean_of_disciplines(cells, readme_discipline, digits=3)


def alpaca_cot_discipline(cells: Sequence[Cell]) -> float:
    """Return Alpaca-CoT's score of a discipline: the share over its questions as a percentage with two decimals."""
    return float(half_up(_share(cells), 4))


def alpaca_cot_overall(cells: Sequence[Cell]) -> float:
    """Return Alpaca-CoT's average: the mean of the published percentages, with two decimals."""
    return _mean_of_disciplines(cells, alpaca_cot_discipline, digits=4)


def _mean_of_disciplines(cells: Sequence[Cell], discipline: Callable[[Sequence[Cell]], float], *, digits: int) -> float:
    disciplines: dict[str, list[Cell]] = {}
    for cell in cells:
        disciplines.setdefault(cell.group, []).append(cell)
    # `str` gives back the decimals that `discipline` rounded to.
    return float(half_up(exact_mean(Decimal(str(discipline(own))) for own in disciplines.values()), digits))


def _share(cells: Sequence[Cell]) -> Fraction:
    return Fraction(round(sum(cell.total for cell in cells)), sum(cell.n for cell in cells))


README = Aggregation("mmcu_readme", readme_overall)
README_DISCIPLINE = Aggregation("mmcu_readme_discipline", readme_discipline)
ALPACA_COT = Aggregation("alpaca_cot", alpaca_cot_overall)
ALPACA_COT_DISCIPLINE = Aggregation("alpaca_cot_discipline", alpaca_cot_discipline)


# Protocols -----------------------------------------------------------------------------------------------------------


def score_readme(predictions: Sequence[Prediction], keys: Sequence[Key], *, notes: Iterable[str] = ()) -> Report:
    """Compare the first letters of each reply with the label as one string; average as MMCU's table does."""
    return summarize(
        [_original(prediction, key) for prediction, key in zip(predictions, keys, strict=True)],
        predictions,
        aggregations=(README,),
        clustered=True,
        group_score=README_DISCIPLINE,
        notes=[*notes, *_missing(keys), *_label_notes(keys, mended=False)],
    )


def score_alpaca_cot(predictions: Sequence[Prediction], keys: Sequence[Key], *, notes: Iterable[str] = ()) -> Report:
    """Compare sets of letters, leave no question out, and average as the tables of Alpaca-CoT's paper do."""
    return summarize(
        [_strict(prediction, key, exclude=False) for prediction, key in zip(predictions, keys, strict=True)],
        predictions,
        aggregations=(ALPACA_COT,),
        clustered=True,
        group_score=ALPACA_COT_DISCIPLINE,
        notes=[
            "Alpaca-CoT never published how it reads replies; here the strict protocol's reading is used. "
            "Its tables show these scores times 100.",
            *notes,
            *_missing(keys),
            *_label_notes(keys, mended=True),
        ],
    )


def score_strict(predictions: Sequence[Prediction], keys: Sequence[Key], *, notes: Iterable[str] = ()) -> Report:
    """Compare sets of letters, leave out questions whose answer cannot be, and report single and multi apart."""
    return summarize(
        [_strict(prediction, key, exclude=True) for prediction, key in zip(predictions, keys, strict=True)],
        predictions,
        aggregations=(GROUP_MACRO, GROUP_MICRO),
        clustered=True,
        notes=[*notes, *_missing(keys), *_label_notes(keys, mended=True)],
    )


def _original(prediction: Prediction, key: Key) -> Outcome:
    if prediction.response is None:
        raise UserError(
            f"--predictions: '{prediction.id}' has no 'response'; mmcu_readme scores written replies only. "
            "Rank options under the strict protocol."
        )
    found = mmcu_first_match(prediction.response).letters
    return Outcome(
        prediction.id,
        key.subject.name,
        found == key.label,
        status="unparsed" if found is None else "read",
        note=prediction.response if found is None else "",
        group=key.subject.discipline,
        answer=found or "",
        kinds=_kinds(key),
    )


def _strict(prediction: Prediction, key: Key, *, exclude: bool) -> Outcome:
    gold = strict_gold(key.answer, ranked_letters(key.letters))
    problem = gold.problem if len(key.letters) > 1 else "fewer than two options"
    place, discipline = key.subject.name, key.subject.discipline
    if exclude and problem:
        return Outcome(prediction.id, place, status="excluded", note=problem, group=discipline)
    if prediction.option_scores:
        best = best_sets(prediction, ranked_letters(key.letters))
        tied, found = len(best) > 1, frozenset(best[0]) if len(best) == 1 else None
    elif prediction.response is None:
        raise UserError(f"--predictions: '{prediction.id}' has neither 'option_scores' nor a 'response'.")
    else:
        tied, found = False, _read(prediction.response, key)
    unparsed = found is None and not tied
    return Outcome(
        prediction.id,
        place,
        found == gold.letters,
        status="tied" if tied else "unparsed" if unparsed else "read",
        note=prediction.response or "" if unparsed else "",
        group=discipline,
        answer="".join(sorted(found or ())),
        kinds=_kinds(key),
    )


def _read(response: str, key: Key) -> frozenset[str] | None:
    letters = ranked_letters(key.letters)
    return strict_answer(response, letters, key.texts if len(key.texts) == len(letters) else ())


def _kinds(key: Key) -> tuple[str, ...]:
    """Return whether one or several options are right, also where not all of them exist; overall and by discipline."""
    letters = strict_gold(key.answer, LETTERS).letters
    kind = "multi" if len(letters) > 1 else "single"
    return (kind, f"{kind} {key.subject.discipline}") if letters else ()


def ranked_letters(letters: Sequence[str]) -> tuple[str, ...]:
    """Return the letters that an answer may be made of: A to D where a question has no options that can be told."""
    return tuple(letters) if len(letters) > 1 else tuple(LETTERS[:4])


# What a reader must know ---------------------------------------------------------------------------------------------


def _label_notes(keys: Iterable[Key], *, mended: bool) -> list[str]:
    notes = [note for key in keys for note in _label_note(key, mended=mended)]
    more = len(notes) - _SHOWN_NOTES
    return [*notes[:_SHOWN_NOTES], f"{more} more answers like these."] if more > 0 else notes


def _label_note(key: Key, *, mended: bool) -> Iterator[str]:
    """Yield a sentence on an answer that is not plainly one or several option letters in order."""
    gold = strict_gold(key.answer, key.letters)
    if mended and (gold.problem or gold.remark):
        yield f"{key.id}: answer {key.answer!r}: {gold.problem or gold.remark}."
    elif not mended and key.label != "".join(sorted(gold.letters)):
        yield f"{key.id}: label {key.label!r} is compared as it stands."
    if key.id in _DISPUTED:
        yield f"{key.id}: published files disagree on the answer ({_DISPUTED[key.id]}); here it is {key.answer!r}."


def _missing(keys: Iterable[Key]) -> Iterator[str]:
    """Yield what the average lacks of MMCU."""
    present = {key.subject.discipline for key in keys}
    missing = [name for name in DISCIPLINES if name not in present]
    if missing:
        yield f"No question of {', '.join(missing)}: the average is over the other disciplines only."
