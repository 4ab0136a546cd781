"""`model.compile` through `ift fit`: weights and losses are those without it, on two ranks and after a resume, too."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++"),
]
Config = Callable[..., Path]
Fit = Callable[..., Path]

MODEL: dict[str, Any] = {
    "adapter": {
        "class_path": "peft.LoraConfig",
        "init_args": {"r": 4, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.2},
    },
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
}


def compiled(model: dict[str, Any]) -> dict[str, Any]:
    return {**model, "compile": True}


def losses(run: Path) -> list[float]:
    return [one["loss"] for one in json.loads((run / "manifest.json").read_text())["validation"]]


def test_a_compiled_run_trains_the_same_and_resumes_without(config: Config, fit: Fit) -> None:
    kept = {"every_n_train_steps": 4, "save_top_k": -1}
    plain = fit(config("plain", model=MODEL, checkpoint=kept))
    path = config("compiled", model=compiled(MODEL), checkpoint=kept)
    run = fit(path)
    assert largest_difference(plain, run) < 1e-6
    assert losses(run) == pytest.approx(losses(plain), abs=1e-6)
    checkpoints = sorted((run / "checkpoints").glob("*.ckpt"))
    state = torch.load(checkpoints[0], weights_only=True)["state_dict"]
    assert state and not any("_orig_mod" in name for name in state)
    checkpoints[-1].unlink()
    fit(path, "--ckpt_path", "last", "--model.compile=false")
    assert largest_difference(plain, run) < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_two_compiled_ranks_train_as_a_plain_one(config: Config, fit: Fit, start: Any, checkpointing: bool) -> None:
    model = {**MODEL, "adapter": None, "gradient_checkpointing": checkpointing}
    data = {"global_batch_size": 5}
    one = fit(config("one", model=model, data=data))
    path = config("two", model=compiled(model), data=data)
    process: subprocess.Popen[str] = start("fit", "--config", str(path), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output
    assert largest_difference(one, path.with_suffix("")) < 1e-6
    assert losses(path.with_suffix("")) == pytest.approx(losses(one), abs=1e-6)
