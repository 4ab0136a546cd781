"""`ift check`: it holds on this machine, and says so where something is broken on purpose."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ift.checks.findings import Case, largest_of
from ift.checks.rank_pair import RankPair
from ift.cli import main
from ift.data.encoding import IGNORE_INDEX

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """The check sets one thread for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def check(*arguments: str, report: Path) -> tuple[int, dict[str, Any]]:
    """Run the check and return its exit code and report."""
    code = main(["check", "--json", str(report), *arguments, "--debug"])
    return code, json.loads(report.read_text(encoding="utf-8"))


def violated(report: dict[str, Any]) -> set[int]:
    return {case["invariant"] for case in report["cases"] if not case["holds"]}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what needs processes of its own, in which nothing could be broken."""
    monkeypatch.setattr("ift.commands.check_runs.KilledRun", Nothing)
    monkeypatch.setattr("ift.commands.check_runs.RankChecks", Nothing)


class Nothing:
    """Stands for checks in other processes."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def start(self) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def only_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    """One method, for speed."""
    from ift.checks.tiny_world import recipes

    monkeypatch.setattr("ift.commands.check_runs.recipes", lambda: recipes()[:1])
    monkeypatch.setattr("ift.commands.check_runs.METHODS", {})
    monkeypatch.setattr("ift.checks.tiny_world.FAMILIES", ("llama", "qwen2", "bloom"))


def test_texts_and_rows_hold_and_are_counted(in_process: None, tmp_path: Path, capsys: Any) -> None:
    code, report = check("--only", "1,2,10", report=tmp_path / "report.json")
    assert code == 0 and report["holds"] and violated(report) == set()
    templates = {case["name"].split(",")[0] for case in report["cases"] if case["invariant"] == 1}
    assert len(templates) > 25 and {row["number"] for row in report["invariants"]} == {1, 2, 10}
    shown = capsys.readouterr()
    assert "supervised tokens are the responses" in shown.out and "everything holds" in shown.out
    assert "VIOLATED" not in shown.out
    # It tells beforehand how much there is to do, and with each case how far it is.
    _, first, *others = [line for line in shown.err.splitlines() if line.startswith("[")]
    parts = 2 * len(templates) + 1
    assert f"{parts} parts, about 10 s" in first
    cases = [line for line in others if " allowed " in line]
    assert len(cases) == len(report["cases"]) == 4 * len(templates) + 3
    assert f",  1 of {parts}]" in cases[0] and f", {parts} of {parts}]" in cases[-1]
    assert "alpaca, byte-level: 0 texts wrong, allowed 0" in cases[0]


def test_what_a_configuration_lacks_is_said_and_all_its_rows_are_checked(
    config: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    whole = {"adapter": None, "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}}
    path = config("whole", model=whole, data={"train_on": "everything"})
    code, report = check("--config", str(path), "--only", "1,6,8", report=tmp_path / "report.json")
    assert code == 0
    assert [case["name"] for case in report["cases"] if case["invariant"] == 6] == [
        f"llama, {layout} rows" for layout in ("flattened", "packed", "grouped")
    ]
    omitted = {one["invariant"]: one["reason"] for one in report["omissions"]}
    assert "no response by itself" in omitted[1] and "there is no adapter" in omitted[8]
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1  supervised tokens") and line.endswith("left out") for line in table), table


def shift_labels(patch: pytest.MonkeyPatch) -> None:
    """The mask begins one token early."""
    from ift.data import steps

    collate = steps.collate

    def early(rows: Any, pad_token_id: int) -> Any:
        batch = collate(rows, pad_token_id)
        labels = batch.labels.clone()
        begins = (labels[:, :-1] == IGNORE_INDEX) & (labels[:, 1:] != IGNORE_INDEX)
        labels[:, :-1][begins] = batch.input_ids[:, :-1][begins]
        batch.labels.copy_(labels)
        return batch

    patch.setattr("ift.data.steps.collate", early)


def forget_the_end(patch: pytest.MonkeyPatch) -> None:
    """The token that ends a response is not learned."""
    from ift.data.store import ExampleStore

    get = ExampleStore.__getitem__

    def without_end(store: Any, index: int) -> Any:
        example = get(store, index)
        example.labels[example.labels == store.end_token_id] = IGNORE_INDEX
        return example

    patch.setattr(ExampleStore, "__getitem__", without_end)


def other_prompts(patch: pytest.MonkeyPatch) -> None:
    """Prompts end with a blank that training does not know."""
    from ift.data.encoding import Encoder

    ids = Encoder.prompt_ids
    patch.setattr(Encoder, "prompt_ids", lambda encoder, talk: [*ids(encoder, talk), *encoder.response_ids("a b")[-1:]])


def lose_rejects(patch: pytest.MonkeyPatch) -> None:
    """Rows that cannot be used leave no trace."""
    patch.setattr("ift.data.preparation._write_row", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("broken", "number"),
    [(shift_labels, 1), (forget_the_end, 1), (other_prompts, 2), (lose_rejects, 10)],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_wrong_texts_and_lost_rows_are_seen(
    broken: Break, number: int, in_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr("ift.commands.check_runs.all_templates", lambda: ("alpaca", "chatml"))
    broken(monkeypatch)
    code, report = check("--only", "1,2,10", report=tmp_path / "report.json")
    assert code == 1 and not report["holds"] and number in violated(report)
    assert "VIOLATED" in capsys.readouterr().out


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    """Each micro-batch weighs the same, however many tokens it has."""
    from ift.training import gradient

    sums = gradient.loss_sum

    def mean(model: Any, batch: Any, *, calling: Any) -> Any:
        return sums(model, batch, calling=calling) / max(1, int((batch.labels != IGNORE_INDEX).sum()))

    patch.setattr("ift.training.gradient.loss_sum", mean)


def leak(patch: pytest.MonkeyPatch) -> None:
    """Positions do not begin anew in a row, so its examples see one another."""
    from ift.data import steps

    collate = steps.collate

    def joined(rows: Any, pad_token_id: int) -> Any:
        batch = collate(rows, pad_token_id)
        if batch.position_ids is not None:
            batch.position_ids.copy_(torch.arange(batch.position_ids.shape[1]).expand_as(batch.position_ids))
        return batch

    patch.setattr("ift.data.steps.collate", joined)


def forget_the_position(patch: pytest.MonkeyPatch) -> None:
    """A resumed run begins its data anew."""
    from ift.data.datamodule import InstructionDataModule

    patch.setattr(InstructionDataModule, "load_state_dict", lambda data, state: None)


def forget_the_optimizer(patch: pytest.MonkeyPatch) -> None:
    """A resumed run begins with moments of zero."""
    patch.setattr("torch.optim.AdamW.load_state_dict", lambda optimizer, state: None)


def validate_coarsely(patch: pytest.MonkeyPatch) -> None:
    """Validation sums up in bfloat16, so that it matters how a step is cut."""
    from ift.training import module, objective

    def coarse(model: Any, step: Any, **options: Any) -> torch.Tensor:
        parts = (replace(step, micro_batches=(batch,)) for batch in step.micro_batches)
        sums = [objective.validation_sums(model, part, **options) for part in parts]
        return sum(torch.stack([loss.bfloat16().double(), count]) for loss, count in sums)

    patch.setattr(module, "validation_sums", coarse)


def drop_a_target(patch: pytest.MonkeyPatch) -> None:
    """The first supervised token of each micro-batch has no loss."""
    from ift.training import objective

    shifted = objective.shifted_targets

    def fewer(labels: torch.Tensor) -> torch.Tensor:
        targets = shifted(labels)
        place = (targets != IGNORE_INDEX).nonzero()
        if len(place):
            targets[tuple(place[0])] = IGNORE_INDEX
        return targets

    patch.setattr("ift.training.objective.shifted_targets", fewer)


def merge_too_much(patch: pytest.MonkeyPatch) -> None:
    """A merge adds the adapter a little too strongly."""
    from peft.tuners.lora import Linear

    delta = Linear.get_delta_weight
    patch.setattr(Linear, "get_delta_weight", lambda layer, adapter: delta(layer, adapter) * 1.01)


def touch_old_rows(patch: pytest.MonkeyPatch) -> None:
    """An enlarged embedding rounds its old rows."""
    from ift.checks import adapter_checks

    merge = adapter_checks.merge

    def rounded(key: str, model: Any, dtype: Any) -> Any:
        result = merge(key, model, dtype)
        weight = result.get_input_embeddings().weight
        weight.data = weight.data.bfloat16().float()
        return result

    patch.setattr("ift.checks.adapter_checks.merge", rounded)


@pytest.mark.parametrize(
    ("broken", "number"),
    [
        (leak, 6),
        (drop_a_target, 7),
        pytest.param(merge_too_much, 8, marks=pytest.mark.slow),
        pytest.param(touch_old_rows, 9, marks=pytest.mark.slow),
        pytest.param(mean_of_means, 3, marks=pytest.mark.slow),
        pytest.param(validate_coarsely, 4, marks=pytest.mark.slow),
        pytest.param(forget_the_position, 5, marks=pytest.mark.slow),
        pytest.param(forget_the_optimizer, 5, marks=pytest.mark.slow),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_a_broken_engine_is_seen(
    broken: Break,
    number: int,
    in_process: None,
    only_lora: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Any,
) -> None:
    broken(monkeypatch)
    code, report = check("--only", str(number), report=tmp_path / "report.json")
    assert code == 1 and violated(report) == {number}
    cases = [case for case in report["cases"] if not case["holds"]]
    assert any(math.isfinite(case["deviation"]) for case in cases), cases  # it was measured, and is no crash


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_holds_here(tmp_path: Path) -> None:
    code, report = check(report=tmp_path / "report.json")
    assert code == 0, [case for case in report["cases"] if not case["holds"]]
    assert {row["number"] for row in report["invariants"]} == set(range(1, 11))
    names = " ".join(case["name"] for case in report["cases"])
    for recipe in ("lora", "qlora", "full"):
        for strategy in ("ddp", "fsdp"):
            assert f"{recipe}, 2 ranks, {strategy}, uneven shares" in names
            assert f"{recipe}, 2 ranks, {strategy}, dropout" in names
    for part in ("killed", "gradient checkpointing", "2 workers", "flattened", "without clipping", "AdamW"):
        assert part in names, part
    assert not report["omissions"] or {one["invariant"] for one in report["omissions"]} == {8}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "strategies"),
    [
        ("exchange = lambda engine, *, last: engine.module.trainer.strategy.model.no_sync()", ["ddp"]),
        ("scale = property(lambda engine: 1.0)", ["ddp", "fsdp"]),  # clipped to the same norm, and half of it before
    ],
    ids=["not exchanged", "averaged"],
)
def test_ranks_that_do_not_sum_up_their_gradients_are_seen(
    broken: str, strategies: list[str], only_lora: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken in the workers only, by a module that Python imports at its start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('TORCHELASTIC_RUN_ID') == 'ift-check':\n"
        "    import ift.training.engines as engines\n"
        f"    engines.Engine.{broken}\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    code, report = check("--only", "3", report=tmp_path / "report.json")
    wrong = {case["name"]: case["deviation"] for case in report["cases"] if not case["holds"]}
    assert code == 1 and list(wrong) == [f"lora, 2 ranks, {strategy}, packed rows" for strategy in strategies]
    assert all(map(math.isfinite, wrong.values())), wrong  # they ran, and were measured


def test_wrong_options_are_refused_before_anything_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("ift.checks.findings.Findings.run", lambda *_: pytest.fail("it began"))
    for arguments, message in (
        (["--only", "11"], "--only: '11' names no invariant [11]; they are 1 to 10"),
        (["--only", "three"], "--only: 'three' is no list of numbers. Write it as 3,5."),
        (["--run", "a", "--config", "b"], "--config: a run has its own"),
        (["--run", str(tmp_path)], "is no run folder: it holds no config.yaml. Name one that"),
        (["--keep", str(tmp_path)], "--keep:"),
        (["--json", str(tmp_path)], "--json: "),
        (["--json", str(tmp_path / "file" / "report.json")], "cannot be written: "),
    ):
        assert main(["check", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("values", [[math.nan, 0.0, 1.0], [0.0, math.nan], [1.0, math.nan, 2.0]])
def test_what_is_not_a_number_is_never_the_smaller(values: list[float]) -> None:
    """Python's `max` drops it unless it stands first, and then a loss that is NaN on one side holds."""
    assert math.isnan(largest_of(values))
    assert not Case(3, "case", "losses", largest_of(values), math.inf, 0.0).holds
    assert largest_of([0.0, 2.0, 1.0]) == 2.0 and largest_of([]) == 0.0


def test_a_start_that_fails_leaves_no_process_behind(
    only_lora: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    def no_ranks(self: RankPair, jobs: Any) -> None:
        assert started and jobs
        raise OSError("no process can be started")

    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(RankPair, "start", no_ranks)
    with pytest.raises(OSError, match="no process can be started"):
        check("--only", "5", report=tmp_path / "report.json")
    assert [one.poll() for one in started] == [-signal.SIGKILL]
