"""Out of memory: a step is cut smaller and repeated with the same result, or the error says what to lower."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import largest_difference
from killing import curves, kill_now, output, run_child
from lightning.pytorch import Trainer

from ift.cli import main
from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import GROUPED, RowLayoutChoice
from ift.data.steps import StepPlan, StreamProgress, examples_of, recut, step_of_examples
from ift.models.out_of_memory import is_out_of_memory
from ift.training import gradient as gradients
from ift.training import objective
from ift.training.strategies import build_strategy, name_of

Config = Callable[..., Path]
Fit = Callable[..., Path]

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "400000000 bytes. Error code 12 (Cannot allocate memory)"
)
SHORT = 400
"""Positions that fit; each step here has more."""
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
SETTINGS: dict[str, Any] = {
    "model": {"optimizer": SGD},
    "data": {"micro_batch_tokens": 2048, "auto_micro_batch": True, "validation": 8},
    "trainer": {"max_epochs": -1, "max_steps": 8, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
    "checkpoint": {"every_n_train_steps": 2},
}


def short_of_memory(
    positions: int, *, error: Callable[[], Exception], after: int = 0, patch: Any = setattr
) -> list[int]:
    """Let micro-batches with more positions fail, in training from a step on, and in validation always."""
    tried: list[int] = []
    state = {"step": -1}
    call = gradients.StepGradient.__call__
    for owner in (gradients, objective):
        loss = owner.loss_sum

        def limited(model: Any, batch: Any, *, _owner: Any = owner, _loss: Any = loss, **options: Any) -> Any:
            if _owner is objective or state["step"] >= after:
                tried.append(batch.input_ids.numel())
                if tried[-1] > positions:
                    _loss(model, batch, **options)  # it fails halfway, with a graph that holds memory
                    raise error()
            return _loss(model, batch, **options)

        patch(owner, "loss_sum", limited)

    def at_step(self: Any, step: Any) -> torch.Tensor:
        state["step"] = step.index
        return call(self, step)

    patch(gradients.StepGradient, "__call__", at_step)
    return tried


@pytest.mark.parametrize(
    ("layout", "error"),
    [
        ("auto", lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        ("grouped", lambda: RuntimeError(CPU_MESSAGE)),
    ],
    ids=["packed", "grouped"],
)
def test_smaller_micro_batches_give_the_same_run(
    layout: str,
    error: Callable[[], Exception],
    config: Config,
    fit: Fit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "row_layout": layout}}
    reference = fit(config("reference", **settings))
    tried = short_of_memory(SHORT, error=error, after=3, patch=monkeypatch.setattr)
    run = fit(config("short", **settings))
    assert max(tried) > SHORT  # so that memory did run out
    assert 0 < largest_difference(reference, run) < 1e-5
    for name, curve in curves(reference).items():
        if name != "train/padding_share":
            assert dict(curves(run)[name]) == pytest.approx(dict(curve), rel=1e-4), name
    manifest = json.loads((run / "manifest.json").read_text())
    events = manifest["out_of_memory"]
    assert next(one["step"] for one in events if one["in"] == "training") == 4
    assert all(one["micro_batch_tokens"] in (1024, 512, 256) for one in events)
    assert {one["in"] for one in events} == {"training", "validation"}
    assert "memory ran out in training; micro-batches hold at most" in capsys.readouterr().err
    failures = [one for one in tried if one > SHORT]
    assert len(failures) == len(events)  # the smaller budget holds


def test_a_run_that_ran_out_of_memory_resumes_exactly(config: Config) -> None:
    """The smaller budget is part of the checkpoint: nothing fails twice, and the sums keep their order."""

    def patch(kill_at: int | None = None, positions: int = SHORT) -> Callable[[], None]:
        def apply() -> None:
            short_of_memory(positions, error=lambda: RuntimeError(CPU_MESSAGE), after=3)
            call = gradients.StepGradient.__call__

            def dying(self: Any, step: Any) -> torch.Tensor:
                if step.index == kill_at:
                    kill_now()
                return call(self, step)

            gradients.StepGradient.__call__ = dying  # type: ignore[method-assign]

        return apply

    reference, path = config("reference", **SETTINGS), config("killed", **SETTINGS)
    assert run_child(reference, patch=patch()) == 0, output(reference)
    assert run_child(path, patch=patch(kill_at=5)) == -9, output(path)
    assert "memory ran out in training" in output(path)
    assert run_child(path, patch=patch()) == 0, output(path)
    assert largest_difference(reference.with_suffix(""), path.with_suffix("")) == 0
    assert curves(path.with_suffix("")) == curves(reference.with_suffix(""))
    one, two = (json.loads((one.with_suffix("") / "manifest.json").read_text()) for one in (reference, path))
    assert one["out_of_memory"] == two["out_of_memory"] and one["out_of_memory"]


def test_what_cannot_be_cut_smaller_is_an_error_that_says_what_to_lower(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short_of_memory(10, error=lambda: torch.OutOfMemoryError("CUDA out of memory."), after=2, patch=monkeypatch.setattr)
    path = config("run", **SETTINGS)
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: step 3: memory ran out (CUDA out of memory.)")
    assert "Its longest example has" in message and "data.max_length" in message
    assert "model.gradient_checkpointing" in message


def test_without_the_setting_the_error_names_the_step_and_the_budget(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short_of_memory(SHORT, error=lambda: RuntimeError(CPU_MESSAGE), after=2, patch=monkeypatch.setattr)
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "auto_micro_batch": False, "validation": None}}
    path = config("run", **settings)
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: step 3: memory ran out") and "Its longest example has" in message
    assert "Lower data.micro_batch_tokens (2048)" in message and "data.auto_micro_batch true" in message
    assert [one.name for one in path.with_suffix("").glob("checkpoints/*")] == ["step-00000002.ckpt"]


def test_memory_that_really_runs_out_is_noticed(config: Config) -> None:
    """Each micro-batch takes memory by its positions, under a limit of the operating system."""

    def patch() -> None:
        loss, state = gradients.loss_sum, {"limited": False}

        def hungry(model: Any, batch: Any, **options: Any) -> Any:
            if not state["limited"]:
                state["limited"] = True
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + (700 << 20)
                resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            ballast = torch.empty(batch.input_ids.numel() << 20, dtype=torch.uint8)
            return loss(model, batch, **options) + ballast[0] * 0.0

        gradients.loss_sum = hungry

    path = config("run", **{**SETTINGS, "data": {**SETTINGS["data"], "validation": None}})
    assert run_child(path, patch=patch) == 0, output(path)
    events = json.loads((path.with_suffix("") / "manifest.json").read_text())["out_of_memory"]
    # A position takes a mebibyte, and 700 are left.
    assert events and events[0]["step"] == 1 and events[-1]["micro_batch_tokens"] <= 700


def test_other_errors_are_no_lack_of_memory() -> None:
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(RuntimeError(CPU_MESSAGE))
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("layout", ["packed", "flattened", "grouped"])
def test_cutting_again_keeps_every_example_as_it_was(layout: Any) -> None:
    random = np.random.default_rng(5)
    nothing = StreamProgress((), (), ())
    for _ in range(20):
        examples = []
        for length in random.integers(2, 200, size=random.integers(1, 12)):
            labels = random.integers(1, 50, size=length)
            labels[: random.integers(1, length + 1)] = IGNORE_INDEX
            examples.append(Example(random.integers(1, 50, size=length), labels))
        choice = RowLayoutChoice(layout, "here")
        plan = StepPlan(len(examples), 4096, pad_token_id=0, row_layout=choice)
        step = step_of_examples(examples, plan, index=3, progress=nothing)
        again = recut(step, 64, choice=choice, pad_token_id=0)
        bytes_of = [
            sorted((one.input_ids.tobytes(), one.labels.tobytes()) for one in part)
            for part in (examples, examples_of(step), examples_of(again))
        ]
        assert bytes_of[0] == bytes_of[1] == bytes_of[2]
        assert again.num_supervised == step.num_supervised and len(again.micro_batches) >= len(step.micro_batches)
        for batch in again.micro_batches:
            assert batch.input_ids.numel() <= 64 or sum(map(len, batch.lengths)) == 1


def test_a_rank_without_a_share_keeps_its_weightless_example() -> None:
    example = Example(np.arange(1, 9), np.arange(1, 9))
    plan = StepPlan(1, 64, pad_token_id=0, row_layout=GROUPED, rank=1, world_size=2)
    step = step_of_examples([example], plan, index=0, progress=StreamProgress((), (), ()))
    (batch,) = recut(step, 4, choice=GROUPED, pad_token_id=0).micro_batches
    assert (batch.labels == IGNORE_INDEX).all() and batch.input_ids.tolist() == [list(range(1, 9))]


def test_a_fused_optimizer_repeats_no_step(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    lomo = {"class_path": "ift.training.fused_optimizers.Lomo", "init_args": {"lr": 0.1}}
    path = config("run", **{**SETTINGS, "model": {"adapter": None, "optimizer": lomo}})
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "data.auto_micro_batch: Lomo" in message and "Traceback" not in message


RANK_SHORT = """
import sys
sys.path[:0] = {paths!r}
from test_training_out_of_memory import CPU_MESSAGE, short_of_memory
from lightning.fabric.utilities import rank_zero
if int(__import__("os").environ.get("LOCAL_RANK", 0)) == {rank}:
    short_of_memory({positions}, error=lambda: RuntimeError(CPU_MESSAGE), after=3)
