import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from mmcu_data import write_mmcu

Run = Callable[..., "CompletedProcess[str]"]


def test_questions_become_prompts_and_their_answers_a_report(run_eval: Run, tmp_path: Path) -> None:
    folder, prompts = write_mmcu(tmp_path / "mmcu"), tmp_path / "prompts.jsonl"
    asked = run_eval("prepare", "mmcu", "--data", folder, "--shots", 5, "--output", prompts)
    assert asked.returncode == 0, asked.stderr
    records = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    answers = tmp_path / "predictions.jsonl"
    lines = [
        json.dumps({"id": one["id"], "prompt": "", "response": "A", "reference": one["reference"], "meta": one["meta"]})
        for one in records
    ]
    answers.write_text("\n".join(lines) + "\n", encoding="utf-8")
    scored = run_eval("score", "mmcu", "--data", folder, "--predictions", answers, "--output", tmp_path / "report")
    assert scored.returncode == 0, scored.stderr
    facts = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert (facts["protocol"], facts["protocol_version"]) == ("strict", 1)
    assert set(facts["kinds"]) >= {"single", "multi"}
    assert sum(facts["excluded"].values()) == 2  # ABFD and E


def test_published_results_need_no_data(run_eval: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "心理").write_text("A|||A|||True\nAverage accuracy 1.000 - 心理\n", encoding="utf-8")
    for protocol in ("mmcu_readme", "strict", "alpaca_cot"):
        output = tmp_path / protocol
        done = run_eval("score", "mmcu", "--protocol", protocol, "--predictions", tmp_path / "run", "--output", output)
        assert done.returncode == 0, done.stderr
        facts = json.loads((output / "report.json").read_text(encoding="utf-8"))
        assert facts["protocol"] == protocol
        assert facts["groups"]["心理"]["score"] == 1
