"""The small files of a checkpoint: in a folder, or on the hub."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ift.errors import UserError
from ift.hub import local_folder


class CheckpointFiles:
    """Finds and reads the files that a tokenizer is made from.

    Args:
        base: folder or hub id.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self._folder = local_folder(base)
        self._found: dict[str, Path | None] = {}

    @property
    def place(self) -> str:
        """Folder or hub id, as transformers takes it."""
        return str(self._folder) if self._folder is not None else self.base

    def path(self, name: str) -> Path | None:
        """Return where a file lies on this machine, fetched from the hub if need be, or `None` if there is none."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> Path | None:
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        from transformers.utils import cached_file

        try:
            found = cached_file(self.base, name, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # what is wrong with the place, transformers says better when it loads from there
            return None
        return Path(found) if found else None

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file; empty where there is none.

        Raises:
            UserError: the file is no JSON object.
        """
        path = self.path(name)
        if path is None:
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}).") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: must be a JSON object; found {type(content).__name__}.")
        return content

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's `config.json`."""
        return self.json("config.json")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`tokenizer_config.json`."""
        return self.json("tokenizer_config.json")

    def are_of(self, classes: Sequence[str], model_types: Sequence[str]) -> bool:
        """Whether the tokenizer is of one of these classes, or the model of these types and no class is named."""
        name = str(self.settings.get("tokenizer_class") or "").lower()
        if name:
            return name in classes
        return self.config.get("model_type") in model_types and self.path("tokenizer.json") is None

    def token(self, name: str, default: str | None) -> str | None:
        """Return a special token by its role, such as `bos_token`; some files of 2023 say "" and mean the default."""
        for content in (self.settings, self.json("special_tokens_map.json")):
            if text := _written(content.get(name)):
                return text
        return default

    def tokens(self, **defaults: str | None) -> dict[str, str | None]:
        """Return the special tokens by their roles: those that the files name, else the defaults."""
        roles = (f"{name}_token" for name in ("bos", "eos", "unk", "pad"))
        return {role: self.token(role, defaults.get(role)) for role in roles}

    def added_tokens(self) -> dict[int, str]:
        """Return the tokens that were added to the vocabulary, by id."""
        added = {int(index): str(token) for token, index in self.json("added_tokens.json").items()}
        for index, token in self.settings.get("added_tokens_decoder", {}).items():
            added[int(index)] = _written(token)
        return added

    def more_special_tokens(self) -> list[str]:
        """Return the special tokens that have no role."""
        names = ("additional_special_tokens", "extra_special_tokens")
        values = [self.settings.get(name) or self.json("special_tokens_map.json").get(name) or [] for name in names]
        return [_written(token) for value in values for token in (value if isinstance(value, list) else value.values())]

    def chat_template(self) -> str | dict[str, str] | None:
        """Return the chat template, or several by their names."""
        path = self.path("chat_template.jinja")
        if path is not None:
            return path.read_text(encoding="utf-8")
        found = self.settings.get("chat_template")
        if isinstance(found, list):
            return {str(one["name"]): str(one["template"]) for one in found}
        return found if isinstance(found, str) else None


def _written(token: Any) -> str:
    """Return a token as text; files give it as such, or with its properties."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")
