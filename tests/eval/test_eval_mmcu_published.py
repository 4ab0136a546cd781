import json
from pathlib import Path
from typing import Any

import pytest

from eval import mmcu
from eval.mmcu_published import read_published
from ift.errors import UserError

RESULTS = {
    "心理": [("A", "A"), ("AC", "AC\n"), ("未成功回答", "B"), ("D", "D")],
    "临床医学101题": [("B", "C"), ("ABD", "ABD")],
    "教育_语文": [("C", "c")],
}


def write_folder(folder: Path, results: dict[str, list[tuple[str, str]]] = RESULTS) -> Path:
    """Write results as MMCU's scripts do."""
    folder.mkdir(parents=True)
    for subject, pairs in results.items():
        lines = [f"{pred}|||{label}|||{pred == label}\n" for pred, label in pairs]
        accuracy = sum(pred == label for pred, label in pairs) / len(pairs)
        text = "".join(lines) + f"Average accuracy {accuracy:.3f} - {subject}\n"
        (folder / subject).write_text(text, encoding="utf-8")
    return folder


def content(results: dict[str, list[tuple[str, str]]] = RESULTS) -> dict[str, Any]:
    return {
        "model": "m",
        "setting": "zero_shot",
        "subjects": {
            subject: {
                "reported_accuracy": f"{sum(a == b for a, b in pairs) / len(pairs):.3f}",
                "pred": [pred for pred, _ in pairs],
                "label": [label for _, label in pairs],
                "correct": [pred == label for pred, label in pairs],
            }
            for subject, pairs in results.items()
        },
    }


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def test_both_shapes_hold_the_same(tmp_path: Path) -> None:
    folder = read_published(write_folder(tmp_path / "zero_shot"))
    single = read_published(write_json(tmp_path / "m.json", content()))
    assert sorted(folder.keys, key=lambda one: one.id) == sorted(single.keys, key=lambda one: one.id)
    assert {one.id: one.response for one in folder.predictions} == {one.id: one.response for one in single.predictions}
    assert {one.id for one in single.keys} >= {"mmcu-临床医学-0001", "mmcu-心理-0003", "mmcu-教育_语文-0000"}
    assert next(one for one in folder.keys if one.id == "mmcu-心理-0001").label == "AC\n"
    assert folder.notes == single.notes == ()


def test_a_folder_around_the_folder_and_line_ends_of_windows_change_nothing(tmp_path: Path) -> None:
    plain = read_published(write_folder(tmp_path / "plain"))
    wrapped = write_folder(tmp_path / "model_results_0515" / "zero_shot")
    for path in wrapped.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_published(wrapped.parent) == plain


@pytest.mark.parametrize(("benchmark", "right"), [(mmcu.MMCU_README, 3), (mmcu.BENCHMARK, 5), (mmcu.ALPACA_COT, 5)])
def test_published_results_are_scored_without_data(benchmark: mmcu.Benchmark, right: int, tmp_path: Path) -> None:
    assert benchmark.published is not None
    report = benchmark.published(write_json(tmp_path / "m.json", content()))
    assert sum(item.correct for item in report.items) == right
    assert report.overall.n == 7
    assert len(report.unparsed) == 1
    assert any("No question of 法律" in note for note in report.notes)


def test_predictions_that_are_whole_replies_are_read_by_the_rule(tmp_path: Path) -> None:
    value = content({"心理": [("答案是A。", "A"), ("选A、C", "AC"), ("不知道", "B")]})
    value["subjects"]["心理"] |= {"correct": [True, True, False], "reported_accuracy": "0.667"}
    path = write_json(tmp_path / "m.json", value)
    assert read_published(path).notes == ()
    assert mmcu.MMCU_README.published is not None
    assert mmcu.MMCU_README.published(path).headline[1].score == 0.667


def test_a_file_that_contradicts_itself_says_so_in_the_report(tmp_path: Path) -> None:
    value = content()
    value["subjects"]["心理"]["correct"][0] = False
    value["subjects"]["教育_语文"]["reported_accuracy"] = "1.000"
    path = write_json(tmp_path / "m.json", value)
    assert mmcu.MMCU_README.published is not None
    notes = mmcu.MMCU_README.published(path).notes
    assert any("心理: 1 of 4 questions are marked otherwise" in note for note in notes)
    assert any("教育_语文: accuracy 1.000 is reported; 0 of 1" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("心理", "A|||A|||True\nB|||\nAverage accuracy 1.000 - 心理\n", "line 2: expected 'prediction"),
        ("心理", "A|||A|||True\n", "line 2: expected"),
        ("心理", "A|||A|||yes\nAverage accuracy 1.000 - 心理\n", "line 1: expected"),
        ("心理", "Average accuracy nan - 心理\n", "no predictions above"),
        ("天文", "A|||A|||True\nAverage accuracy 1.000 - 天文\n", "file name: unknown name '天文'"),
    ],
)
def test_files_that_are_no_results_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_published(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a JSON object with 'subjects'"),
        ({"subjects": {}}, "found no subject"),
        ({"subjects": {"心理": {"pred": ["A"], "label": ["A"]}}}, "found 1, 1 and 0"),
        ({"subjects": {"心理": {"pred": ["A"], "label": [1], "correct": [True]}}}, "texts 'label'"),
        ({"subjects": {"心理": []}}, "found 0, 0 and 0"),
        ({"subjects": {"天文": content()["subjects"]["心理"]}}, "unknown name '天文'"),
        ({"subjects": {name: content()["subjects"]["心理"] for name in ("心理", "心理学")}}, "心理 twice"),
    ],
)
def test_json_that_is_no_result_is_refused(value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_published(write_json(tmp_path / "m.json", value))


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text('{"id": "a"}\n{"id": "b"}\n')
    with pytest.raises(UserError, match="line 2: not valid JSON .*need --data"):
        read_published(predictions)
    write_folder(tmp_path / "runs" / "one")
    write_folder(tmp_path / "runs" / "two")
    with pytest.raises(UserError, match="found a folder beside others"):
        read_published(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found no subject"):
        read_published(tmp_path / "empty")


def test_a_folder_of_json_files_is_told_apart_from_one_run(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name in ("first", "second"):
        write_json(tmp_path / "all" / f"{name}.json", content())
    with pytest.raises(UserError, match=r"a folder with 2 JSON files.* one such file: give .*all/first\.json"):
        read_published(tmp_path / "all")
