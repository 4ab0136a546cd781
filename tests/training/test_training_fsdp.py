"""`trainer.strategy: fsdp`: two ranks that hold half of each weight train as one process does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import largest_difference
from rank_runs import run_on_ranks

Fit = Callable[..., Path]
Config = Callable[..., Path]

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
FSDP = ["--trainer.devices=2", "--trainer.strategy=fsdp"]

CASES: dict[str, dict[str, Any]] = {
    "lora": {"model": {"optimizer": SGD}, "data": {"global_batch_size": 5}},
    "full": {"model": {"optimizer": SGD, "adapter": None}, "data": {"global_batch_size": 5}},
    # The last step of an epoch has a single example, so one of two ranks has none.
    "no_share": {"model": {"optimizer": SGD}, "data": {"global_batch_size": 31, "validation": 8}},
    "checkpointed": {
        "model": {"optimizer": SGD, "adapter": None, "gradient_checkpointing": True, "gradient_clip_norm": None},
        "data": {"micro_batch_tokens": 256},
    },
}


def validation_losses(run: Path) -> list[float]:
    return [result["loss"] for result in json.loads((run / "manifest.json").read_text())["validation"]]


def test_two_ranks_train_as_one(config: Config, fit: Fit, tmp_path: Path) -> None:
    pairs = [(config(f"{name}1", **case), config(f"{name}2", **case)) for name, case in CASES.items()]
    outcomes = run_on_ranks(tmp_path / "ranks", [["fit", "--config", str(two), *FSDP] for _, two in pairs])
    for (one, two), outcome in zip(pairs, outcomes, strict=True):
        assert not outcome, outcome
        alone, both = fit(one), two.with_suffix("")
        assert json.loads((both / "manifest.json").read_text())["sessions"][0]["world_size"] == 2
        assert largest_difference(alone, both) < 1e-6, two.stem
        assert validation_losses(both) == pytest.approx(validation_losses(alone), abs=1e-6)
