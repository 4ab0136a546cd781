"""A parser whose errors name the file, the line, the key and the nearest right one."""

import ast
import difflib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from ift.errors import UserError

_HELP_KEYS = frozenset({"config", "print_config", "help"})


class ConfigFile:
    """A YAML file with the line of each key.

    Args:
        name: path as the user typed it.

    Raises:
        UserError: no such file, or no YAML mapping.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"--config: no file '{name}' (looked in {Path.cwd()}).")
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: not valid YAML: {error}") from error
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise UserError(f"{name}: expected keys and values.")
        self.lines = dict(_walk(root, "")) if root is not None else {}
        """Dotted path to line, from 1, in the order of the file."""

    def place(self, key: str) -> str | None:
        """Return `file line N` of a dotted path, or of the last key of that name."""
        path = key if key in self.lines else next((p for p in self.lines if p.split(".")[-1] == key), None)
        return f"{self.name} line {self.lines[path]}" if path else None


def _walk(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}.{key.value}" if prefix else str(key.value)
            yield path, key.start_mark.line + 1
            yield from _walk(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _walk(value, f"{prefix}[{number}]")


def config_names(arguments: list[str]) -> list[str]:
    """Return the files named by `--config` or `-c`, in order."""
    names = []
    for position, argument in enumerate(arguments):
        if argument in ("--config", "-c") and position + 1 < len(arguments):
            names.append(arguments[position + 1])
        elif argument.startswith("--config="):
            names.append(argument.removeprefix("--config="))
    return names


class ConfigParser(LightningArgumentParser):
    """Raises `UserError` instead of printing the usage and exiting."""

    _files: list[ConfigFile]

    def keys(self) -> list[str]:
        """Return every key that a configuration file may hold at a fixed place, sorted."""
        return sorted({action.dest for action in self._actions if action.dest not in _HELP_KEYS})

    def check_files(self, arguments: list[str]) -> None:
        """Read the configuration files and refuse unknown keys.

        Raises:
            UserError: with file, line and the nearest known key.
        """
        self._files = [ConfigFile(name) for name in config_names(arguments)]
        known = self.keys()
        for file in self._files:
            for path in file.lines:
                self._check_key(file, path, known)

    def _check_key(self, file: ConfigFile, path: str, known: list[str]) -> None:
        if "[" in path or path in known or any(key.startswith(path + ".") for key in known):
            return
        parent = path
        while "." in parent:
            parent = parent.rpartition(".")[0]
            if parent in known and not any(key.startswith(parent + ".") for key in known):
                return  # inside a value; the type of the value decides
            if parent in known and parent + ".class_path" in file.lines:
                return  # settings of a class; jsonargparse knows them
        raise UserError(f"{file.name} line {file.lines[path]}: unknown key '{path}'.{_nearest(path, known)}")

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Explain jsonargparse's message in the user's terms."""
        raise UserError(self.explain(message)) from ex

    def explain(self, message: str) -> str:
        """Return the message with file, line and the nearest right name."""
        if match := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
            key = match[1].lstrip("-").partition("=")[0]
            return f"unknown option '{match[1]}'.{_nearest(key, self.keys(), prefix='--')}"
        key = next(iter(re.findall(r"[Kk]ey \"([^\"]+)\"", message)), "")
        if "Got value: None" in message and not self._place(key):
            return f"{key}: required, and not given. Set it in the YAML, or with --{key}."
        text = re.sub(r"\s*\n\s*", " ", message.strip())
        text = re.sub(r"^Parser key \"([^\"]+)\":", r"\1:", text).replace("typing.", "")
        unknown = re.findall(r"class_path '([^']+)'[^']*?Option '([^']+)' is not accepted", text)
        if unknown:
            class_path, option = unknown[-1]
            place = self._place(option)
            nearest = _nearest(option, _settings(class_path))
            text = f"{key or class_path}: {class_path} has no setting '{option}'.{nearest}"
            return f"{place}: {text}" if place else text
        place = self._place(key)
        text += _nearest_choice(text)
        return f"{place}: {text}" if place else text

    def _place(self, key: str) -> str | None:
        places = [file.place(key) for file in getattr(self, "_files", [])] if key else []
        return next((place for place in reversed(places) if place), None)

    def parse_args(self, args: Any = None, namespace: Any = None, **options: Any) -> Any:
        """Parse, with the files checked first."""
        self.check_files([str(argument) for argument in args or []])
        try:
            return super().parse_args(args, namespace, **options)
        except ArgumentError as error:
            raise UserError(self.explain(str(error))) from error


def _nearest(name: str, known: list[str], *, prefix: str = "") -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not found:  # the right last name in the wrong place
        last = name.rpartition(".")[2]
        found = [key for key in known if key.rpartition(".")[2] == last][:1]
    if found:
        return f" Did you mean '{prefix}{found[0]}'?"
    siblings = [key for key in known if key.rpartition(".")[0] == name.rpartition(".")[0]]
    return f" Known there: {', '.join(siblings[:30])}." if siblings else ""


def _nearest_choice(text: str) -> str:
    match = re.search(r"Literal(\[[^\]]*\]).*Got value: (\S+)", text)
    if not match:
        return ""
    found = difflib.get_close_matches(match[2], [str(choice) for choice in ast.literal_eval(match[1])], n=1)
    return f". Did you mean '{found[0]}'?" if found else ""


def _settings(class_path: str) -> list[str]:
    from jsonargparse._util import import_object

    try:
        return list(inspect.signature(import_object(class_path)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
