r"""Reads the example pages of Chinese-LLaMA-Alpaca, in which several systems answer the same prompts and are scored.

A comparison is a folder of Markdown pages, one per task (`QA.md`, ...), or the same as JSON lines with `task`, `idx`,
`prompt`, `outputs` and `scores` per sample. A page holds a table of scores (one row per system, columns `#1`, `#2`, ...
after a total) and then the samples: rows of a table, or, for longer code, a heading `**1、prompt**` followed by
`system:` and a fenced block for each system. Cells write a line break as `<br/>` and a bar as `\|`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.rows import Row, read_rows
from ift.errors import UserError

TASKS = (
    "QA",
    "OQA",
    "REASONING",
    "LITERATURE",
    "ENTERTAINMENT",
    "GENERATION",
    "TRANSLATION",
    "DIALOGUE",
    "CODE",
    "ETHICS",
)
"""In the order of the published tables; each is the name of a page."""

_BREAK = re.compile(r"\s*<br\s*/?>", flags=re.IGNORECASE)
_BAR = re.compile(r"(?<!\\)\|")
_HEADING = re.compile(r"^\*\*(\d+)\s*[、.．]\s*(.*?)\*\*\s*$", flags=re.DOTALL)
_FENCE = re.compile(r"^(`{3,})")


@dataclass(frozen=True)
class Sample:
    """One prompt of a task, with what the compared systems answered and got."""

    task: str
    index: int
    """Number in its task, from 1."""
    prompt: str
    """Line breaks as such; of a dialogue only its topic, which may be empty."""
    outputs: Mapping[str, str]
    """By system, where the page or file has them; of a dialogue the transcript, its user's lines behind `>`."""
    scores: Mapping[str, float]
    """By system, from 0 to 10."""

    @property
    def turns(self) -> tuple[str, ...]:
        """The user's messages: the prompt, or for a dialogue those of the first system's transcript."""
        if self.prompt and self.task != "DIALOGUE":
            return (self.prompt,)
        lines = next(iter(self.outputs.values()), "").split("\n")
        turns = tuple(line[1:].strip() for line in lines if line.startswith(">"))
        if not turns:
            raise UserError(
                f"--data: {self.task} {self.index} is a conversation, and its first output holds no line of the user, "
                "behind '>'. Mend the page or the file."
            )
        return turns


def read_comparison(path: Path) -> list[Sample]:
    """Read a folder of pages, one page, or JSON lines, in the order of the tasks.

    Raises:
        UserError: nothing of the kind, a task that is none of the ten, or a page whose tables do not fit together.
    """
    if path.is_dir():
        pages = [path / f"{task}.md" for task in TASKS if (path / f"{task}.md").is_file()]
        if not pages:
            names = f"{TASKS[0]}.md … {TASKS[-1]}.md"
            raise UserError(f"--data: {path} holds no page {names}. Give the folder of one comparison.")
        return [sample for page in pages for sample in read_page(page)]
    if path.suffix == ".md":
        return read_page(path)
    samples: dict[tuple[str, int], Sample] = {}
    for row in read_rows(path):
        sample = _from_row(row)
        if samples.setdefault((sample.task, sample.index), sample) is not sample:
            raise UserError(f"{row.place}: {sample.task} {sample.index} occurs twice. Number a task's samples from 1.")
    return sorted(samples.values(), key=lambda sample: TASKS.index(sample.task))


def read_page(path: Path) -> list[Sample]:
    """Read the page of one task, named after it."""
    _check_task(str(path), path.stem)
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    scores = _scores(path, lines)
    systems = list(scores)
    found = {index: (prompt, outputs) for index, prompt, outputs in _samples(path, lines, systems)}
    counts = {name: len(row) for name, row in scores.items()}
    if set(counts.values()) != {len(found)} or sorted(found) != list(range(1, len(found) + 1)):
        numbers = f"{len(found)} samples, numbered {sorted(found)}"
        raise UserError(f"{path}: {numbers}, but scores for {counts}. Mend the page.")
    return [
        Sample(path.stem, index, *found[index], {name: row[index - 1] for name, row in scores.items()})
        for index in sorted(found)
    ]


def _check_task(place: str, task: str) -> None:
    if task not in TASKS:
        raise UserError(f"{place}: '{task}' is no task of this benchmark. The tasks are {', '.join(TASKS)}.")


def _from_row(row: Row) -> Sample:
    task, index = row.text("task"), row.fields.get("idx")
    _check_task(row.place, task)
    outputs, scores = row.fields.get("outputs") or {}, row.fields.get("scores") or {}
    if not isinstance(index, int) or not isinstance(outputs, dict) or not isinstance(scores, dict):
        raise UserError(f"{row.place}: a sample needs a number 'idx' and objects 'outputs' and 'scores', by system.")
    return Sample(
        task,
        index,
        _prompt(row.text("prompt")),
        {name: _text(output) for name, output in outputs.items() if output is not None},
        {name: float(score) for name, score in scores.items()},
    )


def _text(cell: str) -> str:
    return _BREAK.sub("\n", cell).replace("\\|", "|").strip()


def _prompt(cell: str) -> str:
    text = _text(cell)
    return "" if text == "-" else text


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in _BAR.split(line.strip())[1:-1]]


def _scores(path: Path, lines: list[str]) -> dict[str, list[float]]:
    """Return the scores by system, from the first table of the page."""
    table = _table(lines)
    if len(table) < 2 or table[0][2:3] != ["#1"]:
        raise UserError(
            f"{path}: no table of scores, whose first row would be '| | total | #1 | #2 | …'. Mend the page."
        )
    try:
        return {row[0].strip("* "): [float(cell) for cell in row[2:]] for row in table[1:]}
    except ValueError as error:
        raise UserError(f"{path}: a score is no number ({error}). Mend the table of scores.") from error


def _table(lines: list[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            rows.append(_cells(line))
        elif rows:
            break
    return [row for row in rows if not all(set(cell) <= set(":- ") for cell in row)]


def _samples(path: Path, lines: list[str], systems: list[str]) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yield number, prompt and outputs of each sample, from the part of the page below the scores."""
    start = next((number for number, line in enumerate(lines) if line.startswith("## 测试样例")), None)
    if start is None:
        raise UserError(f"{path}: no heading '## 测试样例', under which the samples stand. Mend the page.")
    lines = lines[start:]
    for line in lines:
        cells = _cells(line) if line.startswith("|") else []
        if len(cells) == 2 + len(systems) and cells[0].isdigit():
            outputs = dict(zip(systems, map(_text, cells[2:]), strict=True))
            yield int(cells[0]), _prompt(cells[1]), outputs
    yield from _blocks(lines, systems)


def _blocks(lines: list[str], systems: list[str]) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yield the samples written as headings and fenced blocks."""
    heading: tuple[int, str] | None = None
    outputs: dict[str, str] = {}
    name = fence = ""
    for line in lines:
        found = None if fence else _HEADING.match(line)
        if found:
            if heading:
                yield *heading, outputs
            heading, outputs, name = (int(found[1]), _prompt(found[2])), {}, ""
        elif not heading:
            continue
        elif fence:
            if line.strip() == fence:
                fence = ""
            else:
                outputs[name] = outputs[name] + "\n" + line if outputs.get(name) else line
        elif line.strip().rstrip(":：").strip("* ") in systems:
            name = line.strip().rstrip(":：").strip("* ")
        elif name and (mark := _FENCE.match(line)):
            fence = mark[1]
    if heading:
        yield *heading, outputs
