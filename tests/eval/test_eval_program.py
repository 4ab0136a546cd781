import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ift.records import Prediction, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def answer(prompts: Path, predictions: Path, letter: str) -> None:
    """Stand in for `ift predict`: every prompt gets the same response."""
    records = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    write_jsonl(
        predictions,
        [
            Prediction(item["id"], "…", letter, "stop", reference=item["reference"], meta=item["meta"])
            for item in records
        ],
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_of_prompts(path: Path) -> str:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    told = [[one["id"], one["messages"], one["options"], one["reference"]] for one in records]
    return hashlib.sha256("".join(json.dumps(one) + "\n" for one in told).encode()).hexdigest()


@pytest.fixture
def answered(run_eval: Run, quiz_file: Path, tmp_path: Path) -> list[object]:
    """The arguments of `score` after `prepare` and a stand-in for `ift predict`."""
    prompts, predictions = tmp_path / "prompts.jsonl", tmp_path / "predictions.jsonl"
    prepared = run_eval("prepare", "quiz", "--data", quiz_file, "--mode", "generate", "--output", prompts)
    assert (prepared.returncode, prepared.stdout) == (0, f"{prompts}: 5 prompts\n")
    answer(prompts, predictions, "B")
    return ["score", "quiz", "--data", quiz_file, "--predictions", predictions, "--output", tmp_path / "report"]


def test_list_shows_every_benchmark(run_eval: Run) -> None:
    listed = run_eval("list")
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines() if not line.startswith(" ")]
    files = (ROOT / "eval").glob("*.py")
    holding = [path for path in files if re.search(r"^BENCHMARK\b", path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert names == sorted(names) and len(names) == len(holding)
    assert {"exact_match", "quiz"} <= set(names)


def test_from_data_to_report(run_eval: Run, answered: list[object], quiz_file: Path, tmp_path: Path) -> None:
    scored = run_eval(*answered)
    assert scored.returncode == 0, scored.stderr
    facts = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    predictions = tmp_path / "predictions.jsonl"
    # Wilson's interval for 2 of 3 and 1 of 2, by hand: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
    low, high = facts["overall"].pop("interval")
    assert (low, high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    assert facts["categories"]["医疗"].pop("interval") == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert facts["categories"]["法律"].pop("interval") == pytest.approx([0.2065, 1.0], abs=1e-4)
    macro = facts["aggregates"].pop("macro")
    assert (macro["score"], macro["n"], macro["method"]) == (0.75, 3, "bootstrap over items")
    # The second category is one right answer; the first of two is 0, 1 or 2 of 2 right with 1/4, 1/2, 1/4.
    assert macro["interval"] == [0.5, 1.0]
    assert facts["aggregates"].pop("micro")["interval"] == [low, high] == facts["headline"].pop("interval")
    assert facts == {
        "benchmark": "quiz",
        "protocol": "alpaca_cot_zero_shot",
        "protocol_version": 2,
        "answers": "generated",
        "mode": "generate",
        "shots": None,
        "prompts_sha256": hash_of_prompts(tmp_path / "prompts.jsonl"),
        "data": {"path": str(quiz_file), "sha256": sha256(quiz_file), "n": 5},
        "predictions": {"path": str(predictions), "sha256": sha256(predictions)},
        "headline": {"name": "micro", "n": 3, "score": pytest.approx(2 / 3), "method": "wilson"},
        "overall": {"n": 3, "score": pytest.approx(2 / 3), "method": "wilson"},
        "macro": 0.75,
        "aggregates": {},
        "groups": {},
        "kinds": {},
        "categories": {
            "医疗": {"n": 2, "score": 0.5, "method": "wilson"},
            "法律": {"n": 1, "score": 1.0, "method": "wilson"},
        },
        "excluded": {"several answers": 1, "answer is none of the options": 1},
        "unparsed": 0,
        "unparsed_responses": {},
        "tied": 0,
        "finish_reasons": {"stop": 5},
        "unread": 0,
        "unread_items": {},
        "notes": [],
    }
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["items.jsonl", "report.json", "report.md"]
    items = [
        json.loads(line) for line in (tmp_path / "report" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [item["id"] for item in items] == [f"quiz-{index:05d}" for index in range(5)]
    assert sorted(str(item["value"]) for item in items) == ["0.0", "1.0", "1.0", "None", "None"]


def test_the_table_has_the_same_facts(run_eval: Run, answered: list[object], tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text(predictions.read_text(encoding="utf-8").replace('"B"', '"?|?"', 1), encoding="utf-8")
    assert run_eval(*answered).returncode == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    for line in (
        "| 医疗 | 2 | 0.5000 | 0.0945 – 0.9055 | wilson |",
        "**micro: 0.6667** 0.2077 – 0.9385, n 3",
        "| micro | 3 | 0.6667 | 0.2077 – 0.9385 | wilson |",
        "| macro | 3 | 0.7500 | 0.5000 – 1.0000 | bootstrap over items |",
        "- excluded: several answers 1, answer is none of the options 1",
        "- unparsed, counted as wrong: 1",
        '- quiz-00000: "?|?"',
    ):
        assert line in text.splitlines()


def test_nothing_is_overwritten(run_eval: Run, answered: list[object], quiz_file: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    again = run_eval("prepare", "quiz", "--data", quiz_file, "--output", prompts)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith(f"error: {prompts}: the file exists")
    assert run_eval(*answered).returncode == 0
    before = sha256(tmp_path / "report" / "report.json")
    again = run_eval(*answered)
    assert again.returncode == 2 and "report.json exists and nothing is overwritten" in again.stderr
    assert sha256(tmp_path / "report" / "report.json") == before


def test_a_partial_file_gives_no_report(run_eval: Run, answered: list[object], tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.jsonl"
    lines = predictions.read_text(encoding="utf-8").splitlines(keepends=True)
    predictions.write_text("".join(lines[:-2]), encoding="utf-8")
    scored = run_eval(*answered)
    assert scored.returncode == 2
    assert "3 predictions for 5 prompts: 2 missing (quiz-00003, quiz-00004)" in scored.stderr
    assert not (tmp_path / "report").exists()


def test_a_sample_is_scored_with_the_same_limit_and_seed(run_eval: Run, quiz_file: Path, tmp_path: Path) -> None:
    prompts, predictions = tmp_path / "prompts.jsonl", tmp_path / "predictions.jsonl"
    sample = ["--limit", 4, "--seed", 0]
    assert run_eval("prepare", "quiz", "--data", quiz_file, "--output", prompts, *sample).returncode == 0
    answer(prompts, predictions, "B")
    score = ["score", "quiz", "--data", quiz_file, "--predictions", predictions, "--output", tmp_path / "report"]
    whole = run_eval(*score)
    assert whole.returncode == 2 and "4 predictions for 5 prompts: 1 missing" in whole.stderr
    assert run_eval(*score, *sample).returncode == 0
    data = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["data"]
    assert (data["n"], data["limit"], data["seed"]) == (4, 4, 0)


def test_an_unknown_option_is_told_with_the_nearest(run_eval: Run) -> None:
    result = run_eval("score", "quiz", "--predictons", "x")
    assert result.returncode == 2 and "unknown option '--predictons'. Did you mean '--predictions'?" in result.stderr
    shortened = run_eval("score", "quiz", "--pred", "none.jsonl", "--output", "y", "--data", "none.json")
    assert shortened.returncode == 2 and "unknown option" not in shortened.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "quizz", "--data", "x", "--output", "y"], "unknown name 'quizz'. Did you mean 'quiz'?"),
        (["prepare", "quiz", "--data", "none.json", "--output", "y"], "none.json: no such file."),
        (["prepare", "quiz", "--data", "x", "--output", "y", "--mode", "chat"], "--mode: unknown name 'chat'"),
        (["prepare", "exact_match", "--data", "x", "--output", "y", "--mode", "chat"], "has one way to ask only"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run_eval: Run, arguments: list[str], message: str) -> None:
    result = run_eval(*arguments)
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*\n", result.stderr) and message in result.stderr
    assert "Traceback" in run_eval(*arguments, "--debug").stderr


def test_the_readme_example_is_a_benchmark(run_eval: Run, tmp_path: Path) -> None:
    """A new file in the folder is all it takes: copied out of the README, listed, prepared and scored."""
    folder = tmp_path / "copy" / "eval"
    shutil.copytree(ROOT / "eval", folder, ignore=shutil.ignore_patterns("__pycache__"))
    block = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block
    (folder / "sums.py").write_text(block[1], encoding="utf-8")
    data, prompts, predictions = tmp_path / "sums.jsonl", tmp_path / "prompts.jsonl", tmp_path / "predictions.jsonl"
    data.write_text('{"a": "2", "b": "3", "sum": "5"}\n{"a": "2", "b": "2", "sum": "4"}\n', encoding="utf-8")
    place = {"cwd": folder.parent, "environment": {**os.environ, "PYTHONPATH": str(ROOT)}}
    assert "sums  plain 1  sums of two numbers" in run_eval("list", **place).stdout
    assert run_eval("prepare", "sums", "--data", data, "--output", prompts, **place).returncode == 0
    answer(prompts, predictions, "4")
    score = ["score", "sums", "--data", data, "--predictions", predictions, "--output", tmp_path / "report"]
    scored = run_eval(*score, **place)
    assert scored.returncode == 0, scored.stderr
    facts = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert (facts["categories"]["addition"]["n"], facts["overall"]["score"]) == (2, 0.5)


@pytest.mark.parametrize("arguments", [["list"], ["--help"]])
def test_starts_without_heavy_packages(arguments: list[str]) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['eval', *{arguments!r}]\n"
        "try: runpy.run_module('eval', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('heavy:', {'torch', 'transformers', 'lightning'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("heavy: set()\n")
