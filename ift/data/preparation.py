"""Rows to a store of examples on disk: rendered, tokenized and labelled once, then memory-mapped by every process.

The store lies in a cache folder whose name is a hash of all that decides its content (bytes of the data, code of the
layouts and of this package, template, tokenizer, settings). Every row ends as an example or in `rejects.jsonl`.
"""

import hashlib
import inspect
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ift.data.conversation import Conversation, supervise
from ift.data.encoding import IGNORE_INDEX, Encoder, Example, tokenizer_hash
from ift.data.layouts import RowError, RowFunction, check_turns, resolve_layout
from ift.data.rows import RawRow, Source, content_hash, read_rows
from ift.data.templates import Segment
from ift.errors import UserError

_BATCH_ROWS = 1000


@dataclass
class SourceCounts:
    """What became of the rows of one source."""

    path: str
    layout: str
    weight: float
    sha256: str
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason to number of rows."""
    first_rejects: list[str] = field(default_factory=list)
    """The first few rejected rows, as `file line N: reason`."""

    @property
    def num_rejected(self) -> int:
        """Number of rows that became no example."""
        return sum(self.rejected.values())


@dataclass(frozen=True)
class Reject:
    """A row that became no example."""

    file: str
    line: int
    kind: str
    """The reason without this row's own numbers, for counting."""
    reason: str
    row: Any


class ExampleStore:
    """Prepared examples, memory-mapped.

    Args:
        folder: what `prepare` returned.
    """

    def __init__(self, folder: Path) -> None:
        from datasets import Dataset

        described = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        self.counts = [SourceCounts(**counts) for counts in described["sources"]]
        self.preparation_seconds: float = described["seconds"]
        self.rejects_path = folder / "rejects.jsonl"
        self.key = folder.name
        self._rows = Dataset.from_file(str(folder / "examples.arrow")).with_format("numpy")
        self.num_tokens = self._column("num_tokens")
        """int64, `(examples,)`."""
        self.num_supervised = self._column("num_supervised")
        """int64, `(examples,)`: labels that count."""
        self.source = self._column("source")
        """int64, `(examples,)`: index into `counts`."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[int(index)]
        input_ids, supervised = row["input_ids"].astype(np.int64), row["supervised"].astype(bool)
        labels = np.where(supervised, input_ids, IGNORE_INDEX)
        return Example(input_ids, labels, source=self.counts[int(row["source"])].path)

    def _column(self, name: str) -> npt.NDArray[np.int64]:
        values: npt.NDArray[np.int64] = self._rows.data.column(name).to_numpy().astype(np.int64)
        return values


def store_key(sources: Sequence[Source], encoder: Encoder, *, max_length: int, key: str) -> str:
    """Return the hash of all that decides the content of a store, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for index, source in enumerate(sources):
        content = content_hash(source, key=f"{key}[{index}]")
        digest.update(json.dumps([source.path, source.layout, source.split, content]).encode())
        digest.update(_code(f"{key}[{index}].layout", source.layout))
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    digest.update(json.dumps([tokenizer_hash(encoder.tokenizer), encoder.template.describe(), max_length]).encode())
    return digest.hexdigest()[:32]


def _code(key: str, layout: str) -> bytes:
    """Return the source code of the module that holds a row function."""
    try:
        return Path(inspect.getsourcefile(resolve_layout(key, layout)) or "").read_bytes()
    except (TypeError, OSError) as error:
        raise UserError(
            f"{key}: '{layout}' has no Python source, so a change to it could not be noticed. Name a function."
        ) from error


def prepare(sources: Sequence[Source], encoder: Encoder, *, max_length: int, cache_dir: Path, key: str) -> Path:
    """Build the store of these sources, unless it is there already, and return its folder.

    Any number of processes may call this at once: one builds, the others wait for it. Nothing half-built is ever seen.

    Args:
        sources: checked by `check_source`.
        encoder: tokenizer and template.
        max_length: longest example, in tokens; longer ones are rejected, never cut.
        cache_dir: holds one folder per store.
        key: of the sources in the configuration, for errors.
    """
    from filelock import FileLock

    folder = cache_dir / store_key(sources, encoder, max_length=max_length, key=key)
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            building = cache_dir / f"{folder.name}.tmp"
            shutil.rmtree(building, ignore_errors=True)  # left by a killed process; the lock says nobody uses it
            building.mkdir()
            _build(sources, encoder, max_length=max_length, folder=building, key=key)
            os.replace(building, folder)
    return folder


