"""A YAML file of settings with the line of each key, for errors that say where."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ift.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A key of a YAML file."""

    line: int
    """From 1."""
    text: str | None
    """The value as written, where it is a single one."""


class ConfigFile:
    """The keys of a YAML file by dotted path (`data.sources[0].path`), in the order of the file.

    Args:
        name: path as the user typed it.

    Raises:
        UserError: no such file, no YAML mapping, or a key that stands there twice.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"--config: no file '{name}' (looked in {Path.cwd()}). Mend the path.")
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{name} line {line}: not valid YAML: {error.context or ''} {error.problem}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: not valid YAML: {error}") from error
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise UserError(f"{name}: expected keys and values, as in 'data:'.")
        self.entries: dict[str, Entry] = {}
        for key, entry in walk(root, "") if root is not None else ():
            if key in self.entries:
                first = self.entries[key].line
                raise UserError(f"{name} line {entry.line}: '{key}' stands on line {first} already. Keep one of them.")
            self.entries[key] = entry

    def place(self, key: str) -> str | None:
        """Return `file line N` of a dotted path."""
        return f"{self.name} line {self.entries[key].line}" if key in self.entries else None


def walk(node: yaml.Node, prefix: str) -> Iterator[tuple[str, Entry]]:
    """Yield every dotted path below a node with its entry, in the order of the text."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}.{key.value}" if prefix else str(key.value)
            yield path, Entry(key.start_mark.line + 1, value.value if isinstance(value, yaml.ScalarNode) else None)
            yield from walk(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from walk(value, f"{prefix}[{number}]")


def config_names(arguments: list[str]) -> list[str]:
    """Return the files named by `--config` or `-c`, in order."""
    names = []
    for position, argument in enumerate(arguments):
        if argument in ("--config", "-c") and position + 1 < len(arguments):
            names.append(arguments[position + 1])
        elif argument.startswith("--config="):
            names.append(argument.removeprefix("--config="))
    return names
