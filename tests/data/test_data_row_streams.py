"""Streams of rows: every row once per epoch, seeded, resumable from a place in the middle of a file."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ift.data import files as data_files
from ift.data.files import DataFile
from ift.data.row_streams import RowStream, stream_files
from ift.data.rows import Source, read_file
from ift.errors import UserError

KINDS = ["jsonl", "jsonl.gz", "json", "parquet", "csv", "txt"]


def write(folder: Path, kind: str, values: list[int]) -> Path:
    path = folder / f"{values[0]:04d}.{kind}"
    rows = [{"text": f"row {value} {hashlib.sha256(str(value).encode()).hexdigest()}"} for value in values]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "jsonl":
        path.write_text("\n" + lines)  # a blank line is no row
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=max(4, len(rows) // 40))
    else:
        head = "text\n" if kind == "csv" else ""
        path.write_text(head + "".join(f"{row['text']}\n" for row in rows))
    return path


def make(folder: Path, kind: str, *, buffer: int = 5, seed: int = 0) -> RowStream:
    for start, size in ((0, 13), (13, 1), (14, 23)):
        if not (folder / f"{start:04d}.{kind}").exists():
            write(folder, kind, list(range(start, start + size)))
    return RowStream([DataFile(str(p)) for p in sorted(folder.glob(f"*.{kind}"))], buffer=buffer, seed=(seed, 1))


def take(stream: RowStream, numbers: Any) -> list[int]:
    rows = [stream.row(number) for number in numbers]
    assert not any(row.problem for row in rows)
    return [int(row.value["text"].split()[1]) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("buffer", [1, 5, 100])
def test_an_epoch_holds_every_row_once(tmp_path: Path, kind: str, buffer: int) -> None:
    stream = make(tmp_path, kind, buffer=buffer)
    epochs = [take(stream, range(start, start + 37)) for start in (0, 37, 74)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert buffer == 1 or len({tuple(epoch) for epoch in epochs}) == 3
    assert take(make(tmp_path, kind, buffer=buffer), range(37)) == epochs[0]
    if buffer > 1:
        assert take(make(tmp_path, kind, buffer=buffer, seed=1), range(37)) != epochs[0]


def test_a_block_stays_within_its_buffer(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", list(range(40)))
    order = take(RowStream([DataFile(str(path))], buffer=8, seed=(3,)), range(40))
    assert order != list(range(40))
    assert all(sorted(order[start : start + 8]) == list(range(start, start + 8)) for start in range(0, 40, 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 3, 5, 12, 13, 14, 36, 37, 41, 80])
def test_going_on_from_a_state_gives_the_same_rows(tmp_path: Path, kind: str, stop: int) -> None:
    whole = make(tmp_path, kind)
    expected = take(whole, range(100))
    stream = make(tmp_path, kind)
    take(stream, range(stop))
    state = json.loads(json.dumps(stream.state()))
    again = make(tmp_path, kind)
    again.load_state(state)
    assert take(again, range(stop, 100)) == expected[stop:]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_going_on_reads_only_the_block(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are counted where the file is opened: no more than what lies from the block's beginning on."""
    write(tmp_path, kind, list(range(20_000)))
    stream = make(tmp_path, kind, buffer=100)
    last = 19_900
    take(stream, [last])
    state, expected = stream.state(), take(stream, range(last, last + 50))
    read: list[int] = []
    original = DataFile._open_raw

    def counted(file: DataFile) -> Any:
        opened = original(file)

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(opened, name)

            def __enter__(self) -> "Counting":
                return self

            def __exit__(self, *error: object) -> None:
                opened.close()

            def read(self, size: int = -1) -> bytes:
                data: bytes = opened.read(size)
                read.append(len(data))
                return data

            def readline(self, size: int = -1) -> bytes:
                data: bytes = opened.readline(size)
                read.append(len(data))
                return data

        return Counting()

    monkeypatch.setattr(data_files.DataFile, "_open_raw", counted)
    again = make(tmp_path, kind, buffer=100)
    again.load_state(state)
    assert take(again, range(last, last + 50)) == expected
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sum(read) < 0.5 * size


