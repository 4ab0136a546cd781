"""Tables as text: one grid of cells, written for a terminal, as Markdown or as LaTeX."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

_COLUMNS = 110
"""Letters in a line of notes."""
_LONG = 45
"""Rows beyond which a LaTeX table breaks over pages."""
_LATEX = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "$": "\\$",
    "&": "\\&",
    "#": "\\#",
    "_": "\\_",
    "%": "\\%",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "[": "{[}",  # else, at the start of a row, the length of a skip
    "−": "$-$",
    "–": "--",
    "↓": "$\\downarrow$",
}


@dataclass(frozen=True)
class Grid:
    """A table before it is written."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset((0,))
    """Columns of words; the others hold numbers and are aligned right."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the cells to stress."""
    notes: tuple[str, ...] = ()
    """Sentences below it."""


def width(text: str) -> int:
    """Return the columns that a text takes in a terminal: two for a wide character, none for a combining one."""
    return sum(
        0
        if unicodedata.combining(one) or unicodedata.category(one) == "Cf"
        else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )


def terminal(grid: Grid) -> str:
    """Return aligned text."""
    lines = [grid.header, *grid.rows]
    widths = [max(width(line[column]) for line in lines) for column in range(len(grid.header))]
    written = [_aligned(line, widths, grid.left) for line in lines]
    rule = "  ".join("─" * one for one in widths)
    notes = ["", *(line for note in grid.notes for line in wrap(note, _COLUMNS))] if grid.notes else []
    return "\n".join([grid.title, "", written[0], rule, *written[1:], *notes]) + "\n"


def _aligned(line: Sequence[str], widths: Sequence[int], left: frozenset[int]) -> str:
    cells = []
    for column, (text, size) in enumerate(zip(line, widths, strict=True)):
        blanks = " " * (size - width(text))
        cells.append(text + blanks if column in left else blanks + text)
    return "  ".join(cells).rstrip()


def markdown(grid: Grid) -> str:
    """Return a Markdown table under its title."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = line(["---" if column in grid.left else "---:" for column in range(len(grid.header))])
    rows = [
        line(
            [
                f"**{_in_markdown(text)}**" if (row, column) in grid.bold else _in_markdown(text)
                for column, text in enumerate(cells)
            ]
        )
        for row, cells in enumerate(grid.rows)
    ]
    notes = ["", *(f"- {note}" for note in grid.notes)] if grid.notes else []
    return (
        "\n".join([f"## {grid.title}", "", line([_in_markdown(one) for one in grid.header]), rule, *rows, *notes])
        + "\n"
    )


def _in_markdown(text: str) -> str:
    for sign in "\\*_`<":
        text = text.replace(sign, "\\" + sign)
    return text.replace("|", "&#124;").replace("\n", " ")


def latex(grid: Grid) -> str:
    """Return a LaTeX table with the rules of booktabs; a long one breaks over pages."""
    long = len(grid.rows) > _LONG
    columns = "".join("l" if column in grid.left else "r" for column in range(len(grid.header)))
    caption = f"\\caption{{{escape_latex(' '.join([grid.title + '.', *grid.notes]))}}}"
    header = _latex_line(grid.header)
    rows = [
        _latex_line(cells, frozenset(column for own, column in grid.bold if own == row))
        for row, cells in enumerate(grid.rows)
    ]
    if long:
        head = [f"\\begin{{longtable}}{{{columns}}}", caption + " \\\\", "\\toprule", header, "\\midrule", "\\endhead"]
        return "\n".join([*head, *rows, "\\bottomrule", "\\end{longtable}"]) + "\n"
    head = [
        "\\begin{table}",
        "\\centering",
        caption,
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        header,
        "\\midrule",
    ]
    return "\n".join([*head, *rows, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def escape_latex(text: str) -> str:
    """Return the text with every character that LaTeX would take as a command said in words."""
    return "".join(_LATEX.get(one, one) for one in text)


def _latex_line(cells: Sequence[str], bold: frozenset[int] = frozenset()) -> str:
    written = [
        f"\\textbf{{{escape_latex(text)}}}" if column in bold else escape_latex(text)
        for column, text in enumerate(cells)
    ]
    return " & ".join(written) + " \\\\"
