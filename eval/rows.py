"""Reads benchmark data: a JSON array or JSON lines of objects, each row with the place it came from for errors."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ift.errors import UserError


@dataclass(frozen=True)
class Row:
    """One object of a data file."""

    place: str
    """File and line, or file and index in the array, for messages."""
    index: int
    """Position in the file, from 0."""
    fields: dict[str, object]

    def text(self, key: str) -> str:
        """Return the text under a key that every row must have.

        Raises:
            UserError: the key is missing or holds no text.
        """
        if key not in self.fields:
            found = ", ".join(f"'{name}'" for name in self.fields) or "nothing"
            raise UserError(f"{self.place}: a row of this benchmark needs '{key}'; found {found}.")
        value = self.fields[key]
        if not isinstance(value, str):
            raise UserError(f"{self.place}: '{key}' must be text; found {type(value).__name__}.")
        return value

    def optional_text(self, key: str, default: str) -> str:
        """Return the text under a key, or the default where the key is missing or null."""
        return default if self.fields.get(key) is None else self.text(key)

    def id(self, benchmark: str) -> str:
        """Return the row's own `id` (text or whole number), or `<benchmark>-<index>` with five digits."""
        value = self.fields.get("id")
        if value is None:
            return f"{benchmark}-{self.index:05d}"
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(f"{self.place}: 'id' must be text or a whole number; found {type(value).__name__}.")
        return str(value)


def read_rows(path: Path) -> list[Row]:
    """Read a JSON array or JSON lines, whichever the file holds, whatever its ending.

    Raises:
        UserError: no such file, not UTF-8, not JSON, or an element that is no object.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Convert the file to UTF-8.") from error
    values = _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    rows = [Row(place, index, _object(place, value)) for index, (place, value) in enumerate(values)]
    if not rows:
        raise UserError(f"{path}: the file holds no rows.")
    return rows


def _array(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: not valid JSON ({error.msg}).") from error
    for index, value in enumerate(values):
        yield f"{path} [{index}]", value


def _lines(path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number}: not valid JSON ({error.msg}).") from error


def _object(place: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected a JSON object; found {type(value).__name__}.")
    return value
