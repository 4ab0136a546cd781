"""Belle-Eval: 1,000 Chinese questions of ten classes, each answer scored by a judge from 0 to 1.

Data: BELLE's folder with `eval_set.json` (`question`, `std_answer`, `class`) and `eval_prompt.json` (`class`,
`prompt`), or the first file with the second beside it; JSON lines as BELLE ships them, or arrays as Alpaca-CoT reads
them. Class names are compared in NFKC, lower case, with white space collapsed, since 337 of the 1,000 questions do not
match the other file literally (`open QA`, `closed qa` with a no-break space); a class without a prompt is an error.

Reported on the scale 0 to 100. `average_10` is Alpaca-CoT's: the plain mean of the classes' means. BELLE's papers merge
math and code into one class "others": `macro_9` with it, `macro_8` without. `micro` is over questions.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eval.aggregation import MACRO, MICRO, Aggregation, Cell, macro
from eval.benchmark import Benchmark, Judge, Systems
from eval.judge_reading import read_class_score
from eval.judged import judge_prompt, judged_outcome, read_replies, response_of, share_unread
from eval.report import Report, summarize
from eval.rows import Row, read_rows
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "belle_eval"
VERSION = 1

CLASSES = (
    "code",
    "open qa",
    "brainstorming",
    "classification",
    "math",
    "generation",
    "summarization",
    "rewrite",
    "closed qa",
    "extract",
)
"""In the order of the columns of Alpaca-CoT's tables."""
WITHOUT_REFERENCE = frozenset({"generation", "brainstorming", "rewrite"})
"""Classes whose references, where there are any, the judge does not see."""
MERGED = frozenset({"math", "code"})
"""BELLE's class "others"."""


@dataclass(frozen=True)
class Wording:
    """How the judge is asked."""

    with_reference: str
    without_reference: str
    system_message: str | None
    cut: Callable[[str], str] = str.strip
    """From the response to what the judge sees of it."""


def cut_at_hashes(response: str) -> str:
    """Return the response up to the first `###`, stripped, as Alpaca-CoT cut it, level-3 headings and all."""
    return response.split("###")[0].strip()


_TAIL = "。请针对模型回答给出得分，顺便给出理由："
# Alpaca-CoT, eval/score.py: gpt-3.5-turbo-0301 at the API's default temperature.
ALPACA_COT = Wording(
    with_reference="{prompt} {question} 标准回答： {reference} 模型回答： '{answer}'" + _TAIL,
    without_reference="{prompt} {question} 模型回答： '{answer}'" + _TAIL,
    system_message="You are a helpful assistant.",
)
ALPACA_COT_CUT = Wording(
    ALPACA_COT.with_reference, ALPACA_COT.without_reference, ALPACA_COT.system_message, cut_at_hashes
)
# BELLE, eval/ChatGPT_Score.html: gpt-3.5-turbo of April 2023, temperature 0, at most 3,000 tokens.
BELLE = Wording(
    with_reference="{prompt} {question} 标准回答:{reference}  模型回答：' {answer}'" + _TAIL,
    without_reference="{prompt} {question}  模型回答： '{answer}'" + _TAIL,
    system_message=None,
)


def average_10(cells: Sequence[Cell]) -> float:
    """Return the plain mean of the classes' means, each class alike whatever its number of questions."""
    return macro(cells)


def macro_9(cells: Sequence[Cell]) -> float:
    """Return the plain mean of the classes' means, the questions of math and code as one class."""
    merged = [cell for cell in cells if cell.category in MERGED]
    others = [cell for cell in cells if cell.category not in MERGED]
    if merged:
        total = sum(cell.total for cell in merged)
        others.append(Cell("others", merged[0].group, sum(cell.n for cell in merged), total))
    return macro(others)


def macro_8(cells: Sequence[Cell]) -> float:
    """Return the plain mean of the classes' means without math and code; NaN where there is no other class."""
    others = [cell for cell in cells if cell.category not in MERGED]
    return macro(others) if others else float("nan")


AVERAGE_10 = Aggregation("average_10", average_10)
MACRO_9 = Aggregation("macro_9", macro_9)
MACRO_8 = Aggregation("macro_8", macro_8)


