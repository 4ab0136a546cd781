"""`ift data inspect`: examples token by token and the audit of a run's data, in the terminal or as one page."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ift.commands.option_parser import OptionParser
from ift.errors import UserError

if TYPE_CHECKING:
    from ift.commands.inspection import Inspection, Shown
    from ift.data.datamodule import InstructionDataModule

_DESCRIPTION = """Show examples token by token, with what the loss counts, and audit the data of a run: tokens and
supervised share, lengths, end-of-text, rejected rows, duplicates. Reads the same YAML as `ift fit`; loads no model."""
_EPILOG = """Every option of `ift fit` is taken too (--data.max_length 512, --model.base FOLDER, more --config files).
Examples are numbered from 1, in the order of the sources and their files; those held out for validation are among
them and say so."""


def run(subcommand: str, arguments: list[str]) -> None:
    """Show the examples and the audit.

    Raises:
        UserError: a wrong option or setting, data that cannot be read, or a page that exists; and, after all is shown,
            data on which no run can be trained.
    """
    parser = _parser(subcommand)
    given, rest = parser.parse_known_args(arguments)
    page = _new_page(given.html)
    data = _quick(given, rest, parser) if given.source is not None else _configured(given, rest)
    from ift.commands.inspection import inspect, show

    inspected = inspect(data, validation=given.validation)
    shown = [show(inspected, index) for index in _chosen(inspected, given)]
    colour = given.color == "always" or (given.color == "auto" and takes_colour())
    print(_text(inspected, shown, colour=colour))
    if page is not None:
        from ift.commands.audit_page import write_page

        write_page(page, inspected, shown)
        print(f"page: {page}", file=sys.stderr)
    if number := len(inspected.problems):
        raise UserError(f"{inspected.key}: {number} of the above make it impossible to train on these data; mend them.")


def _parser(subcommand: str) -> OptionParser:
    parser = OptionParser(f"ift data {subcommand}", _DESCRIPTION)
    parser.epilog = _EPILOG
    parser.add_argument("--number", type=int, default=3, metavar="N", help="show the first N examples (default 3)")
    parser.add_argument("--example", type=int, action="append", metavar="N", help="show example N; may be repeated")
    parser.add_argument("--validation", action="store_true", help="show what validation uses instead of all examples")
    parser.add_argument("--html", metavar="FILE", help="write examples and audit as one page, too; a new file")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colour in the terminal (auto, the default; NO_COLOR turns it off), always, or never",
    )
    run_file = parser.add_argument_group("the data of a run")
    run_file.add_argument("--config", metavar="FILE.yaml", action="append", help="the YAML of `ift fit`")
    quick = parser.add_argument_group("or a file, without a YAML")
    quick.add_argument("--source", metavar="FILE", help="rows")
    quick.add_argument("--base", metavar="FOLDER", help="folder or hub id of a base model or a tokenizer")
    quick.add_argument("--layout", metavar="NAME", help="layout of the rows; found out where it is left out")
    quick.add_argument("--template", metavar="NAME", help="as data.template; alpaca where it is left out")
    quick.add_argument("--max_length", type=int, metavar="N", help="longest example in tokens; 2048 where left out")
    return parser


def _new_page(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.exists():
        raise UserError(f"--html: '{name}' exists, and nothing is overwritten. Give another name, or remove it.")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html: '{name}' must end in .html.")
    return path


def takes_colour() -> bool:
    """Whether the output is a terminal that shows colour, and the user has not asked for none."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _quick(given: argparse.Namespace, rest: Sequence[str], parser: OptionParser) -> "InstructionDataModule":
    """Return the data module of one file of rows."""
    if given.config:
        raise UserError("--source: a file beside --config; the YAML names its sources itself. Give one of the two.")
    if given.base is None:
        raise UserError("--base: required beside --source: the folder or hub id whose tokenizer cuts the rows.")
    if rest:
        parser.parse(list(rest))  # none of them is an option of this command
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    length = given.max_length if given.max_length is not None else 2048
    source = Source(given.source, given.layout)
    return InstructionDataModule([source], given.base, length, 1, length, template=given.template or "alpaca")


def _configured(given: argparse.Namespace, rest: Sequence[str]) -> "InstructionDataModule":
    """Return the data module of a run's YAML, parsed and checked as `ift fit` does."""
    if not given.config:
        raise UserError("--config: required: the YAML of the run, as for `ift fit`; or --source and --base for a file.")
    for name in ("base", "layout", "template", "max_length"):
        if (value := getattr(given, name)) is not None:
            key = "model.base" if name == "base" else "data.sources" if name == "layout" else f"data.{name}"
            raise UserError(f"--{name}: '{value}' belongs to --source. With --config, set {key}.")
    from ift.commands.inspect_config import configured_data

    return configured_data([argument for name in given.config for argument in ("--config", name)] + list(rest))


def _chosen(inspected: "Inspection", given: argparse.Namespace) -> list[int]:
    """Return the indices of the examples to show."""
    size = len(inspected.store)
    if given.number < 0:
        raise UserError(f"--number: {given.number} is below 0. 0 shows the audit alone.")
    if given.example is None:
        among = sorted(inspected.held_out) if given.validation else range(size)
        return list(among[: given.number])
    for number in given.example:
        if not 1 <= number <= size:
            raise UserError(f"--example: {number}, and there are {size} examples, numbered from 1.")
        if given.validation and number - 1 not in inspected.held_out:
            raise UserError(f"--example: {number} is not held out for validation. Leave --validation out to see it.")
    return [number - 1 for number in given.example]


def _text(inspected: "Inspection", shown: Sequence["Shown"], *, colour: bool) -> str:
    from ift.commands.inspect_text import audit_text, example_text, legend

    parts = [legend(colour=colour), ""] if shown else []
    parts += [example_text(one, colour=colour) for one in shown]
    return "\n".join([*parts, audit_text(inspected, colour=colour)])
