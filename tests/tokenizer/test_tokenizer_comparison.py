"""What `compare` counts, against counting by hand."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import datasets
import pytest
import sentencepiece
from tokenizers import Tokenizer
from vocabulary_models import LINES, train_model, write_byte_level

from ift.data.catalogue import load_catalogue
from tokenizer.comparison import compare, load

Run = Callable[..., subprocess.CompletedProcess[str]]
ALL_LINES = [line for line in LINES.splitlines() if line.strip()]
RATES = ("characters_per_token", "bytes_per_token", "tokens_per_record", "unknown_rate", "byte_rate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tokenizers, and text and instructions to compare them on."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "bytes.model").write_bytes(train_model(ALL_LINES[14:], vocab_size=500))
    (folder / "unknown.model").write_bytes(
        train_model(ALL_LINES[14:], model_type="unigram", vocab_size=120, byte_fallback=False)
    )
    write_byte_level(folder / "level", ALL_LINES[14:], ignore_merges=False)
    (folder / "poems.txt").write_text("\n".join(ALL_LINES[:14]) + "\n", encoding="utf-8")
    rows = [{"instruction": line, "input": "x", "output": line[::-1]} for line in ALL_LINES[14:20]]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text + "broken\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def result(folder: Path, run_tokenizer: Run) -> subprocess.CompletedProcess[str]:
    tokenizers = [folder / "bytes.model", folder / "unknown.model", folder / "level"]
    inputs = [folder / "poems.txt", folder / "rows.jsonl"]
    return run_tokenizer("compare", "--tokenizer", *tokenizers, "--input", *inputs, "--output", folder / "out")


def report(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    found = json.loads((folder / "out" / "compare.json").read_text(encoding="utf-8"))
    return {(Path(row["tokenizer"]).name, Path(row["source"]).name): row for row in found["results"]}


def test_counts_are_those_of_the_tokenizers(folder: Path, result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    found = report(folder)
    poems = ALL_LINES[:14]
    for name in ("bytes.model", "unknown.model"):
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
        ids = [index for line in poems for index in model.encode(line)]
        row = found[name, "poems.txt"]
        assert (row["records"], row["tokens"], row["characters"]) == (14, len(ids), sum(map(len, poems)))
        assert row["bytes"] == sum(len(line.encode()) for line in poems)
        assert row["unknown"] == ids.count(model.unk_id())
        assert row["byte_tokens"] == sum(map(model.is_byte, ids))
    assert found["bytes.model", "poems.txt"]["byte_rate"] > 0.5 > found["unknown.model", "poems.txt"]["byte_rate"] == 0
    assert found["unknown.model", "poems.txt"]["unknown_rate"] > 0.1 > found["bytes.model", "all"]["unknown_rate"] == 0
    level = Tokenizer.from_file(str(folder / "level" / "tokenizer.json"))
    tokens = [token for line in poems for token in level.encode(line).tokens]
    row = found["level", "poems.txt"]
    assert (row["tokens"], row["unknown"]) == (len(tokens), 0)
    assert row["byte_tokens"] == sum("\ufffd" in level.decoder.decode([token]) for token in tokens)


def test_instructions_count_all_their_text_and_sums_are_sums(
    folder: Path, result: subprocess.CompletedProcess[str]
) -> None:
    found = report(folder)
    for name in ("bytes.model", "unknown.model", "level"):
        rows, poems, every = (found[name, source] for source in ("rows.jsonl", "poems.txt", "all"))
        for key in ("records", "characters", "bytes", "tokens", "unknown", "byte_tokens"):
            assert every[key] == rows[key] + poems[key]
        assert rows["records"] == 6
        assert rows["characters"] == sum(2 * len(line) + 3 for line in ALL_LINES[14:20])  # two newlines and x
        expected = (every["characters"], every["bytes"], every["unknown"], every["byte_tokens"])
        assert every["tokens_per_record"] == every["tokens"] / every["records"]
        rates = [every[key] for key in ("characters_per_token", "bytes_per_token", "unknown_rate", "byte_rate")]
        assert rates == [value / every["tokens"] for value in expected]
    assert "rows.jsonl: 1 rows hold no text that could be read and were left out\n" in result.stdout


def test_table_page_and_chart_say_the_same(folder: Path, result: subprocess.CompletedProcess[str]) -> None:
    found = report(folder)
    page = (folder / "out" / "compare.md").read_text(encoding="utf-8")
    chart = ElementTree.fromstring((folder / "out" / "compare.svg").read_text(encoding="utf-8"))
    texts = [element.text for element in chart.iter() if element.tag.endswith("text")]
    for row in found.values():
        number = f"{row['characters_per_token']:.3f}"
        assert number in result.stdout and number in page
        assert f"{row['characters_per_token']:.2f}" in texts
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["compare.json", "compare.md", "compare.svg"]


def test_data_sets_of_the_hub_and_of_the_catalogue_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, *_: Any, **__: Any) -> list[dict[str, str]]:
        asked.append(path)
        return [{"instruction": "river", "input": "", "output": "stone"}] * 3

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    known = next(one for one in load_catalogue() if one.hub and one.layout == "alpaca" and not one.files)
    found = compare([load(str(folder / "bytes.model"))], ["owner/name", known.name])
    assert {"owner/name", known.hub} == set(asked)
    for source, records in (("owner/name", 3), (known.name, 3), ("all", 6)):
        assert found.counts[found.tokenizers[0].name, source].records == records


def test_mistakes_are_named(folder: Path, call_tokenizer: Run, tmp_path: Path) -> None:
    model, text = folder / "bytes.model", folder / "poems.txt"
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bad.model").write_text("no model")
    for tokenizers, inputs, message in (
        ([model, model], [text], "stands there twice"),
        ([model], [text, text], "stands there twice"),
        ([tmp_path / "none"], [text], "none: no such file or folder"),
        ([tmp_path], [text], "holds neither a SentencePiece model"),
        ([tmp_path / "bad.json"], [text], "cannot be read as a tokenizer.json"),
        ([tmp_path / "bad.model"], [text], "is no SentencePiece model"),
        ([model], [tmp_path / "none.txt"], "none.txt"),
        ([model], ["owner/name"], "owner/name"),
    ):
        if tokenizers == [tmp_path]:
            tokenizers = [folder.parent]
        result = call_tokenizer("compare", "--tokenizer", *tokenizers, "--input", *inputs)
        assert (result.returncode, result.stdout) == (2, "") and message in result.stderr, result.stderr
    taken = call_tokenizer("compare", "--tokenizer", model, "--input", text, "--output", tmp_path)
    assert taken.returncode == 2 and "exists and nothing is overwritten" in taken.stderr
