"""From questions to a report with a model that has learned one answer: both modes find it, of one letter or several."""

import json
from pathlib import Path

import pytest
import yaml
from mmcu_data import rows_of, write_workbook

from eval.__main__ import main as evaluate
from eval.mmcu import BENCHMARK
from ift.cli import main
from ift.records import read_predictions

pytestmark = pytest.mark.slow
CPU = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def train(folder: Path, base: Path, rows: list[dict[str, str]]) -> Path:
    source = folder / "rows.json"
    source.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    settings = {
        "run_dir": str(folder / "run"),
        "trainer": {**CPU, "max_epochs": 25},
        "model": {
            "base": str(base),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        },
        "data": {
            "sources": [{"path": str(source), "layout": "alpaca"}],
            "max_length": 480,
            "global_batch_size": 8,
            "micro_batch_tokens": 1024,
            "cache_dir": str(folder / "cache"),
        },
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config", str(config)]) == 0
    return folder / "run"


@pytest.mark.parametrize("answer", ["AC", "B"])
def test_a_learned_answer_is_found_in_both_modes(base: Path, tmp_path: Path, answer: str) -> None:
    data = tmp_path / "mmcu"
    write_workbook(data / "test" / "心理.xlsx", {"Sheet1": rows_of("心理", [answer] * 12)})
    prompts = list(BENCHMARK.prepare(data))
    rows = [{"instruction": one.messages[0]["content"], "input": "", "output": answer} for one in prompts]
    run = train(tmp_path, base, rows)
    for mode in ("choice", "generate"):
        asked, answered, report = tmp_path / f"{mode}.jsonl", tmp_path / mode, tmp_path / f"{mode}_report"
        assert evaluate(["prepare", "mmcu", "--data", str(data), "--mode", mode, "--output", str(asked)]) == 0
        device = [f"--trainer.{key}={json.dumps(value)}" for key, value in CPU.items() if key != "accelerator"]
        flags = [f"--run={run}", f"--data.path={asked}", f"--output_dir={answered}", "--trainer.accelerator=cpu"]
        assert main(["predict", *flags, *device, "--model.decoding.max_new_tokens=4"]) == 0
        predictions = answered / "predictions.jsonl"
        score = ["score", "mmcu", "--data", str(data), "--predictions", str(predictions), "--output", str(report)]
        assert evaluate(score) == 0
        facts = json.loads((report / "report.json").read_text(encoding="utf-8"))
        assert facts["categories"]["心理"]["score"] == 1
    ranked = read_predictions(tmp_path / "choice" / "predictions.jsonl")[0]
    likelihood = dict(zip(ranked.options, ranked.option_scores, strict=True))
    assert max(likelihood, key=lambda text: likelihood[text]) == answer[0]  # why likelihood alone would not do