def _build(sources: Sequence[Source], encoder: Encoder, *, max_length: int, folder: Path, key: str) -> None:
    started = time.monotonic()
    all_counts = []
    # A row may hold what UTF-8 cannot say (half of a surrogate pair); it is written as JSON's escape of it.
    rejects = (folder / "rejects.jsonl").open("w", encoding="utf-8", errors="backslashreplace")
    with _ArrowSink(folder / "examples.arrow") as sink, rejects as file:
        for index, source in enumerate(sources):
            place = f"{key}[{index}]"
            function = resolve_layout(f"{place}.layout", source.layout)
            counts = SourceCounts(source.path, source.layout, source.weight, content_hash(source, key=place))
            for batch in _batches(_with_progress(read_rows(source, key=place), source.path)):
                for outcome in _encode_rows(batch, function, encoder, max_length=max_length, path=source.path):
                    counts.rows += 1
                    if isinstance(outcome, Reject):
                        _count_reject(outcome, counts)
                        file.write(json.dumps(asdict(outcome), ensure_ascii=False, default=str) + "\n")
                    else:
                        counts.examples += 1
                        counts.tokens += len(outcome.input_ids)
                        counts.supervised_tokens += outcome.num_supervised
                        sink.add(outcome, index)
            all_counts.append(counts)
    described = {"sources": [asdict(counts) for counts in all_counts], "seconds": time.monotonic() - started}
    (folder / "counts.json").write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")


def _with_progress(rows: Iterable[RawRow], name: str) -> Iterator[RawRow]:
    from tqdm import tqdm

    yield from tqdm(rows, desc=f"Preparing {name}", unit=" rows", delay=2.0)


def _batches(rows: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        yield batch


def _count_reject(reject: Reject, counts: SourceCounts) -> None:
    counts.rejected[reject.kind] = counts.rejected.get(reject.kind, 0) + 1
    if len(counts.first_rejects) < 3:
        counts.first_rejects.append(f"{reject.file} line {reject.line}: {reject.reason}")


def _encode_rows(
    rows: list[RawRow], function: RowFunction, encoder: Encoder, *, max_length: int, path: str
) -> Iterator[Example | Reject]:
    """Yield one outcome per conversation, in the order of the rows."""
    outcomes: list[tuple[RawRow, list[Segment] | RowError]] = []
    for row in rows:
        for conversation in to_conversations(row, function, needs_response=True):
            try:
                if isinstance(conversation, RowError):
                    raise conversation
                outcomes.append((row, encoder.template.render(supervise(conversation, "outputs"))))
            except RowError as error:
                outcomes.append((row, error))
    examples = iter(encoder.encode([segments for _, segments in outcomes if not isinstance(segments, RowError)]))
    for row, segments in outcomes:
        if isinstance(segments, RowError):
            yield Reject(path, row.line, str(segments), str(segments), row.value)
            continue
        example, length = next(examples), 0
        kind = reason = ""
        if (length := len(example.input_ids)) > max_length:
            kind, reason = "longer than data.max_length", f"{length} tokens, data.max_length is {max_length}"
        elif example.num_supervised == 0:
            kind = reason = "no token is supervised"
        yield Reject(path, row.line, kind, reason, row.value) if reason else example


def to_conversations(row: RawRow, function: RowFunction, *, needs_response: bool) -> list[Conversation | RowError]:
    """Turn a raw row into checked conversations; in the place of one that cannot be used, the reason.

    Returns:
        Never empty: a row that cannot be read at all gives its one reason.
    """
    if row.problem:
        return [RowError(row.problem)]
    if not isinstance(row.value, dict):
        return [RowError(f"a row must be a JSON object, found {type(row.value).__name__}")]
    try:
        given: Any = function(row.value)
        conversations = list(given) if isinstance(given, Iterable) else [given]
    except RowError as error:
        return [error]
    except Exception as error:  # a user's own row function may fail in any way; the row is rejected and counted
        return [RowError(f"the row function failed: {type(error).__name__}: {error}")]
    return [_checked(one, needs_response) for one in conversations] or [RowError("the row holds no conversation")]


def _checked(conversation: Any, needs_response: bool) -> Conversation | RowError:
    if not isinstance(conversation, Conversation):
        return RowError(f"the row function gave {type(conversation).__name__}, not a Conversation")
    try:
        check_turns(conversation, needs_response=needs_response)
    except RowError as error:
        return error
    return conversation


class _ArrowSink:
    """Writes examples into an Arrow stream file that `datasets` maps into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._pa = pa
        self._schema = pa.schema(
            {
                "input_ids": pa.list_(pa.int32()),
                "supervised": pa.list_(pa.bool_()),
                "num_tokens": pa.int32(),
                "num_supervised": pa.int32(),
                "source": pa.int32(),
            }
        )
        self._writer = pa.ipc.new_stream(str(path), self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, example: Example, source: int) -> None:
        self._rows.append(
            {
                "input_ids": example.input_ids,
                "supervised": example.labels != IGNORE_INDEX,
                "num_tokens": len(example.input_ids),
                "num_supervised": example.num_supervised,
                "source": source,
            }
        )
        if len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(self._pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> "_ArrowSink":
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()


def reject_report(counts: Sequence[SourceCounts]) -> str:
    """Return the rejected rows of all sources in a few lines: how many for which reason, and the first places."""
    reasons: Counter[str] = Counter()
    for source in counts:
        reasons.update(source.rejected)
    lines = [f"  {number} x {reason}" for reason, number in reasons.most_common(5)]
    lines += [f"  {place}" for source in counts for place in source.first_rejects][:4]
    return "\n".join(lines)
