"""What `compare` refuses, and what it only tells: reports that were not made alike, and mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
from compared_reports import compare, exam, judged, numbers, read_csv, write

from eval.aggregation import MACRO
from eval.statistics import wilson_interval


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": "loose"}, "protocol: 'A' strict, 'B' loose."),
        ({"version": 2}, "protocol version: 'A' 1, 'B' 2."),
        ({"ranked": True}, "exam: the reports were not made in one way; answers: 'A' generated, 'B' ranked."),
        ({"aggregations": (MACRO,)}, "average: 'A' micro, 'B' macro."),
        ({"name": "quiz"}, "not measured on the same benchmarks: 'A' lacks quiz; 'B' lacks exam."),
    ],
)
def test_reports_made_in_other_ways_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], message: str
) -> None:
    write(tmp_path / "A", exam("1100")), write(tmp_path / "B", exam("1010"), **other)
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert message in capsys.readouterr().err


def test_other_items_are_refused_or_left_out_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "A", exam("1100110011")), write(tmp_path / "B", exam("10?01101-"))
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert "'B' (" in (error := capsys.readouterr().err)
    assert "1 missing (i-0009), 2 without a score (i-0002, i-0008)" in error and "--common" in error
    assert compare(tmp_path / "A", tmp_path / "B", "--common", "--output", tmp_path / "out") == 0
    assert "3 items that do not count for every system are left out." in capsys.readouterr().out
    row = read_csv(tmp_path / "out")["overall", "micro", "A"]
    # Without items 2, 8 and 9: 1 1 0 1 1 0 0, of the ten of the report.
    assert (row["n"], float(row["score"])) == ("7", pytest.approx(4 / 7))
    assert numbers(row, "low", "high") == pytest.approx(wilson_interval(4, 7))


def test_items_of_other_categories_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "A", exam("1100", ["a", "b"])), write(tmp_path / "B", exam("1100", ["b", "a"]))
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert "4 items (i-0000, i-0001, i-0002, …) stand in other categories for 'B'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{A}"], "compare: one system only."),
        (["{A}", "A={B}"], "two systems are called 'A'. Name them: NAME=FOLDER."),
        (["{A}", "{B}", "--baseline", "a"], "--baseline: unknown name 'a'. Known: A, B."),
        (["{A}", "{B}/none"], "none: no such folder."),
        (["{A}", "X={B},{B}"], "names one folder twice"),
        (["{A}", "{B}", "--skills", "exam"], "--skills: damage is measured against the untuned base."),
        (["{A}", "{B}", "--base", "{B}", "--skills", "cmmlu"], "--skills: 'cmmlu' was not measured for both 'A'"),
        (["{A}", "{B}", "--base", "C={B}"], "--base: unknown name 'C'"),
        (["{A}", "{B}", "--base", "B={B}"], "--base: no base for A."),
        (["{A}", "=x"], "is not NAME=FOLDER"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    for name in ("A", "B"):
        write(tmp_path / name, exam("1100"))
    places = {name: tmp_path / name for name in ("A", "B")}
    assert compare(*(one.format(**places) for one in arguments)) == 2
    assert message in capsys.readouterr().err


def test_folders_that_are_no_reports_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "A", exam("1100")), write(tmp_path / "B", exam("1100"))
    (tmp_path / "B" / "items.jsonl").write_text('{"id": "i-0000"}\n', encoding="utf-8")
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert "items.jsonl line 1: not an item of a report" in capsys.readouterr().err
    (tmp_path / "B" / "items.jsonl").unlink()
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert "items.jsonl: no such file" in capsys.readouterr().err
    (tmp_path / "B" / "report.json").write_text('{"benchmark": "exam"}', encoding="utf-8")
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert "report.json: no 'protocol' in it" in capsys.readouterr().err
    (tmp_path / "B" / "report.json").unlink()
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert "no report.json in it" in capsys.readouterr().err


def test_systems_that_a_judge_saw_in_other_messages_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their scores are relative to what stood beside them."""
    from eval.benchmark import Benchmark, Judge
    from eval.comparison import systems

    for name, place in (("A", "first"), ("B", "second"), ("C", "first")):
        folder = write(tmp_path / name, judged([7, 8]))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        report["judgements"] = {"path": place, "model": "judge"}
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert compare(tmp_path / "A", tmp_path / "B") == 0  # nothing says that this benchmark is judged together
    judge = Judge(ask=lambda *_: [], score=lambda *_: {}, single=False)
    together = Benchmark("exam", "strict", 1, "", prepare=lambda path: [], judge=judge)
    monkeypatch.setattr(systems, "get_benchmark", lambda name, protocol: together)
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert "come from 2 judgings. Judge all systems together." in capsys.readouterr().err
    assert compare(tmp_path / "A", tmp_path / "C") == 0


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (
            {"model": "x", "sampling": {"temperature": 0}},
            {"model": "x", "sampling": {"temperature": 1}},
            "'A' x {\"temp",
        ),
        ({"model": "x", "sampling": {}}, {"model": "y", "sampling": {}}, "judge: 'A' x, 'B' y."),
        ({"run": "runs/j", "base": None}, {"run": None, "base": "b"}, "judge: 'A' runs/j, 'B' b."),
    ],
)
def test_other_judges_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: Any, second: Any, told: str
) -> None:
    for name, judge in (("A", first), ("B", second), ("C", first)):
        folder = write(tmp_path / name, judged([7, 8, 9]))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        report["judgements"] = {"path": name, "status": "finished", "identity": judge}
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert compare(tmp_path / "A", tmp_path / "C") == 0
    assert compare(tmp_path / "A", tmp_path / "B") == 2
    assert told in capsys.readouterr().err


def test_other_prompts_and_data_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, prompts, data in (("A", "1", "x"), ("B", "2", "x"), ("C", None, "y")):
        folder = write(tmp_path / name, exam("1100"))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        report["prompts_sha256"], report["data"]["sha256"] = prompts, data
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    told = "The systems' {} differ (sha256 in report.json)"
    for pair, prompts_differ, data_differ in (("AB", True, False), ("AC", False, True), ("BC", False, True)):
        assert compare(*(tmp_path / name for name in pair)) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert (told.format("prompts") in shown) is prompts_differ
        assert (told.format("data files") in shown) is data_differ


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "A", exam("1100")), write(tmp_path / "B", exam("1010"))
    arguments = (tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out")
    assert compare(*arguments) == 0
    assert compare(*arguments) == 2
    assert "compare.md exists and nothing is overwritten" in capsys.readouterr().err
