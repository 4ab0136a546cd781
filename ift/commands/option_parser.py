"""Options of the commands that are no run: argparse, whose mistakes are this project's errors."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ift.errors import UserError, unknown_name


class OptionParser(argparse.ArgumentParser):
    """Says what is wrong with an option in one sentence."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the error.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.prog}: {message.removeprefix('argument ')}. See '{self.prog} --help'.")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options.

        Raises:
            UserError: an unknown option, with the nearest one, or a wrong value.
        """
        for argument in arguments:
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                raise unknown_name(self.prog, name, [own for own in self._option_string_actions if own[:2] == "--"])
        return self.parse_args(arguments)


def writable_file(key: str, name: str) -> Path:
    """Return the path of a file that a command writes at its end, its folder made.

    Args:
        key: the option.
        name: as the user typed it.

    Raises:
        UserError: it is a folder, or nothing can be written beside it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"{key}: '{name}' is a folder. Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise UserError(
            f"{key}: '{name}' cannot be written: {error.strerror}. Name a file in a folder that can."
        ) from error
