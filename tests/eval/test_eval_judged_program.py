"""Judged benchmarks through the commands: prompts, predictions, a judge's canned replies, reports."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import belle_eval
from ift.records import Prediction, read_predictions, write_jsonl

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "belle"
    folder.mkdir()
    questions = [{"question": f"问{number}", "std_answer": "答", "class": "open\u00a0qa"} for number in range(3)]
    prompts = [{"class": "open QA", "prompt": "打分。"}]
    for name, rows in (("eval_set", questions), ("eval_prompt", prompts)):
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder


def answer(prompts: Path, predictions: Path) -> Path:
    """Stand in for `ift predict`."""
    records = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    write_jsonl(
        predictions,
        [Prediction(one["id"], "…", "回答", "stop", reference=one["reference"], meta=one["meta"]) for one in records],
    )
    return predictions


def judge(data: Path, files: dict[str, Path], folder: Path, reply: Callable[[str], str]) -> Path:
    """Stand in for `python -m eval judge`; what it says depends on the system alone."""
    assert belle_eval.BENCHMARK.judge is not None
    systems = {name: read_predictions(path) for name, path in files.items()}
    asked = belle_eval.BENCHMARK.judge.ask(systems, data, 0)
    replies = [Prediction(one.id, "…", reply(one.meta["systems"][0]), "stop", meta=one.meta) for one in asked]
    folder.mkdir()
    write_jsonl(folder / "predictions.jsonl", replies)
    return folder


def test_from_questions_to_a_report_per_system(run_eval: Run, data: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    assert run_eval("prepare", "belle_eval", "--data", data, "--output", prompts).returncode == 0
    files = {name: answer(prompts, tmp_path / f"{name}.jsonl") for name in ("mine", "other")}
    replies = judge(data, files, tmp_path / "judged", lambda name: "得分: 0.9" if name == "mine" else "说不清")
    both = [f"{name}={path}" for name, path in files.items()]
    score = ["score", "belle_eval", "--data", data, "--judgements", replies]
    refused = run_eval(*score, "--predictions", *both, "--output", tmp_path / "report")
    assert refused.returncode == 2 and "nothing to score" in refused.stderr, "no number where nothing was read"
    scored = run_eval(*score, "--predictions", both[0], "--output", tmp_path / "report")
    assert scored.returncode == 0, scored.stderr
    facts = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert (facts["benchmark"], facts["protocol"], facts["system"]) == ("belle_eval", "alpaca_cot", "mine")
    assert facts["headline"]["name"] == "average_10" and facts["headline"]["score"] == pytest.approx(90)
    assert {"average_10", "macro_9", "macro_8", "micro", "macro"} == set(facts["aggregates"])
    assert facts["categories"]["open qa"]["n"] == 3
    lines = (tmp_path / "report" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["value"] for line in lines] == [90, 90, 90]


def test_published_preferences_and_scores_need_no_data(run_eval: Run, tmp_path: Path) -> None:
    table = tmp_path / "preferences.csv"
    table.write_text("preference\n2\n1\n1.5\n1.75\n", encoding="utf-8")
    scored = run_eval("score", "alpaca_eval", "--predictions", table, "--output", tmp_path / "win")
    assert scored.returncode == 0, scored.stderr
    assert "win_rate 56.2500" in scored.stdout
    sample = {"task": "QA", "idx": 1, "prompt": "问", "outputs": {"7B": "答"}, "scores": {"7B": 8.25}}
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    for protocol, number in (("later_wording", "83.0000"), ("one_decimal", "82.5000")):
        folder = tmp_path / protocol
        arguments = ["--protocol", protocol, "--predictions", samples / "7B", "--output", folder]
        scored = run_eval("score", "chinese_llama_alpaca", *arguments)
        assert scored.returncode == 0, scored.stderr
        assert f"tasks_rounded {number}" in scored.stdout
