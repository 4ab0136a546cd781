"""Report folders for the tests of compare, made through the writer of the program."""

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import compare_command
from eval.benchmark import Benchmark
from eval.output import Sources, write_report
from eval.report import Outcome, summarize
from ift.errors import exit_code
from ift.records import Prediction


def write(folder: Path, outcomes: Iterable[Outcome], name: str = "exam", *, version: int = 1, **options: Any) -> Path:
    """Write the report of one system on one benchmark; `options` are those of `summarize`, and `protocol`, `ranked`."""
    outcomes = list(outcomes)
    protocol, ranked = options.pop("protocol", "strict"), options.pop("ranked", False)
    scores: dict[str, Any] = {"options": ("A", "B"), "option_scores": (-1.0, -2.0)} if ranked else {"response": "x"}
    predictions = [Prediction(one.id, "…", **scores) for one in outcomes]
    benchmark = Benchmark(name, protocol, version, "", prepare=lambda path: [])
    report = summarize(outcomes, predictions, **options)
    write_report(folder, benchmark, report, Sources(data=None, predictions=folder / "predictions.jsonl"))
    return folder


def exam(right: str, categories: Sequence[str] = ("一",), groups: Sequence[str] = ("",)) -> list[Outcome]:
    """One item per letter: `1` right, `0` wrong, `-` excluded, `?` without a usable score; categories take turns."""
    status = {"-": "excluded", "?": "unread"}
    return [
        Outcome(
            f"i-{number:04d}",
            categories[number % len(categories)],
            letter == "1",
            status=status.get(letter, "read"),  # type: ignore[arg-type]
            note="none" if letter in status else "",
            group=groups[number % len(categories) % len(groups)],
        )
        for number, letter in enumerate(right)
    ]


def judged(values: Iterable[float], categories: Sequence[str] = ("一",)) -> list[Outcome]:
    """One item per value; categories take turns."""
    return [
        Outcome(f"i-{number:04d}", categories[number % len(categories)], value=float(value))
        for number, value in enumerate(values)
    ]


def letters(share: float, n: int, seed: int) -> str:
    """Right and wrong at random."""
    return "".join("1" if one else "0" for one in np.random.default_rng(seed).random(n) < share)


def compare(*arguments: object) -> int:
    """Run the command as the program does, and return its exit code."""
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true")
    compare_command.add_parser(parser.add_subparsers(), common)
    options = parser.parse_args(["compare", *map(str, arguments)])
    return exit_code(lambda: options.run(options), debug=options.debug)


Rows = dict[tuple[str, str, str], dict[str, str]]


def read_csv(folder: Path) -> Rows:
    """Return the lines by part, name and system."""
    with (folder / "compare.csv").open(encoding="utf-8", newline="") as file:
        return {(row["part"], row["name"], row["system"]): row for row in csv.DictReader(file)}


def numbers(row: dict[str, str], *names: str) -> list[float]:
    return [float(row[name]) for name in names]
