"""A signal ends a run between two steps; it goes on to the same weights and the same curves, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import largest_difference
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ift import interruptions
from ift.training.progress import RunProgress

Config = Callable[..., Path]
Fit = Callable[..., Path]

# 40 examples less 8 for validation, 5 a step: 7 steps an epoch; the validation has two batches.
SETTINGS: dict[str, Any] = {
    "model": {
        "adapter": {
            "class_path": "peft.LoraConfig",
            "init_args": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.2},
        }
    },
    "data": {"global_batch_size": 5},
    "trainer": {"max_epochs": 2, "val_check_interval": 4, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
    "checkpoint": {"every_n_train_steps": 3},
}
CALLBACKS = "preemption_callbacks"
"""Module of callbacks that signal their own process; written where the run starts."""
CODE = """
import os, signal
from lightning.pytorch import Callback

class SignalAfterStep(Callback):
    def __init__(self, step: int, signum: int, rank: int = 0) -> None:
        self.step, self.signum, self.rank = step, signum, rank
    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signum)

class SignalInValidation(SignalAfterStep):
    def on_train_batch_end(self, *args):
        pass
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step and trainer.global_rank == self.rank and batch_idx == 0:
            os.kill(os.getpid(), self.signum)
"""


@pytest.fixture(autouse=True)
def callbacks_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{CALLBACKS}.py").write_text(CODE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))


def signalling(name: str, step: int, signum: int = signal.SIGTERM, **arguments: int) -> dict[str, Any]:
    """Return the settings of a callback that sends a signal to its own process."""
    return {"class_path": f"{CALLBACKS}.{name}", "init_args": {"step": step, "signum": int(signum), **arguments}}


def with_trainer(**keys: Any) -> dict[str, Any]:
    return {**SETTINGS, "trainer": {**SETTINGS["trainer"], **keys}}


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what was logged of losses and gradients, by name."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    names = ("train/loss", "train/gradient_norm", "train/learning_rate", "validation/loss")
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in names}


def manifest_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text(encoding="utf-8")))


def code_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run `ift` in this process; returns its exit code and what it said on stderr."""
    import torch

    from ift.cli import main

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(arguments), capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
        time.sleep(1.1)  # TensorBoard's files are read by the second of their making


@pytest.fixture
def reference(config: Config, fit: Fit) -> Path:
    return fit(config("reference", **SETTINGS))


# Step 4 and 7 are followed by a validation, 3 has a checkpoint of its own, 14 is the last one.
@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param("SignalAfterStep", 2, marks=pytest.mark.slow),
        pytest.param("SignalAfterStep", 3, marks=pytest.mark.slow),
        ("SignalAfterStep", 4),
        ("SignalInValidation", 4),
        pytest.param("SignalInValidation", 11, marks=pytest.mark.slow),
        ("SignalAfterStep", 14),
    ],
)
def test_a_run_asked_to_end_goes_on_bit_for_bit(
    config: Config, fit: Fit, reference: Path, capsys: pytest.CaptureFixture[str], name: str, step: int
) -> None:
    path = config("ended", **with_trainer(callbacks=[signalling(name, step)]))
    run = path.with_suffix("")
    code, said = code_of(["fit", "--config", str(path)], capsys)
    assert code == 75
    assert f"Step {step} is saved" in said and "--ckpt_path last" in said and "Traceback" not in said
    manifest = manifest_of(run)
    assert manifest["status"] == "preempted" and manifest["sessions"][0]["to_step"] == step
    assert not (run / "adapter").exists()
    assert fit(config("ended", **SETTINGS), "--ckpt_path", "last") == run
    manifest = manifest_of(run)
    assert manifest["status"] == "finished" and manifest["sessions"][1]["from_step"] == step
    assert largest_difference(reference, run) == 0
    assert curves(run) == curves(reference)
    assert manifest["validation"] == manifest_of(reference)["validation"]
    assert manifest["last_logged"]["step"] == 14


