"""Which layout rows have, told by their fields."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from ift.data.layouts.fields import Row
from ift.data.layouts.registry import LAYOUTS, Requirement, Signature
from ift.errors import UserError

ROWS_LOOKED_AT = 100
"""Rows from the beginning that tell the layout."""


def detect_layout(rows: Sequence[Row], *, key: str = "layout") -> str:
    """Return the name of the layout that the first rows have.

    Of the layouts whose signature enough rows have, the one that asks for most is taken: for more fields, and a text
    that holds something counts double.

    Args:
        rows: rows from the beginning of a source; `ROWS_LOOKED_AT` of them are looked at.
        key: where the layout would stand in the configuration, for the error.

    Raises:
        UserError: no layout fits; with the fields found and the nearest layouts.
    """
    looked_at = [row for row in rows[:ROWS_LOOKED_AT] if isinstance(row, Mapping)]
    fitting = [
        (_specificity(signature), share, name)
        for name, signature in _signatures()
        if (share := _share(signature, looked_at)) >= signature.share
    ]
    if not fitting:
        raise UserError(_no_layout(looked_at, key))
    return max(fitting, key=lambda fit: fit[:2])[2]


def _signatures() -> Iterator[tuple[str, Signature]]:
    return ((name, signature) for name, layout in LAYOUTS.items() for signature in layout.signatures)


def _share(signature: Signature, rows: Sequence[Row]) -> float:
    having = sum(all(_meets(row, *field) for field in signature.fields.items()) for row in rows)
    return having / len(rows) if rows else 0.0


def _specificity(signature: Signature) -> int:
    return sum(2 if isinstance(wanted, re.Pattern) else 1 for wanted in signature.fields.values())


def _meets(row: Row, path: str, wanted: Requirement) -> bool:
    value: Any = row
    for step in path.split("."):
        name = step.removesuffix("[]")
        value = value.get(name) if isinstance(value, Mapping) else None
        if step.endswith("[]"):
            value = value[0] if isinstance(value, list | tuple) and value else None
    if isinstance(wanted, re.Pattern):
        return isinstance(value, str) and wanted.search(value) is not None
    return value is not None and isinstance(value, wanted)


def _no_layout(rows: Sequence[Row], key: str) -> str:
    if not rows:
        return f"{key}: there is no row by which the layout could be told. Name the layout."
    counts = Counter(field for row in rows for field in row)
    found = ", ".join(f"'{field}'" for field, _ in counts.most_common(12))
    return (
        f"{key}: no layout is known by the fields {found}. {_nearest(rows)}"
        "Name a layout, map the fields with 'columns' (ours: theirs), or name a row function by its dotted path."
    )


def _nearest(rows: Sequence[Row]) -> str:
    """Name the layouts of which most fields are there, and what they lack; of equal ones those with similar names."""
    near: dict[str, tuple[float, float, list[str]]] = {}
    fields = {str(field) for row in rows for field in row}
    for name, signature in _signatures():
        missing = [
            path for path, wanted in signature.fields.items() if not any(_meets(row, path, wanted) for row in rows)
        ]
        having = 1 - len(missing) / len(signature.fields)
        if having:
            near[name] = max(near.get(name, (0.0, 0.0, [])), (having, _likeness(missing, fields), missing))
    best = sorted(near.items(), key=lambda item: item[1][:2], reverse=True)[:3]
    named = [f"'{name}' (lacks {', '.join(map(repr, told[2])) or 'it in most rows'})" for name, told in best]
    return f"Nearest: {', '.join(named)}. " if named else ""


def _likeness(missing: Sequence[str], fields: Collection[str]) -> float:
    """Return how much the missing fields are like those found, from 0 to 1."""
    likest = [max(SequenceMatcher(None, path, field).ratio() for field in fields) for path in missing]
    return sum(likest) / len(likest) if likest else 1.0
