"""`python -m eval agree`: how far two raters of the same items agree, such as a judge and people, or two judges."""

import argparse
import csv
import json
import math
from dataclasses import fields
from pathlib import Path

from eval.agreement import Agreement, Coefficient, agreement
from eval.rows import read_rows
from ift.errors import UserError

_LABELS = {
    "spearman": "Spearman's rank correlation",
    "pearson": "Pearson's correlation",
    "kappa": "Cohen's kappa",
    "weighted_kappa": "Cohen's kappa, quadratic weights",
    "mean_absolute_difference": "mean absolute difference",
}


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    command = commands.add_parser("agree", parents=[common], help="measure how far two raters agree")
    place = "report folder, or a CSV or JSON file with `id` and `score`"
    command.add_argument("first", type=Path, metavar="FIRST", help=place)
    command.add_argument("second", type=Path, metavar="SECOND", help="likewise")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Read both, compare and print."""
    first, second = read_scores(options.first), read_scores(options.second)
    found = agreement(first, second)
    alone = len(first) + len(second) - 2 * found.n
    print(f"{found.n} items that both scored; {alone} that only one did are left out")
    print("\n".join(agreement_lines(found)))


def agreement_lines(found: Agreement) -> list[str]:
    """Return one line per measure."""
    named = {field.name: getattr(found, field.name) for field in fields(found) if field.name in _LABELS}
    width = max(map(len, _LABELS.values()))
    return [f"{_LABELS[name]:<{width}}  {_said(value)}" for name, value in named.items()]


def read_scores(path: Path) -> dict[str, float]:
    """Return the scores of a report's items that count, or of a file's rows, by id.

    Raises:
        UserError: no such file, a row without `id` or `score`, a score that is no number, or an id that occurs twice.
    """
    if path.is_dir():
        path = path / "items.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: no such file. Give a report folder of `python -m eval score`.")
        items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [(f"{path}", item["id"], item["value"]) for item in items if item["value"] is not None]
    elif path.suffix == ".csv":
        rows = _csv_rows(path)
    else:
        rows = [(row.place, row.fields.get("id"), row.fields.get("score")) for row in read_rows(path)]
    scores: dict[str, float] = {}
    for place, name, score in rows:
        value = _number(place, name, score)
        if str(name) in scores:
            raise UserError(f"{place}: the id '{name}' occurs twice.")
        scores[str(name)] = value
    return scores


def _csv_rows(path: Path) -> list[tuple[str, object, object]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file)
        return [(f"{path} line {lines.line_num}", row.get("id"), row.get("score")) for row in lines]


def _number(place: str, name: object, score: object) -> float:
    if name is None or score is None:
        raise UserError(f"{place}: a row needs 'id' and 'score'.")
    try:
        value = float(str(score))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: 'score' must be a number; found '{score}'.")
    return value


def _said(one: Coefficient) -> str:
    if math.isnan(one.value):
        return "not defined (a rater gave every item the same score)"
    return f"{one.value:.3f} [{one.interval[0]:.3f}, {one.interval[1]:.3f}]"
