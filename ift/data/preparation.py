"""Rows to a store of examples on disk: rendered, tokenized and labelled once, then memory-mapped by every process.

The store lies in a cache folder whose name is a hash of all that decides its content (bytes of the data, code of the
layouts and of this package, template, tokenizer, settings). Every row ends as an example, in `rejects.jsonl`, or, where
a filter was asked for, in `removed.jsonl`.
"""

import gc
import hashlib
import inspect
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ift.data.conversation import Conversation, TrainOn
from ift.data.counts import SourceCounts, SpecialTokens
from ift.data.encoding import EncodedBatch, Encoder, tokenizer_hash
from ift.data.filters import NO_FILTERS, FilterSettings
from ift.data.layouts import RowFunction
from ift.data.length import LengthPolicy, OverLong, Reason
from ift.data.node_lock import build_once
from ift.data.rendered_rows import RenderedRow, render_rows
from ift.data.row_conversations import Reject, resolve_source
from ift.data.rows import RawRow, Source, content_hash, read_rows
from ift.data.store import ExampleSink
from ift.data.text_blocks import TextBlocks
from ift.errors import UserError

_BATCH_CONVERSATIONS = 1000
_FIRST_ROWS = 32
"""Rows of a source's first batch, by which the number of conversations per row is told."""
_BATCHES_AHEAD = 2
_BATCHES_BETWEEN_COLLECTIONS = 20


@dataclass(frozen=True)
class PreparationSettings:
    """What decides the content of a store beside the sources, the template and the tokenizer."""

    max_length: int
    """Longest example, in tokens."""
    over_long: OverLong = "drop"
    train_on: TrainOn = "outputs"
    filters: FilterSettings = NO_FILTERS
    text_blocks: bool = False

    def describe(self, hashes: Path) -> dict[str, Any]:
        """Return plain values, for the cache key; `hashes` keeps those of files between runs."""
        return {
            "max_length": self.max_length,
            "over_long": self.over_long,
            "train_on": self.train_on,
            "filters": self.filters.describe(hashes),
            "text_blocks": self.text_blocks,
        }


def store_key(
    sources: Mapping[str, Source], encoder: Encoder, settings: PreparationSettings, *, cache_dir: Path
) -> str:
    """Return the hash of all that decides the content of a store, as 32 hexadecimal digits.

    Args:
        sources: each with its place in the configuration, for errors.
        encoder: tokenizer and template.
        settings: lengths, masks and filters.
        cache_dir: keeps the hashes of files.
    """
    digest = hashlib.sha256()
    for place, source in sources.items():
        content = content_hash(source, key=place, hashes=cache_dir / "hashes")
        columns = sorted(source.columns.items())
        names = [file.path for file in source.data_files(place)] if source.has_files else []
        described = [source.path, names, source.layout, columns, source.split, source.subset, content]
        digest.update(json.dumps(described).encode())
        if source.layout is not None:
            digest.update(_code(f"{place}.layout", source.layout))
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(path.read_bytes())
    encoding = [tokenizer_hash(encoder.tokenizer), encoder.template.describe(), settings.describe(cache_dir / "hashes")]
    digest.update(json.dumps(encoding, default=str).encode())
    return digest.hexdigest()[:32]


def _code(key: str, layout: str) -> bytes:
    """Return the source code of the module that holds a row function."""
    from ift.data.layouts import resolve_layout

    try:
        return Path(inspect.getsourcefile(resolve_layout(key, layout)) or "").read_bytes()
    except (TypeError, OSError) as error:
        raise UserError(
            f"{key}: '{layout}' has no Python source, so a change to it could not be noticed. Name a function."
        ) from error


def prepare(
    sources: Sequence[Source],
    encoder: Encoder,
    settings: PreparationSettings,
    *,
    cache_dir: Path,
    key: str,
    numbers: Sequence[int] | None = None,
) -> Path:
    """Build the store of these sources, unless it is there already, and return its folder.

    Any number of processes may call this at once: one of each node builds, the others wait for it. Nothing half-built
    is ever seen.

    Args:
        sources: checked by `check_source`.
        encoder: tokenizer and template.
        settings: lengths, masks and filters.
        cache_dir: holds one folder per store.
        key: of the sources in the configuration, for errors.
        numbers: of the sources under that key, where these are not all of them.
    """
    places = {f"{key}[{n}]": one for n, one in zip(numbers or range(len(sources)), sources, strict=True)}
    cache_dir.mkdir(parents=True, exist_ok=True)
    folder = cache_dir / store_key(places, encoder, settings, cache_dir=cache_dir)

    def build(building: Path) -> None:
        with _few_collections():
            _Builder(encoder, settings, folder=building).build(places, hashes=cache_dir / "hashes")

    build_once(folder, build)
    return folder


