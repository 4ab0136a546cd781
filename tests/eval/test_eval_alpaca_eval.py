import json
import math
import statistics
from pathlib import Path

import pytest

from eval.alpaca_eval import BENCHMARK, prepare
from eval.win_rates import Preference, read_preferences, win_rate
from ift.errors import UserError
from ift.records import Prediction

ROWS = [
    {"instruction": f"Do {number}", "output": f"base {number}", "dataset": "a" if number < 6 else "b"}
    for number in range(8)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def answers(data: Path, texts: dict[int, str] | None = None) -> list[Prediction]:
    return [
        Prediction(one.id, "…", (texts or {}).get(number, f"own {number}"), "stop", meta=one.meta)
        for number, one in enumerate(prepare(data))
    ]


def preferences(values: list[float | None]) -> list[Preference]:
    return [Preference(str(number), "all", value) for number, value in enumerate(values)]


def test_the_row_of_the_leaderboard() -> None:
    """Against the statistics module, and counts by hand: wins 1.9 and 2, losses 1 and 1.2, one draw."""
    values = [1.9, 2.0, 1.0, 1.2, 1.5]
    row = win_rate(preferences([*values, None]))
    assert row.win_rate == pytest.approx(100 * (statistics.mean(values) - 1))
    assert row.standard_error == pytest.approx(100 * statistics.stdev(values) / math.sqrt(5))
    assert (row.n_wins, row.n_wins_base, row.n_draws, row.n_total) == (2, 2, 1, 5)
    assert row.discrete_win_rate == pytest.approx(50.0)
    assert (row.avg_length, row.avg_length_base) == (None, None)
    assert math.isnan(win_rate(preferences([1.5])).standard_error)
    with pytest.raises(UserError, match="none of 1 annotations holds a preference"):
        win_rate(preferences([None]))


def test_preferences_come_from_csv_or_annotations(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text("i,dataset,preference,len_output_1,len_output_2\n0,x,1.25,10,3\n1,y,0,20,4\n2,y,,5,6\n", "utf-8")
    found = read_preferences(table)
    assert [(one.dataset, one.value, one.lengths) for one in found] == [
        ("x", 1.25, (10, 3)),
        ("y", 1.5, (20, 4)),
        ("y", None, (5, 6)),
    ]
    rows = [
        {"dataset": "x", "preference": 2, "output_1": "base", "output_2": "一二"},
        {"preference": None, "output_1": "", "output_2": ""},
        {"preference": 0.0},
    ]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(rows), encoding="utf-8")
    assert [(one.dataset, one.value, one.lengths) for one in read_preferences(annotations)] == [
        ("x", 2.0, (4, 2)),
        ("all", None, (0, 0)),
        ("all", 1.5, None),
    ]


@pytest.mark.parametrize("value", ["0.5", "2.1", "-1", "better", "inf"])
def test_what_is_no_preference_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"preference\n1.5\n{value}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"p\.csv row 2: 'preference' must be from 1 to 2"):
        read_preferences(path)


def test_a_file_without_preferences_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="needs 'preference'; found 'a', 'b'"):
        read_preferences(path)
    with pytest.raises(UserError, match="no such file"):
        read_preferences(tmp_path / "none.csv")


def test_the_judge_sees_both_answers_in_either_order(data: Path) -> None:
    judge = BENCHMARK.judge
    assert judge is not None
    asked = list(judge.ask({"mine": answers(data)}, data, 0))
    assert [one.meta["item"] for one in asked] == [f"alpaca_eval-{number:05d}" for number in range(8)]
    firsts = [one.meta["systems"][0] for one in asked]
    assert firsts.count("mine") == firsts.count("(baseline)") == 4
    for number, one in enumerate(asked):
        text = one.messages[0]["content"]
        own, base = text.index(f"own {number}"), text.index(f"base {number}")
        assert (own < base) == (firsts[number] == "mine") and f"Do {number}\n" in text
    others = {tuple(one.meta["systems"][0] for one in judge.ask({"mine": answers(data)}, data, s)) for s in range(4)}
    assert len(others) == 4


