"""Checkpoints under `fsdp`: whole or not there, gone on with exactly, by any number of ranks and other strategies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import largest_difference
from rank_runs import run_on_ranks

Fit = Callable[..., Path]
Config = Callable[..., Path]

FSDP = ["--trainer.devices=2", "--trainer.strategy=fsdp"]
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "eps": 0.001}}
STEPS = {"trainer": {"max_steps": 7, "max_epochs": -1}, "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1}}


@pytest.mark.parametrize("whole", [False, True], ids=["lora", "full"])
def test_a_run_goes_on_from_a_checkpoint_of_any_strategy(whole: bool, config: Config, fit: Fit, tmp_path: Path) -> None:
    model: dict[str, Any] = {"optimizer": ADAM, **({"adapter": None} if whole else {})}
    paths = {
        name: config(name, model=model, **STEPS) for name in ("sharded", "again", "alone", "ddp", "one", "from_one")
    }
    fit(paths["one"])
    checkpoints = {name: path.with_suffix("") / "checkpoints/step-00000003.ckpt" for name, path in paths.items()}
    arguments = {name: ["fit", "--config", str(path), *FSDP] for name, path in paths.items()}
    validated = ["validate", "--config", str(paths["sharded"]), *FSDP, "--ckpt_path", str(checkpoints["sharded"])]
    outcomes = run_on_ranks(
        tmp_path / "ranks",
        [
            arguments["sharded"],
            [*arguments["again"], "--ckpt_path", str(checkpoints["sharded"])],
            [*arguments["from_one"], "--ckpt_path", str(checkpoints["one"])],
            [*arguments["ddp"][:-1], "--trainer.strategy=ddp", "--ckpt_path", str(checkpoints["sharded"])],
            validated,
        ],
    )
    assert not any(outcomes), next(filter(None, outcomes))
    folders = {name: path.with_suffix("") for name, path in paths.items()}
    fit(paths["alone"], "--ckpt_path", str(checkpoints["sharded"]))
    assert checkpoints["sharded"].is_dir() == whole
    assert sorted(path.name for path in checkpoints["sharded"].parent.iterdir()) == [
        f"step-0000000{step}.ckpt" for step in (3, 6)
    ]
    assert largest_difference(folders["sharded"], folders["again"]) == 0
    for other in ("one", "from_one", "ddp", "alone"):
        assert largest_difference(folders["sharded"], folders[other]) < 2e-6, other
    said = (tmp_path / "ranks/rank-0.log").read_text().strip().splitlines()[-1]
    manifest = json.loads((folders["sharded"] / "manifest.json").read_text())
    assert json.loads(said)["step"] == 3 and manifest["steps"] == 7
