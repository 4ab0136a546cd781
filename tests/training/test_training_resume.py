"""Invariant 5: a run killed at any moment and resumed ends with the same weights, bit for bit."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ift.cli import main

Config = Callable[..., Path]
Fit = Callable[..., Path]

LORA_WITH_DROPOUT = {
    "class_path": "peft.LoraConfig",
    "init_args": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.2},
}
# 40 examples less 8 for validation, 5 a step: 7 steps an epoch, the last with 2 examples.
SETTINGS: dict[str, Any] = {
    "model": {"adapter": LORA_WITH_DROPOUT},
    "data": {"global_batch_size": 5},
    "trainer": {"max_epochs": 6, "val_check_interval": 4},
    "checkpoint": {"every_n_train_steps": 3},
}


def wait_for_step(run: Path, step: int, process: Any) -> None:
    """Wait until a checkpoint of at least that step lies in the run folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(int(path.stem.split("-")[1]) >= step for path in run.glob("checkpoints/step-*.ckpt")):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    raise AssertionError("no checkpoint in time")


def test_a_run_killed_twice_ends_bit_for_bit_the_same(config: Config, fit: Fit, start: Any) -> None:
    reference = fit(config("reference", **SETTINGS))
    path = config("killed", **SETTINGS)
    run = path.with_suffix("")
    for step in (6, 24):
        process = start("fit", "--config", str(path), "--ckpt_path", "last")
        wait_for_step(run, step, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (run / "adapter").exists(), "the run ended before it could be killed"
    assert fit(path, "--ckpt_path", "last") == run
    assert largest_difference(reference, run) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["steps"] == 42
    starts = [session["from_step"] for session in manifest["sessions"]]
    assert starts[0] == 0 and starts[1] >= 6 and starts[2] >= 24
    assert manifest["fingerprint"] == json.loads((reference / "manifest.json").read_text())["fingerprint"]


@pytest.mark.parametrize(
    "sections",
    [
        {"checkpoint": {"every_n_train_steps": 7}},  # at the last step of an epoch
        {"checkpoint": {}},  # Lightning's default: after the validation at the end of an epoch
        {"checkpoint": {"every_n_train_steps": 4}, "data": {"global_batch_size": 5, "num_workers": 2}},
        {"checkpoint": {"every_n_train_steps": 5}, "model": {"adapter": None}},
    ],
    ids=["epoch-border", "after-validation", "workers", "full"],
)
def test_a_run_cut_short_resumes_exactly(config: Config, fit: Fit, sections: dict[str, Any]) -> None:
    settings: dict[str, Any] = {**SETTINGS, "trainer": {"max_epochs": 3, "val_check_interval": None}, **sections}
    settings["checkpoint"] = {"save_top_k": -1, **settings["checkpoint"]}
    reference = fit(config("reference", **settings))
    checkpoints = sorted(reference.glob("checkpoints/*.ckpt"))
    assert len(checkpoints) >= 3
    for number, checkpoint in enumerate(checkpoints[:-1]):
        path = config(f"resumed{number}", **settings)
        run = fit(path, "--ckpt_path", str(checkpoint))
        assert largest_difference(reference, run) == 0, checkpoint.name


def test_resuming_on_another_number_of_ranks_keeps_the_order(config: Config, fit: Fit, start: Any) -> None:
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    settings = {**SETTINGS, "model": {"optimizer": sgd}, "trainer": {"max_epochs": 2}}
    settings["checkpoint"] = {"every_n_train_steps": 4, "save_top_k": -1}
    reference = fit(config("reference", **settings))
    path = config("two", **settings)
    checkpoint = reference / "checkpoints" / "step-00000004.ckpt"
    process = start("fit", "--config", str(path), "--ckpt_path", str(checkpoint), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert largest_difference(reference, path.with_suffix("")) < 1e-6


def test_a_checkpoint_holds_only_what_was_trained_and_loads_without_pickle(config: Config, fit: Fit) -> None:
    run = fit(config("run", **{**SETTINGS, "trainer": {"max_epochs": 1}}))
    checkpoint = torch.load(sorted(run.glob("checkpoints/*.ckpt"))[-1], weights_only=True)
    assert checkpoint["state_dict"] and all("lora_" in name for name in checkpoint["state_dict"])
    assert checkpoint["InstructionDataModule"]["next_step"] == checkpoint["global_step"]
    assert checkpoint["optimizer_states"] and checkpoint["lr_schedulers"]


def test_last_without_a_run_folder_starts_one(config: Config, fit: Fit) -> None:
    run = fit(config("new", trainer={"max_epochs": 1}), "--ckpt_path", "last")
    assert (run / "adapter").is_dir()


def test_a_finished_run_is_not_trained_further(config: Config, fit: Fit) -> None:
    path = config("run", trainer={"max_epochs": 1})
    run = fit(path)
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    fit(path, "--ckpt_path", "last")
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_the_log_of_a_resumed_run_has_each_step_once(config: Config, fit: Fit, start: Any) -> None:
    settings = {**SETTINGS, "trainer": {"max_epochs": 6, "log_every_n_steps": 1}}
    reference, path = fit(config("reference", **settings)), config("killed", **settings)
    run = path.with_suffix("")
    process = start("fit", "--config", str(path), "--ckpt_path", "last")
    wait_for_step(run, 9, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # TensorBoard reads its files in the order of their names, which begin with the second of their making: a resume
    # within the same second (possible only here, in a process that is warm) would be read before what it continues.
    time.sleep(1.1)
    fit(path, "--ckpt_path", "last")
    assert curve(run) == curve(reference)


def curve(run: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_a_checkpoint_of_another_adapter_is_refused(config: Config, fit: Fit, capsys: Any) -> None:
    run = fit(config("first", trainer={"max_epochs": 1}))
    other = {"class_path": "peft.LoraConfig", "init_args": {"r": 8, "target_modules": "all-linear"}}
    path = config("second", model={"adapter": other})
    # Away from its run, nothing but the checkpoint itself tells what it was trained with.
    checkpoint = sorted(run.glob("checkpoints/*.ckpt"))[-1].rename(run.parent / "alone.ckpt")
    assert main(["fit", "--config", str(path), "--ckpt_path", str(checkpoint)]) == 2
    message = capsys.readouterr().err
    assert "--ckpt_path: the checkpoint is of another model or adapter" in message
    assert "lora_A" in message and "Traceback" not in message
