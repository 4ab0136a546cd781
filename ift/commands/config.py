"""A parser whose errors name the file, the line, the key and the nearest right one."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from ift.commands.config_file import ConfigFile, config_names
from ift.commands.messages import is_missing, key_in, nearest, simplified
from ift.commands.method_names import KEY, adapter_setting, class_path_of, full_arguments, with_class_paths
from ift.errors import UserError

_HELP_KEYS = frozenset({"config", "print_config", "print_shtab", "help"})
_CLASS_KEYS = ["class_path", "init_args", "dict_kwargs"]


class ConfigParser(LightningArgumentParser):
    """Raises `UserError` instead of printing the usage and exiting."""

    other_options: Sequence[str] = ()
    """Of the command, taken from its arguments before those come here; without the dashes."""
    _files: Sequence[ConfigFile] = ()
    _arguments: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._sources: dict[str, str] = {}
        super().__init__(*args, **options)

    def link_arguments(self, source: Any, target: str, *args: Any, **options: Any) -> None:
        """Let one key follow another, and remember it: to set it would have no effect."""
        self._sources[target] = source
        super().link_arguments(source, target, *args, **options)

    def keys(self) -> list[str]:
        """Return every key that a configuration file may hold at a fixed place, sorted."""
        found = {action.dest for action in self._actions} - _HELP_KEYS - self._sources.keys()
        return sorted(key for key in found if not key.endswith(".help"))

    def check_files(self, arguments: list[str]) -> None:
        """Read the configuration files and refuse unknown and missing keys, also inside lists and class settings.

        Raises:
            UserError: with file, line and the nearest known key.
        """
        self._arguments = arguments
        self._files = [ConfigFile(name) for name in config_names(arguments)]
        known = self.keys()
        for file in self._files:
            for path, entry in file.entries.items():
                place = f"{file.name} line {entry.line}"
                if path in self._sources:
                    raise UserError(f"{place}: '{path}' always follows '{self._sources[path]}'. Leave it out.")
                if any(key.startswith(path + ".") for key in known):
                    if entry.text is not None:
                        raise UserError(f"{place}: {self._needs_keys(path, entry.text)}")
                elif path not in known:
                    self._check_inside(file, path, entry.text, known)
                elif path == KEY and self._names_methods():
                    with _at(place):
                        adapter_setting(yaml.safe_load(entry.text or "null"))
        for file in self._files:
            self._check_required(file)

    def _check_inside(self, file: ConfigFile, path: str, text: str | None, known: list[str]) -> None:
        """Check a key that can only stand inside a value: of a list of sources, or of a class's settings."""
        place = f"{file.name} line {file.entries[path].line}"
        container, _, name = path.rpartition(".")
        values = [key for key in known if not any(other.startswith(key + ".") for other in known)]
        if not any(container == key or container.startswith((f"{key}.", f"{key}[")) for key in values):
            raise UserError(f"{place}: unknown key '{path}'.{nearest(path, known)}")
        if name == "class_path":
            with _at(place):
                text = class_path_of(container, text)
            _check_class(f"{place}: {path}", text)
        allowed = self._names_inside(container, file)
        if allowed is not None and name not in allowed:
            raise UserError(f"{place}: unknown key '{path}'.{nearest(name, allowed)}")

    def _check_required(self, file: ConfigFile) -> None:
        for path, entry in file.entries.items():
            container, _, name = path.rpartition(".")
            for field in _required(self._dataclass(container)):
                if f"{container}.{field}" not in file.entries:
                    place = f"{file.name} line {entry.line}"
                    raise UserError(f"{place}: {container}.{field}: required, and not given. Set it beside '{name}'.")

    def _names_inside(self, container: str, file: ConfigFile | None = None) -> list[str] | None:
        """Return the names that may stand in a mapping inside a value, or `None` where its type does not tell."""
        owner, _, last = container.rpartition(".")
        if last == "init_args":
            class_path = class_path_of(owner, self._typed(f"{owner}.class_path", file))
            return _settings(class_path) if class_path else None
        if self._typed(f"{container}.class_path", file):
            return _CLASS_KEYS
        found = self._dataclass(container)
        return [field.name for field in dataclasses.fields(found)] if found is not None else None

    def _dataclass(self, container: str) -> Any:
        key = re.sub(r"\[\d+\]$", "", container)
        hints = [getattr(action, "_typehint", None) for action in self._actions if action.dest == key]
        kinds: list[Any] = [kind for hint in hints for kind in _leaves(hint) if dataclasses.is_dataclass(kind)]
        # PEFT's are dataclasses too, but named by class_path: a base class tells nothing of its subclass's fields.
        return next((kind for kind in kinds if not kind.__subclasses__()), None)

    def _typed(self, path: str, file: ConfigFile | None = None) -> str | None:
        """Return the value as typed in a file, or else in the last one that holds the path."""
        if file is not None and path in file.entries:  # a later file may name another class, with other settings
            return file.entries[path].text
        texts = [file.entries[path].text for file in self._files if path in file.entries]
        return texts[-1] if texts else None

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Explain jsonargparse's message in the user's terms."""
        raise UserError(self.explain(message)) from ex

    def explain(self, message: str) -> str:
        """Return jsonargparse's message with file, line and the nearest right name."""
        text = re.sub(r"\s*\n\s*", " ", message.strip())
        if match := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
            key = match[1].lstrip("-").partition("=")[0]
            return f"unknown option '{match[1]}'.{nearest(key, [*self.keys(), *self.other_options], prefix='--')}"
        key = key_in(text)
        if found := re.search(r"Unable to load config '([^']*)'", text):
            place = self._place(key)
            return (f"{place}: " if place else "") + self._needs_keys(key, found[1])
        if is_missing(text) or ("Got value: None" in text and not self._place(key)):
            return f"{key}: required, and not given. Set it in the YAML, or with --{key}."
        text = simplified(text)
        if key and (unknown := re.search(r"Option '([^']+)' is not accepted", text)):
            known = self._names_inside(f"{key}.init_args") or []
            text = f"{key}: unknown setting '{unknown[1]}'.{nearest(unknown[1], known)}"
        place = self._place(key, text)
        return f"{place}: {text}" if place else text

    def _needs_keys(self, path: str, value: str) -> str:
        """Return what to write where a single value stands in the place of several keys."""
        below = [key for key in self.keys() if key.startswith(path + ".")]
        choices = {
            action.dest: [str(one) for one in get_args(getattr(action, "_typehint", None))] for action in self._actions
        }
        fitting = [key for key in below if value in choices.get(key, [])]
        told = f" Write {fitting[0]}: {value}." if fitting else f" Known there: {', '.join(below[:30])}."
        return f"'{path}' needs keys below it, found '{value}'.{told}"

    def _place(self, key: str, text: str = "") -> str | None:
        """Return where the key was typed: an option of the command line, else the last file that holds it."""
        value = re.search(r"Got value: (\S+?)\.?(?: |$)", text)
        typed = value[1] if value else ""
        options = [argument for argument in self._arguments if re.match(rf"--{re.escape(key)}([.=]|$)", argument)]
        if key and options and typed in "".join(self._arguments):
            return "command line"
        inner = re.match(r"\S+: (\w+): ", text)
        pattern = re.escape(key) + (rf"(\[\d+\]|\.init_args)?\.{inner[1]}" if inner else "")
        found = [
            file.place(path)
            for file in self._files
            for path, entry in file.entries.items()
            if re.fullmatch(pattern, path) and (not inner or entry.text == typed)
        ]
        return found[-1] if found else None

    def _load_config_parser_mode(self, content: str, *args: Any, **options: Any) -> Any:
        """Put the whole class path where a file has a short name."""
        content = with_class_paths(content) if self._names_methods() else content
        return super()._load_config_parser_mode(content, *args, **options)

    def _names_methods(self) -> bool:
        """Return whether `model.adapter` is a method, and not the folder of a trained adapter alone."""
        return any(
            action.dest == KEY and str not in _leaves(getattr(action, "_typehint", str)) for action in self._actions
        )

    def parse_args(self, args: Any = None, namespace: Any = None, **options: Any) -> Any:
        """Parse, with the files checked first."""
        self.check_files([str(argument) for argument in args or []])
        args = [str(argument) for argument in args or []]
        args = full_arguments(args) if self._names_methods() else args
        try:
            return super().parse_args(args, namespace, **options)
        except ArgumentError as error:
            raise UserError(self.explain(str(error))) from error

    def instantiate_classes(self, *args: Any, **options: Any) -> Any:
        """Build the classes; what their constructors refuse is a mistake in their settings."""
        try:
            return super().instantiate_classes(*args, **options)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(self.explain(str(error))) from error


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put the place of a value before what is said of it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _leaves(hint: Any) -> list[Any]:
    arguments = get_args(hint)
    return [leaf for argument in arguments for leaf in _leaves(argument)] if arguments else [hint]


def _required(kind: Any) -> list[str]:
    """Return the names of a dataclass's fields without a default."""
    fields = dataclasses.fields(kind) if kind is not None else ()
    missing = dataclasses.MISSING
    return [field.name for field in fields if field.default is missing and field.default_factory is missing]


def _check_class(place: str, class_path: str | None) -> None:
    module_name, _, name = (class_path or "").rpartition(".")
    if not module_name:
        return  # a bare name of one of Lightning's classes, which jsonargparse completes
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{place}: '{class_path}' cannot be imported ({error}). Give 'package.module.Class', and start ift in the "
            f"folder that holds the package (now {Path.cwd()})."
        ) from error
    if not hasattr(module, name):
        raise UserError(f"{place}: '{module_name}' has no '{name}'.{nearest(name, _class_names(module))}")


def _class_names(module: Any) -> list[str]:
    return [name for name in dir(module) if name[:1].isupper()]


def _settings(class_path: str) -> list[str] | None:
    """Return the names of a class's settings, or `None` where its signature does not tell them all."""
    module, _, name = class_path.rpartition(".")
    if not module:
        return None
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return list(parameters)
