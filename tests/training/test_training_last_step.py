"""Whatever the interval, the last step of a run is saved, and longer runs go on from there as if it had not ended."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference

Config = Callable[..., Path]
Fit = Callable[..., Path]

ENDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    # 40 examples less 8 for validation, 5 a step: 7 steps an epoch.
    "steps": ({"max_steps": 5}, {"max_steps": 9}, {"every_n_train_steps": 3}, 5),
    "epochs": ({"max_epochs": 1}, {"max_epochs": 2}, {"every_n_train_steps": 3}, 7),
    "seldom epochs": ({"max_epochs": 1}, {"max_epochs": 2}, {"every_n_epochs": 2}, 7),
    "validations": ({"max_steps": 5, "val_check_interval": 3}, {"max_steps": 9}, {}, 5),
    "validation next": ({"max_steps": 6, "val_check_interval": 3}, {"max_steps": 9}, {"every_n_train_steps": 4}, 6),
    "time": ({"max_steps": 5}, {"max_steps": 9}, {"train_time_interval": "0:1:0:0"}, 5),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_goes_on_from_its_last_step(end: str, config: Config, fit: Fit) -> None:
    short, long, saved, step = ENDS[end]
    constant = {"kind": "constant", "warmup": 2}  # others depend on how long the run is
    settings: dict[str, Any] = {"model": {"schedule": constant}, "data": {"global_batch_size": 5}, "checkpoint": saved}
    run = config("run", trainer={"max_steps": -1, "num_sanity_val_steps": 0, **short}, **settings)
    whole = fit(config("whole", trainer={"max_steps": -1, "num_sanity_val_steps": 0, **short, **long}, **settings))
    folder = fit(run)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step:08d}.ckpt"]
    more = [f"--trainer.{key}={value}" for key, value in long.items()]
    fit(run, "--ckpt_path", "last", *more)
    assert largest_difference(folder, whole) == 0.0
    results = [json.loads((one / "manifest.json").read_text())["validation"] for one in (folder, whole)]
    assert results[0] == results[1]
    assert (folder / "losses.jsonl").read_text() == (whole / "losses.jsonl").read_text()


def test_a_run_that_stops_early_saves_its_last_step(config: Config, fit: Fit) -> None:
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "validation/loss", "stopping_threshold": 1000.0, "check_on_train_epoch_end": False},
    }
    trainer = {"max_steps": 20, "val_check_interval": 3, "num_sanity_val_steps": 0, "callbacks": [stopping]}
    folder = fit(config("run", trainer=trainer, checkpoint={"every_n_train_steps": 100}))
    assert json.loads((folder / "manifest.json").read_text())["steps"] == 3
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000003.ckpt"]


@pytest.mark.parametrize("saved", [{"save_top_k": 0}, {"every_n_train_steps": 0, "every_n_epochs": 0}])
def test_what_saves_nothing_saves_no_last_step(saved: dict[str, Any], config: Config, fit: Fit) -> None:
    folder = fit(config("run", trainer={"max_steps": 2}, checkpoint=saved))
    assert not list((folder / "checkpoints").glob("*"))


def test_a_metric_of_an_earlier_step_judges_no_other(config: Config, fit: Fit) -> None:
    """Of the best checkpoints, the last step is one only if it was validated; `save_last` keeps it all the same."""
    saved = {"monitor": "validation/loss", "save_last": True, "save_top_k": 1}
    trainer = {"max_steps": 5, "val_check_interval": 2, "num_sanity_val_steps": 0}
    folder = fit(config("run", trainer=trainer, checkpoint=saved))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["last.ckpt", "step-00000004.ckpt"]

    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
