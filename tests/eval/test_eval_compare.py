"""`compare`: which reports it takes, what it refuses, and the numbers it gives."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import compare, exam, judged, letters, write
from scipy import stats

from eval.aggregation import GROUP_MACRO, MACRO, Aggregation, micro
from eval.paired import mcnemar_p_value, proportions_interval
from eval.statistics import wilson_interval

Rows = dict[tuple[str, str, str], dict[str, str]]


def read_csv(folder: Path) -> Rows:
    """Return the lines by part, name and system."""
    with (folder / "compare.csv").open(encoding="utf-8", newline="") as file:
        return {(row["part"], row["name"], row["system"]): row for row in csv.DictReader(file)}


def numbers(row: dict[str, str], *names: str) -> list[float]:
    return [float(row[name]) for name in names]


# Numbers -------------------------------------------------------------------------------------------------------------


def test_right_and_wrong_answers_are_compared_by_mcnemar(tmp_path: Path) -> None:
    first, second = letters(0.5, 60, 1), letters(0.8, 60, 2)
    write(tmp_path / "A", exam(first)), write(tmp_path / "B", exam(second))
    assert compare(tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out") == 0
    row = read_csv(tmp_path / "out")["overall", "micro", "B"]
    wins = sum(one < other for one, other in zip(first, second, strict=True))
    losses = sum(one > other for one, other in zip(first, second, strict=True))
    assert numbers(row, "wins", "ties", "losses") == [wins, 60 - wins - losses, losses]
    assert float(row["p_value"]) == float(row["p_value_holm"]) == mcnemar_p_value(wins, losses)
    assert numbers(row, "difference_low", "difference_high") == pytest.approx(proportions_interval(wins, losses, 60))
    right = second.count("1")
    assert numbers(row, "score", "low", "high") == pytest.approx([right / 60, *wilson_interval(right, 60)])
    assert row["verdict"] == "distinguishable"
    assert row["test"] == "McNemar, exact mid-p"


def test_every_part_is_compared_once(tmp_path: Path) -> None:
    """Groups, kinds and categories; a category that is a whole group stands there only."""
    categories, groups = ["语文", "数学", "法律"], ["教育", "教育", "法学"]
    for name, share in (("A", 0.4), ("B", 0.6)):
        write(tmp_path / name, exam(letters(share, 90, 3), categories, groups), aggregations=(GROUP_MACRO,))
    assert compare(tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out") == 0
    rows = read_csv(tmp_path / "out")
    parts = [(part, name) for part, name, system in rows if system == "B"]
    assert parts == [
        ("overall", "group_macro"), ("group", "教育"), ("group", "法学"), ("category", "语文"), ("category", "数学"),
    ]  # fmt: skip
    report = json.loads((tmp_path / "B" / "report.json").read_text(encoding="utf-8"))
    for part, name in parts[1:]:
        reported = report["groups" if part == "group" else "categories"][name]
        assert numbers(rows[part, name, "B"], "score", "low", "high") == [reported["score"], *reported["interval"]]


def test_judged_scores_are_bootstrapped_and_permuted(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    first = np.round(generator.random(80), 1)
    second = np.clip(first + np.round(generator.normal(0.2, 0.2, 80), 1), 0, 1)
    write(tmp_path / "A", judged(first)), write(tmp_path / "B", judged(second))
    assert compare(tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out") == 0
    row = read_csv(tmp_path / "out")["overall", "micro", "B"]
    reference = stats.ttest_rel(second, first)
    assert float(row["difference"]) == pytest.approx(np.mean(second - first))
    bounds = reference.confidence_interval(0.95)
    assert numbers(row, "difference_low", "difference_high") == pytest.approx([bounds.low, bounds.high], abs=0.01)
    assert float(row["p_value"]) == pytest.approx(1 / 10_001)
    assert row["test"] == "permutation of items, sampled"


def test_a_difference_by_chance_is_not_distinguishable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "A", exam(letters(0.5, 200, 5))), write(tmp_path / "B", exam(letters(0.5, 200, 6)))
    assert compare(tmp_path / "A", tmp_path / "B") == 0
    shown = capsys.readouterr().out
    assert "not distinguishable" in shown and "distinguishable, " not in shown


def test_p_values_are_adjusted_by_holm(tmp_path: Path) -> None:
    """Overall over systems and benchmarks; parts over parts and systems of one benchmark."""
    categories = [f"c{number}" for number in range(5)]
    for place, share in enumerate((0.5, 0.62, 0.7)):
        for name in ("one", "two"):
            own = exam(letters(share, 200, place), categories)
            write(tmp_path / f"S{place}" / name, own, name, aggregations=(MACRO,))
    assert compare(*(tmp_path / f"S{place}" for place in range(3)), "--output", tmp_path / "out") == 0
    comparison = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    entries = [
        (benchmark["benchmark"], row["part"], entry)
        for benchmark in comparison["benchmarks"]
        for row in benchmark["rows"]
        for entry in row["systems"].values()
        if entry["p_value"] is not None
    ]
    families = (
        [one for one in entries if one[1] == "overall"],
        [one for one in entries if one[:2] == ("one", "category")],
    )
    for family, size in zip(families, (4, 10), strict=True):
        assert len(family) == size
        least = min(family, key=lambda one: one[2]["p_value"])[2]
        assert least["p_value_holm"] == pytest.approx(min(1, size * least["p_value"]))
        assert all(one[2]["p_value_holm"] >= one[2]["p_value"] for one in family)


def test_subjects_are_drawn_where_the_report_says_that_they_are_a_sample(tmp_path: Path) -> None:
    subjects = [f"s{number}" for number in range(20)]
    for name, share in (("A", 0.5), ("B", 0.6)):
        write(tmp_path / name, exam(letters(share, 400, 7), subjects), aggregations=(MACRO,), clustered=True)
    assert compare(tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out") == 0
    row = read_csv(tmp_path / "out")["overall", "macro", "B"]
    assert (row["test"], row["interval_method"]) == (
        "permutation of categories, sampled",
        "paired bootstrap over categories",
    )
    means = {
        name: np.array([np.mean([own == "1" for own in letters(share, 400, 7)[start::20]]) for start in range(20)])
        for name, share in (("A", 0.5), ("B", 0.6))
    }
    bounds = stats.ttest_rel(means["B"], means["A"]).confidence_interval(0.95)
    assert numbers(row, "difference_low", "difference_high") == pytest.approx([bounds.low, bounds.high], abs=0.012)


def test_an_average_that_rounds_is_tested_without_rounding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rounded(cells: Any) -> float:
        return round(sum(round(cell.mean, 2) for cell in cells) / len(cells), 2)

    categories = ["a", "b", "c"]
    for name, share in (("A", 0.5), ("B", 0.7)):
        write(
            tmp_path / name,
            exam(letters(share, 99, 8), categories),
            aggregations=(Aggregation("to_the_cent", rounded),),
        )
    assert compare(tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out") == 0
    row = read_csv(tmp_path / "out")["overall", "to_the_cent", "B"]
    assert float(row["score"]) == round(float(row["score"]), 2)
    unrounded = [letters(0.7, 99, 8)[start::3].count("1") / 33 for start in range(3)]
    before = [letters(0.5, 99, 8)[start::3].count("1") / 33 for start in range(3)]
    assert float(row["difference"]) == pytest.approx(np.mean(unrounded) - np.mean(before))
    assert "'to_the_cent' rounds on the way" in capsys.readouterr().out


def test_an_average_that_nobody_knows_is_shown_and_not_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def halved(cells: Any) -> float:
        return float(cells[0].mean / 2)

    for name, share in (("A", 0.5), ("B", 0.7)):
        own = exam(letters(share, 90, 9), ["a", "b", "c"])
        write(tmp_path / name, own, aggregations=(Aggregation("halved", halved),))
    assert compare(tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out") == 0
    rows = read_csv(tmp_path / "out")
    assert rows["overall", "halved", "B"]["p_value"] == "" != rows["category", "a", "B"]["p_value"]
    assert "'halved' cannot be computed from the items" in capsys.readouterr().out


def test_values_over_units_are_weighted(tmp_path: Path) -> None:
    """As perplexity has it: bits per character of documents, whose mean is over all characters."""
    from dataclasses import replace

    generator = np.random.default_rng(10)
    characters = generator.integers(10, 2000, size=25)
    bits = {name: generator.normal(1.5, 0.3, size=25) - better for name, better in (("A", 0.0), ("B", 0.3))}
    for name, own in bits.items():
        outcomes = [replace(one, weight=int(n)) for one, n in zip(judged(own), characters, strict=True)]
        folder = write(tmp_path / name, outcomes)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        score = {
            "n": 25,
            "score": float(np.sum(own * characters) / characters.sum()),
            "interval": [1.0, 2.0],
            "method": "x",
        }
        report["aggregates"] = {"bits_per_character": score}
        report["headline"] = {"name": "bits_per_character", **score}
        report["categories"] = {"一": score}
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert compare(tmp_path / "A", tmp_path / "B", "--output", tmp_path / "out") == 0
    row = read_csv(tmp_path / "out")["overall", "bits_per_character", "B"]
    change = float(np.sum((bits["B"] - bits["A"]) * characters) / characters.sum())
    assert float(row["difference"]) == pytest.approx(change)
    assert float(row["difference_low"]) < change < float(row["difference_high"])
    assert int(row["wins"]) == int(np.sum(bits["B"] < bits["A"]))  # lower is better
    assert "lower is better" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_seeds_are_averaged_item_by_item_and_have_their_own_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {name: [letters(share, 100, 20 + seed) for seed in range(3)] for name, share in (("A", 0.5), ("B", 0.7))}
    for name, own in texts.items():
        for seed, text in enumerate(own):
            write(tmp_path / f"{name}{seed}", exam(text))
    systems = [f"{name}=" + ",".join(str(tmp_path / f"{name}{seed}") for seed in range(3)) for name in texts]
    assert compare(*systems, "--output", tmp_path / "out") == 0
    row = read_csv(tmp_path / "out")["overall", "micro", "B"]
    scores = {name: [text.count("1") / 100 for text in own] for name, own in texts.items()}
    bounds = stats.ttest_1samp(scores["B"], 0).confidence_interval(0.95)
    assert numbers(row, "score", "low", "high") == pytest.approx([np.mean(scores["B"]), bounds.low, bounds.high])
    welch = stats.ttest_ind(scores["B"], scores["A"], equal_var=False)
    assert float(row["seed_p_value"]) == pytest.approx(welch.pvalue)
    means = {name: np.mean([[one == "1" for one in text] for text in own], axis=0) for name, own in texts.items()}
    assert float(row["difference"]) == pytest.approx(np.mean(means["B"] - means["A"]))
    assert int(row["wins"]) == np.sum(means["B"] > means["A"] + 1e-9)
    assert "Seeds" in capsys.readouterr().out


# Refusals ------------------------------------------------------------------------------------------------------------


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


# Damage --------------------------------------------------------------------------------------------------------------


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
