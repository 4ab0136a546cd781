"""Rates, operations, utilisation and memory in the log and in the manifest."""

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ift.training import matmul_peak as measuring
from ift.training.matmul_peak import MatmulPeak, matmul_peak, measure

Config = Callable[..., Path]
Fit = Callable[..., Path]
CPU = torch.device("cpu")


def scalars(run: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [one.value for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def session(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())["sessions"][-1]
    return found


@pytest.mark.parametrize("adapter", ["lora", None])
def test_every_rate_is_logged_and_they_agree(config: Config, fit: Fit, adapter: Any) -> None:
    run = fit(config("run", trainer={"log_every_n_steps": 1}, model={"adapter": adapter}))
    logged, told = scalars(run), session(run)
    for supervised, real, padded in zip(
        *(logged[f"train/{name}_per_second"] for name in ("supervised_tokens", "tokens", "padded_tokens")), strict=True
    ):
        assert 0 < supervised < real <= padded
    assert [1 - share for share in logged["train/padding_share"]] == pytest.approx(
        [
            real / padded
            for real, padded in zip(
                logged["train/tokens_per_second"], logged["train/padded_tokens_per_second"], strict=True
            )
        ],
        abs=1e-5,
    )
    assert all(0 < one < 1.5 for one in logged["train/utilization"])
    peak = MatmulPeak(**told["matmul_peak"])
    rates = zip(logged["train/model_flops_per_second"], logged["train/utilization"], strict=True)
    assert all(flops / peak.flops_per_second == pytest.approx(used, rel=1e-4) for flops, used in rates)
    assert told["flops"]["hardware"] >= told["flops"]["model"] > 0
    assert told["model_flops_per_second"] == pytest.approx(told["flops"]["model"] / told["training_seconds"], rel=0.01)
    assert told["peak_memory_gib"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + 0.01


def test_operations_do_not_depend_on_how_steps_are_cut_but_what_is_computed_does(config: Config, fit: Fit) -> None:
    def flops(name: str, **sections: Any) -> dict[str, float]:
        found: dict[str, float] = session(fit(config(name, **sections)))["flops"]
        return found

    small = flops("small", data={"micro_batch_tokens": 256, "row_layout": "grouped"})
    large = flops("large", data={"micro_batch_tokens": 4096, "row_layout": "grouped"})
    again = flops("again", model={"gradient_checkpointing": True}, data={"row_layout": "grouped"})
    assert small["model"] == large["model"] == again["model"]
    assert small["hardware"] < large["hardware"]  # longer rows pad more
    assert again["hardware"] > 1.2 * again["model"]


def test_the_operations_of_a_run_are_six_per_weight_and_token_and_attention(config: Config, fit: Fit) -> None:
    """Full fine-tuning, from the manifest's own counts; the head is for supervised tokens only."""
    run = fit(config("run", model={"adapter": None}, data={"row_layout": "grouped", "validation": None}))
    told = session(run)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    rows = json.loads((run / "manifest.json").read_text())["data"]["sources"][0]
    vocabulary = json.loads((run / "model" / "config.json").read_text())["vocab_size"]
    linear = 6 * (2 * layer * told["tokens"] + 32 * vocabulary * told["supervised_tokens"])
    assert told["tokens"] == 2 * rows["tokens"]
    attention = told["flops"]["model"] - linear
    # Two layers, two products of width 32, three times; at most half of the longest example per token.
    per_pair = 2 * 2 * 2 * 32 * 3
    assert per_pair * told["tokens"] < attention < per_pair * told["tokens"] * rows["longest"] / 2


@pytest.mark.slow
def test_the_time_to_the_first_step_is_from_the_start_of_the_process(
    config: Config, start: Callable[..., Any], tmp_path: Path
) -> None:
    path = config("run", trainer={"max_steps": 1, "max_epochs": None}, data={"validation": None})
    began = time.monotonic()
    process = start("fit", "--config", str(path))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    told = session(tmp_path / "run")
    # Importing alone takes longer than a second; the export is after the first step.
    assert 1 < told["seconds_to_first_step"] < time.monotonic() - began
    assert told["seconds_to_first_step"] > told["training_seconds"]


def test_a_run_begins_with_its_process_and_the_next_one_behind_it() -> None:
    program = """
import time
time.sleep(0.5)
from ift.training.session_start import run_start
now = time.time()
print(now - run_start(), now - run_start())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    first, second = map(float, done.stdout.split())
    assert 0.5 < first < 60 and -1 < second < 0.1


def test_the_peak_is_measured_once_per_machine_and_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counting(device: torch.device, dtype: torch.dtype) -> MatmulPeak:
        calls.append(dtype)
        return MatmulPeak("a", str(dtype), 1.0, 2)

    monkeypatch.setattr(measuring, "measure", counting)
    measuring._measured.cache_clear()
    for _ in range(2):
        for dtype in (torch.float32, torch.bfloat16):
            assert matmul_peak(CPU, dtype, folder=tmp_path).dtype == str(dtype)
    measuring._measured.cache_clear()  # as in another process
    assert matmul_peak(CPU, torch.float32, folder=tmp_path).flops_per_second == 1.0
    assert calls == [torch.float32, torch.bfloat16]
    (tmp_path / measuring.FILE).write_text("damaged")
    assert matmul_peak(CPU, torch.float32, folder=tmp_path / "no" / "folder").size == 2
    assert matmul_peak(CPU, torch.float32, folder=tmp_path).size == 2
    measuring._measured.cache_clear()


def test_measuring_takes_well_under_a_second_and_draws_nothing_at_random() -> None:
    before = torch.get_rng_state()
    started = time.monotonic()
    found = measure(CPU, torch.float32, seconds=0.2)
    assert time.monotonic() - started < 3  # on a busy machine
    assert torch.equal(before, torch.get_rng_state())
    assert math.isfinite(found.flops_per_second) and found.flops_per_second > 1e8


def test_measuring_waits_for_the_device_only_where_a_step_is_logged(
    config: Config, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are the ways in which a tensor becomes a number of Python, in the callback that measures."""
    from ift.training.metrics import StepMetrics

    waits: list[tuple[int, bool]] = []
    ended = StepMetrics.on_train_batch_end

    def watched(self: StepMetrics, trainer: Any, *arguments: Any) -> None:
        from torch.overrides import TorchFunctionMode

        class Watch(TorchFunctionMode):
            seen = False

            def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                names = ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy")
                self.seen |= getattr(function, "__name__", "") in names
                return function(*args, **(kwargs or {}))

        with Watch() as watch:
            ended(self, trainer, *arguments)
        waits.append((trainer.global_step, watch.seen))

    monkeypatch.setattr(StepMetrics, "on_train_batch_end", watched)
    fit(config("run", trainer={"log_every_n_steps": 4}))
    assert [step for step, waited in waits if waited] == [1, 4, 8]
    assert len(waits) == 8
