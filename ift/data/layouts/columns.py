"""Foreign field names: a row with `q` and `a` becomes one with `instruction` and `output`."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ift.data.layouts.fields import Row, RowError, found_fields

_MISSING = object()
_MOST_COMPARED = 50
"""Fields of a row among which the nearest is looked for."""


def map_columns(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row under the names that its layout reads.

    Args:
        row: the record; it is not changed.
        columns: our name of a field to theirs. Theirs may be a path into nested objects (`data.question`), unless the
            row has a field of exactly that name.

    Returns:
        The row with the mapped fields under our names; fields that are not mapped stay as they are.

    Raises:
        RowError: a field that is to be mapped is missing.
    """
    mapped = {ours: _value(row, theirs) for ours, theirs in columns.items()}
    moved = set(columns.values())
    return {**{key: value for key, value in row.items() if key not in moved}, **mapped}


def _value(row: Row, path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    names = path.split(".")
    for place, name in enumerate(names):
        known = [str(key) for key in value] if isinstance(value, Mapping) else []
        value = value.get(name, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            nearest = get_close_matches(name, known[:_MOST_COMPARED], n=1, cutoff=0.5)
            mended = ".".join([*names[:place], *nearest, *names[place + 1 :]])
            suggestion = f"; did you mean '{mended}'?" if nearest else ""
            raise RowError(f"'columns' names a field '{path}', which is missing; found {found_fields(row)}{suggestion}")
    return value
