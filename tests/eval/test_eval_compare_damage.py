"""`compare --base`: gains beside the damage on held-out skills."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from compared_reports import compare, exam, judged, letters, numbers, write

from eval.aggregation import Aggregation, micro


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two tuned systems and their base: an exam that they learn, and two skills, one of which they lose."""
    for name, exam_share, skill_share, bits in (("base", 0.3, 0.8, 1.0), ("A", 0.6, 0.5, 1.2), ("B", 0.5, 0.78, 1.01)):
        folder = tmp_path / name / "eval"
        write(folder / "exam", exam(letters(exam_share, 200, 30)))
        write(folder / "cmmlu", exam(letters(skill_share, 200, 31)), "cmmlu")
        values = bits + np.linspace(-0.5, 0.5, 20)
        write(folder / "text", judged(values), "perplexity", aggregations=(Aggregation("bits_per_character", micro),))
    return tmp_path


def test_damage_stands_beside_gains(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skills = "cmmlu,perplexity"
    assert compare(runs / "A", runs / "B", "--base", runs / "base", "--skills", skills, "--output", runs / "out") == 0
    with (runs / "out" / "damage.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["system"], row["benchmark"]): row for row in csv.DictReader(file)}
    kinds = {label: row["kind"] for (_, label), row in rows.items()}
    assert kinds == {"cmmlu": "damage", "exam": "gain", "perplexity": "damage"}
    for system, share in (("A", 0.5), ("B", 0.78)):
        lost = letters(share, 200, 31).count("1") - letters(0.8, 200, 31).count("1")
        assert float(rows[system, "cmmlu"]["gain"]) == pytest.approx(lost / 200)
    assert rows["A", "cmmlu"]["verdict"] == rows["A", "exam"]["verdict"] == "distinguishable"
    assert rows["B", "cmmlu"]["verdict"] == "not distinguishable"
    # Bits per character are better when lower: 0.2 more are a loss of 0.2.
    assert numbers(rows["A", "perplexity"], "gain", "ratio") == pytest.approx([-0.2, 1.2])
    assert (rows["A", "perplexity"]["base"], rows["A", "perplexity"]["base_score"]) == ("base", "1.0")
    shown = capsys.readouterr().out
    heads = [line.split("  ") for line in shown.splitlines() if line.startswith("system") and "damage: cmmlu" in line]
    assert [[cell.strip() for cell in line if cell] for line in heads] == [
        ["system", "gain: exam", "damage: cmmlu", "damage: perplexity"]
    ]
    assert "distinguishable, lost" in shown
    # Damage is what was lost, so that it is above 0 where the gain of the other table is below.
    (line,) = [line for line in shown.split("Gains beside damage")[1].splitlines() if line.startswith("A  ")][:1]
    gained, forgotten, bits = line.split()[1:]
    assert gained == f"+{100 * float(rows['A', 'exam']['gain']):.2f}*"
    assert forgotten == f"+{-100 * float(rows['A', 'cmmlu']['gain']):.2f}*" and bits == "+0.200*"


def test_one_system_is_enough_with_its_base(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(runs / "A", "--base", f"A={runs / 'base'}", "--skills", "cmmlu") == 0
    assert "base of A" not in capsys.readouterr().out  # it lacks nothing


def test_a_base_without_a_benchmark_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(runs / "other", exam("1100" * 50), "cmmlu")
    assert compare(runs / "A", "--base", runs / "other", "--skills", "cmmlu") == 0
    assert "other, base of A, was not measured on exam, perplexity." in " ".join(capsys.readouterr().out.split())


def test_perplexities_are_compared_by_their_ratio(tmp_path: Path) -> None:
    for name, bits, perplexity in (("base", 1.0, 8.0), ("A", 1.1, 10.0)):
        folder = write(tmp_path / name, judged([bits, bits + 0.1]), "perplexity")
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        report["aggregates"]["token_perplexity"] = {**report["headline"], "score": perplexity}
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert (
        compare(tmp_path / "A", "--base", tmp_path / "base", "--skills", "perplexity", "--output", tmp_path / "o") == 0
    )
    with (tmp_path / "o" / "damage.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["ratio"]) == pytest.approx(10 / 8)
