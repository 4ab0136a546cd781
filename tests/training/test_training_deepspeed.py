"""`trainer.strategy: deepspeed_*` on two ranks: they train as one process does, and go on from checkpoints exactly.

The CPU stands in for GPUs (see `cpu_deepspeed`). Runs share their processes, as starting one takes longest.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpu_deepspeed
import pytest
import torch
from comparing import largest_difference
from rank_runs import run_on_ranks

from ift.cli import main
from ift.training.deepspeed_config import NAMES, deepspeed_config, settings_of

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

Fit = Callable[..., Path]
Config = Callable[..., Path]

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "weight_decay": 0.1}}
# Steps of several micro-batches, of which ranks have unequal numbers; norms of about 2 are clipped.
FULL: dict[str, Any] = {"model": {"adapter": None, "optimizer": SGD}, "data": {"micro_batch_tokens": 256}}
LORA: dict[str, Any] = {"model": {"optimizer": SGD, "gradient_clip_norm": 0.1}, "data": {"micro_batch_tokens": 256}}
# The last step of an epoch has a single example, so one of two ranks has none.
NO_SHARE: dict[str, Any] = {"model": {"optimizer": SGD}, "data": {"global_batch_size": 31}}
FULL_ADAMW: dict[str, Any] = {"model": {"adapter": None, "optimizer": ADAMW}, "data": {"global_batch_size": 5}}
QLORA: dict[str, Any] = {"model": {"optimizer": SGD, "quantization": {"scheme": "nf4"}}}
AGAIN: dict[str, Any] = {"model": {"adapter": None, "optimizer": SGD, "gradient_checkpointing": True}}

CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lora": (LORA, NAMES),
    "full": (FULL, NAMES),
    "no_share": (NO_SHARE, ("deepspeed_1", "deepspeed_2", "deepspeed_3")),
    "full_adamw": (FULL_ADAMW, NAMES),
    "qlora": (QLORA, ("deepspeed_1", "deepspeed_2", "deepspeed_2_offload")),
    "checkpointed": (AGAIN, ("deepspeed_2", "deepspeed_3")),
}


def on_two_ranks(folder: Path, runs: list[list[str]], *, timeout: float = 900) -> None:
    outcomes = run_on_ranks(folder, runs, timeout=timeout, program=str(cpu_deepspeed.__file__))
    for run, outcome in zip(runs, outcomes, strict=True):
        assert not outcome, f"{run}\n{outcome}"


def validation_losses(run: Path) -> list[float]:
    return [result["loss"] for result in json.loads((run / "manifest.json").read_text())["validation"]]


def last_logged(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "manifest.json").read_text())["last_logged"]
    return found


def test_deepspeed_takes_the_settings_of_every_name() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    for name in NAMES:
        DeepSpeedConfig(deepspeed_config(settings_of(name, gradient_clip_norm=1.0)))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(name: str, config: Config, fit: Fit, tmp_path: Path) -> None:
    case, strategies = CASES[name]
    one = fit(config(name, **case))
    paths = {strategy: config(f"{name}-{strategy}", **case) for strategy in strategies}
    options = {strategy: ["--trainer.devices=2", f"--trainer.strategy={strategy}"] for strategy in strategies}
    on_two_ranks(tmp_path / "ranks", [["fit", "--config", str(path), *options[key]] for key, path in paths.items()])
    for strategy, path in paths.items():
        two = path.with_suffix("")
        # AdamW divides by the root of what may be rounding of a zero gradient.
        assert largest_difference(one, two) < (1e-5 if name == "full_adamw" else 1e-6), strategy
        assert validation_losses(two) == pytest.approx(validation_losses(one), abs=1e-6), strategy
        for key in ("train/loss", "train/gradient_norm", "train/learning_rate"):
            assert last_logged(two)[key] == pytest.approx(last_logged(one)[key], rel=1e-5, abs=1e-7), strategy
        settings = json.loads((two / "deepspeed.json").read_text())
        assert settings["zero_optimization"]["stage"] == int(strategy.split("_")[1])
        manifest = json.loads((two / "manifest.json").read_text())
        assert manifest["parameters"] == json.loads((one / "manifest.json").read_text())["parameters"]


def test_what_fails_before_the_manifest_blocks_no_later_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from lightning.pytorch import Callback\n\nclass Failing(Callback):\n    def on_fit_start(self, *_):\n"
    (tmp_path / "failing_callbacks.py").write_text(code + "        raise RuntimeError('failed')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    program = str(cpu_deepspeed.__file__)
    strategy = {"trainer": {"max_epochs": 1, "strategy": "deepspeed_2"}}
    path = config("run", trainer={**strategy["trainer"], "callbacks": [{"class_path": "failing_callbacks.Failing"}]})
    (outcome,) = run_on_ranks(tmp_path / "failed", [["fit", "--config", str(path)]], ranks=1, program=program)
    assert "failed" in outcome
    assert not (path.with_suffix("") / "deepspeed.json").exists()
    (outcome,) = run_on_ranks(
        tmp_path / "again", [["fit", "--config", str(config("run", **strategy))]], ranks=1, program=program
    )
    assert not outcome, outcome
    assert (path.with_suffix("") / "deepspeed.json").is_file()


RESUMED: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"data": {"global_batch_size": 5}}, "deepspeed_1"),
    "lora_offload": ({"data": {"global_batch_size": 5}}, "deepspeed_2_offload"),
    "full": (FULL_ADAMW, "deepspeed_2"),
    "lora_shared": ({"data": {"global_batch_size": 5}}, "deepspeed_3"),
    "full_shared": (FULL_ADAMW, "deepspeed_3"),
    "full_rounded": ({**FULL_ADAMW, "model": {**FULL_ADAMW["model"], "dtype": "bfloat16"}}, "deepspeed_3"),
}


def killed(config: Config, whole: Path, **case: Any) -> Path:
    """Return the configuration of a run like another one, killed while it wrote its last checkpoint."""
    path = config("killed", **case)
    run = Path(shutil.copytree(whole, path.with_suffix("")))
    checkpoints = sorted((run / "checkpoints").glob("*.ckpt"))
    checkpoints[-1].rename(checkpoints[-1].with_name(checkpoints[-1].name + ".tmp"))
    for later in checkpoints[2:-1]:
        shutil.rmtree(later)
    shutil.rmtree(run / "model")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    return path


def test_a_run_resumes_exactly_and_on_one_device(config: Config, fit: Fit, tmp_path: Path, capsys: Any) -> None:
    often = {"checkpoint": {"every_n_train_steps": 3, "save_top_k": -1}}
    runs, later = [], []
    for name, (case, strategy) in RESUMED.items():
        options = ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
        whole, again = config(f"{name}-whole", **case, **often), config(f"{name}-again", **case, **often)
        checkpoint = whole.with_suffix("") / "checkpoints" / "step-00000006.ckpt"
        runs.append(["fit", "--config", str(whole), *options])
        later.append(["fit", "--config", str(again), *options, "--ckpt_path", str(checkpoint)])
    on_two_ranks(tmp_path / "first", runs)
    last = killed(config, tmp_path / "full_shared-whole", **FULL_ADAMW, **often)
    newest = ["--trainer.devices=2", "--trainer.strategy=deepspeed_3", "--ckpt_path", "last"]
    on_two_ranks(tmp_path / "second", [*later, ["fit", "--config", str(last), *newest]])
    assert largest_difference(tmp_path / "full_shared-whole", last.with_suffix("")) == 0
    sessions = json.loads((last.with_suffix("") / "manifest.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 6]
    for name, (case, _) in RESUMED.items():
        whole, again = tmp_path / f"{name}-whole", tmp_path / f"{name}-again"
        assert largest_difference(whole, again) == 0, name
        checkpoint = whole / "checkpoints" / "step-00000006.ckpt"
        assert checkpoint.is_dir() == name.startswith("full")
        if name != "full_rounded":  # one device updates bfloat16 in bfloat16
            alone = fit(config(f"{name}-alone", **case), "--ckpt_path", str(checkpoint))
            assert largest_difference(whole, alone) < 1e-5, name  # of AdamW, as above
        capsys.readouterr()
        assert main(["validate", "--config", str(config(f"{name}-seen", **case)), "--ckpt_path", str(checkpoint)]) == 0
        assert torch.isfinite(torch.tensor(json.loads(capsys.readouterr().out)["loss"]))
