"""A benchmark asked during training: nothing in training changes, and its last point is the finished run's score."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from byte_level import make_byte_level
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import ROOT, make_llama, make_rows, write_json

from eval.__main__ import main as eval_main
from eval.benchmark import Judge, get_benchmark
from eval.during_training import EvaluateDuringTraining
from eval.during_training.answering import undisturbed
from ift.cli import main as ift_main

CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
DROPOUT = {
    "class_path": "peft.LoraConfig",
    "init_args": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.2},
}
Settings = dict[str, Any]


def callback(**arguments: Any) -> Settings:
    return {"class_path": "eval.during_training.EvaluateDuringTraining", "init_args": arguments}


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions in two categories, one of them with two right answers."""
    rows = []
    for number in range(20):
        options = "\n".join(
            f"{letter}:{word}" for letter, word in zip("ABCD", ("river", "石头", "lamp", "云彩"), strict=True)
        )
        row = {"类别": "物理" if number % 3 else "历史", "题目": f"第{number}项 river stone", "选项": options}
        rows.append(row | {"答案": "BC" if number == 7 else "ABCD"[number % 4]})
    return write_json(tmp_path_factory.mktemp("quiz") / "quiz.json", rows)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json(tmp_path_factory.mktemp("exact") / "exact.json", make_rows(9))


def settings(folder: Path, base: Path, callbacks: list[Settings], **sections: Settings) -> Path:
    """Write a run of eight steps in two epochs, validated before the first and after each epoch."""
    values: Settings = {
        "run_dir": str(folder / "run"),
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "num_sanity_val_steps": -1,
            "enable_progress_bar": False,
            "callbacks": callbacks,
        },
        "model": {
            "base": str(base),
            "adapter": DROPOUT,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        },
        "data": {
            "sources": [{"path": str(write_json(folder / "rows.json", make_rows(40))), "layout": "alpaca"}],
            "validation": 8,
            "max_length": 256,
            "global_batch_size": 8,
            "micro_batch_tokens": 512,
            "cache_dir": str(folder / "cache"),
        },
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def fit(path: Path, *more: str) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # bit-for-bit comparisons need one order of summation
    try:
        assert ift_main(["fit", "--config", str(path), *more]) == 0
    finally:
        torch.set_num_threads(threads)
    return path.parent / "run"


