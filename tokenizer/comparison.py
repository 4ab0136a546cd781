"""Counts how several tokenizers cut the same text: what `compare` measures."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from ift.data.conversation import Conversation
from ift.data.row_conversations import checked_sources, resolve_source, to_conversations
from ift.data.rows import Source, read_rows
from ift.errors import UserError
from tokenizer.bases import find_tokenizer
from tokenizer.byte_level import is_byte_level, text_of

ALL = "all"
_BATCH = 256


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that adds nothing to a text."""

    name: str
    """Path as the user wrote it."""
    size: int
    """Pieces in all, special ones too."""
    encode: Callable[[list[str]], list[list[int]]]
    unknown: frozenset[int]
    """Id of the unknown, or nothing where none is."""
    bytes: frozenset[int]
    """Ids of single bytes (`<0xE4>`), or of tokens that are no whole characters in a byte-level BPE."""


@dataclass
class Counts:
    """Sums over records."""

    records: int = 0
    characters: int = 0
    bytes: int = 0
    """Of UTF-8."""
    tokens: int = 0
    unknown: int = 0
    byte_tokens: int = 0

    def add(self, other: "Counts") -> None:
        """Add another's sums."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def rates(self) -> dict[str, float]:
        """Return what is compared; 0 where there is nothing to divide by."""
        tokens, records = max(1, self.tokens), max(1, self.records)
        return {
            "characters_per_token": self.characters / tokens,
            "bytes_per_token": self.bytes / tokens,
            "tokens_per_record": self.tokens / records,
            "unknown_rate": self.unknown / tokens,
            "byte_rate": self.byte_tokens / tokens,
        }


@dataclass
class Comparison:
    """Counts of each tokenizer on each source; the source `all` is their sum."""

    tokenizers: list[LoadedTokenizer]
    sources: list[str]
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    """By tokenizer and source."""
    unreadable: dict[str, int] = field(default_factory=dict)
    """Rows that hold no text, by source."""


def compare(loaded: Sequence[LoadedTokenizer], paths: Sequence[str]) -> Comparison:
    """Count over all records of the sources; progress goes to stderr.

    Args:
        loaded: of `load`.
        paths: whatever `ift` reads: files or patterns of files (text, JSON, CSV, Parquet, also compressed), ids of data
            sets on the hub, names of the catalogue.

    Raises:
        UserError: a source that cannot be read, or none that holds text.
    """
    sources = dict(zip(paths, checked_sources("--input", [Source(path=path) for path in paths]), strict=True))
    found = Comparison(list(loaded), [*paths, ALL])
    found.counts = {(one.name, source): Counts() for one in loaded for source in found.sources}
    for path, source in sources.items():
        texts = _texts(path, source, found.unreadable)
        while batch := list(islice(texts, _BATCH)):
            for one in loaded:
                counted = count(one, batch)
                found.counts[one.name, path].add(counted)
                found.counts[one.name, ALL].add(counted)
    if not found.counts[loaded[0].name, ALL].characters:
        raise UserError(f"--input: {', '.join(paths)}: no text.")
    return found


def count(tokenizer: LoadedTokenizer, texts: list[str]) -> Counts:
    """Return the counts of some records."""
    encoded = tokenizer.encode(texts)
    ids = [index for one in encoded for index in one]
    return Counts(
        records=len(texts),
        characters=sum(map(len, texts)),
        bytes=sum(len(text.encode()) for text in texts),
        tokens=len(ids),
        unknown=sum(index in tokenizer.unknown for index in ids),
        byte_tokens=sum(index in tokenizer.bytes for index in ids),
    )


def load(path: str) -> LoadedTokenizer:
    """Return a tokenizer: a folder, a `tokenizer.json` or a SentencePiece model.

    Raises:
        UserError: no tokenizer there.
    """
    found = find_tokenizer("--tokenizer", Path(path).expanduser(), prefer="json")
    return _load_json(path, found.path) if found.kind == "json" else _load_sentencepiece(path, found.path)


def _load_sentencepiece(name: str, path: Path) -> LoadedTokenizer:
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as error:
        raise UserError(f"--tokenizer: {path}: is no SentencePiece model. Fetch the file again.") from error
    ids = range(model.get_piece_size())
    return LoadedTokenizer(
        name,
        len(ids),
        encode=lambda texts: [model.encode(text) for text in texts],
        unknown=frozenset(index for index in ids if model.is_unknown(index)),
        bytes=frozenset(index for index in ids if model.is_byte(index)),
    )


def _load_json(name: str, path: Path) -> LoadedTokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--tokenizer: {path}: cannot be read as a tokenizer.json ({reason}).") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a special token written out in a text is text
    vocabulary = tokenizer.get_vocab()
    model = content["model"]
    bytes_: set[int] = set()
    if is_byte_level(content):
        special = {token["content"] for token in content.get("added_tokens", [])}
        bytes_ = {index for token, index in vocabulary.items() if token not in special and text_of(token) is None}
    elif model.get("byte_fallback"):
        bytes_ = {vocabulary[token] for byte in range(256) if (token := f"<0x{byte:02X}>") in vocabulary}
    unknown = model.get("unk_token")
    unknown_id = vocabulary.get(unknown) if isinstance(unknown, str) else model.get("unk_id")
    return LoadedTokenizer(
        name,
        len(vocabulary),
        encode=lambda texts: [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)],
        unknown=frozenset([] if unknown_id is None else [unknown_id]),
        bytes=frozenset(bytes_),
    )


def _texts(path: str, source: Source, unreadable: dict[str, int]) -> Iterator[str]:
    """Yield the text of every record: all that its conversation says."""
    from tqdm import tqdm

    resolved = resolve_source("--input", source)
    for row in tqdm(read_rows(source, key="--input"), desc=path, unit=" records", delay=2.0):
        given = to_conversations(row, resolved.function, needs_response=False)
        usable = [one for one in given if isinstance(one, Conversation)]
        if not usable:
            unreadable[path] = unreadable.get(path, 0) + 1
        # Half of a surrogate pair is no text that a tokenizer takes.
        yield from ("\n".join(_parts(one)).encode("utf-8", "replace").decode() for one in usable)


def _parts(conversation: Conversation) -> Iterable[str]:
    said = [conversation.system]
    for message in conversation.messages:
        said += [message.thought, message.text, message.context]
    return (part for part in said if part)