def test_identical_answers_are_a_draw_that_nobody_is_asked_about(data: Path) -> None:
    judge = BENCHMARK.judge
    assert judge is not None
    systems = {
        "mine": answers(data, {2: "base 2", 5: " base 5\n"}),
        "echo": answers(data, {n: f"base {n}" for n in range(8)}),
    }
    asked = list(judge.ask(systems, data, 0))
    assert {one.meta["item"] for one in asked} == {f"alpaca_eval-{number:05d}" for number in (0, 1, 3, 4, 6, 7)}
    replies = [Prediction(one.id, "…", "mM"[one.meta["systems"].index("mine")], meta=one.meta) for one in asked]
    reports = judge.score(replies, systems, data)
    assert reports["mine"].headline == ("win_rate", reports["mine"].aggregates["win_rate"])
    assert reports["mine"].headline[1].score == pytest.approx(100 * 7 / 8), "six wins, two draws"
    assert reports["mine"].aggregates["discrete_win_rate"].score == pytest.approx(100 * 7 / 8)
    assert reports["mine"].categories["b"].score == 100
    assert reports["echo"].headline[1].score == 50


def test_replies_in_several_forms_and_none(data: Path) -> None:
    """Whichever place it stood in; what names neither is shown and counts nowhere."""
    judge = BENCHMARK.judge
    assert judge is not None
    systems = {"mine": answers(data)}
    asked = list(judge.ask(systems, data, 3))
    replies = []
    for number, one in enumerate(asked):
        place = one.meta["systems"].index("mine")
        texts = [
            "mM"[place],
            "Mm"[place],
            f"Short. [[{'AB'[place]}]]",
            "[[C]]",
            "cannot say",
            "mM"[place],
            "m and M",
            "[[D]]",
        ]
        replies.append(Prediction(one.id, "…", texts[number], meta=one.meta))
    report = judge.score(replies, systems, data)["mine"]
    assert [item.value for item in report.items] == [100, 0, 100, 50, None, 100, None, None]
    assert list(report.unread) == ["alpaca_eval-00004", "alpaca_eval-00006", "alpaca_eval-00007"]
    assert report.headline[1].score == pytest.approx(70) and report.headline[1].n == 5
    assert report.notes[0].startswith("3 wins, 1 losses and 1 draws of 5;")
    assert any("length-controlled" in note for note in report.notes)
    with pytest.raises(UserError, match="no reply about 'alpaca_eval-00007' of 'mine'"):
        judge.score(replies[:7], systems, data)


def test_a_judge_that_always_takes_the_first_shows_in_the_report(data: Path) -> None:
    judge, systems = BENCHMARK.judge, {"mine": answers(data)}
    assert judge is not None
    replies = [Prediction(one.id, "…", "m", meta=one.meta) for one in judge.ask(systems, data, 0)]
    report = judge.score(replies, systems, data)["mine"]
    assert report.headline[1].score == 50, "half of the first places are the system's"
    assert report.notes[-1] == "The judge preferred the answer that stood first in 100.0% of 8 replies."


def test_no_system_may_be_called_as_the_baseline_is(data: Path) -> None:
    judge = BENCHMARK.judge
    assert judge is not None
    with pytest.raises(UserError, match="Name the system otherwise"):
        list(judge.ask({"(baseline)": answers(data)}, data, 0))


@pytest.mark.parametrize(("n", "note"), [(11, "11 of 805 instructions: a part of AlpacaEval."), (805, None)])
def test_a_part_of_the_instructions_is_called_one(n: int, note: str | None, tmp_path: Path) -> None:
    path = tmp_path / "preferences.csv"
    path.write_text("preference\n" + "2\n" * n, encoding="utf-8")
    assert BENCHMARK.published is not None
    notes = BENCHMARK.published(path).notes
    assert notes[0] == note if note else not any("805 instructions" in one for one in notes)
