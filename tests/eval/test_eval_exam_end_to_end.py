"""From the questions over `ift predict` with a tiny random model to the report, as a user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from exam_files import write_ceval, write_cmmlu

import eval.__main__ as program
from eval.likelihood import SCORINGS
from ift.cli import main

ALPACA = ("--data.template=alpaca",)
CONTINUED = ("--data.template=raw",)


def answer(
    base: Path,
    folder: Path,
    benchmark: str,
    *options: str,
    template: tuple[str, ...] = ALPACA,
    sample: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Prepare, predict and score with the data in `folder`; return the report."""
    prompts, predictions = folder / "prompts.jsonl", folder / "predictions"
    asked = ["prepare", benchmark, "--data", str(folder / "data"), *options, *sample, "--output", str(prompts)]
    assert program.main(asked) == 0
    model = [f"--model.base={base}", f"--data.path={prompts}", *template, "--data.batch_size=4"]
    machine = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    decoding = ["--model.decoding.max_new_tokens=4"]
    assert main(["predict", *model, *decoding, *machine, "--output_dir", str(predictions)]) == 0
    found = ["--predictions", str(predictions / "predictions.jsonl"), *sample, "--output", str(folder / "report")]
    assert program.main(["score", benchmark, "--data", str(folder / "data"), *found]) == 0
    report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    return report


@pytest.mark.parametrize("mode", ["choice", "generate"])
def test_ceval_runs_from_questions_to_report(tmp_path: Path, base: Path, mode: str) -> None:
    write_ceval(tmp_path / "data", {"law": "ABC", "logic": "DA"})
    report = answer(base, tmp_path, "ceval", "--mode", mode)
    assert (report["protocol"], report["mode"], report["shots"]) == ("official", mode, 0)
    assert report["answers"] == ("ranked" if mode == "choice" else "generated")
    assert report["overall"]["n"] == 5 and set(report["categories"]) == {"law", "logic"}
    items = (tmp_path / "report" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    right = [json.loads(item)["value"] for item in items]
    assert report["overall"]["score"] == pytest.approx(sum(right) / 5)


def test_every_rule_scores_what_a_model_was_asked_once(tmp_path: Path, base: Path) -> None:
    runs = {}
    for mode in ("choice", "scorings"):
        write_ceval(tmp_path / mode / "data", {"law": "ABC", "logic": "DA"})
        report = answer(base, tmp_path / mode, "ceval", "--mode", mode, "--shots", "1", sample=("--limit", "3"))
        assert (report["scoring"], report["mode"], report["data"]["n"]) == ("letter_sum", mode, 3)
        lines = (tmp_path / mode / "predictions" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        runs[mode] = report, [json.loads(line) for line in lines]
    (alone, letters), (report, every) = runs["choice"], runs["scorings"]
    assert len(every) == 5 * len(letters) == 15
    # What else is ranked changes no likelihood of a letter, and so nothing of the protocol's own score.
    for one, other in zip(letters, every[:3], strict=True):
        assert (one["id"], one["prompt"], one["options"]) == (other["id"], other["prompt"], other["options"][:8])
        assert one["option_scores"] == pytest.approx(other["option_scores"][:8], abs=1e-4)
    assert report["headline"] == alone["headline"] and report["categories"] == alone["categories"]
    assert {rule["average"] for rule in report["rules"].values()} == {f"{name}_macro" for name in SCORINGS}
    # The content-free prompts of a subject are equal, and so are the likelihoods of the letters behind them.
    free = [one for one in every if one["id"].endswith("contextual-0") and "-law-" in one["id"]]
    assert len({one["prompt"] for one in free}) == 1
    assert free[0]["option_scores"][:8] == pytest.approx(free[-1]["option_scores"][:8], abs=1e-4)


def test_cmmlu_runs_as_lm_evaluation_harness_does(tmp_path: Path, base: Path) -> None:
    write_cmmlu(tmp_path / "data", {"anatomy": "ABCDA"})
    report = answer(base, tmp_path, "cmmlu", "--protocol", "lm_eval", "--shots", "1", template=CONTINUED)
    assert (report["protocol"], report["shots"], report["headline"]["name"]) == ("lm_eval", 1, "micro")
    lines = (tmp_path / "predictions" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    asked = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    # Nothing but begin-of-text around the words of lm-evaluation-harness, and the blank that SentencePiece begins with.
    texts = [one["messages"][0]["content"] for one in asked]
    assert {row["prompt"].replace(text, "…") for row, text in zip(rows, texts, strict=True)} == {"<s> …"}
    best = ["ABCD"[row["option_scores"].index(max(row["option_scores"]))] for row in rows]
    assert [row["options"] for row in rows] == [[" A", " B", " C", " D"]] * 5
    right = sum(letter == reference for letter, reference in zip(best, "ABCDA", strict=True))
    assert report["aggregates"]["acc"]["score"] == pytest.approx(right / 5)


def test_sets_with_several_letters_run_by_likelihood(tmp_path: Path, base: Path) -> None:
    rows = [
        {"passage": None, "question": "问", "options": ["(A)一", "(B)二", "(C)三", "(D)四"], "label": label}
        for label in (["A", "C"], ["B"])
    ]
    (tmp_path / "data").mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "data" / "jec-qa-kd.jsonl").write_text(text, encoding="utf-8")
    report = answer(base, tmp_path, "agieval")
    assert report["overall"]["n"] == 2 and set(report["kinds"]) == {"single", "multi"}


def test_gsm8k_runs_by_generation(tmp_path: Path, base: Path) -> None:
    (tmp_path / "data").mkdir()
    row = json.dumps({"question": "1+1?", "answer": "#### 2"})
    (tmp_path / "data" / "test.jsonl").write_text(row + "\n", encoding="utf-8")
    report = answer(base, tmp_path, "gsm8k", "--shots", "0")
    assert report["headline"]["name"] == "strict_match" and report["overall"]["n"] == 1
    assert report["finish_reasons"]