def test_sessions_tell_of_all_their_steps_and_of_no_others(
    config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = with_trainer(log_every_n_steps=5)
    path = config("ended", **with_trainer(log_every_n_steps=5, callbacks=[signalling("SignalAfterStep", 3)]))
    assert code_of(["fit", "--config", str(path)], capsys)[0] == 75
    fit(config("ended", **settings), "--ckpt_path", "last")
    first, second = manifest_of(path.with_suffix(""))["sessions"]
    (whole,) = manifest_of(fit(config("whole", **settings)))["sessions"]
    for name in ("supervised_tokens", "tokens"):
        assert 0.1 < first[name] / whole[name] < 0.35  # 3 steps of 14
        assert first[name] + second[name] == whole[name]
    assert sum(one["flops"]["model"] for one in (first, second)) == pytest.approx(whole["flops"]["model"], rel=1e-9)


def test_another_callbacks_checkpoint_is_not_the_runs_own(
    config: Config, fit: Fit, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A ModelCheckpoint of the user's own saves elsewhere, at the very step after which a signal ends the run."""
    elsewhere = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str(tmp_path / "elsewhere"), "every_n_train_steps": 2},
    }
    path = config("ended", **with_trainer(callbacks=[elsewhere, signalling("SignalAfterStep", 2)]))
    code, said = code_of(["fit", "--config", str(path)], capsys)
    saved = path.with_suffix("") / "checkpoints" / "preempted-step-00000002.ckpt"
    assert code == 75 and saved.is_file() and str(saved) in said
    assert list((tmp_path / "elsewhere").iterdir())


def test_ctrl_c_saves_and_leaves_as_a_shell_does(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    path = config("ended", **with_trainer(callbacks=[signalling("SignalAfterStep", 2, signal.SIGINT)]))
    code, said = code_of(["fit", "--config", str(path)], capsys)
    assert code == 130 and "interrupted. Step 2 is saved" in said and "Traceback" not in said
    assert manifest_of(path.with_suffix(""))["status"] == "interrupted"


def test_a_signal_while_data_are_prepared_ends_the_command_at_once(
    config: Config, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "preemption_rows.py").write_text(
        "import os, signal\n\ndef rows(row):\n    os.kill(os.getpid(), signal.SIGUSR1)\n", encoding="utf-8"
    )
    path = config("early", data={"sources": [{"path": str(rows_file), "layout": "preemption_rows.rows"}]})
    code, said = code_of(["fit", "--config", str(path)], capsys)
    assert code == 75 and said.endswith("SIGUSR1 received\n") and "Traceback" not in said
    assert not path.with_suffix("").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "rank", "workers"), [("ddp", 0, 2), ("ddp", 1, 0), ("fsdp", 1, 0)])
def test_a_signal_to_one_rank_ends_both(
    config: Config, start: Callable[..., Any], strategy: str, rank: int, workers: int
) -> None:
    """Under Lightning's own launcher, whose watchdog kills the first process when another fails."""
    settings = {**SETTINGS, "data": {"global_batch_size": 5, "num_workers": workers}}
    two = {**SETTINGS["trainer"], "devices": 2, "strategy": strategy}
    process = start("fit", "--config", str(config("whole", **{**settings, "trainer": two})))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    two["callbacks"] = [signalling("SignalAfterStep", 5, rank=rank)]
    path = config("ended", **{**settings, "trainer": two})
    process = start("fit", "--config", str(path))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert output.count("Step 5 is saved") == 1 and "Traceback" not in output
    process = start("fit", "--config", str(path), "--ckpt_path", "last", "--trainer.callbacks", "null")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert largest_difference(path.with_name("whole"), path.with_suffix("")) == 0


STUCK = """
from datetime import timedelta
from ift import interruptions
interruptions._STUCK_SECONDS = 0.5
with interruptions.watched(is_program=True):
    from torch.distributed import TCPStore
    print("waiting", flush=True)
    TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(seconds=100))
"""


def test_a_signal_is_heard_where_other_processes_are_waited_for() -> None:
    """Torch waits for them without coming back to Python, which could not raise anything until the time is over."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == interruptions.EXIT_SAVED
    assert "SIGTERM received. It waited for other processes" in output


def test_what_is_said_behind_a_bar_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    bars, nothing = RunProgress(), SimpleNamespace()
    bars._open("Training", 3)
    bars.on_exception(nothing, nothing, KeyboardInterrupt())  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert "Training:   0%" in said and said.endswith("\n")
