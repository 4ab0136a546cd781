"""One set of likelihoods under every rule of `eval/likelihood.py`: what is asked for it, and what a report says of it.

`--mode scorings` asks each question with its letters and its full texts as options, each with and without a blank, and
with the prompts without content that the calibrated rules need (`eval/baselines.py`). `score --scoring NAME` takes one
of the rules for headline, parts and items; the report has the average of every rule beside it. Predictions of another
mode can be scored by the rules that need no more than they hold.

The cost is five prompts per question: itself, one for `pmi`, three for `contextual`. A model runs about five times the
tokens of `--mode choice`, with or without worked examples (CMMLU, LLaMA's tokenizer), nearly all of them options.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from eval.aggregation import Aggregation
from eval.likelihood import DEFAULT, SCORINGS, Chooser, Option, Scoring, scoring, spelled
from eval.report import Outcome, Report, Rule, Score, score_of
from ift.errors import UserError


def lettered_and_full(name: str, answers: Mapping[str, str]) -> tuple[Option, ...]:
    """Return the options for letters and for their full texts, each in both spellings.

    Args:
        name: of the question, for the message.
        answers: letters and the text of each.

    Raises:
        UserError: an option has no text, which cannot be ranked.
    """
    empty = [letter for letter, text in answers.items() if not text.strip()]
    if empty:
        raise UserError(
            f"--mode scorings: '{name}': option {empty[0]} has no text to rank. Take --mode choice, which ranks "
            "letters only, or complete the data."
        )
    return (*spelled(tuple(answers)), *spelled(answers))


def chosen_rule(name: str | None, choosers: Mapping[str, Chooser]) -> Scoring:
    """Return the rule of that name, or the default one.

    Args:
        name: as typed.
        choosers: of the questions; none where the model wrote its answers.

    Raises:
        UserError: there is no such rule, or the predictions do not hold what it needs.
    """
    rule = scoring(DEFAULT if name is None else name)
    for id_, chooser in choosers.items():
        if rule.name not in chooser.rules:
            nearest = difflib.get_close_matches(rule.name, chooser.rules, n=1, cutoff=0)[0]
            raise UserError(
                f"--scoring: '{rule.name}' needs options that '{id_}' was not asked with, as --mode scorings does. Did "
                f"you mean '{nearest}'? With these predictions: {', '.join(chooser.rules)}."
            )
    if name is not None and not choosers:
        raise UserError(f"--scoring: '{name}': a rule for likelihoods, and these answers were written. Leave it out.")
    return rule


def ranked_outcome(found: Outcome, best: Sequence[str], reference: str) -> Outcome:
    """Return what became of a question whose best options are known: one, or several that are tied."""
    return replace(found, status=_status(best), answer="/".join(best), correct=list(best) == [reference])


def _status(best: Sequence[str]) -> Literal["read", "tied"]:
    return "read" if len(best) == 1 else "tied"


def with_rules(
    report: Report,
    rule: Scoring,
    *,
    choosers: Mapping[str, Chooser],
    references: Mapping[str, str],
    aggregation: Aggregation,
    clustered: bool,
) -> Report:
    """Return a report that says by which rule it was made, and what every other rule that was asked for gives.

    Args:
        report: under that rule.
        rule: the one.
        choosers: of the questions, by id.
        references: right answers, by id.
        aggregation: the average by which rules are compared.
        clustered: as for `summarize`.
    """
    counted = [item for item in report.items if item.counts]
    names = set.intersection(*(set(choosers[item.id].rules) for item in counted))
    rules, aggregates = {}, {}
    for name in (name for name in SCORINGS if name in names):
        best = [choosers[item.id].choose(SCORINGS[name]).best for item in counted]
        outcomes = [
            Outcome(item.id, item.category, own == (references[item.id],), _status(own), group=item.group)
            for item, own in zip(counted, best, strict=True)
        ]
        average = f"{name}_{aggregation.name}"
        aggregates[average] = score_of(outcomes, aggregation, clustered=clustered)
        others = sum("/".join(own) != item.answer for own, item in zip(best, counted, strict=True))
        rules[name] = Rule(average, others, sum(len(own) > 1 for own in best))
    return replace(
        report,
        scoring=rule.name,
        rules=rules,
        aggregates={**report.aggregates, **aggregates},
        notes=(*report.notes, *_notes(rules, aggregates)),
    )


def _notes(rules: Mapping[str, Rule], aggregates: Mapping[str, Score]) -> list[str]:
    scores = {name: aggregates[one.average].score for name, one in rules.items()}
    lowest, highest = min(scores, key=scores.__getitem__), max(scores, key=scores.__getitem__)
    ties = ", ".join(f"{name} {one.tied}" for name, one in rules.items() if one.tied)
    return [
        f"The same likelihoods give {scores[lowest]:.4f} by {lowest} and {scores[highest]:.4f} by {highest}: name the "
        "rule with the score, and choose it before the scores are seen.",
        f"Questions with several best options, counted as wrong, by rule: {ties or 'none by any'}.",
    ]
