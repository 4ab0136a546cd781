"""`ift data chain_of_thought`: a file of questions, answers and rationales in, a new file of alpaca rows out."""

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ift.commands.option_parser import OptionParser
from ift.data.chain_of_thought import Converted, convert, wordings
from ift.errors import UserError, unknown_name

PLACES_SHOWN = 5
"""Lines named per reason for which records were refused."""
SUFFIXES = (".json", ".jsonl")
DESCRIPTION = """Make alpaca rows (instruction, empty input, output) of questions with answers and rationales. Each is
worded by one template of the data set's set; the same seed gives the same rows. Nothing is overwritten, and every
record that cannot be used is counted with its reason and line."""
INPUT_HELP = "question, answer, rationale, separated by tabs, with CSV quoting; UTF-8, without a header line"


@dataclass
class Counts:
    """What became of the records so far."""

    read: int = 0
    templates: Counter[int] = field(default_factory=Counter)
    """Place of a template, from 0, to the number of its rows."""
    loosely_quoted: int = 0
    rejected: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Reason to the lines on which the records begin."""

    def add(self, converted: Converted) -> None:
        """Count one record."""
        self.read += 1
        self.loosely_quoted += converted.loosely_quoted
        if converted.template is None:
            self.rejected[converted.problem].append(converted.line)
        else:
            self.templates[converted.template] += 1

    def rejects(self, path: Path) -> list[str]:
        """Return one line per reason with the first places, the commonest reason first."""
        reasons = sorted(self.rejected.items(), key=lambda item: -len(item[1]))
        return [f"  {len(lines)} x {reason}: {path} line {_listed(lines)}" for reason, lines in reasons]


def run(subcommand: str, arguments: list[str]) -> None:
    """Run the subcommand: write the rows, print the counts.

    Raises:
        UserError: a wrong option, a file that cannot be read, an output that exists, or no record that is one.
    """
    given = _parsed(subcommand, arguments)
    source, target = Path(given.input).expanduser(), Path(given.output).expanduser()
    _check(given, source, target)
    known = wordings()
    templates = known.datasets[given.dataset]
    suffix = "" if given.think_first == "none" else known.think_first[given.think_first]
    counts = Counts()
    converted = convert(source, templates, seed=given.seed, suffix=suffix)
    _write_new(target, _counted(converted, counts), source=source, counts=counts)
    written = counts.templates.total()
    shares = (f"{place + 1}: {counts.templates[place]}" for place in range(len(templates)))
    print(f"records read: {counts.read} ({source}, dataset {given.dataset}, seed {given.seed})")
    print(f"rows written: {written} ({target})")
    print(f"rows per template: {', '.join(shares)}")
    if counts.loosely_quoted:
        print(f"loosely quoted: {counts.loosely_quoted} (a field begins with a quotation mark that closes within it;")
        print("  such marks are read as CSV quoting, as for the published rows, and are not in the output)")
    print("\n".join([f"records rejected: {counts.read - written}", *counts.rejects(source)]))


def _parsed(subcommand: str, arguments: list[str]) -> argparse.Namespace:
    parser = OptionParser(f"ift data {subcommand}", DESCRIPTION)
    known = wordings()
    languages = ", ".join(f"{name} “{text}”" for name, text in known.think_first.items())
    names = ", ".join(sorted(known.datasets))
    options: dict[str, dict[str, Any]] = {
        "--dataset": {"required": True, "metavar": "NAME", "help": f"whose template set: {names}"},
        "--input": {"required": True, "metavar": "FILE.tsv", "help": INPUT_HELP},
        "--output": {
            "required": True,
            "metavar": "FILE",
            "help": "new file: .json for one array, .jsonl for one row per line",
        },
        "--seed": {
            "type": int,
            "default": 0,
            "help": "with a record's number in the file it decides the record's template (default 0)",
        },
        "--think-first": {
            "default": "none",
            "metavar": "LANGUAGE",
            "help": f"end every instruction with a line that asks to think first: none (default), {languages}",
        },
    }
    for name, settings in options.items():
        parser.add_argument(name, **settings)
    return parser.parse(arguments)


def _check(given: argparse.Namespace, source: Path, target: Path) -> None:
    known = wordings()
    if given.dataset not in known.datasets:
        raise unknown_name("--dataset", given.dataset, known.datasets)
    if given.think_first not in ("none", *known.think_first):
        raise unknown_name("--think-first", given.think_first, ("none", *known.think_first))
    if given.seed < 0:
        raise UserError(f"--seed: {given.seed} is below 0. Give 0 or more.")
    if not source.is_file():
        found = "is a folder" if source.is_dir() else f"is no file (looked in {Path.cwd()})"
        raise UserError(f"--input: '{given.input}' {found}. Name the .tsv file.")
    if target.suffix not in SUFFIXES:
        raise UserError(f"--output: '{given.output}' must end in {' or '.join(SUFFIXES)}, which decides its form.")
    if target.exists():
        raise UserError(
            f"--output: '{given.output}' exists and nothing is overwritten. Give another path, or remove it."
        )


def _counted(converted: Iterable[Converted], counts: Counts) -> Iterator[Mapping[str, str]]:
    from tqdm import tqdm

    for one in tqdm(converted, desc="Converting", unit=" records", delay=2.0):
        counts.add(one)
        if one.row is not None:
            yield one.row


def _write_new(target: Path, rows: Iterator[Mapping[str, str]], *, source: Path, counts: Counts) -> None:
    """Write the rows to a new file that appears only when it is whole, and not at all without a row."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            _write(file, rows, array=target.suffix == ".json")
        if not counts.templates:
            reasons = "\n".join(counts.rejects(source)) or "  it holds no record"
            raise UserError(f"--input: no record of '{source}' can be used, so nothing is written:\n{reasons}")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: TextIO, rows: Iterator[Mapping[str, str]], *, array: bool) -> None:
    before, between, after = ("[\n", ",\n", "\n]\n") if array else ("", "\n", "\n")
    for number, row in enumerate(rows):
        file.write((between if number else before) + json.dumps(row, ensure_ascii=False))
    file.write(after)


def _listed(lines: list[int]) -> str:
    rest = len(lines) - PLACES_SHOWN
    return ", ".join(map(str, lines[:PLACES_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
