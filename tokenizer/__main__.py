"""`python -m tokenizer`: trains a vocabulary, merges and extends vocabularies, and compares tokenizers."""

import argparse
import sys
from collections.abc import Sequence

from ift.errors import exit_code
from tokenizer import compare_command, merge_command, train_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 for a mistake of the user."""
    options = make_parser().parse_args(arguments)
    return exit_code(lambda: options.run(options), debug=options.debug)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (train_command, merge_command, compare_command):
        module.add_commands(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
