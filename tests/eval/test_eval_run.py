"""`python -m eval run`: the same as its three steps by hand, gone on with after a kill, and nothing guessed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ROOT, make_rows, write_json

from eval.__main__ import main as eval_main
from eval.benchmark import Judge, get_benchmark
from eval.conversations import answers_of
from eval.conversations import main as conversations_main
from ift.cli import main as ift_main
from ift.records import read_predictions

Run = Callable[..., subprocess.CompletedProcess[str]]
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
PREDICT = [*CPU, "--model.decoding.max_new_tokens=6"]


def train(folder: Path, base: Path, adapter: Any) -> Path:
    settings = {
        "run_dir": str(folder / "run"),
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 4, "enable_progress_bar": False},
        "model": {
            "base": str(base),
            "adapter": adapter,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        },
        "data": {
            "sources": [{"path": str(write_json(folder / "rows.json", make_rows(40))), "layout": "alpaca"}],
            "template": "vicuna",
            "max_length": 256,
            "global_batch_size": 8,
            "micro_batch_tokens": 1024,
            "cache_dir": str(folder / "cache"),
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert ift_main(["fit", "--config", str(path)]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with LoRA, under another template than the default."""
    adapter = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}
    return train(tmp_path_factory.mktemp("tuned"), base, adapter)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Lets `ift predict` run in this process, which is the same but for the start; gives the arguments of each call."""
    calls: list[list[str]] = []

    def call(command: list[str]) -> int:
        assert command[:4] == [sys.executable, "-m", "ift", "predict"]
        calls.append(command[4:])
        return ift_main(command[3:])

    monkeypatch.setattr("eval.run_jobs._call", call)
    return calls


@pytest.fixture
def exact_file(tmp_path: Path) -> Path:
    return write_json(tmp_path / "exact.json", make_rows(6))


def run_arguments(quiz: Path, run: Path, output: Path, *more: object) -> list[str]:
    return [
        *map(str, ["run", "quiz", "--data", quiz, "--run", run, "--output", output, *more]),
        *([] if "--" in more else ["--", *PREDICT]),
    ]


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def answers(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_it_is_the_three_steps_by_hand(
    tuned: Path, quiz_file: Path, tmp_path: Path, predicted: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--mode", "generate", "--limit", "4", "--seed", "3"]
    capsys.readouterr()
    assert eval_main(run_arguments(quiz_file, tuned, tmp_path / "out", *asked)) == 0
    printed = capsys.readouterr().out
    assert len(predicted) == 1 and f"{tmp_path / 'out'}: micro " in printed
    prompts, predictions = tmp_path / "prompts.jsonl", tmp_path / "predictions"
    assert eval_main(["prepare", "quiz", "--data", str(quiz_file), *asked, "--output", str(prompts)]) == 0
    arguments = ["--run", str(tuned), "--data.path", str(prompts), "--output_dir", str(predictions)]
    assert ift_main(["predict", *arguments, *PREDICT]) == 0
    files = ["--predictions", str(predictions / "predictions.jsonl"), "--output", str(tmp_path / "hand")]
    assert eval_main(["score", "quiz", "--data", str(quiz_file), *asked[2:], *files]) == 0
    same = {
        "prompts.jsonl": prompts,
        "predictions/predictions.jsonl": predictions / "predictions.jsonl",
        "items.jsonl": tmp_path / "hand" / "items.jsonl",
    }
    for name, path in same.items():
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()
    ours, by_hand = report(tmp_path / "out"), report(tmp_path / "hand")
    assert ours["predictions"].pop("path") != by_hand["predictions"].pop("path")
    assert ours == by_hand and ours["data"]["limit"] == 4 and ours["predictions"]["template"]["name"] == "vicuna"


def test_a_run_beside_its_untuned_base(
    tuned: Path, base: Path, quiz_file: Path, exact_file: Path, tmp_path: Path, predicted: list[list[str]]
) -> None:
    out = tmp_path / "out"
    benchmarks = [f"quiz={quiz_file}", f"exact_match={exact_file}"]
    both = ["run", *benchmarks, "--run", str(tuned), "--with-base", "--output", str(out), "--", *PREDICT]
    assert eval_main(both) == 0
    reports = {path.relative_to(out).as_posix() for path in out.rglob("report.json")}
    names = [f"{system}/{benchmark}" for system in ("tuned", "base") for benchmark in ("quiz", "exact_match")]
    assert reports == {f"{name}/report.json" for name in names} and len(predicted) == 4
    for name in ("quiz", "exact_match"):
        alone = tmp_path / f"alone-{name}"
        model = ["--model.base", str(base), "--data.template", "vicuna", "--output_dir", str(alone)]
        assert ift_main(["predict", *model, "--data.path", str(out / "base" / name / "prompts.jsonl"), *PREDICT]) == 0
        untuned, with_adapter = (answers(out / system / name / "predictions") for system in ("base", "tuned"))
        assert untuned == answers(alone) != with_adapter
        assert report(out / "base" / name)["predictions"]["adapter"] is None
        assert report(out / "tuned" / name)["predictions"]["adapter"] is not None


def test_the_base_of_a_fully_trained_run(
    base: Path, quiz_file: Path, tmp_path: Path, predicted: list[list[str]]
) -> None:
    run = train(tmp_path, base, None)
    out = tmp_path / "out"
    assert eval_main(run_arguments(quiz_file, run, out, "--with-base")) == 0
    alone = tmp_path / "alone"
    model = ["--model.base", str(base), "--data.template", "vicuna", "--output_dir", str(alone)]
    assert ift_main(["predict", *model, "--data.path", str(out / "base/quiz/prompts.jsonl"), *PREDICT]) == 0
    assert answers(out / "base/quiz/predictions") == answers(alone) != answers(out / "tuned/quiz/predictions")


def test_a_base_model_with_its_template(
    base: Path, quiz_file: Path, tmp_path: Path, predicted: list[list[str]]
) -> None:
    arguments = ["run", "quiz", "--data", str(quiz_file), "--base", str(base), "--output", str(tmp_path / "out")]
    assert eval_main([*arguments, "--", *PREDICT, "--data.template=plain"]) == 0
    assert report(tmp_path / "out")["predictions"]["template"]["name"] == "plain"


def test_a_killed_one_goes_on(
    tuned: Path, quiz_file: Path, tmp_path: Path, predicted: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = run_arguments(quiz_file, tuned, out)
    assert eval_main(arguments) == 0
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    finished = [out / name for name in ("report.md", "report.json", "items.jsonl")]
    torn = whole[out / "predictions/predictions.jsonl"][:-300]
    about = json.loads(whole[out / "predictions/predict.json"])
    running = json.dumps({"status": "running", "identity": about["identity"]}).encode()
    states: list[tuple[dict[Path, bytes | None], int]] = [
        ({out / "report.json": None, out / "report.md": None}, 0),  # while the report was written
        (dict.fromkeys(finished), 0),
        (
            {
                **dict.fromkeys(finished),
                out / "predictions/predictions.jsonl": torn,
                out / "predictions/predict.json": running,
            },
            1,
        ),
        (
            dict.fromkeys(
                [*finished, *(out / "predictions").iterdir(), out / "prompts.jsonl"],
            ),
            1,
        ),
    ]
    for changes, num_predicted in states:
        for path, content in changes.items():
            path.unlink() if content is None else path.write_bytes(content)
        predicted.clear()
        assert eval_main(arguments) == 0
        assert len(predicted) == num_predicted
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole
    capsys.readouterr()
    assert eval_main(arguments) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_scored_part_is_left_alone(
    tuned: Path, quiz_file: Path, exact_file: Path, tmp_path: Path, predicted: list[list[str]]
) -> None:
    arguments = [f"exact_match={exact_file}", "--run", str(tuned), "--output", str(tmp_path), "--", *PREDICT]
    assert eval_main(["run", f"quiz={quiz_file}", *arguments]) == 0
    (tmp_path / "exact_match/report.json").unlink()
    (tmp_path / "exact_match/predictions/predict.json").unlink()
    (tmp_path / "exact_match/predictions/predictions.jsonl").unlink()
    before = (tmp_path / "quiz/report.json").stat().st_mtime_ns
    predicted.clear()
    assert eval_main(["run", f"quiz={quiz_file}", *arguments]) == 0
    assert len(predicted) == 1 and "exact_match" in " ".join(predicted[0])
    assert (tmp_path / "quiz/report.json").stat().st_mtime_ns == before


def test_another_run_is_not_gone_on_with(
    tuned: Path, base: Path, quiz_file: Path, tmp_path: Path, predicted: list[list[str]], capsys: Any
) -> None:
    out = tmp_path / "out"
    arguments = run_arguments(quiz_file, tuned, out)
    assert eval_main(arguments) == 0
    (out / "report.json").unlink()
    other_data = write_json(tmp_path / "other.json", json.loads(quiz_file.read_text(encoding="utf-8"))[:3])
    other_model = [{"--run": "--base", str(tuned): str(base)}.get(one, one) for one in arguments]
    predicted.clear()
    for changed, word in (
        (run_arguments(other_data, tuned, out), "prompts"),
        (run_arguments(quiz_file, tuned, out, "--mode", "generate"), "prompts"),
        (run_arguments(quiz_file, tuned, out, "--limit", "3"), "prompts"),
        (other_model, "model"),
        ([*arguments, "--data.batch_size=2"], "predict"),
    ):
        capsys.readouterr()
        assert eval_main(changed) == 2
        said = capsys.readouterr().err
        assert f"(differing: {word})" in said and len(said.splitlines()) == 1
    assert not predicted and not (out / "report.json").exists()
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    assert eval_main(run_arguments(quiz_file, tuned, strange)) == 2
    assert "holds no run of a benchmark" in capsys.readouterr().err


def test_a_refused_one_does_not_hold_its_folder(
    tuned: Path, quiz_file: Path, tmp_path: Path, predicted: list[list[str]], capsys: Any
) -> None:
    """What was asked may change until the first answer."""
    out = tmp_path / "out"
    generated = run_arguments(quiz_file, tuned, out, "--mode", "generate", "--", *CPU)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        eval_main([*generated, "--model.decoding.max_new_tokens=5000"])
    assert caught.value.code == 2 and "longer than the model's" in capsys.readouterr().err
    changed = run_arguments(quiz_file, tuned, out, "--limit", "3")
    assert eval_main(changed) == 0
    assert len((out / "prompts.jsonl").read_text(encoding="utf-8").splitlines()) == report(out)["data"]["limit"] == 3
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert about["predict"] == PREDICT and report(out)["answers"] == "ranked"
    assert report(out)["predictions"]["model"]["run"] == str(tuned)


def test_the_benchmark_with_too_few_rows_is_named(
    tuned: Path, quiz_file: Path, exact_file: Path, tmp_path: Path, capsys: Any
) -> None:
    both = [f"quiz={quiz_file}", f"exact_match={exact_file}", "--run", str(tuned), "--output", str(tmp_path / "out")]
    capsys.readouterr()
    assert eval_main(["run", *both, "--limit", "6"]) == 2
    assert "--limit: 6 is out of range; the data of quiz has 5 rows." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["quizz", "--data", "QUIZ", "--run", "RUN"], "Did you mean 'quiz'?"),
        (["quiz", "--data", "QUIZ", "--run", "RUN", "--protocol", "x"], "--protocol: unknown name 'x'"),
        (["quiz", "--data", "QUIZ", "--run", "RUN", "--mode", "generat"], "Did you mean 'generate'?"),
        (["quiz", "--data", "QUIZ", "--run", "RUN", "--shots", "5"], "--shots: 5"),
        (["quiz", "--data", "gone.json", "--run", "RUN"], "gone.json: no such file"),
        (["quiz", "--run", "RUN"], "--data: required"),
        (["quiz", "exact_match", "--data", "QUIZ", "--run", "RUN"], "give each its own".capitalize()),
        (["quiz=QUIZ", "quiz=QUIZ", "--run", "RUN"], "named twice"),
        (["quiz", "--data", "QUIZ", "--run", "QUIZ"], "is no run folder"),
        (["quiz", "--data", "QUIZ", "--base", "RUN", "--with-base"], "--with-base"),
        (["quiz", "--data", "QUIZ", "--run", "RUN", "--limit", "9"], "--limit: 9 is out of range"),
        (["quiz", "--data", "QUIZ", "--run", "RUN", "--", "--data.path=x"], "--data.path: "),
        (["quiz", "--data", "QUIZ", "--run", "RUN", "--", "--model.base", "x"], "--model.base: "),
    ],
)
def test_what_can_be_refused_is_refused_before(
    change: list[str],
    message: str,
    tuned: Path,
    quiz_file: Path,
    tmp_path: Path,
    predicted: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [one.replace("QUIZ", str(quiz_file)).replace("RUN", str(tuned)) for one in change]
    capsys.readouterr()
    assert eval_main(["run", "--output", str(tmp_path / "out"), *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and len(said.splitlines()) == 1
    assert not predicted and not (tmp_path / "out").exists()


def test_options_for_predict_are_refused_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        eval_main(["list", "--", "--data.batch_size=2"])
    assert caught.value.code == 2 and "which only `run` calls" in capsys.readouterr().err


def test_nothing_is_scored_where_predict_failed(run_eval: Run, tuned: Path, quiz_file: Path, tmp_path: Path) -> None:
    more = ["--", *CPU, "--data.batch_size=0"]
    failed = run_eval(*run_arguments(quiz_file, tuned, tmp_path / "out", *more))
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: data.batch_size: 0")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prompts.jsonl", "run.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.base", "BASE", "--untuned", "true"], "untuned: it takes the base model of a run"),
        (["--run", "RUN", "--untuned", "true", "--model.adapter", "RUN/adapter"], "model.adapter: with --run"),
    ],
)
def test_untuned_is_said_of_a_run(
    options: list[str], message: str, tuned: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "a"}]}\n', encoding="utf-8")
    given = [one.replace("RUN", str(tuned)).replace("BASE", str(base)) for one in options]
    places = ["--data.path", str(prompts), "--output_dir", str(tmp_path / "out")]
    capsys.readouterr()
    assert ift_main(["predict", *given, *places, *CPU]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("code", "end"), [(2, 2), (130, 130), (1, 1), (-9, 137)])
def test_the_exit_code_of_predict_is_ours(
    code: int, end: int, tuned: Path, quiz_file: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr("eval.run_jobs._call", lambda command: code)
    with pytest.raises(SystemExit) as caught:
        eval_main(run_arguments(quiz_file, tuned, tmp_path / "out"))
    assert caught.value.code == end
    assert ("nothing was scored" in capsys.readouterr().err) == (code not in (2, 130))


@pytest.mark.parametrize("single", [True, False])
def test_a_judged_benchmark_says_what_comes_next(
    single: bool, tuned: Path, quiz_file: Path, tmp_path: Path, monkeypatch: Any, predicted: Any, capsys: Any
) -> None:
    judged = replace(get_benchmark("quiz"), judge=Judge(lambda *_: [], lambda *_: {}, single=single))
    monkeypatch.setattr("eval.run_command.get_benchmark", lambda *_: judged)
    out = tmp_path / "out"
    capsys.readouterr()
    assert eval_main(run_arguments(quiz_file, tuned, out, "--with-base", "--limit", "3")) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    files = {name: f"{name}={out}/{name}/quiz/predictions/predictions.jsonl" for name in ("tuned", "base")}
    common = f"quiz --data {quiz_file} --limit 3"
    groups = {f"{out}/{name}/quiz": own for name, own in files.items()}
    if not single:
        groups = {f"{out}/judged/quiz": " ".join(files.values())}
    expected = []
    for folder, own in groups.items():
        judgements = f"{folder}/judgements"
        expected.append(f"python -m eval judge {common} --seed 0 --predictions {own} --output {judgements}")
        scored = f"{common} --seed 0 --predictions {own} --judgements {judgements} --output {folder}"
        expected.append(f"python -m eval score {scored}")
    assert lines == expected and not list(out.rglob("report.json"))


def test_the_commands_for_a_judge_and_for_second_turns_work(
    tuned: Path, tmp_path: Path, predicted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the judge's, which needs one."""
    turns = [{"question_id": n, "category": "writing", "turns": [f"Repeat {n}.", "Again."]} for n in range(3)]
    questions = tmp_path / "question.jsonl"
    questions.write_text("".join(json.dumps(one) + "\n" for one in turns), encoding="utf-8")
    out = tmp_path / "out"
    capsys.readouterr()
    asked = ["--data", str(questions), "--run", str(tuned), "--output", str(out)]
    assert eval_main(["run", "mt_bench", *asked, "--", *PREDICT]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert [line[3] for line in lines] == ["next", str(tuned), "join", "judge", "score"]
    assert conversations_main(lines[0][3:]) == 0 and ift_main(lines[1][1:]) == 0
    assert conversations_main(lines[2][3:]) == 0
    joined = read_predictions(out / "answers.jsonl")
    assert [len(answers_of(one)) for one in joined] == [2, 2, 2]
    assert all(f"run={out}/answers.jsonl" in line for line in lines[3:])


@pytest.mark.slow
def test_a_signal_ends_predict_too(tuned: Path, tmp_path: Path, quiz_file: Path) -> None:
    rows = json.loads(quiz_file.read_text(encoding="utf-8")) * 200
    quiz = write_json(tmp_path / "long.json", rows)
    arguments = run_arguments(quiz, tuned, tmp_path / "out", "--mode", "generate")
    command = [sys.executable, "-m", "eval", *arguments, "--model.decoding.max_new_tokens=40"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    file = tmp_path / "out/predictions/predictions.jsonl"
    deadline = time.monotonic() + 60
    while not (file.is_file() and file.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300).returncode == 0
    assert report(tmp_path / "out")["data"]["n"] == len(rows)
