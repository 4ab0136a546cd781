"""A step whose loss or gradient is no number, or a spike: left out and counted, or the run stops with its examples."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from killing import curves, kill_now, output, run_child
from tiny import make_rows, write_json

from ift.cli import main
from ift.training import gradient as gradients
from ift.training.bad_steps import BadSteps, OnBadStep
from ift.training.module import InstructionModule

Config = Callable[..., Path]
Fit = Callable[..., Path]

SETTINGS: dict[str, Any] = {
    "data": {"global_batch_size": 4, "validation": None},
    "trainer": {"max_epochs": -1, "max_steps": 12, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
    "checkpoint": {"every_n_train_steps": 3},
}
LOMO = {"class_path": "ift.training.fused_optimizers.Lomo", "init_args": {"lr": 0.1}}
SKIP = {"on_bad_step": {"action": "skip"}}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the loss of micro-batches at some steps be multiplied by a factor."""

    def do(factors: dict[int, float], *, patch: Any = monkeypatch.setattr) -> None:
        call, loss = gradients.StepGradient.__call__, gradients.loss_sum
        now = {"step": -1}

        def at_step(self: Any, step: Any) -> torch.Tensor:
            now["step"] = step.index
            return call(self, step)

        patch(gradients.StepGradient, "__call__", at_step)
        patch(gradients, "loss_sum", lambda *a, **o: loss(*a, **o) * factors.get(now["step"], 1.0))

    return do


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return found


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_bad_step_stops_the_run_and_its_examples_are_written(
    factor: float, config: Config, fit: Fit, poison: Any, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("run", **SETTINGS)
    run = path.with_suffix("")
    with pytest.MonkeyPatch.context() as patched:
        poison({4: factor}, patch=patched.setattr)
        assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "step 5: the loss" in message and "infinite or not a number" in message and "Traceback" not in message
    file = run / "bad_step-00000005.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert str(file) in message and f"{lines[0]['file']} line {lines[0]['line']}" in message
    assert len(lines) == 4 and len({one["line"] for one in lines}) == 4
    assert [one["loss"] for one in lines] == sorted((one["loss"] for one in lines), reverse=True)
    rows = {one["output"]: one for one in make_rows(40)}
    for one in lines:  # each is a row of the file, whole
        assert one["step"] == 5 and any(output in one["text"] for output in rows)
        assert 0 < one["supervised_tokens"] < one["tokens"] and 0 < one["loss"] < 20
    (checkpoint,) = run.glob("checkpoints/*.ckpt")
    assert checkpoint.name == "step-00000003.ckpt" and not (run / "adapter").exists()
    # What the run stopped for may be left out when it goes on.
    poison({4: factor})
    fit(path, "--ckpt_path", "last", "--model.on_bad_step.action", "skip")
    assert [one["step"] for one in manifest(run)["skipped_steps"]] == [5]


def test_losses_beside_a_bad_example_tell_which_it_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that fails at one text only: the example is first in the file, at its line."""
    from ift.models.calling import Calling

    data = {**SETTINGS["data"], "row_layout": "grouped"}
    path = config("run", **{**SETTINGS, "data": data})
    loss_sum = Calling.loss_sum
    bad: list[torch.Tensor] = []

    def failing(self: Any, model: Any, inputs: Any, keep: Any, **options: Any) -> Any:
        ids = inputs["input_ids"]
        if not bad and torch.is_grad_enabled():  # not in the trial of a loaded model
            bad.append(ids[0].clone())  # the longest, which nothing is padded of
        found = loss_sum(self, model, inputs, keep, **options)
        hit = bad and any(torch.equal(row[: len(bad[0])], bad[0]) for row in ids)
        return found * math.nan if hit else found

    monkeypatch.setattr(Calling, "loss_sum", failing)
    assert main(["fit", "--config", str(path)]) == 2
    lines = [json.loads(line) for line in (path.with_suffix("") / "bad_step-00000001.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == "nan" and all(isinstance(one["loss"], float) for one in lines[1:])
    assert f"line {lines[0]['line']}" in capsys.readouterr().err


def test_a_step_that_is_left_out_changes_no_weight_and_is_counted(
    config: Config, fit: Fit, poison: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison({4: math.nan, 5: math.inf})
    seen: dict[int, list[torch.Tensor]] = {}
    states: dict[int, list[float]] = {}
    train = InstructionModule.training_step

    def watching(module: InstructionModule, step: Any, batch_idx: int) -> Any:
        result = train(module, step, batch_idx)
        seen[step.index] = [one.detach().clone() for one in module.parameters() if one.requires_grad]
        optimizer: Any = module.optimizers()
        states[step.index] = [float(one["exp_avg"].sum()) for one in optimizer.optimizer.state.values()]
        return result

    monkeypatch.setattr(InstructionModule, "training_step", watching)
    run = fit(config("run", model=SKIP, **SETTINGS))
    for index in range(1, 12):
        same = all(torch.equal(one, two) for one, two in zip(seen[index], seen[index - 1], strict=True))
        assert same == (index in (4, 5)) and (states[index] == states[index - 1]) == (index in (4, 5))
    found = manifest(run)
    assert [one["step"] for one in found["skipped_steps"]] == [5, 6] and found["steps"] == 12
    assert curves(run)["train/skipped_steps"] == [(5, 1.0), (6, 2.0)]
    assert len(curves(run)["train/learning_rate"]) == 12  # the schedule goes on
    assert (run / "bad_step-00000005.jsonl").is_file() and (run / "bad_step-00000006.jsonl").is_file()
    assert "It is left out (2 so far)" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", [100_000, pytest.param(256, marks=pytest.mark.slow)])
def test_a_run_with_left_out_steps_resumes_exactly(tokens: int, config: Config, poison: Any) -> None:
    """The median of the norms, and the count, are parts of a checkpoint."""
    on_bad_step = {"action": "skip", "spike_ratio": 4.0, "window": 4}
    settings = {**SETTINGS, "model": {"on_bad_step": on_bad_step}}
    settings["data"] = {**settings["data"], "micro_batch_tokens": tokens}
    factors = {5: 30.0, 8: math.nan, 9: 50.0}
    reference, path = config("reference", **settings), config("killed", **settings)
    assert run_child(reference, patch=lambda: poison(factors, patch=setattr)) == 0, output(reference)
    skipped = manifest(reference.with_suffix(""))["skipped_steps"]
    assert [one["step"] for one in skipped] == [6, 9, 10]
    assert "spike" in skipped[0]["reason"] and "model.on_bad_step.spike_ratio 4" in skipped[0]["reason"]

    def killing(at: int) -> Callable[[], None]:
        def patch() -> None:
            poison(factors, patch=setattr)
            train = InstructionModule.training_step

            def dying(module: InstructionModule, step: Any, batch_idx: int) -> Any:
                if step.index == at:
                    kill_now()
                return train(module, step, batch_idx)

            InstructionModule.training_step = dying  # type: ignore[method-assign]

        return patch

    for at in (7, 11):
        assert run_child(path, patch=killing(at)) == -9, output(path)
    assert run_child(path, patch=lambda: poison(factors, patch=setattr)) == 0, output(path)
    assert largest_difference(reference.with_suffix(""), path.with_suffix("")) == 0
    assert manifest(path.with_suffix(""))["skipped_steps"] == skipped
    assert repr(curves(path.with_suffix(""))) == repr(curves(reference.with_suffix("")))  # nan is not equal to itself


def test_many_bad_steps_in_a_row_are_not_the_datas_fault(
    config: Config, poison: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(dict.fromkeys(range(3, 12), math.nan))
    path = config("run", model={"on_bad_step": {"action": "skip", "most_in_a_row": 3}}, **SETTINGS)
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "step 7: " in message and "4 bad steps in a row: the data are not the cause" in message


def judged(steps: BadSteps, norm: float) -> str | None:
    """Judge a step as a run of one rank does."""
    if (reason := steps.judge(1.0, norm)) is None:
        steps.count_in(norm)
    return reason


def test_a_spike_is_judged_by_the_median_of_good_steps() -> None:
    judge = BadSteps(OnBadStep("skip", spike_ratio=3.0, window=5))
    norms = [1.0, 50.0, 1.2, 0.8, 1.1]  # no step is a spike before the window is full
    assert all(judged(judge, norm) is None for norm in norms)
    assert judged(judge, 3.29) is None  # median 1.1, which becomes 1.2 without the oldest
    assert "median of the last 5 steps is 1.2" in str(judge.judge(1.0, 3.7))
    assert judged(judge, 3.5) is None  # the spike is not part of the median
    assert judge.judge(math.inf, 1.0) and judge.judge(1.0, math.nan) and judge.judge(1.0, math.inf)
    again = BadSteps(judge.settings)
    again.load_state(judge.state())
    assert [judged(again, x) for x in (4.0, 9.0)] == [judged(judge, x) for x in (4.0, 9.0)]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"on_bad_step": {"spike_ratio": 0.5}}, "model.on_bad_step.spike_ratio: 0.5 is not above 1"),
        ({"on_bad_step": {"window": 0}}, "window: 0 is below 1"),
        (
            {**SKIP, "adapter": None, "optimizer": LOMO},
            "Lomo updates weights before",
        ),
    ],
)
def test_senseless_settings_are_refused(
    model: dict[str, Any], reason: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("run", model=model)
    assert main(["fit", "--config", str(path)]) == 2
    assert reason in capsys.readouterr().err and not path.with_suffix("").exists()


def test_where_nobody_waits_the_first_bad_step_is_told_later(
    config: Config, poison: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, where a look at every norm would let the device wait."""
    monkeypatch.setattr(OnBadStep, "looks_at_each_step", lambda *_: False)
    poison({4: math.nan})
    trainer = {**SETTINGS["trainer"], "log_every_n_steps": 100}
    path = config("run", **{**SETTINGS, "trainer": trainer})
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "step 5: the loss or its gradient became infinite or not a number" in message
    lines = (path.with_suffix("") / "bad_step-00000005.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all(json.loads(one)["loss"] is None and json.loads(one)["line"] for one in lines)
    assert [one.name for one in path.with_suffix("").glob("checkpoints/*")] == ["step-00000003.ckpt"]


NAN_ROW = """
import math
from ift.training import gradient as gradients
real = gradients.loss_sum
def loss_sum(model, batch, **options):
    value = real(model, batch, **options)
    return value + math.inf if state["step"] == 2 and state["rank"] == 1 else value
state = {}
call = gradients.StepGradient.__call__
def at_step(self, step):
    state.update(step=step.index, rank=self.rank)
    return call(self, step)
gradients.loss_sum, gradients.StepGradient.__call__ = loss_sum, at_step
import sys
from ift.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["skip", "stop"])
def test_all_ranks_decide_alike(action: str, config: Config, tmp_path: Path) -> None:
    """The loss is infinite on one rank only, and no gradient is."""
    import subprocess
    import sys

    write_json(tmp_path / "rows.json", make_rows(40))
    path = config("run", model={"on_bad_step": {"action": action}}, **SETTINGS)
    script = tmp_path / "two.py"
    script.write_text(NAN_ROW)
    command = [sys.executable, str(script), "fit", "--config", str(path), "--trainer.devices=2"]
    done = subprocess.run([*command, "--trainer.strategy=ddp"], capture_output=True, text=True, timeout=240)
    run = path.with_suffix("")
    assert done.returncode == (0 if action == "skip" else 2), done.stdout + done.stderr
    assert (run / "bad_step-00000003.jsonl").is_file() and (run / "bad_step-00000003.rank-1.jsonl").is_file()
    if action == "skip":
        assert [one["step"] for one in manifest(run)["skipped_steps"]] == [3]
