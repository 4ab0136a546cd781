"""The store of examples: one fixed Arrow schema on disk, mapped into memory, read at any place in constant time."""

import hashlib
import json
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ift.data.counts import SourceCounts
from ift.data.encoding import EncodedBatch, Example, labels_of

IndexArray = npt.NDArray[np.int64]
_BATCH_EXAMPLES = 1000
"""Examples of every record batch but the last, so that an example's batch is found by division."""
_MOST_OPEN = 64
"""Record batches whose columns are kept at hand."""
_READS_BETWEEN_RELEASES = 128
"""Reads after which mapped pages are given back, so that resident memory does not grow with the store."""


def schema() -> Any:
    """Return the Arrow schema of `examples.arrow`."""
    import pyarrow as pa

    return pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "loss": pa.list_(pa.uint8()),
            "num_supervised": pa.int32(),
            "source": pa.int32(),
            "file": pa.int32(),
            "line": pa.int64(),
            "digest": pa.uint64(),
        }
    )


class LabelsDigest:
    """A hash of ids and labels of examples in their order, however many come at a time."""

    def __init__(self) -> None:
        self._columns = [hashlib.sha256() for _ in range(3)]

    def add(self, batch: EncodedBatch) -> None:
        """Add examples."""
        for digest, column in zip(self._columns, (batch.input_ids, batch.loss, batch.num_tokens), strict=True):
            digest.update(np.ascontiguousarray(column).data)

    def hexdigest(self, *, end_token_id: int) -> str:
        """Return the hash of what was added; `end_token_id` is the label of tokens that stand for it."""
        parts = [*(digest.hexdigest() for digest in self._columns), end_token_id]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ExampleSink:
    """Writes examples into an Arrow file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._pa = pa
        self._schema = schema()
        self._writer = pa.ipc.new_file(str(path), self._schema)
        self._waiting: list[Any] = []
        self._num_waiting = 0
        self.labels = LabelsDigest()

    def add(self, batch: EncodedBatch, *, source: int, files: list[int], lines: list[int]) -> None:
        """Write a batch; `files` and `lines` say where each example comes from."""
        if not len(batch):
            return
        self.labels.add(batch)
        pa, field = self._pa, self._schema.field
        offsets = _array(batch.starts, pa.int32())
        columns = [
            pa.ListArray.from_arrays(offsets, _array(batch.input_ids, pa.int32())),
            pa.ListArray.from_arrays(offsets, _array(batch.loss, pa.uint8())),
            _array(batch.num_supervised, field("num_supervised").type),
            _array(np.full(len(batch), source), field("source").type),
            _array(files, field("file").type),
            _array(lines, field("line").type),
            _array(batch.digests(), field("digest").type),
        ]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._num_waiting += len(batch)
        while self._num_waiting >= _BATCH_EXAMPLES:
            self._write(_BATCH_EXAMPLES)

    def _write(self, number: int) -> None:
        table = self._pa.Table.from_batches(self._waiting, self._schema)
        whole = table.slice(0, number).combine_chunks().to_batches()
        for batch in whole:
            self._writer.write_batch(batch)
        rest = table.slice(number)
        self._waiting, self._num_waiting = rest.to_batches(), len(rest)

    def __enter__(self) -> "ExampleSink":
        return self

    def __exit__(self, *error: object) -> None:
        if self._num_waiting:
            self._write(self._num_waiting)
        self._writer.close()


class ExampleStore:
    """Prepared examples, mapped into memory; opening takes the same time for any number of them.

    Args:
        folder: what `prepare` returned.
    """

    def __init__(self, folder: Path) -> None:
        described = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        self.counts = [SourceCounts(**counts) for counts in described["sources"]]
        self.preparation_seconds: float = described["seconds"]
        self.end_token_id: int = described["end_token_id"]
        self.labels_hash: str = described["labels"]
        """Of all ids and labels, in their order."""
        self.files: list[str] = described["files"]
        self.folder, self.key = folder, folder.name
        self.rejects_path, self.removed_path = folder / "rejects.jsonl", folder / "removed.jsonl"
        self._size = sum(counts.examples for counts in self.counts)
        self._reader: Any = None

    def __len__(self) -> int:
        return self._size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_open": None, "_map": None}

    def source_range(self, source: int) -> tuple[int, int]:
        """Return the first index of a source's examples, and the one behind its last."""
        sizes = [counts.examples for counts in self.counts]
        return sum(sizes[:source]), sum(sizes[: source + 1])

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((counts.longest for counts in self.counts), default=0)

    def __getitem__(self, index: int) -> Example:
        batch, row = self._batch(int(index))
        start, end = batch.starts[row], batch.starts[row + 1]
        input_ids = batch.input_ids[start:end].astype(np.int64)
        labels = labels_of(input_ids, batch.loss[start:end], end_token_id=self.end_token_id)
        return Example(input_ids, labels, source=self.counts[int(batch.source[row])].path)

    def place(self, index: int) -> tuple[str, int]:
        """Return file and line from which an example comes."""
        batch, row = self._batch(int(index))
        return self.files[int(batch.file[row])], int(batch.line[row])

    def num_tokens(self, indices: IndexArray) -> IndexArray:
        """Return the lengths of examples in tokens, int64, in the order of `indices`."""
        found = [(batch.starts[row + 1] - batch.starts[row]) for batch, row in map(self._batch, indices.tolist())]
        return np.array(found, dtype=np.int64)

    def num_supervised(self, indices: IndexArray) -> IndexArray:
        """Return the numbers of labels that count, int64, in the order of `indices`."""
        found = [batch.num_supervised[row] for batch, row in map(self._batch, indices.tolist())]
        return np.array(found, dtype=np.int64)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers of all examples; for audits, as its size grows with the store."""
        self._open_file()
        values = np.zeros(len(self), dtype=schema().field(name).type.to_pandas_dtype())
        filled = 0
        for number in range(self._reader.num_record_batches):
            part = _view(self._reader.get_batch(number).column(name))
            values[filled : filled + len(part)] = part
            filled += len(part)
            if number % _MOST_OPEN == 0:
                self._release()
        return values

    def _open_file(self) -> None:
        if self._reader is not None:
            return
        import pyarrow as pa

        with (self.folder / "examples.arrow").open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_RANDOM)  # examples are read in random order: reading ahead is for nothing
        self._reader = pa.ipc.open_file(pa.py_buffer(self._map))
        self._open: OrderedDict[int, _Columns] = OrderedDict()
        self._reads = 0

    def _release(self) -> None:
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _batch(self, index: int) -> tuple["_Columns", int]:
        if not 0 <= index < self._size:
            raise IndexError(index)
        self._open_file()
        self._reads += 1
        if self._reads % _READS_BETWEEN_RELEASES == 0:
            self._release()
        number, row = divmod(index, _BATCH_EXAMPLES)
        if number not in self._open:
            self._open[number] = _Columns(self._reader.get_batch(number))
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number], row


class _Columns:
    """The columns of a record batch as views of the mapped file."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch  # keeps the mapped file alive
        self.starts = _view(batch.column("input_ids").offsets)
        self.input_ids = _view(batch.column("input_ids").values)
        self.loss = _view(batch.column("loss").values)
        self.num_supervised = _view(batch.column("num_supervised"))
        self.source = _view(batch.column("source"))
        self.file = _view(batch.column("file"))
        self.line = _view(batch.column("line"))


