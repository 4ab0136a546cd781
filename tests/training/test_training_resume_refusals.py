"""What would put another result in the place of a run's own is refused: changed files, other settings, fewer steps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ift.cli import main

Config = Callable[..., Path]
Fit = Callable[..., Path]

SETTINGS: dict[str, Any] = {"trainer": {"max_steps": 4}, "checkpoint": {"every_n_train_steps": 2}}


@pytest.fixture
def finished(config: Config, fit: Fit) -> Path:
    return fit(config("run", **SETTINGS))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["fit", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_finished_run_is_not_ended_earlier(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, adapter = f"{finished}.yaml", finished / "adapter" / "adapter_model.safetensors"
    before = load_file(adapter)
    said = refused(capsys, "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "3")
    assert "trainer.max_steps" in said and "4 steps" in said
    shutil.rmtree(finished / "checkpoints")
    said = refused(capsys, "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "6")
    assert "ckpt_path: 'last' finds no checkpoint" in said
    assert all(bool((load_file(adapter)[name] == one).all()) for name, one in before.items())


@pytest.mark.parametrize("change", ["edited", "gone", "torn"])
def test_a_changed_configuration_in_the_run_folder_is_seen(
    finished: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    kept = finished / "config.yaml"
    text = kept.read_text()
    if change == "gone":
        kept.unlink()
    else:
        kept.write_text(text.replace("gradient_clip_norm: ", "gradient_clip_norm: 1") if change == "edited" else "a: [")
    said = refused(capsys, "--config", f"{finished}.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6")
    assert str(kept) in said and "Restore" in said
    kept.write_text(text)
    assert main(["fit", "--config", f"{finished}.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6"]) == 0


def test_a_checkpoint_of_another_run_wants_that_runs_settings(
    finished: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its optimizer's learning rate and its place in the data are gone on with, whatever the new YAML says."""
    (checkpoint,) = map(str, (finished / "checkpoints").iterdir())
    other = str(config("other", **SETTINGS))
    for setting in ("--model.optimizer.init_args.lr=0.5", "--data.global_batch_size=4"):
        said = refused(capsys, "--config", other, "--ckpt_path", checkpoint, setting)
        assert setting.partition("=")[0][2:] in said and str(finished) in said
    assert main(["fit", "--config", other, "--ckpt_path", checkpoint, "--trainer.max_steps", "6"]) == 0


def test_a_checkpoint_that_is_not_the_result_is_told_of(
    config: Config, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = {"monitor": "validation/loss", "mode": "max"}  # of the first validation, as the loss falls
    run = fit(config("run", trainer={"max_steps": 5, "val_check_interval": 2}, checkpoint=best))
    commands = [
        ["validate", "--config", f"{run}.yaml", "--ckpt_path", "last"],
        ["consolidate", str(run), "--output", str(tmp_path / "consolidated")],
    ]
    for command in commands:
        capsys.readouterr()
        assert main(command) == 0
        assert "finished with 5 steps, and this checkpoint is of step 2" in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_of_another_run_wants_that_runs_data(
    finished: Path, config: Config, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = map(str, (finished / "checkpoints").iterdir())
    rows = json.loads(rows_file.read_text(encoding="utf-8"))
    rows_file.write_text(json.dumps(rows[::-1]), encoding="utf-8")
    said = refused(capsys, "--config", str(config("other", **SETTINGS)), "--ckpt_path", checkpoint)
    assert "data.sources" in said and str(finished) in said


def test_a_checkpoint_outside_of_its_run_is_told_of(
    finished: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = (finished / "checkpoints").iterdir()
    moved = shutil.copy(checkpoint, tmp_path / "moved.ckpt")
    other = str(config("other", **SETTINGS))
    assert main(["fit", "--config", other, "--ckpt_path", str(moved), "--trainer.max_steps", "6"]) == 0
    assert f"'{moved}' lies in no run folder" in capsys.readouterr().err


def test_a_run_keeps_its_precision(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(config("run", **SETTINGS))
    more = ["--config", f"{run}.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6", "--trainer.precision"]
    assert "trainer.precision: " in refused(capsys, *more, "bf16-mixed")
    assert main(["fit", *more, "32"]) == 0  # as it was, by another name


def test_a_finished_run_is_not_ended_after_fewer_epochs(
    config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(config("run", trainer={"max_epochs": 3, "max_steps": -1}))
    more = ["--config", f"{run}.yaml", "--ckpt_path", "last", "--trainer.max_epochs"]
    said = refused(capsys, *more, "2")
    assert "trainer.max_epochs: " in said and "finished with 3 epochs" in said
    assert main(["fit", *more, "4"]) == 0


def test_a_run_folder_holds_one_course(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """From an earlier checkpoint a run is gone on with elsewhere, or where the later ones are gone."""
    saved = {"every_n_train_steps": 2, "save_top_k": -1}
    run = fit(config("run", trainer={"max_steps": 4}, checkpoint=saved))
    earlier, later = sorted((run / "checkpoints").iterdir())
    said = refused(capsys, "--config", f"{run}.yaml", "--ckpt_path", str(earlier))
    assert "is of step 2" in said and "one of step 4" in said and later.name in said
    later.unlink()
    assert main(["fit", "--config", f"{run}.yaml", "--ckpt_path", str(earlier), "--trainer.max_steps", "4"]) == 0
    # What was trained again was exported again, although the run had been finished with as many steps.
    manifest = json.loads((run / "manifest.json").read_text())
    assert [one["from_step"] for one in manifest["sessions"]] == [0, 2] and manifest["status"] == "finished"
