"""Checkpoints under `fsdp`: whole or not there, gone on with exactly, by any number of ranks and other strategies."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from comparing import largest_difference
from rank_runs import run_on_ranks
from safetensors.torch import load_file

from ift.cli import main

Fit = Callable[..., Path]
Config = Callable[..., Path]

FSDP = ["--trainer.devices=2", "--trainer.strategy=fsdp"]
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "eps": 0.001}}
STEPS: dict[str, Any] = {
    "trainer": {"max_steps": 7, "max_epochs": -1},
    "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
}


@pytest.mark.parametrize("whole", [pytest.param(False, marks=pytest.mark.slow), True], ids=["lora", "full"])
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
        f"step-0000000{step}.ckpt" for step in (3, 6, 7)
    ]
    assert largest_difference(folders["sharded"], folders["again"]) == 0
    for other in ("one", "from_one", "ddp", "alone"):
        assert largest_difference(folders["sharded"], folders[other]) < 2e-6, other
    said = (tmp_path / "ranks/rank-0.log").read_text().strip().splitlines()[-1]
    manifest = json.loads((folders["sharded"] / "manifest.json").read_text())
    assert json.loads(said)["step"] == 3 and manifest["steps"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["lora", "full"])
def test_a_killed_run_ends_as_one_that_was_not(whole: bool, config: Config, tmp_path: Path) -> None:
    model: dict[str, Any] = {"optimizer": ADAM, **({"adapter": None} if whole else {})}
    often = {
        "trainer": {**STEPS["trainer"], "max_steps": 20},
        "checkpoint": {"every_n_train_steps": 1, "save_top_k": 2, "monitor": "step", "mode": "max"},
    }
    reference, path = (config(name, model=model, **often) for name in ("reference", "killed"))
    assert not any(run_on_ranks(tmp_path / "ranks", [["fit", "--config", str(reference), *FSDP]]))
    command = ["fit", "--config", str(path), *FSDP, "--ckpt_path", "last"]
    random, run = Random(0), path.with_suffix("")
    kills, outcome = 0, "killed"
    for attempt in range(12):
        # After the first steps, at any moment: within a step, a validation, or the writing of a checkpoint.
        limit = None if attempt == 11 else _until(run / "checkpoints", random)
        (outcome,) = run_on_ranks(tmp_path / f"ranks{attempt}", [command], kill_when=limit)
        if not outcome:
            break
        kills += 1
    assert not outcome, outcome
    assert kills >= 3
    assert largest_difference(reference.with_suffix(""), run) == 0


@pytest.mark.slow
def test_an_adapter_that_changed_the_base_goes_on_from_its_own_start(config: Config, tmp_path: Path) -> None:
    """What was trained is the difference from the adapter's first values, which the checkpoint's are not."""
    model = {"optimizer": ADAM, "adapter": {"class_path": "pissa", "init_args": {"r": 4, "lora_alpha": 4}}}
    whole, resumed, one = (config(name, model=model, **STEPS) for name in ("whole", "resumed", "one"))
    checkpoint = str(whole.with_suffix("") / "checkpoints/step-00000003.ckpt")
    runs = [
        ["fit", "--config", str(whole), *FSDP],
        ["fit", "--config", str(resumed), *FSDP, "--ckpt_path", checkpoint],
        ["fit", "--config", str(one), "--trainer.devices=2", "--trainer.strategy=ddp", "--ckpt_path", checkpoint],
    ]
    outcomes = run_on_ranks(tmp_path / "ranks", runs)
    assert not any(outcomes), outcomes
    folder = whole.with_suffix("")
    assert largest_difference(folder, resumed.with_suffix("")) == 0
    assert largest_difference(folder, one.with_suffix("")) < 2e-6
    starts = [
        load_file(str(path.with_suffix("") / "adapter_initial/adapter_model.safetensors")) for path in (whole, resumed)
    ]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    a_start = next(one for name, one in starts[1].items() if "lora_A" in name)
    assert not any(torch.equal(a_start, one) for one in trained.values())


def test_one_bit_turned_over_is_refused_by_all_ranks(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("run", model={"optimizer": ADAM, "adapter": None}, **STEPS)
    command = ["fit", "--config", str(path), *FSDP]
    assert not any(run_on_ranks(tmp_path / "ranks", [command]))
    run = path.with_suffix("")
    part = run / "checkpoints/step-00000007.ckpt/__1_0.distcp"
    whole = bytearray(part.read_bytes())
    whole[len(whole) * 2 // 3] ^= 16
    part.write_bytes(whole)
    before = {one: one.read_bytes() for one in run.rglob("*") if one.is_file()}
    resumed = [*command, "--ckpt_path", str(part.parent)]
    (outcome,) = run_on_ranks(tmp_path / "again", [resumed], timeout=120)
    assert outcome.startswith("[2, 2]"), outcome
    for rank in range(2):
        said = (tmp_path / f"again/rank-{rank}.log").read_text()
        assert f"--ckpt_path: '{part}' is damaged or was changed" in said and "Traceback" not in said, said
    assert main([*command[:3], "--ckpt_path", str(part.parent)]) == 2  # on one device
    assert main(["validate", *command[1:3], "--ckpt_path", str(part.parent)]) == 2
    assert capsys.readouterr().err.count(f"--ckpt_path: '{part}' is damaged or was changed") == 2
    assert {one: one.read_bytes() for one in run.rglob("*") if one.is_file()} == before


def _until(checkpoints: Path, random: Random) -> Callable[[], bool]:
    """Return what says whether to kill now: some time after a checkpoint that was not there before."""
    seen, delay, since = set(checkpoints.glob("*")), random.uniform(0, 0.5), 0.0

    def now() -> bool:
        nonlocal since
        if not since and set(checkpoints.glob("*")) - seen:
            since = time.monotonic()
        return bool(since) and time.monotonic() - since > delay

    return now


@pytest.mark.slow
def test_four_ranks_and_one_go_on_from_two(config: Config, tmp_path: Path) -> None:
    names = ("two", "four", "alone")
    paths = {name: config(name, model={"optimizer": ADAM, "adapter": None}, **STEPS) for name in names}
    checkpoint = str(paths["two"].with_suffix("") / "checkpoints/step-00000003.ckpt")
    for name, ranks in (("two", 2), ("four", 4), ("alone", 1)):
        command = ["fit", "--config", str(paths[name]), f"--trainer.devices={ranks}", "--trainer.strategy=fsdp"]
        command += ["--ckpt_path", checkpoint] if name != "two" else []
        (outcome,) = run_on_ranks(tmp_path / f"ranks-{name}", [command], ranks=ranks)
        assert not outcome, outcome
    for name in ("four", "alone"):
        assert largest_difference(paths["two"].with_suffix(""), paths[name].with_suffix("")) < 2e-6, name
