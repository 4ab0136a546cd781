"""The reader: every record with the line on which it begins, and a reason for everything that is none."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from ift.data.rows import RawRow, Source, check_source, content_hash, read_rows


def read(tmp_path: Path, content: str | bytes, name: str = "rows.jsonl") -> list[RawRow]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(Source(str(path), "alpaca")))


def random_value(generator: random.Random, depth: int = 0) -> Any:
    kinds = ["text", "number", "null", "list", "object"] if depth < 3 else ["text", "number"]
    kind = generator.choice(kinds)
    if kind == "text":
        return "".join(generator.choices('ab"\\ \n\t[]{},:文🙂\u2028', k=generator.randrange(8)))
    if kind == "number":
        return generator.choice([0, -1, 2.5, 1e30, True])
    if kind == "list":
        return [random_value(generator, depth + 1) for _ in range(generator.randrange(3))]
    if kind == "object":
        return {f"k{i}": random_value(generator, depth + 1) for i in range(generator.randrange(3))}
    return None


def random_records(seed: int) -> list[Any]:
    generator = random.Random(seed)
    return [{"number": i, "value": random_value(generator)} for i in range(generator.randrange(1, 12))]


@pytest.mark.parametrize("seed", range(12))
def test_an_array_is_read_as_json_reads_it(seed: int, tmp_path: Path) -> None:
    """Elements written one by one, so that the line of each is known; blank lines, indents, CRLF and BOM between."""
    generator = random.Random(seed)
    records, newline = random_records(seed), generator.choice(["\n", "\r\n"])
    text, lines = newline * generator.randrange(3) + generator.choice(["[", "[" + newline * 2]), []
    for number, record in enumerate(records):
        text += "," * (number > 0) + generator.choice(["", newline, newline * 3 + "  ", " "])
        lines.append(text.count("\n") + 1)
        written = json.dumps(record, ensure_ascii=bool(seed % 2), indent=generator.choice([None, 1, 4]))
        text += written.replace("\n", newline) + generator.choice(["", " ", newline])
    text += "]" + newline * generator.randrange(2)
    rows = read(tmp_path, ("\ufeff" if seed % 3 == 0 else "") + text)
    assert [row.value for row in rows] == json.loads(text) == records
    assert [row.line for row in rows] == lines
    assert not any(row.problem for row in rows)


@pytest.mark.parametrize("seed", range(12))
def test_json_lines_are_read_as_json_reads_them(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    records, newline = random_records(seed), generator.choice(["\n", "\r\n"])
    text, lines = "", []
    for record in records:
        text += generator.choice(["", newline, "  " + newline])
        lines.append(text.count("\n") + 1)
        text += json.dumps(record, ensure_ascii=bool(seed % 2)) + newline
    text = text.rstrip("\r\n") if seed % 2 else text
    rows = read(tmp_path, ("\ufeff" if seed % 3 == 0 else "") + text)
    assert [(row.line, row.value) for row in rows] == list(zip(lines, records, strict=True))


def test_the_first_character_decides_not_the_name(tmp_path: Path) -> None:
    assert [row.value for row in read(tmp_path, '[{"a": 1}]', "array.jsonl")] == [{"a": 1}]
    assert [row.value for row in read(tmp_path, '{"a": 1}\n{"a": 2}', "lines.json")] == [{"a": 1}, {"a": 2}]


BROKEN_LINES = [
    b'{"a": 1',
    b"{'a': 1}",
    b'{"a": 1}, {"a": 2}',
    b'{"a": "\xff"}',
    b"nonsense",
    b'{"a": ' + b"[" * 100_000,
    b'{"a": ' + b"9" * (sys.get_int_max_str_digits() + 1) + b"}",
]


@pytest.mark.parametrize("broken", BROKEN_LINES, ids=range(len(BROKEN_LINES)))
def test_a_broken_line_is_one_problem_and_the_rest_is_read(broken: bytes, tmp_path: Path) -> None:
    rows = read(tmp_path, b'{"a": 0}\n' + broken + b'\n\n{"a": 4}\n')
    assert [(row.line, row.value) for row in rows if not row.problem] == [(1, {"a": 0}), (4, {"a": 4})]
    (problem,) = (row for row in rows if row.problem)
    assert problem.line == 2 and problem.value is None
    unusable = {5: "the row is nested too deeply", 6: "an integer has more than"}
    expected = unusable.get(BROKEN_LINES.index(broken), "not UTF-8" if b"\xff" in broken else "not valid JSON")
    assert problem.problem.startswith(expected)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[\n{"a": 1},\n{"a": 2\n]', 4, "not valid JSON"),
        ('[\n{"a": 1},\n{"b": }\n]', 3, "not valid JSON"),
        ('[\n{"a": 1}\n{"a": 2}\n]', 3, "expected ',' or ']'"),
        ('[\n{"a": 1},\n', 3, "not valid JSON"),
        ('[\n{"a": 1}\n', 3, "expected ',' or ']'"),
        ('[\n{"a": 1},\n]', 3, "not valid JSON"),
        ('[\n{"a": 1}\n]\n[{"a": 2}]', 4, "text after the end of the JSON array"),
        ('[\n{"a": 1},\n{"a": ' + "9" * (sys.get_int_max_str_digits() + 1) + "}]", 3, "an integer has more"),
    ],
)
def test_a_broken_array_keeps_what_stands_before(text: str, line: int, reason: str, tmp_path: Path) -> None:
    rows = read(tmp_path, text)
    assert (rows[0].line, rows[0].value) == (2, {"a": 1})
    assert len(rows) == 2 and rows[1].line == line and reason in rows[1].problem


def test_an_array_that_is_not_utf8(tmp_path: Path) -> None:
    row, following = read(tmp_path, '[{"a": "中"}, {"a": "b"}]'.encode("gbk"))
    assert row.problem.startswith("not UTF-8 at byte 7 of the row")
    assert following.value == {"a": "b"}


def test_nothing_in_it(tmp_path: Path) -> None:
    assert read(tmp_path, "[]") == read(tmp_path, " \n\n") == read(tmp_path, "\ufeff[ \n ]\n") == []


def test_what_check_source_refuses(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_bytes(b"")
    for path, reason in (
        (tmp_path / "none.json", "no file"),
        (tmp_path / "empty.json", "is empty (0 bytes)"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ValueError) as caught:
            check_source("data.sources[2]", Source(str(path), "alpaca"))
        assert str(caught.value).startswith("data.sources[2].path: ") and reason in str(caught.value)
    with pytest.raises(ValueError, match=r"data.sources\[2\].weight: 0 is not above 0"):
        check_source("data.sources[2]", Source("owner/name", "alpaca", weight=0))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine that had the data set `owner/tiny` from the hub before, and is offline now."""
    import datasets

    cache = tmp_path / "hub_cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return cache


