"""What is not the same in two mappings, by dotted key. Starts without torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "absent"


@dataclass(frozen=True)
class Change:
    """One thing that is not the same."""

    name: str
    """Dotted key."""
    one: Any
    other: Any

    def text(self) -> str:
        """Return one line for people."""
        return f"{self.name}: {_short(self.one)} -> {_short(self.other)}"


def changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Change]:
    """Return what differs between two flat mappings, sorted by key."""
    return [
        Change(name, one.get(name, ABSENT), other.get(name, ABSENT))
        for name in sorted(one.keys() | other.keys())
        if one.get(name, ABSENT) != other.get(name, ABSENT)
    ]


def nested_changes(name: str, one: Any, other: Any) -> Iterator[Change]:
    """Yield what differs by dotted key; of two different classes or kinds, the whole."""
    if one == other:
        return
    both = isinstance(one, Mapping) and isinstance(other, Mapping)
    if not both or one.get("class_path") != other.get("class_path"):
        yield Change(name, _without_none(one), _without_none(other))
        return
    for key in sorted(one.keys() | other.keys(), key=str):
        yield from nested_changes(f"{name}.{key}".lstrip("."), one.get(key, ABSENT), other.get(key, ABSENT))


def texts(found: tuple[Change, ...]) -> list[str]:
    """Return lines for people; hashes of source files, of which only the name tells something, in one."""
    files = [change.name.removeprefix(_FILES) for change in found if change.name.startswith(_FILES)]
    lines = [change.text() for change in found if not change.name.startswith(_FILES)]
    return [*lines, f"source files in {', '.join(files)}"] if files else lines


_FILES = "code.files."


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return value


def _short(value: Any, most: int = 160) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
