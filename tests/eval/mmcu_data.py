"""Folders laid out as MMCU is distributed, with questions of our own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openpyxl import Workbook

HEADER = ("题目", "选项A", "选项B", "选项C", "选项D", "答案")
Rows = Sequence[Sequence[Any]]


def write_workbook(path: Path, sheets: Mapping[str, Rows], *, header: Sequence[Any] | None = HEADER) -> None:
    """Write the header, where there is one, and rows into each sheet."""
    workbook = Workbook()
    workbook.remove(workbook.active)
    for name, rows in sheets.items():
        sheet = workbook.create_sheet(name)
        for row in [*([header] if header is not None else []), *rows]:
            sheet.append(list(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook.save(path)


def rows_of(subject: str, answers: Sequence[str]) -> list[list[str]]:
    """Return one question per answer, their labels before the options."""
    return [
        [f"{subject}第{number}问？", "A.甲", "B、乙", "Ｃ．丙", "丁", answer] for number, answer in enumerate(answers)
    ]


def write_mmcu(folder: Path) -> Path:
    """Write a small MMCU of all four disciplines: 4 subjects of medicine, 2 of education, law and psychology."""
    test = folder / "test"
    medicine = {
        "临床医学3题": rows_of("临床", ["A", "B", "C"]),
        "药理学2题": rows_of("药理", ["ABD", "ＡＣ"]),
        "解剖学22题": rows_of("解剖", ["D"]),
        "护理学1题": rows_of("护理", ["CA"]),
    }
    write_workbook(test / "医疗.xlsx", medicine)
    for name, answers in {
        "法律": ["A,B", "C"],
        "心理": ["d", "ABFD"],
        "教育_语文": ["B"],
        "教育_数学": ["A", "E"],
    }.items():
        write_workbook(test / f"{name}.xlsx", {"Sheet1": rows_of(name, answers)})
    for name in ("医疗", "法律", "心理", "教育_语文", "教育_数学"):
        write_workbook(
            folder / "dev" / f"{name}.xlsx", {"Sheet1": rows_of(f"例{name}", ["A", "BC", "C", "D", "B", "A"])}
        )
    return folder
