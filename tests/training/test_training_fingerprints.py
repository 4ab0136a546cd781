"""The fingerprint of a run, part by part, and the exact record of its losses."""

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_resume import SETTINGS, wait_for_step

from ift.artifacts import fingerprints
from ift.checks.run_difference import compare_runs
from ift.data.encoding import EncodedBatch
from ift.data.store import LabelsDigest
from ift.training.decisive_settings import decisive_settings
from ift.training.run_fingerprint import _sample

Config = Callable[..., Path]
Fit = Callable[..., Path]
PARTS = {
    "settings", "data", "labels", "tokenizer", "template", "base", "initial_weights", "code", "environment", "strategy",
    "total",
}  # fmt: skip


def prints(run: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((run / "manifest.json").read_text())["fingerprints"]
    return found


def losses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def differing(one: Path, other: Path) -> set[str]:
    first, second = prints(one), prints(other)
    assert first.keys() == second.keys() == PARTS
    return {name for name in first if first[name] != second[name]}


def test_each_part_changes_with_what_it_is_of(config: Config, fit: Fit) -> None:
    trainer = {"max_epochs": 1}
    reference = fit(config("reference", trainer=trainer))
    assert differing(reference, fit(config("again", trainer=trainer))) == set()
    dropout = {
        "class_path": "peft.LoraConfig",
        "init_args": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1},
    }
    changes: dict[str, tuple[dict[str, Any], set[str]]] = {
        "dropout": ({"model": {"adapter": dropout}}, set()),
        "seed": ({"seed_everything": 5}, {"initial_weights"}),
        "last_output": ({"data": {"template": "plain"}}, {"template", "labels"}),
        "everything": ({"data": {"train_on": "everything"}}, {"labels"}),
    }
    for name, (sections, parts) in changes.items():
        other = fit(config(name, trainer=trainer, **sections))
        assert differing(reference, other) == {"settings", "total", *parts}, name


def test_what_changes_no_weights_and_no_losses_does_not_count(
    config: Config, fit: Fit, base: Path, rows_file: Path, tmp_path: Path
) -> None:
    """All of it at once, with dropout, which would show another order of random numbers."""
    adapter = {
        "class_path": "peft.LoraConfig",
        "init_args": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1},
    }
    reference = fit(config("reference", model={"adapter": adapter}))
    shutil.copytree(base, tmp_path / "elsewhere")
    shutil.copy(rows_file, tmp_path / "copied.json")
    data = {
        "sources": [{"path": str(tmp_path / "copied.json"), "layout": "alpaca"}],
        "cache_dir": str(tmp_path / "other_cache"),
        "num_workers": 2,
        "max_rejected": 0.5,
    }
    path = config(
        "other",
        model={"adapter": adapter, "base": str(tmp_path / "elsewhere")},
        data=data,
        trainer={"log_every_n_steps": 3, "enable_progress_bar": True, "num_sanity_val_steps": 0},
        checkpoint={"every_n_train_steps": 3, "save_top_k": -1},
        samples={"num_samples": 3},
        process_group_timeout_seconds=50,
    )
    other = fit(path)
    assert differing(reference, other) == set()
    found = compare_runs(str(reference), str(other))
    assert found.same and found.same_fingerprint and not found.settings
    told = {change.name for change in found.settings_without_effect}
    assert {"data.num_workers", "data.sources", "model.base", "samples.num_samples"} < told


def test_callbacks_of_ones_own_let_all_of_the_trainer_count() -> None:
    plain = {"seed_everything": 0, "trainer": {"max_epochs": 1, "log_every_n_steps": 5, "callbacks": None}}
    logged = {**plain, "trainer": {**plain["trainer"], "log_every_n_steps": 6}}  # type: ignore[dict-item]
    assert decisive_settings(plain) == decisive_settings(logged)
    stopping: list[Any] = [
        {**one, "trainer": {**one["trainer"], "callbacks": [{"class_path": "EarlyStopping"}]}}  # type: ignore[dict-item]
        for one in (plain, logged)
    ]
    assert decisive_settings(stopping[0]) != decisive_settings(stopping[1]) != decisive_settings(plain)
    for key, value in {
        "max_steps": 9,
        "max_time": "00:01:00",
        "val_check_interval": 3,
        "num_sanity_val_steps": -1,
    }.items():
        longer = {**plain, "trainer": {**plain["trainer"], key: value}}  # type: ignore[dict-item]
        assert decisive_settings(longer) != decisive_settings(plain), key


