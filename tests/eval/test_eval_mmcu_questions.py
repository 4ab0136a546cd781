import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mmcu_data import HEADER, rows_of, write_mmcu, write_workbook

from eval.mmcu_questions import read_examples, read_questions
from eval.mmcu_subjects import DISCIPLINES, SUBJECTS, find_subject
from ift.errors import UserError


def test_all_files_and_sheets_are_read(tmp_path: Path) -> None:
    questions = read_questions(write_mmcu(tmp_path))
    assert sorted(question.id for question in questions) == sorted(
        f"mmcu-{subject}-000{number}"
        for subject, count in {
            "临床医学": 3,
            "药理学": 2,
            "解剖学": 1,
            "护理学": 1,
            "心理": 2,
            "法律": 2,
            "教育_数学": 2,
            "教育_语文": 1,
        }.items()
        for number in range(count)
    )
    first = next(question for question in questions if question.id == "mmcu-临床医学-0000")
    assert (first.text, first.options, first.answer) == ("临床第0问？", ("A.甲", "B、乙", "Ｃ．丙", "丁"), "A")
    assert {question.subject.discipline for question in questions} == set(DISCIPLINES)
    assert {question.source for question in questions} == {"医疗", "法律", "心理", "教育_语文", "教育_数学"}


def one_subject(folder: Path, rows: list[list[object]], **options: object) -> Path:
    write_workbook(folder / "test" / "心理.xlsx", {"Sheet1": rows}, **options)  # type: ignore[arg-type]
    return folder


def test_columns_are_taken_as_found(tmp_path: Path) -> None:
    rows = [["问", "甲", 3, 0.5, "戊", "E"], ["问二", "甲", None, 2.0, None, "A"]]
    first, second = read_questions(one_subject(tmp_path, rows, header=("Q", "1", "2", "3", "4", "key")))
    assert (first.options, first.answer, first.letters) == (("甲", "3", "0.5", "戊"), "E", ("A", "B", "C", "D"))
    assert (second.options, second.letters) == (("甲", None, "2", None), ("A", "C"))


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_number_of_options_may_vary(tmp_path: Path, count: int) -> None:
    header = ["题目", *[f"选项{number}" for number in range(count)], "答案"]
    rows: list[list[object]] = [["问", *[f"文{number}" for number in range(count)], "A"]]
    (question,) = read_questions(one_subject(tmp_path, rows, header=header))
    assert question.letters == tuple("ABCDEFGH"[:count])


def test_empty_rows_and_cells_beyond_the_table_change_nothing(tmp_path: Path) -> None:
    plain = rows_of("心理", ["A", "BC"])
    padded = [[], [None] * 6, [*plain[0], None, ""], [" "], [*plain[1], None], [None, None]]
    one = read_questions(one_subject(tmp_path / "a", plain))
    assert one == read_questions(one_subject(tmp_path / "b", padded))  # type: ignore[arg-type]


def test_an_answer_column_without_a_name_is_taken_where_every_row_fills_it(tmp_path: Path) -> None:
    rows = rows_of("心理", ["A", "BC"])
    named = read_questions(one_subject(tmp_path / "a", rows))  # type: ignore[arg-type]
    assert read_questions(one_subject(tmp_path / "b", rows, header=HEADER[:-1])) == named  # type: ignore[arg-type]
    rows[1][-1] = ""
    with pytest.raises(UserError, match="names 5 columns, and there are cells up to column 6"):
        read_questions(one_subject(tmp_path / "c", rows, header=HEADER[:-1]))  # type: ignore[arg-type]


def test_a_sheet_without_a_header_is_refused_rather_than_losing_its_first_question(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="first row ends with 'A', an answer"):
        read_questions(one_subject(tmp_path, rows_of("心理", ["A", "B"]), header=None))  # type: ignore[arg-type]


def test_an_empty_answer_is_kept_to_be_excluded(tmp_path: Path) -> None:
    questions = read_questions(one_subject(tmp_path, [*rows_of("心理", ["A"]), ["问", "甲", "乙"]]))  # type: ignore[list-item]
    assert [question.answer for question in questions] == ["A", ""]


def test_sheets_of_one_discipline_name_its_subjects(tmp_path: Path) -> None:
    write_workbook(tmp_path / "教育.xlsx", {"语文": rows_of("语", ["A"]), "数学": rows_of("数", ["B"])})
    assert [question.subject.name for question in read_questions(tmp_path)] == ["教育_语文", "教育_数学"]


