"""Plain texts in three parts, by document: for the small base model, to go on training with, and held out.

A document's part is a hash of its text, so it is the same whatever files it stands in and in whatever order.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ift.data.rows import Source, read_rows
from ift.errors import UserError

SHARES = {"held_out": 0.05, "base": 0.1}
"""Of the documents; the rest is trained on in the stages."""


@dataclass(frozen=True)
class Part:
    """One part, as JSON lines with `text` and `category` (the file it is from)."""

    path: Path
    documents: int
    characters: int


def split_texts(inputs: list[str], folder: Path) -> dict[str, Part]:
    """Write `held_out.jsonl`, `base.jsonl` and `train.jsonl`.

    Args:
        inputs: files of text (a document per line) or of rows with `text`, or folders of such files.
        folder: existing.

    Raises:
        UserError: a part would be empty, or a file cannot be read.
    """
    rows: dict[str, list[dict[str, str]]] = {"held_out": [], "base": [], "train": []}
    seen: set[str] = set()
    for text, category in _documents(inputs):
        if text not in seen:  # twice the same document could be trained on and held out
            rows[part_of(text)].append({"text": text, "category": category})
        seen.add(text)
    parts = {}
    for name, own in rows.items():
        if not own:
            raise UserError(f"{', '.join(inputs)}: {len(seen)} documents are too few; the part '{name}' has none.")
        parts[name] = _write(own, folder / f"{name}.jsonl")
    return parts


def whole_text(inputs: list[str], path: Path) -> Part:
    """Write all documents into one file, as `split_texts` does."""
    return _write([{"text": text, "category": category} for text, category in _documents(inputs)], path)


def _write(rows: list[dict[str, str]], path: Path) -> Part:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return Part(path, len(rows), sum(len(row["text"]) for row in rows))


def part_of(text: str) -> str:
    """Return the part of a document."""
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def _documents(inputs: list[str]) -> Iterator[tuple[str, str]]:
    for name in inputs:
        path = Path(name).expanduser()
        for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
            for row in read_rows(Source(str(file)), key="text"):
                text = row.value.get("text") if isinstance(row.value, dict) else None
                if not isinstance(text, str) or not text.strip():
                    raise UserError(f"{file} {row.place}: no 'text'{': ' + row.problem if row.problem else ''}.")
                yield text.strip(), file.stem
