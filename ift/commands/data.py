"""`ift data …`: finds the subcommand and calls it. Imports nothing heavy until one needs it."""

import importlib

from ift.errors import unknown_name

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "list": ("ift.commands.data_catalogue", "list the catalogue of instruction collections, with filters"),
    "show": ("ift.commands.data_catalogue", "show all that the catalogue knows of one collection"),
    "chart": ("ift.commands.data_catalogue", "draw the sizes of the collections as an image"),
    "inspect": ("ift.commands.data_inspect", "show examples token by token, and audit the data of a run"),
    "deduplicate": ("ift.commands.data_deduplicate", "find exact and near duplicates, and leave them out"),
    "contamination": ("ift.commands.data_contamination", "find training rows that overlap with a benchmark"),
    "chain_of_thought": ("ift.commands.data_chain_of_thought", "make alpaca rows of questions with rationales"),
}
"""Name to module and one line of help; the module has `run(subcommand, arguments)`."""


def usage() -> str:
    """Return the text of `ift data --help`."""
    width = max(map(len, SUBCOMMANDS), default=0)
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in SUBCOMMANDS.items()]
    head = ["usage: ift data SUBCOMMAND ...", "       ift data SUBCOMMAND --help", "", "subcommands:"]
    return "\n".join([*head, *lines])


def run(command: str, arguments: list[str]) -> None:
    """Run a subcommand.

    Raises:
        UserError: an unknown one.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        raise unknown_name("data", name, SUBCOMMANDS)
    importlib.import_module(SUBCOMMANDS[name][0]).run(name, rest)