def class_name(text: str) -> str:
    """Return the name of a class as both files are compared by it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per question: the question and nothing else."""
    rows, prompts = _read(path)
    for row in rows:
        name = _class(row, prompts)
        message = {"role": "user", "content": row.text("question")}
        yield PromptRecord(row.id(NAME), (message,), reference=row.text("std_answer"), meta={"category": name})


def ask(systems: Systems, path: Path, seed: int, *, wording: Wording) -> Iterator[PromptRecord]:
    """Yield one message to the judge per system and answer."""
    rows, prompts = _read(path)
    by_id = {row.id(NAME): row for row in rows}
    for name, predictions in systems.items():
        for one in predictions:
            text = _judge_text(by_id[one.id], prompts, response_of(one), wording)
            yield judge_prompt(
                f"{name}/{one.id}", text, item=one.id, systems=[name], system_message=wording.system_message
            )


def score(
    replies: Sequence[Prediction], systems: Systems, path: Path, *, headline: Aggregation
) -> Mapping[str, Report]:
    """Read the score of every reply, and average it in all the ways."""
    rows, prompts = _read(path)
    classes = {row.id(NAME): _class(row, prompts) for row in rows}
    readings = read_replies(replies, lambda reply, _: [read_class_score(reply)])
    reports = {}
    for name, predictions in systems.items():
        outcomes = [judged_outcome(readings, one.id, name, category=classes[one.id], scale=100) for one in predictions]
        averages = (headline, AVERAGE_10, MACRO_9, MACRO_8, MICRO, MACRO)
        report = summarize(outcomes, predictions, aggregations=averages, notes=share_unread(outcomes))
        order = [*CLASSES, *report.categories]
        columns = sorted(report.categories.items(), key=lambda column: order.index(column[0]))
        reports[name] = replace(report, categories=dict(columns))
    return reports


def _read(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Return the questions, and the judge's instruction by class."""
    questions = path / "eval_set.json" if path.is_dir() else path
    instructions = questions.with_name("eval_prompt.json")
    if not instructions.is_file():
        raise UserError(
            f"--data: no {instructions.name} beside {questions}; it instructs the judge. Put BELLE's file there."
        )
    prompts: dict[str, str] = {}
    for row in read_rows(instructions):
        name = class_name(row.text("class"))
        if prompts.setdefault(name, row.text("prompt")) != row.text("prompt"):
            raise UserError(f"{row.place}: the class '{name}' has another prompt already. Keep one of the two.")
    return read_rows(questions), prompts


def _class(row: Row, prompts: Mapping[str, str]) -> str:
    name = class_name(row.text("class"))
    if name not in prompts:
        known = ", ".join(f"'{one}'" for one in prompts)
        raise UserError(
            f"{row.place}: the class '{name}' has no prompt in eval_prompt.json, which knows {known}. Add one for it."
        )
    return name


def _judge_text(row: Row, prompts: Mapping[str, str], response: str, wording: Wording) -> str:
    name = _class(row, prompts)
    pattern = wording.without_reference if name in WITHOUT_REFERENCE else wording.with_reference
    return pattern.format(
        prompt=prompts[name],
        question=row.text("question"),
        reference=row.text("std_answer"),
        answer=wording.cut(response),
    )


def _benchmark(
    protocol: str,
    description: str,
    wording: Wording,
    headline: Aggregation = AVERAGE_10,
    protocols: Mapping[str, Benchmark] | None = None,
) -> Benchmark:
    judge = Judge(partial(ask, wording=wording), partial(score, headline=headline))
    return Benchmark(NAME, protocol, VERSION, description, prepare, protocols=protocols or {}, judge=judge)


_CUT = _benchmark("alpaca_cot_cut", "the same, answers cut at '###' as Alpaca-CoT did", ALPACA_COT_CUT)
_BELLE = _benchmark("belle", "BELLE's own wording, without system message; mean of 9 classes", BELLE, MACRO_9)
BENCHMARK = _benchmark(
    "alpaca_cot",
    "1,000 Chinese questions of ten classes, each answer judged from 0 to 1; mean of classes x 100",
    ALPACA_COT,
    protocols={one.protocol: one for one in (_CUT, _BELLE)},
)