def test_other_processes_lines_are_not_parsed(tmp_path: Path) -> None:
    """A broken row is a problem only for who asks for it."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "row 0"}\n{broken\n{"text": "row 2"}\n{},{}\n')
    rows = [RowStream([DataFile(str(path))], buffer=1, seed=(0,)).row(number) for number in range(4)]
    assert [bool(row.problem) for row in rows] == [False, True, False, True]
    assert [row.line for row in rows] == [1, 2, 3, 4] and {row.file for row in rows} == {str(path)}


def test_files_without_rows_are_no_stream(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n")
    with pytest.raises(UserError, match="hold no row"):
        RowStream([DataFile(str(path))], buffer=4, seed=(0,)).row(0)


def test_remote_files_stream_like_local_ones(tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for start in (0, 10):
        system.pipe(f"/shards/{start}.jsonl", "".join(f'{{"text": "row {start + i}"}}\n' for i in range(10)).encode())
    files = stream_files("data.sources[0]", Source("memory://shards/*.jsonl"))
    stream = RowStream(files, buffer=4, seed=(0,))
    expected = take(stream, range(20))
    assert sorted(expected) == list(range(20))
    again = RowStream(files, buffer=4, seed=(0,))
    again.load_state(stream.state())
    assert take(again, [19]) == expected[19:]


def test_a_hub_data_set_streams_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` finds the files; a folder stands for the hub here."""
    import datasets

    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    write(folder, "jsonl", list(range(7)))
    original = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda path, name, revision: original(str(tmp_path / path), name)
    )
    files = stream_files("data.sources[0]", Source("owner/name"))
    assert sorted(take(RowStream(files, buffer=3, seed=(0,)), range(7))) == list(range(7))
    with pytest.raises(UserError, match=r"data.sources\[0\].split: 'owner/name' has no split 'test'.*train"):
        stream_files("data.sources[0]", Source("owner/name", split="test"))


def test_other_files_are_not_gone_on_in(tmp_path: Path) -> None:
    stream = make(tmp_path, "jsonl")
    take(stream, range(3))
    write(tmp_path, "jsonl", [90, 91])
    with pytest.raises(UserError, match="the files of the stream that begins with .* have changed"):
        make(tmp_path, "jsonl").load_state(stream.state())


def test_a_stream_can_be_handed_to_another_process(base: Path, tmp_path: Path) -> None:
    import pickle

    from ift.data.row_conversations import resolve_source

    source = Source(str(write(tmp_path, "jsonl", [1, 2])), "alpaca", columns={"instruction": "q", "output": "a"})
    function = pickle.loads(pickle.dumps(resolve_source("data", source).function))
    assert function({"q": "x", "a": "y"}).messages[1].text == "y"


SEVERAL = [
    '{"a": 1}{"a": 2}\n',
    '{"a": 1} {"a": 2}\t{"a": 3}\r\n',
    '{"a": [{"b": 1}, {"c": {}}]} 5\n',
    '{"a": "} {"}\n',
    '{"a": "} else {"} ["x"] null\n',
    '{"a": 1}{"a": \n',
    '5 {"a": 1}\n',
    "[1] [2]\n",
    '{"a": 1}\r{broken\r{"a": 2}\n',
    '{"a": 1}, {"a": 2}\n',
    '{"a": 1}}\n',
    "\x0c\n",
    " \t\n",
    '{"a": 1}\x0c\n',
    "{broken\r{}\n",
]


def test_lines_of_several_values_are_read_as_when_they_are_prepared(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(("\ufeff" + '{"a": 0}\n' + "".join(SEVERAL) + '{"a": 4}').encode())
    file = DataFile(str(path))
    prepared = [row._replace(file=str(path)) for row in read_file(file)]
    assert any(row.element == 3 for row in prepared)
    stream = RowStream([file], buffer=1, seed=(0,))
    states, rows = [], []
    for number in range(len(prepared)):
        rows.append(stream.row(number))
        states.append(json.loads(json.dumps(stream.state())))
    assert rows == prepared
    assert stream.row(len(rows)) == prepared[0]._replace(file=str(path))  # the next epoch, so none was left out
    for number, state in enumerate(states):
        again = RowStream([file], buffer=1, seed=(0,))
        again.load_state(state)
        assert [again.row(n) for n in range(number, len(prepared))] == prepared[number:]
