"""The command line: finds the command and calls it. Imports nothing heavy until a command needs it."""

import importlib
import os
import sys
from types import ModuleType

from ift import __version__
from ift.deferred_imports import deferred
from ift.errors import exit_code, unknown_name
from ift.interruptions import Interrupted, leave, watched
from ift.library_messages import hide_missing_kernel
from ift.small_objects import start_anew_with_settings

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("ift.commands.trainer", "fine-tune a base model on instruction data, into a new run folder"),
    "plan": ("ift.commands.plan", "predict memory, steps and time of a run, and what fits, before anything is loaded"),
    "validate": ("ift.commands.trainer", "measure the validation loss of a base model or a checkpoint"),
    "data": ("ift.commands.data", "look at instruction data: collections, audits, duplicates, contamination"),
    "predict": ("ift.commands.predict", "answer prompts, or rank given options, with a run or a base model"),
    "merge": ("ift.commands.merge", "merge a run into a plain model folder, with a certificate and a model card"),
    "check": ("ift.commands.check", "hold this machine, or a run's configuration, to what must stay true"),
    "diff": ("ift.commands.diff", "name what differed between two runs, and where their losses part"),
    "consolidate": ("ift.commands.consolidate", "write a checkpoint as one model folder or adapter, without its ranks"),
    "convert": ("ift.commands.convert", "rewrite a base model of 2023 as a plain one, or back; or an adapter of one"),
}
"""Name to module and one line of help; the module has `run(command, arguments)`."""
_TRAINS = ("fit", "plan")
"""Commands that train on this machine, or ask its heap what training will take."""
_RESUMABLE = ("fit", "validate", "predict")
"""Commands that go on where they were when they are given again, and may be jobs of a cluster."""


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
        The exit code: 0; 1 where a check or comparison says no; 2 for a mistake that the user can repair; 69 where
        other processes of the run are gone; 75 after a signal, where the same command goes on; 130 after Ctrl-C.
    """
    is_program = arguments is None
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    arguments = [argument for argument in given if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"ift {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"error: {unknown_name('command', command, COMMANDS)}", file=sys.stderr)
        return 2
    if is_program and command in _TRAINS:
        start_anew_with_settings()
    module = COMMANDS[command][0]
    # Class paths and row functions may lie in the folder that ift is started in, as with `python -m ift`; last, so that
    # a file there takes the place of no installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    # Torch looks at it once: large tensors lie in large pages of memory, so that a step takes fewer page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if command not in _RESUMABLE:
        return exit_code(lambda: _imported(module).run(command, rest), debug=debug)
    # From here on: a signal during the imports must not end a job that would have been started again.
    with watched(is_program=is_program):
        try:
            return exit_code(lambda: _imported(module).run(command, rest), debug=debug)
        except Interrupted as interrupted:
            return leave(interrupted)


def _imported(module: str) -> ModuleType:
    """Import a command, but not what its libraries only want to have at hand."""
    hide_missing_kernel()
    with deferred():
        return importlib.import_module(module)
