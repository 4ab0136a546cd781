"""`python -m eval judge` from predictions to replies for `score`: an endpoint, the cache alone, a local model."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from judge_server import judge_server

from eval import judge_command
from eval.benchmark import Asked, get_benchmark, prompts_of
from eval.judge_folder import JudgeFolder
from eval.judge_local import LocalJudge, ask_local_judge
from ift.errors import UserError, exit_code
from ift.records import Prediction, PromptRecord, read_predictions, write_jsonl

Run = Callable[..., subprocess.CompletedProcess[str]]
KEY = "sk-command-81c2"
ROOT = Path(__file__).resolve().parents[2]


def judge(*arguments: object) -> int:
    """Run the command as `python -m eval` does."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true")
    parser = argparse.ArgumentParser()
    judge_command.add_parser(parser.add_subparsers(required=True), common)
    options = parser.parse_args(["judge", *map(str, arguments)])
    return exit_code(lambda: options.run(options), debug=options.debug)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "dreamergpt"
    folder.mkdir()
    for name in ("01qa", "02translate"):
        prompts = [f"{name} 问题{number}" for number in range(4)]
        (folder / f"{name}.json").write_text(json.dumps(prompts, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture
def predictions(data: Path, tmp_path: Path) -> list[str]:
    """Two systems, one of which answers at more length."""
    benchmark = get_benchmark("dreamergpt")
    asked = Asked(benchmark.name, benchmark.protocol, benchmark.version)
    prompts = list(prompts_of(benchmark, data, asked))
    named = []
    for name in ("short", "long"):
        path = tmp_path / f"{name}.jsonl"
        answers = [
            Prediction(one.id, "…", f"{name}{name if name == 'long' else ''} {one.id}", "stop", meta=one.meta)
            for one in prompts
        ]
        write_jsonl(path, answers)
        named.append(f"{name}={path}")
    return named


def prefers_long(text: str) -> str:
    """Give the long answer 8 and the other 6, and half a point more to whatever stands first."""
    first_is_long = text.index("longlong") < text.index("short ")
    return "理由：…\nSystem1: {}\nSystem2: {}".format(*((8.5, 6) if first_is_long else (6.5, 8)))


def test_from_predictions_to_scores(
    data: Path, predictions: list[str], tmp_path: Path, run_eval: Run, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    base = ["dreamergpt", "--data", data, "--predictions", *predictions]
    with judge_server(respond=prefers_long) as (url, log):
        model = ["--base-url", url, "--model", "m", "--key-variable", "MY_KEY"]
        assert judge(*base, *model, "--output", tmp_path / "judged", "--order-seed", 3, "--yes") == 0
    assert sum(log.asked.values()) == 8 and log.bodies[0]["temperature"] == 0
    assert {header["Authorization"] for header in log.headers} == {f"Bearer {KEY}"}
    replies = read_predictions(tmp_path / "judged" / "predictions.jsonl")
    assert {tuple(reply.meta["systems"]) for reply in replies} == {("short", "long"), ("long", "short")}
    bias = (tmp_path / "judged" / "position_bias.md").read_text(encoding="utf-8")
    assert "| 1 | 8 | 7.500 | +0.250 |" in bias and "| 2 | 8 | 7.000 | -0.250 |" in bias
    score = ["score", *base, "--judgements", tmp_path / "judged", "--output", tmp_path / "report"]
    scored = run_eval(*score)
    assert scored.returncode == 0, scored.stderr
    facts = json.loads((tmp_path / "report" / "long" / "report.json").read_text(encoding="utf-8"))
    assert facts["judgements"]["identity"]["model"] == "m" and facts["judgements"]["counts"]["answered"] == 8
    items = [json.loads(line) for line in (tmp_path / "report" / "long" / "items.jsonl").read_text().splitlines()]
    assert {item["answer"] for item in items} == {"8", "8.5"}
    # Offline, with the server gone and no key: the same replies from the cache.
    monkeypatch.delenv("MY_KEY")
    assert judge(*base, *model, "--output", tmp_path / "again", "--order-seed", 3, "--offline") == 0
    again = read_predictions(tmp_path / "again" / "predictions.jsonl")
    assert [one.response for one in again] == [one.response for one in replies]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_a_sample_is_judged_alone(data: Path, predictions: list[str], tmp_path: Path) -> None:
    base = ["dreamergpt", "--data", data, "--predictions", *predictions, "--output", tmp_path / "judged", "--yes"]
    with judge_server(respond=prefers_long) as (url, log):
        assert judge(*base, "--base-url", url, "--model", "m", "--limit", 3, "--seed", 5) == 0
    assert sum(log.asked.values()) == 3
    about = json.loads((tmp_path / "judged" / "judge.json").read_text(encoding="utf-8"))
    assert (about["status"], about["identity"]["prompts"]) == ("finished", 3)


def test_one_seed_samples_the_same_rows_for_every_command(
    data: Path, predictions: list[str], tmp_path: Path, run_eval: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers to a sample of `prepare` are judged with the same --limit and --seed."""
    sample = ["dreamergpt", "--data", data, "--limit", 3, "--seed", 5]
    assert run_eval("prepare", *sample, "--output", tmp_path / "prompts.jsonl").returncode == 0
    lines = (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    ids = {json.loads(line)["id"] for line in lines}
    answers = [one for one in read_predictions(tmp_path / "short.jsonl") if one.id in ids]
    write_jsonl(tmp_path / "sample.jsonl", answers)
    with judge_server(respond=lambda text: "System1: 7") as (url, _):
        more = ["--predictions", tmp_path / "sample.jsonl", "--base-url", url, "--model", "m", "--yes"]
        assert judge(*sample, *more, "--output", tmp_path / "judged") == 0
        assert judge(*sample[:-1], 6, *more, "--output", tmp_path / "other") == 2
    assert {reply.meta["item"] for reply in read_predictions(tmp_path / "judged" / "predictions.jsonl")} == ids
    said = capsys.readouterr().err
    outside = re.search(r"--predictions: (\d) predictions for 3 prompts .*and (\d) outside the sample", said)
    assert outside and int(outside[1]) + int(outside[2]) == 3 and "the same --data, --limit and --seed" in said


def test_an_unreadable_judge_is_told_at_the_first_reply_and_at_the_end(
    data: Path, predictions: list[str], tmp_path: Path, run_eval: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["dreamergpt", "--data", data, "--predictions", predictions[0]]

    def judged(name: str, respond: Callable[[str], str]) -> str:
        with judge_server(respond=respond) as (url, _):
            more = ["--output", tmp_path / name, "--cache", tmp_path / f"{name}-cache"]
            assert judge(*base, "--base-url", url, "--model", "m", "--yes", *more) == 0
        return capsys.readouterr().err

    said = judged("none", lambda text: "I cannot judge.")
    assert "judge: the first reply: 'I cannot judge.'" in said
    assert "short: no score can be made of the replies" in said and said.count("'I cannot judge.'") == 2
    said = judged("half", lambda text: "No idea." if "01qa" in text else "System1: 7")
    assert "short: 4 of 8 items have no usable score of the judge; the first such reply: 'No idea.'" in said
    assert "usable" not in judged("all", lambda text: "System1: 7")
    scored = run_eval("score", *base, "--judgements", tmp_path / "none", "--output", tmp_path / "report")
    assert scored.returncode == 2 and "The judge's first reply: 'I cannot judge.'" in scored.stderr


def test_no_key_is_said(
    data: Path,
    predictions: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    base = ["dreamergpt", "--data", data, "--predictions", predictions[0], "--model", "m", "--yes"]
    with judge_server(respond=lambda text: "System1: 7") as (url, _):
        assert judge(*base, "--base-url", url, "--output", tmp_path / "a") == 0
        assert "no key is sent (OPENAI_API_KEY is not set)" in capsys.readouterr().err
        assert judge(*base, "--base-url", url, "--output", tmp_path / "b", "--key-variable", "") == 0
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert judge(*base, "--base-url", url, "--output", tmp_path / "c") == 0
    assert "no key" not in capsys.readouterr().err


ENDPOINT = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (ENDPOINT, "--yes: asking a judge may cost money"),
        ([], "--base-url, --model: who judges"),
        (["--model", "m"], "--base-url, --model: who judges"),
        ([*ENDPOINT, "--judge-base", "x"], "the judge is a local model already"),
        (["--judge-run", "r", "--judge-base", "x"], "give one of the two"),
        ([*ENDPOINT, "--predict", "--x", "1"], "--predict: these are for a local judge"),
        ([*ENDPOINT, "--offline"], "--offline: 8 of 8 replies"),
        ([*ENDPOINT, "--yes", "--concurrency", "0"], "--concurrency: 0"),
        ([*ENDPOINT, "--price-input", "1"], "--price-input"),
        (["--base-url", "https://h/v1", "--model", "m", "--key-variable", "NO_SUCH"], "NO_SUCH is not set"),
        (["--base-url", "http://127.0.0.1:9/v1/chat/completions", "--model", "m"], "Give 'http://127.0.0.1:9/v1'"),
    ],
)
def test_mistakes_ask_nothing_and_leave_nothing(
    more: list[str],
    message: str,
    data: Path,
    predictions: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "judged"
    assert judge("dreamergpt", "--data", data, "--predictions", *predictions, "--output", output, *more) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_benchmark_without_a_judge_and_predictions_of_another_are_refused(
    quiz_file: Path, data: Path, predictions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quiz.jsonl").write_text("")
    output = ["--output", tmp_path / "judged", *ENDPOINT]
    assert judge("quiz", "--data", quiz_file, "--predictions", tmp_path / "quiz.jsonl", *output) == 2
    assert "quiz needs no judge" in capsys.readouterr().err
    assert judge("mt_bench", "--data", data, "--predictions", predictions[0], *output) == 2
    assert "these answer 'dreamergpt', not 'mt_bench'" in capsys.readouterr().err


STAND_IN = """
import json, sys
from pathlib import Path
prompts, output = Path(sys.argv[1]), Path(sys.argv[2])
output.mkdir(exist_ok=True)
with (output / "predictions.jsonl").open("w", encoding="utf-8") as file:
    for line in prompts.read_text(encoding="utf-8").splitlines():
        asked = json.loads(line)
        answer = {"id": asked["id"], "prompt": "", "response": "得分：0.5", "meta": asked["meta"]}
        file.write(json.dumps(answer) + "\\n")
        if (output / "fails").exists():
            sys.exit(3)
(output / "predict.json").write_text('{"status": "finished"}')
"""


class StandIn(LocalJudge):
    """Calls a program that answers as `ift predict` does."""

    def arguments(self, prompts: Path, output: Path) -> list[str]:
        return [sys.executable, "-c", STAND_IN, str(prompts), str(output)]


def test_a_local_judge_gives_the_same_folder(tmp_path: Path) -> None:
    prompts = [
        PromptRecord(f"p{place}", ({"role": "user", "content": "x"},), meta={"place": place}) for place in (2, 1)
    ]
    judge = StandIn("run", None)
    (tmp_path / "out" / "predict").mkdir(parents=True)
    (tmp_path / "out" / "predict" / "fails").touch()
    with pytest.raises(UserError, match="holds no judge's replies"):
        ask_local_judge(prompts, tmp_path / "out", judge=judge)
    (tmp_path / "out" / "judge.json").write_text(json.dumps({"status": "running", "identity": judge.identity(prompts)}))
    with pytest.raises(UserError, match="ended with code 3"):
        ask_local_judge(prompts, tmp_path / "out", judge=judge)
    assert not JudgeFolder(tmp_path / "out").is_finished()
    (tmp_path / "out" / "predict" / "fails").unlink()
    replies = ask_local_judge(prompts, tmp_path / "out", judge=judge)
    assert [(reply.id, reply.response, reply.meta["place"]) for reply in replies] == [
        ("p2", "得分：0.5", 2),
        ("p1", "得分：0.5", 1),
    ]
    assert replies == read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert ask_local_judge(prompts, tmp_path / "out", judge=judge) == replies
    with pytest.raises(UserError, match=r"differing: predict_arguments\)"):
        ask_local_judge(prompts, tmp_path / "out", judge=StandIn("run", None, ("--data.batch_size", "2")))


def test_what_predict_is_called_with() -> None:
    more = ("--model.decoding.max_new_tokens", "9")
    command = LocalJudge(None, "base", more).arguments(Path("prompts.jsonl"), Path("predict"))
    assert re.sub(r".*python\S*", "python", " ".join(command)) == (
        "python -m ift predict --model.base base --data.path prompts.jsonl --output_dir predict "
        "--model.decoding.max_new_tokens 9"
    )
    assert LocalJudge("run", None).arguments(Path("p"), Path("o"))[4:6] == ["--run", "run"]


@pytest.mark.slow
def test_a_tiny_model_judges(base: Path, data: Path, predictions: list[str], tmp_path: Path) -> None:
    """`ift predict` itself, called from the command; what it refuses before it starts can be tried again."""
    short = ["--judge-base", base, "--predict", "--model.decoding.max_new_tokens", 900, "--trainer.accelerator", "cpu"]
    long_base = shutil.copytree(base, tmp_path / "long_base")
    config = json.loads((long_base / "config.json").read_text(encoding="utf-8"))
    (long_base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    model = [
        "--judge-base",
        long_base,
        "--predict",
        "--model.decoding.max_new_tokens",
        4,
        "--trainer.accelerator",
        "cpu",
    ]
    output = tmp_path / "judged"
    assert judge("dreamergpt", "--data", data, "--predictions", *predictions, "--output", output, *short) == 2
    assert judge("dreamergpt", "--data", data, "--predictions", *predictions, "--output", output, *model) == 0
    replies = read_predictions(output / "predictions.jsonl")
    asked = [json.loads(line)["id"] for line in (output / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [reply.id for reply in replies] == asked and len(asked) == 8
    assert all(reply.response is not None and reply.meta["systems"] for reply in replies)
