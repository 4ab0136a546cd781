"""Thousands of damaged files: nothing raises, every row that can be found is read, and each reject names its place."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from damage import Case, cases

from ift.data import json_rows, table_rows
from ift.data.encoding import Encoder, load_tokenizer
from ift.data.preparation import PreparationSettings, prepare
from ift.data.rows import RawRow, Source, read_rows
from ift.data.store import ExampleStore
from ift.data.templates import TEMPLATES

SEEDS = range(20)


def read(path: Path) -> list[RawRow]:
    return list(read_rows(Source(str(path), "alpaca"), key="data.sources[0]"))


def most_lines(case: Case, path: Path) -> int:
    """Return a bound for the numbers of lines (of rows in Parquet): one past the end is where a file breaks off."""
    if case.suffix.endswith((".gz", ".zst")):
        return sum(json.dumps(row).count("\\n") + 3 for row in case.rows) + 4
    if case.suffix == ".parquet":
        return len(case.rows) + 1
    content = path.read_bytes()
    return content.count(b"\n") + content.count(b"\r") + 2


def fit_for_people(text: str) -> bool:
    return bool(text) and text.isprintable() and "Traceback" not in text and " at 0x" not in text


def check_reading(case: Case, path: Path) -> list[RawRow]:
    found = read(path)
    delivered = [row.value for row in found if not row.problem]
    for number in case.kept:
        assert case.rows[number] in delivered, (case, number, found)
    for number in case.lost:
        assert case.rows[number] not in delivered, (case, number)
    assert [row.line for row in found] == sorted(row.line for row in found), case
    assert all(1 <= row.line <= most_lines(case, path) for row in found), (case, found)
    assert all(row.file == str(path) for row in found)
    assert all(row.value is None for row in found if row.problem)
    return found


def test_there_are_enough_of_them() -> None:
    assert len({(case.suffix, case.content) for seed in SEEDS for case in cases(seed)}) >= 2000


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_files(seed: int, base: Path, tmp_path: Path) -> None:
    """Each is read alone; then all are prepared at once, and every row is accounted for."""
    sources, read_before = [], []
    for number, case in enumerate(cases(seed)):
        path = tmp_path / f"{number:03d}{case.suffix}"
        path.write_bytes(case.content)
        read_before.append(check_reading(case, path))
        sources.append(Source(str(path), "text" if case.suffix == ".txt" else "alpaca"))
    encoder = Encoder(load_tokenizer("model.base", str(base)), TEMPLATES["plain"])
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "key": "data.sources"}
    store = ExampleStore(prepare(sources, encoder, PreparationSettings(200), **options))
    with store.rejects_path.open(encoding="utf-8", newline="\n") as file:
        rejects = [json.loads(line) for line in file]
    rejected = Counter(reject["file"] for reject in rejects)
    for counts, rows in zip(store.counts, read_before, strict=True):
        assert counts.rows == len(rows) == counts.examples + counts.num_rejected, counts
        assert counts.num_rejected == rejected[counts.path] >= sum(bool(row.problem) for row in rows)
        assert all(map(fit_for_people, counts.rejected))
    for reject in rejects:
        assert isinstance(reject["line"], int) and reject["line"] >= 1 and "row" in reject
        assert fit_for_people(reject["kind"]) and fit_for_people(reject["reason"]), reject


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_row_that_is_too_long(suffix: str, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_LONGEST", 4000)
    monkeypatch.setattr(json_rows, "_PIECE", 100)
    monkeypatch.setattr(table_rows, "_LONGEST", 4000)
    texts = [f"text {i}" if i != place else "[x] " * 25_000 for i in range(5)]
    lines = texts if suffix in (".csv", ".txt") else [json.dumps({"text": text}) for text in texts]
    content = {".json": "[" + ",\n".join(lines) + "]", ".csv": "text\n" + "\n".join(lines)}.get(
        suffix, "\n".join(lines)
    )
    path = tmp_path / f"long{suffix}"
    path.write_text(content, encoding="utf-8")
    found = read(path)
    head = suffix == ".csv"
    assert [row.line for row in found] == [1 + head, 2 + head, 3 + head, 4 + head, 5 + head]
    assert [row.value and row.value["text"] for row in found] == [None if i == place else texts[i] for i in range(5)]
    assert "long" in found[place].problem
