"""`compare`: the numbers that it gives, against scipy and hand computations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_reports import compare, exam, judged, letters, numbers, read_csv, write
from scipy import stats

from eval.aggregation import GROUP_MACRO, MACRO, Aggregation
from eval.paired import mcnemar_p_value, proportions_interval
from eval.statistics import wilson_interval


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
    assert "'to_the_cent' is rounded on the way" in capsys.readouterr().out


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
