"""Whatever the interval, the last step of a run is saved, and longer runs go on from there as if it had not ended."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Config = Callable[..., Path]
Fit = Callable[..., Path]


def scalars(run: Path, name: str) -> list[float]:
    """Return a curve of TensorBoard's, in the order of its steps."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [one.value for one in sorted(events.Scalars(name), key=lambda one: one.step)]


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


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_longer_run_goes_on_with_its_own_schedule(kind: str, config: Config, fit: Fit) -> None:
    """The restored optimizer brings the rate at the end of the shorter decay, 0."""
    logged = {"trainer": {"max_epochs": 1, "log_every_n_steps": 1}, "model": {"schedule": {"kind": kind, "warmup": 1}}}
    run = config("run", **logged)
    folder = fit(run)
    steps = json.loads((folder / "manifest.json").read_text())["steps"]
    fit(run, "--ckpt_path", "last", "--trainer.max_epochs", "3")
    whole = fit(config("whole", **{**logged, "trainer": {"max_epochs": 3, "log_every_n_steps": 1}}))
    resumed, expected = (scalars(one, "train/learning_rate") for one in (folder, whole))
    assert resumed[steps:] == expected[steps:] and len(expected) == 3 * steps and min(expected) > 0


def test_a_run_that_ends_with_an_epoch_saves_its_last_step(config: Config, fit: Fit) -> None:
    """EarlyStopping as it is by default looks behind the last batch and validation of an epoch."""
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "validation/loss", "stopping_threshold": 1000.0},
    }
    trainer = {"max_epochs": 5, "callbacks": [stopping]}
    folder = fit(config("run", trainer=trainer, checkpoint={"every_n_train_steps": 100}))
    steps = json.loads((folder / "manifest.json").read_text())["steps"]
    assert steps == 4
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{steps:08d}.ckpt"]


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