@pytest.mark.parametrize(
    ("name", "sheets", "message"),
    [
        ("天文", {"Sheet1": rows_of("x", ["A"])}, "file name: unknown name '天文'"),
        ("医疗", {"天文学5题": rows_of("x", ["A"])}, "sheet: unknown name '天文学5题'"),
        ("医疗", {"语文": rows_of("x", ["A"])}, "sheet: unknown name '语文'"),
        ("心理", {"a": rows_of("x", ["A"]), "b": rows_of("y", ["B"])}, "found also 'b'"),
        ("心理", {"a": []}, "no questions below"),
        ("心理", {"a": [["问", "甲", "乙", "丙", "丁", "A", "多"]]}, None),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, name: str, sheets: dict[str, list[list[str]]], message: str | None
) -> None:
    write_workbook(tmp_path / f"{name}.xlsx", sheets)
    if message is None:  # one column beyond the header, filled in every row: taken as the answer's, and not readable
        assert [question.answer for question in read_questions(tmp_path)] == ["多"]
        return
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path)


def test_files_that_are_no_workbooks_are_named(tmp_path: Path) -> None:
    (tmp_path / "心理.xlsx").write_text("not a workbook")
    with pytest.raises(UserError, match=r"心理.xlsx: not a workbook"):
        read_questions(tmp_path)
    (tmp_path / "心理.xlsx").unlink()
    (tmp_path / "~$心理.xlsx").write_text("lock of an editor")
    with pytest.raises(UserError, match="no .xlsx files"):
        read_questions(tmp_path)


def test_one_workbook_is_refused_for_its_folder(tmp_path: Path) -> None:
    folder = write_mmcu(tmp_path)
    with pytest.raises(UserError, match="法律.xlsx: one file of MMCU's. Give the folder"):
        read_questions(folder / "test" / "法律.xlsx")
    assert read_questions(folder / "test") == read_questions(folder)


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_mmcu(tmp_path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"pip install 'ift\[eval\]'"):
        read_questions(folder)


def write_json(path: Path, rows: list[dict[str, str]], *, lines: bool) -> Path:
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(texts) if lines else f"[{','.join(texts)}]", encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [False, True])
def test_both_shapes_of_the_data_hold_the_same_questions(tmp_path: Path, lines: bool) -> None:
    from_workbooks = read_questions(write_mmcu(tmp_path))
    rows = [
        {"类别": one.subject.name, "题目": one.text, "选项": one.joined, "答案": one.answer} for one in from_workbooks
    ]
    from_json = read_questions(write_json(tmp_path / "test.json", rows, lines=lines))
    assert [(one.id, one.text, one.filled_options, one.key) for one in from_json] == [
        (one.id, one.text, one.filled_options, one.key) for one in from_workbooks
    ]
    assert replace(from_json[0], source="医疗", options=from_workbooks[0].options) == from_workbooks[0]


def test_a_row_may_name_only_its_discipline(tmp_path: Path) -> None:
    row = {"类别": "医疗", "题目": "问", "选项": "A:甲\nB:乙", "答案": "B"}
    (question,) = read_questions(write_json(tmp_path / "test.json", [row], lines=False))
    assert (question.id, question.subject.name, question.subject.discipline) == ("mmcu-医疗-0000", "医疗", "医疗")


def test_a_category_that_is_no_subject_is_named_with_its_place(tmp_path: Path) -> None:
    row = {"类别": "天文", "题目": "问", "选项": "A:甲\nB:乙", "答案": "B"}
    with pytest.raises(UserError, match=r"test.json \[0\]: 类别: unknown name '天文'"):
        read_questions(write_json(tmp_path / "test.json", [row], lines=False))


def test_examples_come_from_the_first_sheet_of_each_workbook(tmp_path: Path) -> None:
    folder = write_mmcu(tmp_path)
    write_workbook(folder / "dev" / "医疗.xlsx", {"a": rows_of("首", ["A"]), "b": rows_of("次", ["B"])})
    examples = read_examples(folder)
    assert [one.text for one in examples["医疗"]] == ["首第0问？"]
    assert len(examples["法律"]) == 6


def test_data_without_examples_says_so(tmp_path: Path) -> None:
    write_workbook(tmp_path / "test" / "心理.xlsx", {"a": rows_of("x", ["A"])})
    with pytest.raises(UserError, match="--shots: .*the folder 'dev'"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("临床医学101题", "临床医学"),
        ("教育_语文", "教育_语文"),
        ("语文", "教育_语文"),
        (" 心理 ", "心理"),
        ("心理学", "心理"),
        ("医疗", "医疗"),
        ("教育", "教育"),
        ("天文", None),
    ],
)
def test_names_of_subjects(name: str, subject: str | None) -> None:
    found = find_subject(name)
    assert (found and found.name) == subject


def test_there_are_25_subjects() -> None:
    assert len(SUBJECTS) == 25
    assert {discipline: list(SUBJECTS.values()).count(discipline) for discipline in DISCIPLINES} == {
        "医疗": 15,
        "法律": 1,
        "心理": 1,
        "教育": 8,
    }