from ift.cli import main
sys.exit(main())
"""


def on_two_ranks(command: str, path: Path, *, rank: int, positions: int) -> subprocess.CompletedProcess[str]:
    """Run a command on two ranks, one of which is short of memory."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    script = path.with_suffix(".py")
    script.write_text(RANK_SHORT.format(paths=paths, rank=rank, positions=positions))
    arguments = [sys.executable, str(script), command, "--config", str(path), "--trainer.devices=2"]
    return subprocess.run([*arguments, "--trainer.strategy=ddp"], capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_ranks_lack_of_memory_is_all_ranks_business(rank: int, config: Config, fit: Fit) -> None:
    path = config("two", **SETTINGS)
    done = on_two_ranks("fit", path, rank=rank, positions=300)
    assert done.returncode == 0, done.stderr
    assert "memory ran out in training" in done.stderr
    assert largest_difference(fit(config("one", **SETTINGS)), path.with_suffix("")) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_ranks_end_together_where_memory_cannot_be_saved(command: str, config: Config) -> None:
    """The one that ran out tells what to lower, although the first one ends at once."""
    done = on_two_ranks(command, config("two", **SETTINGS), rank=1, positions=10)
    assert done.returncode == 2, done.stderr
    place = "step 4" if command == "fit" else "validation after step 0"
    assert f"error: {place}: memory ran out on another rank; its own message says what to lower." in done.stderr
    assert f"error (rank 1): {place}: memory ran out ({CPU_MESSAGE[:40]}" in done.stderr
    assert "lower data.max_length" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_rank_validates_in_smaller_parts_on_its_own(config: Config) -> None:
    path = config("two", **SETTINGS)
    done = on_two_ranks("validate", path, rank=0, positions=170)
    assert done.returncode == 0 and "memory ran out in validation" in done.stderr, done.stderr
    enough = on_two_ranks("validate", path, rank=0, positions=1 << 20)
    assert enough.returncode == 0 and "memory ran out" not in enough.stderr, enough.stderr
    one, other = (json.loads(each.stdout) for each in (done, enough))
    assert one["supervised_tokens"] == other["supervised_tokens"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


@pytest.mark.parametrize("way", ["update", "fused"])
def test_memory_that_runs_out_elsewhere_in_a_step_is_told(
    way: str, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = {"class_path": "ift.training.fused_optimizers.Lomo", "init_args": {"lr": 0.5}}
    optimizer = fused if way == "fused" else SGD
    model = {"optimizer": optimizer, "adapter": None}
    path = config("run", **{**SETTINGS, "model": model, "data": {**SETTINGS["data"], "auto_micro_batch": False}})

    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    if way == "fused":
        monkeypatch.setattr(gradients, "loss_sum", fail)
    else:
        monkeypatch.setattr(torch.optim.SGD, "step", fail)
    assert main(["fit", "--config", str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "step 1: memory ran out" in said and "Traceback" not in said
    assert ("model.optimizer" if way == "update" else "data.micro_batch_tokens") in said


@pytest.mark.parametrize("name", ["fsdp", "ddp", "auto"])
def test_a_strategy_is_named_as_it_is_typed(name: str) -> None:
    trainer = Trainer(strategy=build_strategy(name), accelerator="cpu", devices=1, logger=False)
    assert name_of(trainer.strategy) == name
