"""Left out on purpose: duplicates and what overlaps with a benchmark, counted and kept in a file."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import make_rows, write_json

from ift.cli import main
from ift.data.datamodule import InstructionDataModule
from ift.data.filters import FilterSettings
from ift.data.rows import Source
from ift.errors import UserError

LONG = "Explain why the river runs past the old stone mill and the green lamp near the bridge of the town"


def module(base: Path, path: Path, tmp_path: Path, **settings: Any) -> InstructionDataModule:
    cache = str(tmp_path / "cache")
    made = InstructionDataModule([Source(str(path), "alpaca")], str(base), 256, 4, 512, cache_dir=cache, **settings)
    made.load()
    return made


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    rows = make_rows(12)
    nearly = {
        "instruction": LONG + ".",
        "input": "",
        "output": "Because the water has to go somewhere, as it always did.",
    }
    nearly_again = {**nearly, "instruction": LONG + "!"}
    return write_json(tmp_path / "rows.json", [*rows, nearly, rows[3], nearly_again, rows[3], rows[0]])


EXACT = [(13, 3), (15, 3), (16, 0)]
"""Row that is left out, and the row that it equals."""


@pytest.mark.parametrize(
    ("deduplicate", "pairs"), [("none", []), ("exact", EXACT), ("near", sorted([*EXACT, (14, 12)]))]
)
def test_duplicates_are_left_out_and_kept_in_a_file(
    base: Path, repeated: Path, tmp_path: Path, deduplicate: str, pairs: list[tuple[int, int]]
) -> None:
    rows = json.loads(repeated.read_text(encoding="utf-8"))
    data = module(base, repeated, tmp_path, deduplicate=deduplicate)
    (counts,) = data.store.counts
    removed = [json.loads(line) for line in data.store.removed_path.read_text(encoding="utf-8").splitlines()]
    assert len(data.store) == counts.examples == len(rows) - len(pairs)
    assert counts.num_removed == len(removed) == len(pairs) and counts.num_rejected == 0
    starts = [2 + sum(len(json.dumps(r, indent=1).splitlines()) for r in rows[:n]) for n in range(len(rows))]
    for one, (left_out, first) in zip(removed, pairs, strict=True):
        assert one["row"] == rows[left_out]
        assert (one["file"], one["line"]) == (str(repeated), starts[left_out])
        assert f"{repeated} line {starts[first]}" in one["reason"]


def test_rows_that_overlap_with_a_benchmark_are_left_out(base: Path, tmp_path: Path) -> None:
    rows = [*make_rows(10), {"instruction": f"First this. {LONG}", "input": "", "output": "Water."}]
    path = write_json(tmp_path / "rows.json", rows)
    benchmark = tmp_path / "test.jsonl"
    benchmark.write_text(json.dumps({"question": LONG, "answer": "It was there first."}) + "\n", encoding="utf-8")
    data = module(base, path, tmp_path, benchmarks=[str(benchmark)])
    (removed,) = [json.loads(line) for line in data.store.removed_path.read_text(encoding="utf-8").splitlines()]
    assert removed["row"] == rows[-1] and removed["kind"] == "contaminated" and str(benchmark) in removed["reason"]
    assert data.store.counts[0].removed == {"contaminated": 1} and len(data.store) == 10
    # Another content of the benchmark is another store; the same one is not built again.
    assert module(base, path, tmp_path, benchmarks=[str(benchmark)]).store.key == data.store.key
    benchmark.write_text(json.dumps({"question": "Something else, of quite some length, to be sure."}) + "\n")
    other = module(base, path, tmp_path, benchmarks=[str(benchmark)])
    assert other.store.key != data.store.key and len(other.store) == 11


def test_validation_is_never_filtered(base: Path, repeated: Path, tmp_path: Path) -> None:
    held_out = [Source(str(repeated), "alpaca")]
    data = module(base, repeated, tmp_path, deduplicate="near", validation=held_out)
    assert data.num_validation_examples == len(json.loads(repeated.read_text(encoding="utf-8")))


def test_a_missing_benchmark_is_refused_before_anything_is_read(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config(data={"benchmarks": ["nowhere.json"]}))]) == 2
    assert "data.benchmarks[0].path: no file 'nowhere.json'" in capsys.readouterr().err


def test_a_run_keeps_what_was_left_out(config: Callable[..., Path], repeated: Path) -> None:
    data = {"sources": [{"path": str(repeated)}], "deduplicate": "exact", "validation": 2}
    path = config("run", data=data, trainer={"max_epochs": 1})
    assert main(["fit", "--config", str(path)]) == 0
    run = path.with_suffix("")
    lines = (run / "removed.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(EXACT) and all(json.loads(line)["kind"] == "duplicate" for line in lines)
    (source,) = json.loads((run / "manifest.json").read_text())["data"]["sources"]
    assert source["removed"] == {"duplicate": len(EXACT)} and source["examples"] == 17 - len(EXACT)


def test_only_what_can_be_used_keeps_others_out(base: Path, tmp_path: Path) -> None:
    """Of a pair whose first one is too long, the second one stays."""
    near = {"instruction": LONG, "input": "", "output": " ".join(["Because the water has to go somewhere."] * 2)}
    longer = {**near, "output": near["output"] + " As ever."}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*make_rows(8), longer, near, near]), encoding="utf-8")
    longest = module(base, path, tmp_path).store.longest
    data = InstructionDataModule(
        [Source(str(path), "alpaca")],
        str(base),
        longest - 1,
        4,
        2 * longest,
        cache_dir=str(tmp_path / "cache"),
        deduplicate="near",
        max_rejected=0.2,
    )
    data.load()
    (counts,) = data.store.counts
    assert counts.rejected == {"longer than data.max_length": 1} and counts.removed == {"duplicate": 1}
    assert counts.examples == len(data.store) == 9
    (removed,) = [json.loads(line) for line in data.store.removed_path.read_text(encoding="utf-8").splitlines()]
    assert removed["row"] == near and removed["line"] == 11 and removed["reason"] == f"equal to {path} line 10"


def test_what_is_cut_and_then_left_out_is_not_counted_as_cut(base: Path, tmp_path: Path) -> None:
    row = {"instruction": "Explain.", "input": "", "output": LONG * 6}
    path = write_json(tmp_path / "rows.json", [row, row, *make_rows(8)])
    data = InstructionDataModule(
        [Source(str(path), "alpaca")], str(base), 256, 4, 512, cache_dir=str(tmp_path / "c"), deduplicate="exact",
        over_long="cut_end",
    )  # fmt: skip
    data.load()
    lengths = [len(data.store[index].input_ids) for index in range(len(data.store))]
    assert data.store.counts[0].cut == lengths.count(256) == 1 and len(data.store) == 9
    assert data.store.counts[0].removed == {"duplicate": 1}


def test_a_benchmark_that_cannot_be_had_is_named_as_in_the_configuration(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text('{"question": "a"}\n', encoding="utf-8")
    settings = FilterSettings(benchmarks=(str(good), "owner/no_such_benchmark"))
    with pytest.raises(UserError, match=r"^data\.benchmarks\[1\]\.path: no file 'owner/no_such_benchmark'"):
        settings.describe(tmp_path / "hashes")


def test_what_decides_the_filters_is_what_they_say_of_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So another version of the package that makes the sketches is another store."""
    before = FilterSettings("near").describe(tmp_path)
    assert before != FilterSettings("exact").describe(tmp_path) != FilterSettings().describe(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0")
    assert FilterSettings("near").describe(tmp_path) != before