@contextmanager
def _few_collections() -> Iterator[None]:
    """Leave the collection of cycles to us: millions of short-lived objects make it a fifth of the whole time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Builder:
    """Builds one store. Rendering and writing happen here, while another thread tokenizes."""

    def __init__(self, encoder: Encoder, settings: PreparationSettings, *, folder: Path) -> None:
        self._encoder, self._settings, self._folder = encoder, settings, folder
        lengths = (settings.max_length, settings.over_long, settings.train_on, settings.text_blocks)
        self._length = LengthPolicy(encoder, *lengths)
        self._special = SpecialTokens.of(encoder)
        self._filters = settings.filters.build()
        self._files: dict[str, int] = {}
        self._last_rejected: RawRow | None = None
        self._last_removed: RawRow | None = None

    def build(self, sources: Mapping[str, Source], *, hashes: Path) -> None:
        """Write `examples.arrow`, `rejects.jsonl`, `removed.jsonl` and, last, `counts.json`."""
        started = time.monotonic()
        all_counts = []
        with ExitStack() as stack:
            self._sink = stack.enter_context(ExampleSink(self._folder / "examples.arrow"))
            self._rejects = stack.enter_context(_json_lines(self._folder / "rejects.jsonl"))
            self._removed = stack.enter_context(_json_lines(self._folder / "removed.jsonl"))
            self._threads = stack.enter_context(ThreadPoolExecutor(1))
            for index, (place, source) in enumerate(sources.items()):
                content = content_hash(source, key=place, hashes=hashes)
                resolved = resolve_source(place, source)
                counts = SourceCounts(source.path, resolved.layout, source.weight, content, resolved.detected)
                self._build_source(source, resolved.function, counts, index=index, key=place)
                all_counts.append(counts)
        described = {
            "sources": [counts.describe() for counts in all_counts],
            "files": list(self._files),
            "end_token_id": self._encoder.end_token_id,
            "labels": self._sink.labels.hexdigest(end_token_id=self._encoder.end_token_id),
            "seconds": time.monotonic() - started,
        }
        (self._folder / "counts.json").write_text(json.dumps(described, indent=1), encoding="utf-8")

    def _build_source(
        self, source: Source, function: RowFunction, counts: SourceCounts, *, index: int, key: str
    ) -> None:
        self._blocks: TextBlocks[RawRow] = TextBlocks(self._settings.max_length)
        waiting: deque[tuple[list[RenderedRow], Future[EncodedBatch]]] = deque()
        rows_left = _with_progress(read_rows(source, key=key), source.path)
        size, number = _FIRST_ROWS, 0
        while rows := list(islice(rows_left, size)):
            number += 1
            if number % _BATCHES_BETWEEN_COLLECTIONS == 0:
                gc.collect(1)
            places = list(render_rows(rows, function, length=self._length))
            counts.rows += len(rows)
            rendered = [place.segments for place in places if place.conversation is not None]
            # Rows may hold thousands of conversations, and memory must stay flat.
            size = max(1, min(_BATCH_CONVERSATIONS, _BATCH_CONVERSATIONS * len(rows) // max(1, len(places))))
            waiting.append((places, self._threads.submit(self._encoder.encode_batch, rendered)))
            while len(waiting) > _BATCHES_AHEAD:
                self._write(*waiting.popleft(), counts=counts, index=index)
        while waiting:
            self._write(*waiting.popleft(), counts=counts, index=index)
        self._store_blocks(*self._blocks.finish(), counts=counts, index=index)

    def _is_removed(self, row: RawRow, conversation: Conversation, counts: SourceCounts) -> bool:
        """Whether a filter leaves out a conversation that can be used; only such ones stay for others to equal."""
        for one in self._filters:
            reason = one.check(conversation, f"{row.file or counts.path} {row.place}")
            if reason is not None:
                counts.remove(one.name)
                again, self._last_removed = row is self._last_removed, row
                _write_row(self._removed, row, counts, kind=one.name, reason=reason, is_repeated=again)
                return True
        return False

    def _write(
        self, places: list[RenderedRow], encoded: Future[EncodedBatch], *, counts: SourceCounts, index: int
    ) -> None:
        """Write a batch's examples, and in the order of the rows what became none."""
        conversations = [place.conversation for place in places if place.conversation is not None]
        outcome = self._length.apply(encoded.result(), conversations)
        kept: list[RenderedRow] = []
        stays: list[bool] = []
        number = -1
        for place in places:
            if place.conversation is None:
                self._reject(place.row, counts, Reason(place.reason, place.reason))
                continue
            number += 1
            if number in outcome.rejected:
                self._reject(place.row, counts, outcome.rejected[number])
                continue
            stays.append(not self._is_removed(place.row, place.conversation, counts))
            if stays[-1]:
                kept.append(place)
                counts.cut += number in outcome.cut
                counts.left_out_texts += self._length.num_left_out(place.conversation)
        batch = outcome.batch if all(stays) else outcome.batch.take(np.array(stays))
        self._keep(batch, kept, counts=counts, index=index)

    def _keep(self, batch: EncodedBatch, kept: list[RenderedRow], *, counts: SourceCounts, index: int) -> None:
        """Write examples; of texts that are joined, the blocks that are finished by them."""
        texts = np.array([self._length.is_joined(place.conversation) for place in kept], dtype=bool)
        rows = [place.row for place in kept]
        if texts.any():
            counts.texts += int(texts.sum())
            joined = [row for row, is_text in zip(rows, texts, strict=True) if is_text]
            self._store_blocks(*self._blocks.add(batch.take(texts), joined), counts=counts, index=index)
            batch, rows = batch.take(~texts), [row for row, is_text in zip(rows, texts, strict=True) if not is_text]
        self._store(batch, rows, counts=counts, index=index)

    def _store_blocks(self, batch: EncodedBatch, rows: list[RawRow], *, counts: SourceCounts, index: int) -> None:
        counts.blocks += len(batch)
        counts.short_blocks += int((batch.num_tokens < self._settings.max_length).sum())
        self._store(batch, rows, counts=counts, index=index)

    def _store(self, batch: EncodedBatch, rows: list[RawRow], *, counts: SourceCounts, index: int) -> None:
        files = [self._files.setdefault(row.file or counts.path, len(self._files)) for row in rows]
        self._sink.add(batch, source=index, files=files, lines=[row.line for row in rows])
        counts.add(batch, self._special)

    def _reject(self, row: RawRow, counts: SourceCounts, reason: Reason) -> None:
        counts.reject(reason.kind, f"{row.file or counts.path} {row.place}: {reason.text}")
        again, self._last_rejected = row is self._last_rejected, row
        _write_row(self._rejects, row, counts, kind=reason.kind, reason=reason.text, is_repeated=again)


def _json_lines(path: Path) -> TextIO:
    # A row may hold what UTF-8 cannot say (half of a surrogate pair); it is written as JSON's escape of it.
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _write_row(
    file: TextIO, row: RawRow, counts: SourceCounts, *, kind: str, reason: str, is_repeated: bool = False
) -> None:
    """Write one line; a row that holds several conversations is written with the first of them only."""
    reject = Reject.of(row._replace(value=None), counts.path, kind=kind, reason=reason)
    described = reject.describe() | {"row": None if is_repeated else row.value}
    try:
        text = json.dumps(described, ensure_ascii=False, allow_nan=False, default=str)
    except (ValueError, RecursionError):  # nested too deeply, an integer with too many digits, or NaN, which is no JSON
        text = json.dumps({**described, "row": None}, ensure_ascii=False)
    file.write(text + "\n")


def _with_progress(rows: Iterable[RawRow], name: str) -> Iterator[RawRow]:
    from tqdm import tqdm

    yield from tqdm(rows, desc=f"Preparing {name}", unit=" rows", delay=2.0)