def put_on_hub(cache: Path, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    import datasets

    folder = tmp_path / "tiny"
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    datasets.load_dataset(str(folder), cache_dir=str(cache))
    (cache / "tiny").rename(cache / "owner___tiny")


def test_a_hub_data_set_is_read_through_datasets(hub: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"i{n}", "output": f"o{n}"} for n in range(3)]
    put_on_hub(hub, tmp_path, rows)
    source = Source("owner/tiny", "alpaca")
    assert not source.has_files
    assert [(row.line, row.value) for row in read_rows(source)] == list(enumerate(rows, 1))
    before = content_hash(source)
    assert content_hash(source) == before != content_hash(Source("owner/tiny", "alpaca", split="test"))
    (hub / "owner___tiny").rename(hub / "older")
    put_on_hub(hub, tmp_path, [*rows, {"instruction": "i3", "output": "o3"}])
    assert content_hash(source) != before


@pytest.mark.parametrize(("name", "split"), [("owner/none", "train"), ("owner/tiny", "tset")])
def test_a_hub_data_set_that_cannot_be_had(name: str, split: str, hub: Path, tmp_path: Path) -> None:
    put_on_hub(hub, tmp_path, [{"instruction": "i", "output": "o"}])
    with pytest.raises(ValueError) as caught:
        list(read_rows(Source(name, "alpaca", split=split), key="data.sources[0]"))
    message = str(caught.value)
    assert message.startswith(f"data.sources[0].path: no file '{name}'") and f"split '{split}'" in message
    if name == "owner/none":
        with pytest.raises(ValueError, match=r"data.sources\[0\].path: no file 'owner/none'"):
            content_hash(Source(name, "alpaca"), key="data.sources[0]")


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('[{"a": 1}, {"a": 2}, {"a" 3}]', ["line 1", "line 1, element 2", "line 1, element 3"]),
        ('[\n{"a": 1},\n{"a": 2}, 3,\n4]', ["line 2", "line 3", "line 3, element 3", "line 4"]),
        ('{"a": 1}\n{"a": 2} {"a": 3}\n', ["line 1", "line 2", "line 2, element 2"]),
    ],
)
def test_rows_on_one_line_are_told_apart(tmp_path: Path, text: str, places: list[str]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert [row.place for row in read_rows(Source(str(path)))] == places
