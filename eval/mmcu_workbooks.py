"""Reads folders of `.xlsx` files as MMCU is distributed: a header row, then question, options and, last, the answer.

A file named after a subject (`心理.xlsx`, `教育_语文.xlsx`) has one sheet; `医疗.xlsx` has one sheet per subject, named
like `临床医学101题`. Columns are taken as found: the first is the question, the last the answer, those between the
options, as many as there are.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.mmcu_rules import LETTERS, strict_gold
from eval.mmcu_subjects import DISCIPLINES, Subject, get_subject, has_subjects
from ift.errors import UserError

_Cells = Sequence[str | None]


@dataclass(frozen=True)
class WorkbookRow:
    """One row of a sheet."""

    subject: Subject
    source: str
    """Name of the file without its ending."""
    question: str
    options: tuple[str | None, ...]
    """As many as the sheet has columns for; `None` for an empty cell."""
    answer: str
    """Empty where the cell is."""


def read_workbooks(folder: Path, *, first_sheet: bool = False) -> list[WorkbookRow]:
    """Read all `.xlsx` files of a folder, in the order of their names.

    Args:
        folder: of the files.
        first_sheet: whether to read the first sheet only, whatever it is called.

    Raises:
        UserError: openpyxl is not installed, there are no files, or one cannot be read.
    """
    files = [path for path in sorted(folder.glob("*.xlsx")) if not path.name.startswith(("~$", "."))]
    if not files:
        raise UserError(f"{folder}: no .xlsx files. Give the folder of MMCU that holds 'dev' and 'test'.")
    return [row for path in files for row in _read_workbook(path, first_sheet=first_sheet)]


def _read_workbook(path: Path, *, first_sheet: bool) -> Iterator[WorkbookRow]:
    owner = get_subject(f"{path.parent}: file name", path.stem)
    sheets = [(name, rows) for name, rows in _sheets(path) if rows]
    if not sheets:
        raise UserError(f"{path}: no sheet has any cells filled in.")
    several = owner.name in DISCIPLINES and has_subjects(owner.name)
    if not several and len(sheets) > 1 and not first_sheet:
        names = ", ".join(f"'{name}'" for name, _ in sheets[1:])
        raise UserError(f"{path}: one sheet holds the questions of a subject; found also {names}. Remove what is not.")
    for name, rows in sheets[:1] if first_sheet else sheets:
        subject = owner
        if several and not first_sheet:
            subject = get_subject(f"{path}: sheet", name, within=owner.discipline)
        yield from _rows(f"{path} sheet '{name}'", rows, subject=subject, source=path.stem)


def _rows(place: str, rows: list[_Cells], *, subject: Subject, source: str) -> Iterator[WorkbookRow]:
    header, *body = rows
    width = _width(place, header, body)
    for cells in body:
        padded = [*cells[:width], *[None] * (width - len(cells))]
        yield WorkbookRow(subject, source, padded[0] or "", tuple(padded[1:-1]), padded[-1] or "")


def _width(place: str, header: _Cells, body: Sequence[_Cells]) -> int:
    """Return the number of columns: those with a name, and one more without where every row has something in it."""
    named = _filled(header)
    widest = max(map(_filled, body), default=0)
    if widest > named and (widest > named + 1 or any(_filled(cells) < widest for cells in body)):
        raise UserError(
            f"{place}: the header row names {named} columns, and there are cells up to column {widest}. The answer "
            "must be in the last column: name that column, or clear the cells beside the table."
        )
    width = max(named, widest)
    if not 4 <= width <= len(LETTERS) + 2:
        raise UserError(
            f"{place}: {width} columns; a question, 2 to {len(LETTERS)} options and, last, the answer are needed."
        )
    if not body:
        raise UserError(f"{place}: no questions below the header row.")
    name = header[width - 1] if width <= len(header) else None
    if name is not None and strict_gold(name, LETTERS).letters:
        raise UserError(f"{place}: the first row ends with '{name}', an answer. A row of column names must come first.")
    return width


def _filled(cells: _Cells) -> int:
    return max((index for index, cell in enumerate(cells, 1) if cell is not None and cell.strip()), default=0)


def _sheets(path: Path) -> Iterator[tuple[str, list[_Cells]]]:
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise UserError(f"{path}: reading .xlsx needs openpyxl. Install it: pip install 'ift[eval]'.") from error
    try:
        workbook = load_workbook(path, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a workbook that can be read ({error}).") from error
    for sheet in workbook.worksheets:
        rows = [[_text(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]
        yield sheet.title, [row for row in rows if _filled(row)]


def _text(value: Any) -> str | None:
    """Return a cell as text; a whole number has no decimals, however it is stored."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
