"""Files as they lie on disks: odd names, links, pipes, tables in odd types, and content that breaks off anywhere."""

import builtins
import datetime
import gzip
import hashlib
import io
import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tqdm

from ift.data.files import DataFile, find_files
from ift.data.layouts import RowError, resolve_layout
from ift.data.row_conversations import to_conversations
from ift.data.rows import RawRow, Source, check_source, read_rows
from ift.errors import UserError

ROW = {"instruction": "a", "output": "b"}


def put(path: Path, content: str | bytes = json.dumps(ROW)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path | str) -> list[RawRow]:
    return list(read_rows(Source(str(path), "alpaca"), key="data.sources[1]"))


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        check_source("data.sources[1]", Source(str(path), "alpaca"))
    message = str(caught.value)
    assert message.startswith("data.sources[1].path: ") and message.endswith((".", "'"))
    return message


@pytest.mark.parametrize(
    "name", ["a[1].jsonl", "what?.jsonl", "all*.jsonl", "[x]/y.jsonl", "~none.jsonl", "ü 文.jsonl"]
)
def test_names_with_characters_of_patterns(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / name)
    assert [row.value for row in read(tmp_path / name)] == [ROW]
    monkeypatch.chdir(tmp_path)
    assert [row.value for row in read(name)] == [ROW]


def test_patterns(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/c/3.jsonl", "1.jsonl", "b/other.csv"):
        put(tmp_path / name)
    found = find_files("k", str(tmp_path / "**" / "*.jsonl"))
    assert [Path(file.path).name for file in found] == ["1.jsonl", "2.jsonl", "3.jsonl"]
    put(tmp_path / "in [x]" / "4.jsonl")
    message = refusal(tmp_path / "in [x]" / "*.jsonl")
    assert "no file matches" in message and "its name is read as a pattern; write '" in message
    assert [row.value for row in read(message.split("write '")[1].removesuffix("'."))] == [ROW]


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder. Name the file in it" in refusal(tmp_path / "folder.jsonl")
    assert "is a folder" in refusal(tmp_path / "fold*")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is no ordinary file" in refusal(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "a link to" in refusal(tmp_path / "link.jsonl") and "gone.jsonl" in refusal(tmp_path / "li*.jsonl")
    (tmp_path / "round.jsonl").symlink_to(tmp_path / "round.jsonl")
    refusal(tmp_path / "round.jsonl")
    assert "cannot be read" in refusal("x" * 5000 + ".jsonl") or "no file" in refusal("x" * 5000 + ".jsonl")
    assert "no file '/none/such'" in refusal("/none/such") and "no file './such'" in refusal("./such")
    refusal("nul\0byte.jsonl")
    put(tmp_path / "real.jsonl")
    (tmp_path / "good.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert [row.value for row in read(tmp_path / "good.jsonl")] == [ROW]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = put(tmp_path / "secret.jsonl"), builtins.open

    def refuse(name: Any, *arguments: Any, **options: Any) -> Any:
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(name))
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    assert "cannot be read: Permission denied" in refusal(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".jsonl.gz"])
def test_a_file_that_changes_while_it_is_read(suffix: str, tmp_path: Path) -> None:
    content = {".csv": "instruction,output\na,b\n"}.get(suffix, json.dumps(ROW) + "\n")
    path = put(tmp_path / f"log{suffix}", gzip.compress(content.encode()) if suffix.endswith("gz") else content)
    with pytest.raises(UserError, match=r"data.sources\[1\].path: '.*' changed while it was read"):
        for _ in read_rows(Source(str(path), "alpaca"), key="data.sources[1]"):
            with path.open("ab") as file:
                file.write(b"\n")


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_every_row_before_the_place_where_a_file_breaks_off(compression: str, tmp_path: Path) -> None:
    """Random texts, which compress badly, so that the file has many blocks; cut anywhere, none of them is lost."""
    generator = random.Random(0)
    lines = [json.dumps({**ROW, "n": i, "text": generator.randbytes(300).hex()}).encode() + b"\n" for i in range(3000)]
    content = b"".join(lines)
    packed = (
        gzip.compress(content, 1) if compression == ".gz" else bytes(pa.Codec("zstd").compress(content, asbytes=True))
    )
    before = -1
    for share in (0.1, 0.35, 0.6, 0.9, 0.9999):
        found = read(put(tmp_path / f"cut.jsonl{compression}", packed[: int(share * len(packed))]))
        numbers = [row.value["n"] for row in found if not row.problem]
        assert numbers == list(range(len(numbers))) and len(numbers) > before
        assert found[-1].line == len(numbers) + 1 and "damaged or breaks off" in found[-1].problem
        if compression == ".gz":
            assert len(numbers) == zlib.decompressobj(31).decompress(packed[: int(share * len(packed))]).count(b"\n")
        else:  # blocks of 128 KiB, which come whole or not at all
            assert share * 3000 - len(numbers) < 131_072 / len(lines[0]) + 20
        before = len(numbers)


