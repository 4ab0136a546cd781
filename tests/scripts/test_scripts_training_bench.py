"""The training benchmark: its loops do the same work, and its numbers are what the notes say."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import training_loops

    return training_loops


def examples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (9, 23, 4, 15):
        ids = torch.randint(0, 90, (length,), generator=generator)
        made.append((ids, torch.where(torch.arange(length) < length // 3, -100, ids)))
    return made


@pytest.mark.parametrize("method", ["lora", "full"])
def test_all_loops_have_one_loss_and_one_gradient(loops: Any, method: str, tmp_path: Path) -> None:
    import training_work

    training_work.make_base(tmp_path / "base", training_work.Sizes(90, 32, 48, 2, 2))
    found: dict[str, tuple[float, list[torch.Tensor]]] = {}
    for name in ("padded", "unpadded", "limit"):
        torch.manual_seed(0)
        model = loops.load(tmp_path, method)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        loss = getattr(loops, name)(model, examples())
        loss.backward()
        found[name] = float(loss.detach()), [one.grad for one in model.parameters() if one.requires_grad]
    expected, gradients = found["padded"]
    largest = max(float(one.abs().max()) for one in gradients)
    for loss, own in found.values():
        assert loss == pytest.approx(expected, rel=1e-5)
        for one, other in zip(own, gradients, strict=True):
            assert float((one - other).abs().max()) < 1e-5 * largest


def test_a_rate_counts_what_is_behind_the_warm_up(loops: Any, tmp_path: Path) -> None:
    import training_notes

    steps = [(110.0, 3.0, 50), (115.0, 4.0, 60), (117.0, 6.0, 30), (119.0, 7.0, 50)]
    lines = [json.dumps({"time": t, "processor": p, "loss": 2.0, "supervised": n}) for t, p, n in steps]
    (tmp_path / "notes").write_text("\n".join(lines))
    run = training_notes.read_run(tmp_path / "notes", started=100.0, peak_mib=7.0)
    assert (run.rate, run.processor_rate, run.first_step_seconds) == (80 / 4, 80 / 3, 10.0)


def test_runs_that_differ_end_the_measurement(loops: Any) -> None:
    from training_notes import Run

    # By its place, as the folder of these tests' neighbours has the same name.
    spec = spec_from_file_location("training_bench", BENCH / "training.py")
    assert spec is not None and spec.loader is not None
    training = module_from_spec(spec)
    spec.loader.exec_module(training)

    one = Run(1.0, 1.0, 1.0, 1.0, (2.0, 1.9), (5, 6))
    training.check_same({"a": one, "b": Run(2.0, 1.0, 1.0, 1.0, (2.0001, 1.901), (5, 6))})
    for losses, tokens in (((2.01, 1.9), (5, 6)), ((2.0, 1.8), (5, 6)), ((2.0, 1.9), (5, 7))):
        with pytest.raises(SystemExit, match=r"b (has loss|counts)"):
            training.check_same({"a": one, "b": Run(1.0, 1.0, 1.0, 1.0, losses, tokens)})
    runs = {"limit": [Run(100.0, 50.0, 2.0, 1024.0, (), ())], "ift": [Run(95.0, 40.0, 3.0, 2048.0, (), ())]}
    assert "| ift fit | 95 | 0.95 | 0.80 | 2.00 GiB | 3.0 s |" in training.table(runs)


def test_a_peer_is_here_where_its_own_interpreter_finds_its_packages(loops: Any, tmp_path: Path) -> None:
    import training_peers

    pythons = {}
    for name, status in (("trl", 0), ("llamafactory", 1), ("transformers", 1)):
        python = tmp_path / name
        python.write_text(f"#!/bin/sh\nexit {status}\n", encoding="utf-8")
        python.chmod(0o755)
        pythons[name] = str(python)
    found = training_peers.installed(pythons)
    assert "trl" in found and "llamafactory" not in found and "transformers" not in found
    assert "transformers" in training_peers.installed({})


def test_a_peer_tells_the_labels_that_its_model_got(loops: Any) -> None:
    import training_peers

    class Trainer:
        def compute_loss(self, model: None, inputs: dict[str, torch.Tensor]) -> float:
            return 2.5

        def log(self, logs: dict[str, float]) -> None:
            pass

    told: list[tuple[float, int]] = []
    trainer = training_peers.telling(Trainer, lambda loss, supervised: told.append((loss, supervised)))()
    for rows in ([[7, 7, -100], [-100, 7, 7]], [[-100, -100, 7]]):
        trainer.compute_loss(None, {"labels": torch.tensor(rows)})
    trainer.log({"loss": 2.5})
    trainer.log({"train_runtime": 1.0})
    trainer.compute_loss(None, {"labels": torch.tensor([[-100, 7]])})
    trainer.log({"loss": 2.0})
    assert told == [(2.5, 1 + 2 + 1), (2.0, 1)]


def test_the_chart_has_a_bar_for_each_runner(loops: Any) -> None:
    import training_chart

    drawn = training_chart.chart({"lora": {"limit": 100.0, "ift": 95.0}}, {"ift": "ift <fit>"})
    assert drawn.count("<rect") == 3 and "ift &lt;fit&gt;" in drawn and ">95<" in drawn
