"""Win rates from preferences, as AlpacaEval's leaderboard has them.

A preference lies in [1, 2]: 1 plus the probability that the model's output is preferred to the baseline's; 1.5, and 0
in older files, is a draw. Files: the annotations that AlpacaEval writes (JSON, `preference` with `output_1` and
`output_2`), or CSV with `preference` and optional `dataset`, `len_output_1`, `len_output_2`. Output 2 is the model's.

The length-controlled rate needs AlpacaEval's published difficulty of every instruction; it is left to that tool.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.rows import Row, read_rows
from ift.errors import UserError


@dataclass(frozen=True)
class Preference:
    """A judge's preference on one instruction."""

    id: str
    dataset: str
    value: float | None
    """In [1, 2], a draw 1.5; `None` where the judge named neither."""
    lengths: tuple[int, int] | None = None
    """Characters of the baseline's and the model's output, where they are known."""


@dataclass(frozen=True)
class WinRate:
    """A row of the leaderboard; rates in percent."""

    win_rate: float
    """100 times the mean of the preferences less 1."""
    standard_error: float
    """Of the win rate, from the standard deviation with n - 1; NaN for a single preference."""
    discrete_win_rate: float
    """Wins and half of the draws among all."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    avg_length: int | None
    """Mean number of characters of the model's outputs, cut to a whole number."""
    avg_length_base: int | None


def win_rate(preferences: Sequence[Preference]) -> WinRate:
    """Return the row over those preferences that have a value.

    Raises:
        UserError: none has.
    """
    values = [one.value - 1 for one in preferences if one.value is not None]
    if not values:
        raise UserError(f"--predictions: none of {len(preferences)} annotations holds a preference.")
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else math.nan
    wins, losses = sum(value > 0.5 for value in values), sum(value < 0.5 for value in values)
    draws = n - wins - losses
    lengths = [one.lengths for one in preferences if one.lengths is not None]
    base, own = (int(sum(column) / len(lengths)) for column in zip(*lengths, strict=True)) if lengths else (None, None)
    return WinRate(
        win_rate=100 * mean,
        standard_error=100 * math.sqrt(variance / n),
        discrete_win_rate=100 * (wins + draws / 2) / n,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=n,
        avg_length=own,
        avg_length_base=base,
    )


def read_preferences(path: Path) -> list[Preference]:
    """Read annotations as JSON, or preferences as CSV.

    Raises:
        UserError: no such file, or a row without a usable `preference`.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else read_rows(path)
    return [_preference(row) for row in rows]


def _csv_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        fields: list[dict[str, object]] = [dict(row) for row in reader]
    return [Row(f"{path} row {number}", number - 1, row) for number, row in enumerate(fields, 1)]


def _preference(row: Row) -> Preference:
    if "preference" not in row.fields:
        found = ", ".join(f"'{name}'" for name in row.fields)
        raise UserError(f"{row.place}: a row of preferences needs 'preference'; found {found}.")
    return Preference(
        id=f"alpaca_eval-{row.index:05d}",
        dataset=str(row.fields.get("dataset") or "all"),
        value=_value(row),
        lengths=_lengths(row.fields),
    )


def _value(row: Row) -> float | None:
    written = row.fields["preference"]
    if written is None or written == "":
        return None
    try:
        value = float(str(written))
    except ValueError:
        value = -1.0
    if math.isnan(value):
        return None
    if value == 0:
        return 1.5
    if not 1 <= value <= 2:
        raise UserError(f"{row.place}: 'preference' must be from 1 to 2, or 0 for a draw; found {written!r}.")
    return value


def _lengths(fields: Mapping[str, object]) -> tuple[int, int] | None:
    if "len_output_1" in fields and "len_output_2" in fields:
        return int(str(fields["len_output_1"])), int(str(fields["len_output_2"]))
    outputs = fields.get("output_1"), fields.get("output_2")
    if isinstance(outputs[0], str) and isinstance(outputs[1], str):
        return len(outputs[0]), len(outputs[1])
    return None
