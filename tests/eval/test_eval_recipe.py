"""What a protocol demands of `ift predict`: noted where it was not so, done for base models that were given nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from exam_files import ranked, write_cmmlu

from eval.__main__ import main
from eval.benchmark import Benchmark, find_benchmarks, get_benchmark, how_asked, prompts_of
from eval.run_command import _predict_options
from eval.run_jobs import Job, System, Task
from ift.data.templates import load_templates
from ift.errors import UserError
from ift.records import write_jsonl

DECODING = {"max_new_tokens": 7}


def answered(folder: Path, protocol: str, identity: Mapping[str, object]) -> list[str]:
    """Write an exam and a model's answers to it, as `ift predict` leaves them; return the arguments that score them."""
    write_cmmlu(folder / "data", {"anatomy": "ABC"})
    benchmark = get_benchmark("cmmlu", protocol)
    prompts = list(prompts_of(benchmark, folder / "data", how_asked(benchmark, mode=None, shots=0)))
    write_jsonl(folder / "tuned" / "predictions.jsonl", ranked(prompts, "BBB"))
    model = {"base": "models/x", "adapter": None, "run": "runs/first"}
    about = {"status": "finished", "identity": {"base": {"a": "1"}, "adapter": None, "decoding": DECODING, **identity}}
    (folder / "tuned" / "predict.json").write_text(json.dumps({**about, "model": model}), encoding="utf-8")
    return ["score", "cmmlu", "--data", str(folder / "data"), "--predictions", str(folder / "tuned")]


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("protocol", "identity", "words"),
    [
        ("lm_eval", {"template": {"name": "raw"}}, []),
        ("lm_eval", {"template": {"name": "raw"}, "join_options": True}, []),
        ("lm_eval", {}, []),  # of an older version, which did not say it
        ("official", {"template": {"name": "alpaca"}}, []),
        (
            "lm_eval",
            {"template": {"name": "alpaca"}},
            ["'alpaca'; lm_eval's prompts are bare text: --data.template=raw"],
        ),
        ("lm_eval", {"template": {"chat_template": "…"}}, ["Asked under template 'tokenizer'"]),
        (
            "lm_eval",
            {"template": {"name": "vicuna"}, "join_options": False},
            ["Asked under template 'vicuna'", "Asked with --data.join_options=false"],
        ),
    ],
)
def test_another_recipe_is_told_first(
    protocol: str, identity: dict[str, object], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*answered(tmp_path, protocol, identity), "--output", str(tmp_path / "out")]) == 0
    notes, said = report(tmp_path / "out")["notes"], capsys.readouterr().err
    assert [word in note for word, note in zip(words, notes, strict=False)] == [True] * len(words)
    assert sum("not comparable" in note for note in notes) == said.count("warning: ") == len(words)
    assert all(note in (tmp_path / "out" / "report.md").read_text(encoding="utf-8") for note in notes)


def test_a_report_names_the_model_by_its_place(tmp_path: Path) -> None:
    arguments = answered(tmp_path, "lm_eval", {"template": {"name": "raw"}})
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "- model: base `models/x`, run `runs/first`\n" in text
    assert "max_new_tokens" not in text  # options were ranked, and nothing was written
    facts = report(tmp_path / "out")["predictions"]
    assert facts["decoding"] == DECODING and facts["path"] == str(tmp_path / "tuned" / "predictions.jsonl")


def test_a_folder_without_predictions_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = answered(tmp_path, "lm_eval", {})
    assert main([*arguments[:-1], str(tmp_path / "data"), "--output", str(tmp_path / "out")]) == 2
    assert "data: a folder without predictions.jsonl." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "further", "begins"),
    [
        (("--model.base", "x"), [], ["--data.template=raw"]),
        (("--model.base", "x"), ["--data.batch_size=2"], ["--data.template=raw", "--data.batch_size=2"]),
        (("--model.base", "x"), ["--data.template", "alpaca"], ["--data.template", "alpaca"]),
        (("--model.base", "x"), ["--data.template=alpaca"], ["--data.template=alpaca"]),
        (("--model.base", "x"), ["--config", "own.yaml"], ["--config", "own.yaml"]),
        (("--run", "x"), [], []),
    ],
)
def test_a_base_model_is_asked_under_the_protocols_template(
    arguments: tuple[str, ...], further: list[str], begins: list[str], tmp_path: Path
) -> None:
    def options(benchmark: Benchmark) -> list[str]:
        task = Task(benchmark, tmp_path, how_asked(benchmark, mode=None, shots=None))
        return _predict_options(Job(task, System("", arguments), tmp_path), further)

    assert options(get_benchmark("cmmlu", "lm_eval")) == begins
    assert options(get_benchmark("cmmlu")) == further


def test_the_templates_that_protocols_need_exist() -> None:
    protocols = [own for one in find_benchmarks().values() for own in one.all_protocols().values()]
    needed = {(own.name, own.protocol): own.template for own in protocols if own.template is not None}
    assert set(needed.values()) <= set(load_templates())
    assert {f"{name} {protocol}" for (name, protocol), template in needed.items() if template == "raw"} == {
        "ceval lm_eval",
        "cmmlu lm_eval",
        "gsm8k lm_eval",
        "mmcu mmcu_readme",
    }


def test_a_mode_of_another_protocol_is_said_to_be_there() -> None:
    with pytest.raises(UserError, match="cmmlu under protocol lm_eval has one way .* give --protocol official, which"):
        how_asked(get_benchmark("cmmlu", "lm_eval"), mode="generate", shots=None)
    with pytest.raises(UserError, match=r"one way to ask only\. Leave --mode out\.$"):
        how_asked(get_benchmark("gsm8k"), mode="generate", shots=None)
