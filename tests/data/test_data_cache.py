"""The store of prepared examples: made once, and anew as soon as anything that decides it changes."""

import hashlib
import importlib
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import make_rows, write_json

from ift.data import preparation
from ift.data.datamodule import InstructionDataModule
from ift.data.encoding import Encoder, load_tokenizer
from ift.data.preparation import PreparationSettings, prepare
from ift.data.rows import Source
from ift.data.store import ExampleStore
from ift.data.templates import TEMPLATES, Template


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the sources that are read, one entry per reading."""
    found: list[str] = []
    original = preparation.read_rows

    def counting(source: Source, *, key: str):
        found.append(source.path)
        return original(source, key=key)

    monkeypatch.setattr(preparation, "read_rows", counting)
    return found


def store(base: Path, source: Source, tmp_path: Path, template: Template = TEMPLATES["alpaca"], length: int = 256):
    encoder = Encoder(load_tokenizer("model.base", str(base)), template)
    return prepare([source], encoder, PreparationSettings(length), cache_dir=tmp_path / "cache", key="data.sources")


def test_a_second_start_reads_nothing(
    base: Path, rows_file: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(str(rows_file), "alpaca")
    first = store(base, source, tmp_path)
    assert reads == [str(rows_file)]
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("the bytes of an unchanged file are read again"))
        assert store(base, source, tmp_path) == first
    assert reads == [str(rows_file)]
    folders = {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    assert folders == {first.name, "hashes"}


def test_whatever_decides_the_examples_decides_the_store(
    base: Path, tokenizer_folder: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_json(tmp_path / "rows.json", make_rows(8))
    monkeypatch.syspath_prepend(str(tmp_path))
    code = tmp_path / "my_rows.py"
    code.write_text("from ift.data.layouts import alpaca\n\ndef rows(row):\n    return alpaca(row)\n", encoding="utf-8")
    source, own = Source(str(rows), "alpaca"), Source(str(rows), "my_rows.rows")
    other = tmp_path / "other_tokenizer"
    shutil.copytree(tokenizer_folder, other)
    about = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**about, "eos_token": "<pad>"}), encoding="utf-8")

    folders = [store(base, source, tmp_path)]
    folders.append(store(base, source, tmp_path, length=255))
    folders.append(store(base, source, tmp_path, template=TEMPLATES["plain"]))
    changed = Template(**{**TEMPLATES["alpaca"].describe(), "between_turns": "\n"})
    folders.append(store(base, source, tmp_path, template=changed))
    folders.append(store(other, source, tmp_path))
    folders.append(store(base, own, tmp_path))
    code.write_text(code.read_text() + "# another version\n", encoding="utf-8")
    importlib.invalidate_caches()
    folders.append(store(base, own, tmp_path))
    write_json(rows, [*make_rows(7), make_rows(1, start=50)[0]])
    folders.append(store(base, source, tmp_path))
    assert len(set(folders)) == len(folders) == len(reads)


def test_the_weight_is_no_part_of_it(base: Path, rows_file: Path, tmp_path: Path, reads: list[str]) -> None:
    """But the report must not show the weight of an earlier run."""
    for weight in (1.0, 2.5):
        source = Source(str(rows_file), "alpaca", weight=weight)
        module = InstructionDataModule([source], str(base), 256, 8, 512, cache_dir=str(tmp_path / "cache"))
        module.load()
        assert module.describe()["sources"][0]["weight"] == weight
    assert len(reads) == 1


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_whole(
    base: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(str(rows_file), "alpaca")
    with monkeypatch.context() as patch:
        patch.setattr(preparation.ExampleSink, "__exit__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store(base, source, tmp_path)
    left = [path for path in (tmp_path / "cache").iterdir() if path.name != "hashes"]
    assert left and all(path.suffix in (".tmp", ".lock") for path in left)
    assert len(ExampleStore(store(base, source, tmp_path))) == 40


def prepare_in_child(base: Path, rows: Path, tmp_path: Path, barrier: Any, results: Any) -> None:
    reads: list[str] = []
    original = preparation.read_rows

    def counting(source: Source, *, key: str):
        reads.append(source.path)
        return original(source, key=key)

    preparation.read_rows = counting
    barrier.wait(timeout=60)
    folder = store(base, Source(str(rows), "alpaca"), tmp_path)
    results.put((folder.name, len(reads), len(ExampleStore(folder))))


def test_processes_that_start_at_once_make_one_store(base: Path, tmp_path: Path) -> None:
    rows = write_json(tmp_path / "rows.json", make_rows(2000))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=prepare_in_child, args=(base, rows, tmp_path, barrier, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert len({name for name, _, _ in found}) == 1
    assert sorted(reads for _, reads, _ in found) == [0, 0, 1]
    assert [examples for _, _, examples in found] == [2000] * 3
