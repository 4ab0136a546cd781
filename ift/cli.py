"""The command line: finds the command and calls it. Imports nothing heavy until a command needs it."""

import difflib
import importlib
import sys

from ift import __version__
from ift.errors import UserError

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("ift.commands.trainer", "fine-tune a base model on instruction data, into a new run folder"),
    "validate": ("ift.commands.trainer", "measure the validation loss of a base model or a checkpoint"),
    "predict": ("ift.commands.predict", "answer prompts, or rank given options, with a run or a base model"),
}
"""Name to module and one line of help; the module has `run(command, arguments)`."""


def usage() -> str:
    """Return the text of `ift --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"ift {__version__}: instruction fine-tuning of large language models, for studying it",
            "",
            "usage: ift COMMAND --config FILE.yaml [--config OVERLAY.yaml ...] [--KEY VALUE ...]",
            "       ift COMMAND --help | ift --version",
            "",
            "commands:",
            *lines,
            "",
            "  --print_config   show the resolved configuration and stop",
            "  --debug          show the traceback of an error",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit code: 0, 2 for a mistake that the user can repair, 130 after an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"ift {__version__}")
        return 0
    debug = "--debug" in arguments
    command, *rest = [argument for argument in arguments if argument != "--debug"]
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        suggestion = f" Did you mean '{nearest[0]}'?" if nearest else ""
        print(f"error: unknown command '{command}'.{suggestion} Known: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        importlib.import_module(COMMANDS[command][0]).run(command, rest)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a read-only folder, a vanished mount
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
