"""DreamerGPT's tasks: prompts without references, all systems' answers scored by a judge in one message.

Data: a folder of JSON files, each an array of texts, named after its task (`01qa.json`). Eight tasks of ten prompts
were published. The judge sees a prompt with the answers of all systems as System1, System2, … in an order that the seed
rotates, and gives each a score from 0 to 10.

Reported on the scale 0 to 100: a task's score is the mean of its items times 10, which is the published sum of ten
where the judge scored all ten. The published tables have no row over tasks; the headline here is their plain mean.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eval.aggregation import MACRO
from eval.benchmark import Benchmark, Judge, Systems
from eval.judge_reading import read_system_scores
from eval.judged import (
    judge_prompt,
    judged_outcome,
    read_replies,
    response_of,
    rotations,
    share_unread,
    side_by_side,
)
from eval.report import Report, summarize
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

NAME = "dreamergpt"

TASKS = {
    "qa": "知识问答",
    "translate": "翻译",
    "generate": "文本生成",
    "analyse": "情感分析",
    "understanding": "阅读理解",
    "chinese": "中文特色",
    "code": "代码生成",
    "alignment": "伦理、拒答类",
}
"""What the published tables call the task of a file; a file of another name is called as it is."""

# The original message is published only in outline (rate all, out of ten, with reasons); these are our words, and the
# lines at its end are ours, so that the scores can be read.
MESSAGE = """下面是 {count} 个对话系统对同一个提示的回答。
请为每个系统的回答分别打一个总体分数（满分 10 分，最低 0 分），并简要说明理由。

提示：
{prompt}

{answers}

请先逐个说明理由，最后用下面的格式给出分数，每个系统单独一行，此后不要再写其他内容：
{lines}"""


def prepare(path: Path) -> Iterator[PromptRecord]:
    """Yield one prompt per text of every file."""
    for name, (task, prompt) in _read(path).items():
        yield PromptRecord(name, ({"role": "user", "content": prompt},), meta={"category": task})


def ask(systems: Systems, path: Path, seed: int) -> Iterator[PromptRecord]:
    """Yield one message to the judge per prompt, with the answers of all systems."""
    prompts = _read(path)
    items = list(side_by_side(systems))
    for item, order in zip(items, rotations(list(systems), len(items), seed), strict=True):
        answers = [response_of(item.answers[name]).strip() for name in order]
        text = MESSAGE.format(
            count=len(order),
            prompt=prompts[item.id][1],
            answers="\n\n".join(f"System{number}：\n{answer}" for number, answer in enumerate(answers, 1)),
            lines="\n".join(f"System{number}: <0 到 10 的分数>" for number in range(1, len(order) + 1)),
        )
        yield judge_prompt(item.id, text, item=item.id, systems=order)


def score(replies: Sequence[Prediction], systems: Systems, path: Path) -> Mapping[str, Report]:
    """Read every system's score from every reply."""
    prompts = _read(path)
    readings = read_replies(replies, read_system_scores)
    reports = {}
    for name, predictions in systems.items():
        outcomes = [
            judged_outcome(readings, one.id, name, category=prompts[one.id][0], scale=10) for one in predictions
        ]
        reports[name] = summarize(outcomes, predictions, aggregations=(MACRO,), notes=share_unread(outcomes))
    return reports


def _read(path: Path) -> dict[str, tuple[str, str]]:
    """Return task and prompt by id, in the order of the files' names."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--data: {path} holds no .json file. Give the folder with the tasks' files.")
    return {
        f"{NAME}-{file.stem}-{number:02d}": (_task(file), text)
        for file in files
        for number, text in enumerate(_texts(file), 1)
    }


def _task(file: Path) -> str:
    name = re.sub(r"^\d+[-_]?", "", file.stem) or file.stem
    return TASKS.get(name, name)


def _texts(file: Path) -> list[str]:
    try:
        texts = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"--data: {file}: no such file.") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}).") from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{file}: a task's file is a JSON array of prompts, each a text that is not empty.")
    return texts


BENCHMARK = Benchmark(
    NAME,
    "all_systems_in_one_message",
    1,
    "DreamerGPT's tasks: all systems judged from 0 to 10 in one message; a task's score is of 100",
    prepare,
    judge=Judge(ask, score, single=False),
)