def _array(values: npt.ArrayLike, kind: Any) -> Any:
    """Return numbers as an array of pyarrow, whose own `array` imports pandas."""
    import pyarrow as pa

    numbers = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _view(array: Any) -> npt.NDArray[Any]:
    """Return numbers of pyarrow as they lie in memory; its own `to_numpy` imports pandas, which takes a while."""
    assert array.null_count == 0
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * dtype.itemsize)


def first_prompts(
    store: ExampleStore, indices: IndexArray, number: int, *, opening: Sequence[int] = ()
) -> list[tuple[list[int], list[int]]]:
    """Return `(prompt ids, ids of the last response)` of the first of these examples.

    Of plain text without anything before it, the first half stands for a prompt and the second for its response.

    Args:
        store: of the examples.
        indices: of the examples that are looked at, in order.
        number: at most so many pairs.
        opening: ids that are supervised and yet the end of each last prompt (`Encoder.opening_ids`).
    """
    pairs: list[tuple[list[int], list[int]]] = []
    for index in indices:
        if len(pairs) == number:
            break
        example = store[int(index)]
        supervised = np.flatnonzero(example.labels == example.input_ids)
        if not len(supervised):
            continue
        last_response = np.split(supervised, np.flatnonzero(np.diff(supervised) > 1) + 1)[-1]
        start, end = last_response[0], last_response[-1] + 1
        if example.input_ids[start : start + len(opening)].tolist() == list(opening):
            start += len(opening)
        start = start or end // 2
        if start > 0:
            pairs.append((example.input_ids[:start].tolist(), example.input_ids[start:end].tolist()))
    return pairs