def test_a_streams_path_is_what_is_known_of_it() -> None:
    def one(path: str, stream: bool) -> dict[str, Any]:
        return decisive_settings({"data": {"sources": [{"path": path, "layout": "alpaca", "stream": stream}]}})

    assert one("a.jsonl", False) == one("b.jsonl", False) and one("a.jsonl", True) != one("b.jsonl", True)


def test_weights_of_the_base_stand_for_themselves_where_they_are_trained(config: Config, fit: Fit) -> None:
    trainer = {"max_epochs": 1}
    one, other = (
        fit(config(f"full{seed}", model={"adapter": None}, trainer=trainer, seed_everything=seed)) for seed in (0, 1)
    )
    assert differing(one, other) == {"settings", "total"}


def test_the_hash_of_labels_does_not_depend_on_batches() -> None:
    def digest(*parts: tuple[list[int], list[int], list[int]], end: int = 2) -> str:
        result = LabelsDigest()
        for ids, loss, sizes in parts:
            columns = [torch.tensor(one).numpy() for one in (ids, loss, sizes)]
            result.add(EncodedBatch(columns[0].astype("int32"), columns[1].astype("uint8"), columns[2].astype("int32")))
        return result.hexdigest(end_token_id=end)

    whole = digest(([5, 6, 7, 8, 9], [0, 1, 1, 0, 1], [3, 2]))
    assert whole == digest(([5, 6, 7], [0, 1, 1], [3]), ([8, 9], [0, 1], [2]))
    assert whole != digest(([5, 6, 7, 8, 9], [0, 1, 1, 0, 1], [2, 3]))
    assert whole != digest(([5, 6, 7, 8, 9], [0, 1, 0, 0, 1], [3, 2]))
    assert whole != digest(([5, 6, 7, 8, 9], [0, 1, 1, 0, 1], [3, 2]), end=3)


def test_a_large_tensor_is_sampled_and_a_small_one_is_not() -> None:
    small = torch.zeros(1000, dtype=torch.bfloat16)
    assert len(_sample(small)) == 2000
    large = torch.zeros(5_000_000)
    before = _sample(large)
    assert len(before) == 64 * (1 << 16)
    large[0] = 1
    after = _sample(large)
    large[0], large[-1] = 0, 1
    assert len({before, after, _sample(large)}) == 3


def test_parts_have_hashes_of_their_own() -> None:
    one, other = fingerprints({"a": 1, "b": [2]}), fingerprints({"a": 1, "b": [3]})
    assert one["a"] == other["a"] and one["b"] != other["b"] and one["total"] != other["total"]
    assert set(one) == {"a", "b", "total"}


@pytest.mark.parametrize("every", [1, 3, 50])
def test_every_step_is_recorded_whatever_is_logged(config: Config, fit: Fit, every: int) -> None:
    reference = fit(config("reference", trainer={"log_every_n_steps": 1}))
    run = fit(config("run", trainer={"log_every_n_steps": every}))
    assert losses(run) == losses(reference)
    assert [one["step"] for one in losses(run)] == list(range(1, 9))
    logged = json.loads((run / "manifest.json").read_text())["last_logged"]
    assert logged["train/loss"] == losses(run)[-1]["loss"]


@pytest.mark.slow
def test_the_record_of_a_killed_run_has_each_step_once(config: Config, fit: Fit, start: Any) -> None:
    reference = fit(config("reference", **SETTINGS))
    path = config("killed", **SETTINGS)
    run = path.with_suffix("")
    process = start("fit", "--config", str(path), "--ckpt_path", "last")
    wait_for_step(run, 9, process)
    process.kill()
    process.wait()
    with (run / "losses.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "lo')  # as a kill may leave it
    fit(path, "--ckpt_path", "last")
    assert losses(run) == losses(reference)
    assert len(json.loads((run / "manifest.json").read_text())["sessions"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_record_the_losses_and_hash_the_weights_of_one(
    config: Config, fit: Fit, start: Any, strategy: str
) -> None:
    # 32 examples, 31 a step: the last step has a single one, so a rank has none.
    data = {"global_batch_size": 31}
    one = fit(config("one", data=data))
    path = config("two", data=data, trainer={"devices": 2, "strategy": strategy, "log_every_n_steps": 3})
    process: subprocess.Popen[str] = start("fit", "--config", str(path))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    two = path.with_suffix("")
    assert [(line["step"], line["supervised_tokens"]) for line in losses(two)] == [
        (line["step"], line["supervised_tokens"]) for line in losses(one)
    ]
    for found, expected in zip(losses(two), losses(one), strict=True):
        assert math.isclose(found["loss"], expected["loss"], abs_tol=1e-5)
    # The configuration says how many devices, which is no part of what decides the result.
    assert differing(one, two) == {"strategy", "total"}
