"""`compare`: how several tokenizers cut the same text."""

import argparse
from pathlib import Path
from typing import Any

from ift.errors import UserError


def add_commands(commands: Any) -> None:
    """Add the command to the program."""
    command: argparse.ArgumentParser = commands.add_parser("compare", help="compare tokenizers on text")
    command.add_argument(
        "--tokenizer",
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders with a tokenizer.json or a SentencePiece model, or such files",
    )
    command.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="text or rows of instruction data, as ift reads them: .txt, .json, .jsonl, .csv, .tsv, .parquet, also "
        "compressed, or a pattern; the id of a data set on the hub, or a name of `ift data list`; a record is a line "
        "or a row",
    )
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="a new folder for compare.json, compare.md and compare.svg"
    )
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from tokenizer.comparison import compare, load
    from tokenizer.comparison_report import as_json, as_markdown, as_svg, as_text
    from tokenizer.output import check_new, new_folder, write_json

    for key, given in (("--tokenizer", options.tokenizer), ("--input", options.input)):
        for path in given:
            if given.count(path) > 1:
                raise UserError(f"{key}: '{path}' stands there twice. Leave one out.")
    if options.output is not None:
        check_new(options.output)
    comparison = compare([load(path) for path in options.tokenizer], options.input)
    print(as_text(comparison))
    for source, number in comparison.unreadable.items():
        print(f"{source}: {number} rows hold no text that could be read and were left out")
    if options.output is not None:
        with new_folder(options.output) as folder:
            write_json(folder / "compare.json", as_json(comparison))
            (folder / "compare.md").write_text(as_markdown(comparison), encoding="utf-8")
            (folder / "compare.svg").write_text(as_svg(comparison), encoding="utf-8")