def points(run: Path, name: str | None = None) -> list[Settings]:
    lines = (run / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    for point in found:
        assert point.pop("seconds") >= 0
    return [point for point in found if name in (None, point["name"])]


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(str(run / "adapter/adapter_model.safetensors"))


def both(quiz: Path, exact: Path) -> list[Settings]:
    """The one ranks at every third step, the other writes after validations; both are random samples."""
    return [
        callback(benchmark="quiz", data=str(quiz), every_n_steps=3, limit=15, seed=2, batch_size=4),
        callback(benchmark="exact_match", data=str(exact), max_new_tokens=5),
    ]


@pytest.fixture(scope="module")
def run(base: Path, quiz: Path, exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout, gradient checkpointing and both callbacks."""
    model = {"gradient_checkpointing": True}
    return fit(settings(tmp_path_factory.mktemp("with"), base, both(quiz, exact), model=model))


def test_training_is_the_same_bit_for_bit(run: Path, base: Path, tmp_path: Path) -> None:
    without = fit(settings(tmp_path, base, [], model={"gradient_checkpointing": True}))
    one, other = weights(run), weights(without)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not (without / "evaluation.jsonl").exists()
    for tag in ("train/loss", "validation/loss"):
        assert curve(run, tag) == curve(without, tag)


def test_the_points_are_where_they_were_asked_for(run: Path) -> None:
    assert [point["step"] for point in points(run, "quiz")] == [0, 3, 6, 8]
    assert [point["step"] for point in points(run, "exact_match")] == [0, 4, 8]
    for name in ("quiz", "exact_match"):
        own = points(run, name)
        for tag, key in ((f"eval/{name}/micro", "micro"), (f"eval/{name}/macro", "macro")):
            expected = [(point["step"], point["aggregates"][key]["score"]) for point in own]
            assert curve(run, tag) == [(step, pytest.approx(score)) for step, score in expected]
        shares = [(point["step"], pytest.approx(point["unparsed"] / point["n"])) for point in own]
        assert curve(run, f"eval/{name}/unparsed") == shares
        kept = json.loads((run / "manifest.json").read_text())["evaluation"][name]
        assert kept.pop("seconds") >= 0 and kept == own[-1]
    first, *_ = points(run, "quiz")
    assert (first["n"] + first["excluded"], first["limit"], first["seed"]) == (15, 15, 2)
    # Which of so few answers change depends on the masks that dropout has drawn.
    ends = [(points(run, name)[0], points(run, name)[-1]) for name in ("quiz", "exact_match")]
    assert any(one["outcomes_sha256"] != other["outcomes_sha256"] for one, other in ends), "training changed no answer"


def same_as_the_finished_run(run: Path, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Ask the finished run with `python -m eval run`, and compare with the last point, item by item."""
    monkeypatch.setattr("eval.run_jobs._call", lambda command: ift_main(command[3:]))
    assert eval_main(["run", name, "--run", str(run), "--output", str(folder), *more]) == 0
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    point = points(run, name)[-1]
    for key in ("benchmark", "protocol", "protocol_version", "mode", "shots", "answers", "prompts_sha256"):
        assert point[key] == report[key]
    assert {key: one["score"] for key, one in point["aggregates"].items()} == {
        key: one["score"] for key, one in report["aggregates"].items()
    }
    assert (point["unparsed"], point["tied"]) == (report["unparsed"], report["tied"])
    digest = hashlib.sha256()
    for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        digest.update(json.dumps([item[key] for key in ("id", "value", "status", "answer")]).encode() + b"\n")
    assert point["outcomes_sha256"] == digest.hexdigest()


def test_the_last_point_is_the_score_of_the_finished_run(
    run: Path, quiz: Path, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ["--data", str(quiz), "--limit", "15", "--seed", "2", "--", *CPU, "--data.batch_size=4"]
    same_as_the_finished_run(run, "quiz", tmp_path / "quiz", monkeypatch, *sample)
    decoding = ["--data", str(exact), "--", *CPU, "--model.decoding.max_new_tokens=5"]
    same_as_the_finished_run(run, "exact_match", tmp_path / "exact", monkeypatch, *decoding)


def test_prompts_are_in_the_tokenizers_own_template(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all weights are trained, so that the finished run is a model of its own."""
    base = tmp_path / "chat"
    make_byte_level(base, [f"{row['instruction']} {row['output']}" for row in make_rows(40)])
    make_llama(base, 420)
    asked = callback(benchmark="exact_match", data=str(exact), max_new_tokens=7)
    whole = {"adapter": None, "base": str(base)}
    run = fit(settings(tmp_path, base, [asked], model=whole, data={"template": "tokenizer"}))
    more = ["--data", str(exact), "--", *CPU, "--model.decoding.max_new_tokens=7"]
    same_as_the_finished_run(run, "exact_match", tmp_path / "out", monkeypatch, *more)
    answers = (tmp_path / "out/predictions/predictions.jsonl").read_text(encoding="utf-8")
    assert "<|im_start|>" in answers


def test_whole_texts_and_adapters_before_the_text(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity in windows as long as what virtual tokens leave of the model's positions; the text is longer."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{row['instruction']} {row['output']}" for row in make_rows(60)), encoding="utf-8")
    prompt = {"class_path": "peft.PromptTuningConfig", "init_args": {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}}
    asked = callback(benchmark="perplexity", data=str(text))
    run = fit(settings(tmp_path, base, [asked], model={"adapter": prompt}))
    same_as_the_finished_run(run, "perplexity", tmp_path / "out", monkeypatch, "--data", str(text), "--", *CPU)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_ask_as_one(strategy: str, base: Path, quiz: Path, exact: Path, tmp_path: Path) -> None:
    plain = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    model = {"optimizer": plain, "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 4}}}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = fit(settings(tmp_path / "one", base, both(quiz, exact), model=model))
    path = settings(tmp_path / "two", base, both(quiz, exact), model=model)
    command = [sys.executable, "-m", "ift", "fit", "--config", str(path), "--trainer.devices=2"]
    command.append(f"--trainer.strategy={strategy}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two/run"
    assert json.loads((two / "manifest.json").read_text())["sessions"][0]["world_size"] == 2
    assert points(two) == points(one) and len(points(one)) == 7


@pytest.mark.parametrize(("killed", "interval"), [("long after it", 4), ("before what was due at it", 2)])
def test_a_resumed_run_repeats_and_loses_no_point(
    killed: str, interval: int, base: Path, quiz: Path, exact: Path, tmp_path: Path
) -> None:
    """Checkpoints at steps 2 and 4 lie at validations (also at the end of an epoch) and beside them."""
    trainer = {"val_check_interval": interval}
    checkpoint = {"every_n_train_steps": 2, "save_top_k": -1}
    path = settings(tmp_path, base, both(quiz, exact), trainer=trainer, checkpoint=checkpoint)
    run = fit(path)
    whole, scores = points(run), curve(run, "eval/exact_match/micro")
    assert [point["step"] for point in whole if point["name"] == "exact_match"] == list(range(0, 9, interval))
    complete = tmp_path / "complete"
    run.rename(complete)
    for step in (2, 4):
        shutil.copytree(complete, run)
        shutil.rmtree(run / "adapter")
        for file in (run / "checkpoints").glob("*.ckpt"):
            if int(torch.load(file, weights_only=True)["global_step"]) > step:
                file.unlink()
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
        if killed == "before what was due at it":
            lines = (run / "evaluation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] < step]
            (run / "evaluation.jsonl").write_text("".join(kept), encoding="utf-8")
        fit(path, "--ckpt_path", "last")
        assert sorted(points(run), key=str) == sorted(whole, key=str)
        if killed == "long after it":
            assert curve(run, "eval/exact_match/micro") == scores
        shutil.rmtree(run)


def test_a_run_without_validation_has_its_last_point(base: Path, quiz: Path, tmp_path: Path) -> None:
    asked = callback(benchmark="quiz", data=str(quiz))
    run = fit(settings(tmp_path, base, [asked], data={"validation": None}))
    assert [point["step"] for point in points(run)] == [10]


def test_validate_asks_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "evaluation.jsonl").read_bytes()
    assert ift_main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last"]) == 0
    assert (run / "evaluation.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"benchmark": "quizz"}, "benchmark: unknown name 'quizz'. Did you mean 'quiz'?"),
        ({"mode": "generat"}, "unknown name 'generat'. Did you mean 'generate'?"),
        ({"protocol": "other"}, "--protocol: unknown name 'other'"),
        ({"data": "gone.json"}, "gone.json: no such file"),
        ({"limit": 21}, "--limit: 21 is out of range"),
        ({"limit": 1, "seed": 3}, "nothing to score: all 1 items are excluded: several answers (1)"),
        ({"mode": "generate", "max_new_tokens": 500}, "max_new_tokens: 20 of 20 prompts with their responses"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is less than 1"),
        ({"every_n_steps": 0}, "every_n_steps: 0 is less than 1"),
        ({"name": "twice"}, "name: two of these callbacks have the same"),
        ({"every_steps": 3}, "every_n_steps"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_training(
    arguments: Settings,
    message: str,
    base: Path,
    quiz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ift.training.base_model.load_base_model", lambda *_, **__: pytest.fail("weights were loaded"))
    own = callback(**{"benchmark": "quiz", "data": str(quiz), **arguments})
    path = settings(tmp_path, base, [own, own] if "name" in arguments else [own])
    capsys.readouterr()
    assert ift_main(["fit", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_judge_is_not_asked_during_training(
    base: Path, quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = replace(get_benchmark("quiz"), judge=Judge(lambda *_: [], lambda *_: {}))
    monkeypatch.setattr("eval.during_training.callback.get_benchmark", lambda *_: judged)
    assert (
        ift_main(["fit", "--config", str(settings(tmp_path, base, [callback(benchmark="quiz", data=str(quiz))]))]) == 2
    )
    assert "a judge scores quiz" in capsys.readouterr().err


def test_nothing_is_disturbed(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base)).train()
    model.model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    states: list[Callable[[], Any]] = [random.random, np.random.rand, lambda: torch.rand(1).item()]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = [draw() for draw in states]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    with pytest.raises(KeyError), torch.inference_mode(), undisturbed(model):
        [draw() for draw in states]
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled() and not torch.ones(1).is_inference()
        raise KeyError
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [draw() for draw in states] == expected


def test_a_benchmark_that_fails_is_told_and_leaves_no_rank_waiting(quiz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `_keep` returns is broadcast and raised on every rank; an exception on the first alone would not be."""
    callback = EvaluateDuringTraining("quiz", data=str(quiz))
    monkeypatch.setattr(callback, "_score", lambda answers: 1 / 0)
    message = callback._keep(None, [], 0.0)  # type: ignore[arg-type]
    assert message is not None and "quiz: its score failed" in message and "ZeroDivisionError" in message