def test_an_array_in_a_file_that_breaks_off(tmp_path: Path) -> None:
    generator = random.Random(0)
    rows = [{**ROW, "n": i, "text": generator.randbytes(300).hex()} for i in range(2000)]
    packed = gzip.compress(json.dumps(rows).encode())
    found = read(put(tmp_path / "cut.json.gz", packed[: len(packed) // 2]))
    numbers = [row.value["n"] for row in found if not row.problem]
    assert numbers == list(range(len(numbers))) and 990 <= len(numbers) <= 1000


def test_a_parquet_file_with_other_types(tmp_path: Path) -> None:
    """What is no JSON type reaches the row function, which says what it wants; what Python cannot hold is one row's."""
    table = pa.table(
        {
            "instruction": pa.array([b"bytes \xff", None, b"x"], pa.binary()),
            "output": pa.array(["a", "b", "c"]),
            "day": pa.array([datetime.date(2020, 1, 1), None, datetime.date(1, 1, 1)]),
            "nested": pa.array([{"a": [1]}, None, {"a": []}]),
            "micro": pa.array([0, 2**62, 5], pa.timestamp("us")),
            "pairs": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    parquet.write_table(table, tmp_path / "types.parquet")
    found = read(tmp_path / "types.parquet")
    assert [row.line for row in found] == [1, 2, 3] and [bool(row.problem) for row in found] == [False, True, False]
    assert found[1].problem.startswith("values that cannot be read: 'micro' (")
    for row in found[::2]:
        (error,) = to_conversations(row, resolve_layout("k", "alpaca"), needs_response=True)
        assert isinstance(error, RowError) and "'instruction' must be text, found bytes" in str(error)


def test_text_in_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    """Five rows of which the third holds a byte that no UTF-8 text has."""
    texts = pa.array([b"one", b"two", b"thr\xff", b"four", b"five"], pa.binary())
    parquet.write_table(
        pa.table({"text": texts.cast(pa.string(), safe=False).view(pa.string())}), tmp_path / "x.parquet"
    )
    found = read(tmp_path / "x.parquet")
    assert [row.value and row.value["text"] for row in found] == ["one", "two", None, "four", "five"]
    assert "'text'" in found[2].problem and found[2].line == 3


def test_parquet_files_that_hold_nothing_to_read(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert read(tmp_path / "empty.parquet") == []
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    (row,) = read(tmp_path / "twice.parquet")
    assert "have the same name" in row.problem
    assert "Decompress it" in refusal(put(tmp_path / "x.parquet.gz", b"x"))


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    content = '\ufeffinstruction,output\r\n"a ""b""","c\r\nd"\r\n\r\n"x","y"\r\n'
    found = read(put(tmp_path / "sheet.csv", content))
    assert [(row.line, row.value) for row in found] == [
        (2, {"instruction": 'a "b"', "output": "c\r\nd"}),
        (5, {"instruction": "x", "output": "y"}),
    ]


def test_a_mark_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    rows = [f"i{n},o{n}\n" for n in range(25_000)]
    content = "instruction,output\n" + rows[0] + '"' + "".join(rows[1:])
    found = read(put(tmp_path / "open.csv", content))
    assert [row.line for row in found] == list(range(2, 25_002))
    assert [row.line for row in found if row.problem] == [3] and "never closed" in found[1].problem


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "one text without end": lambda size: b'{"a": "' + b"x" * size,
    "one text without end in an array": lambda size: b'[{"a": "' + b"x" * size,
    "brackets": lambda size: b"[" * size,
    "objects": lambda size: b'{"a":' * (size // 5),
    "deep in an array": lambda size: b"[" + b"[" * (size // 2) + b"]" * (size // 2) + b"]",
    "backslashes": lambda size: b'["' + b"\\" * size,
    "deep and backslashes": lambda size: b"[" + b"[" * 2000 + b'"' + b"\\" * size,
    "blanks": lambda size: b" " * size + b"[",
    "newlines": lambda size: b"\n" * size,
    "digits": lambda size: b"[" + b"1" * size,
    "elements": lambda size: b"[" + b"1," * (size // 2) + b"1]",
    "not utf-8": lambda size: b"\xff" * size,
    "quotation marks": lambda size: b'"' * size,
    "carriage returns": lambda size: b'{"a":1}\r' * (size // 8) + b"x",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".json", ".csv", ".txt"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_come_to_an_end(kind: str, suffix: str, tmp_path: Path) -> None:
    """Half a mebibyte takes a second or two; what costs the square of the length would take hours."""
    path = put(tmp_path / f"hostile{suffix}", HOSTILE[kind](1 << 19))
    lines = max(1, len(path.read_bytes().splitlines()))
    assert all(1 <= row.line <= lines + 1 for row in read(path))


def test_hashing_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every byte, and the hash is that of the whole content."""
    content = random.Random(0).randbytes(3 * (1 << 20) + 17)
    path = put(tmp_path / "rows.jsonl", content)
    bars: list[Any] = []

    class Bar(tqdm.tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, file=io.StringIO())
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    assert DataFile(str(path)).identity(None) == hashlib.sha256(content).hexdigest()
    (bar,) = bars
    assert bar.n == bar.total == len(content) and str(path) in bar.desc
