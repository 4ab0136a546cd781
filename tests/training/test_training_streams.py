"""A run over streams and prepared data: exact over interruptions, ranks and workers, and honest about its rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import largest_difference
from tiny import make_rows

from ift.cli import main

Config = Callable[..., Path]
Fit = Callable[..., Path]
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}


@pytest.fixture
def settings(tmp_path: Path, rows_file: Path) -> dict[str, Any]:
    """Sections of a run over a stream of two files, one of its rows broken, and forty prepared rows."""
    for start in (100, 120):
        lines = [json.dumps(row, ensure_ascii=False) for row in make_rows(20, start=start)]
        lines[7] = "{broken" if start == 120 else lines[7]
        (tmp_path / f"shard{start}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {
        "sources": [{"path": str(tmp_path / "shard*.jsonl"), "stream": True, "weight": 2}, {"path": str(rows_file)}],
        "mixing": "examples",
        "shuffle_buffer": 9,
        "max_rejected": 0.1,
        "validation": 8,
    }
    trainer = {"max_epochs": None, "max_steps": 12, "val_check_interval": 5, "check_val_every_n_epoch": None}
    return {"data": data, "trainer": trainer, "checkpoint": {"every_n_train_steps": 4, "save_top_k": -1}}


def test_a_run_over_streams_resumes_exactly(config: Config, fit: Fit, settings: dict[str, Any]) -> None:
    reference = fit(config("reference", **settings))
    manifest = json.loads((reference / "manifest.json").read_text())
    # 96 rows in 12 steps, two thirds of them from the stream: one and a half passes over its 40 rows.
    assert manifest["steps"] == 12 and manifest["data"]["streams"]["rows"] == [64, 0]
    streams = manifest["data"]["streams"]
    assert streams["examples"][0] + sum(streams["rejected"].values()) == 64
    rejects = [json.loads(line) for line in (reference / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == sum(streams["rejected"].values()) >= 1
    assert {(Path(reject["file"]).name, reject["line"]) for reject in rejects} == {("shard120.jsonl", 8)}
    for workers in (0, 2):
        changed = {**settings, "data": {**settings["data"], "num_workers": workers}}
        checkpoint = reference / "checkpoints" / "step-00000004.ckpt"
        run = fit(config(f"resumed{workers}", **changed), "--ckpt_path", str(checkpoint))
        assert largest_difference(reference, run) == 0
        assert json.loads((run / "manifest.json").read_text())["data"]["streams"]["rows"] == [64, 0]


def test_rejected_rows_beyond_a_checkpoint_are_written_once(
    config: Config, fit: Fit, settings: dict[str, Any], rows_file: Path
) -> None:
    """Of the stream there are some before and some after the checkpoint, of the prepared rows there is one."""
    rows = json.loads(rows_file.read_text(encoding="utf-8"))
    rows_file.write_text(json.dumps([*rows, {"instruction": "no output"}]), encoding="utf-8")
    path = config("run", **settings)
    run = fit(path)
    whole = (run / "rejects.jsonl").read_bytes()
    assert len(whole.splitlines()) == 3
    checkpoint = run / "checkpoints" / "step-00000004.ckpt"
    for later in set((run / "checkpoints").iterdir()) - {checkpoint}:
        later.unlink()
    fit(path, "--ckpt_path", str(checkpoint))
    assert (run / "rejects.jsonl").read_bytes() == whole
    assert [json.loads(line)["line"] for line in whole.splitlines()][1:] == [8, 8]


def test_two_ranks_train_on_streams_as_one(config: Config, fit: Fit, start: Any, settings: dict[str, Any]) -> None:
    one = fit(config("one", **settings, model={"optimizer": SGD}))
    path = config("two", **settings, model={"optimizer": SGD})
    process = start("fit", "--config", str(path), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert largest_difference(one, path.with_suffix("")) < 1e-6


def test_a_run_without_end_is_refused(
    config: Config, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("run", **{**settings, "trainer": {"max_epochs": 1}})
    assert main(["fit", "--config", str(path)]) == 2
    assert "trainer.max_steps: required, as data.sources[0] streams and has no end" in capsys.readouterr().err
