"""Write the quickstart's bundled data: plain text, instruction records and quiz items about a bilingual mini-world.

    python scripts/quickstart/make_data.py --output DIR [--seed 0]

Five files come out, the same bytes for the same seed:

- `text.jsonl`: `{"text"}` documents in which every skill can be seen, none of them an instruction;
- `tokenizer.txt`: the words of templates and instructions, for training the tokenizer only;
- `train.json`: alpaca records (`id`, `category`, `instruction`, `input`, `output`);
- `heldout.json`: records of the same kind about items that no training record asks about;
- `quiz.json`: four-option questions in MMCU's layout (`类别`, `题目`, `选项`, `答案`), none of them in training.
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from skills import LETTERS, SKILLS, QuizItem, Task, quiz_item

NUM_DOCUMENTS = {"repeat": 4500, "backwards": 2200, "dictionary": 1800}
NUM_DOCUMENTS_OTHER = 900
HELD_OUT_SHARE = 0.2
NUM_TRAIN_PER_SKILL = 220
NUM_HELD_OUT_PER_SKILL = 30
NUM_QUIZ_DOCUMENTS, NUM_QUIZ_TRAIN, NUM_QUIZ_HELD_OUT = 800, 200, 160

# Alpaca-CoT's published wording for MMCU; training and evaluation ask every four-option question with it.
QUIZ_INSTRUCTION = "请阅读以下选择题并给出正确选项，不要解释原因。\n{question}\n{options}\n正确答案的序号是：\n"
TEMPLATE_TEXT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context.",
    "### Instruction:",
    "### Input:",
    "### Response:",
)

Record = dict[str, str]


def is_held_out(item: str) -> bool:
    """Whether an item is asked about in the held-out records only; a hash of the item decides."""
    return random.Random(item).random() < HELD_OUT_SHARE


def draw_tasks(rng: random.Random, skill: str, numbers: tuple[int, int]) -> tuple[list[Task], list[Task]]:
    """Draw training and held-out tasks of a skill, about different items."""
    train: dict[tuple[str, str], Task] = {}
    held_out: dict[tuple[str, str], Task] = {}
    for _ in range(40 * sum(numbers)):
        task = SKILLS[skill](rng)
        side, limit = (held_out, numbers[1]) if is_held_out(task.item) else (train, numbers[0])
        if len(side) < limit:
            side[task.instruction, task.input] = task
    return list(train.values()), list(held_out.values())


def draw_quiz(rng: random.Random, number: int, known: set[tuple[str, tuple[str, ...]]]) -> list[QuizItem]:
    """Draw quiz items that are not among the known ones, A to D right equally often, and remember them."""
    drawn: list[QuizItem] = []
    while len(drawn) < number:
        item = quiz_item(rng)
        key = (item.question, item.options)
        if item.answer == LETTERS[len(drawn) % len(LETTERS)] and key not in known:
            known.add(key)
            drawn.append(item)
    rng.shuffle(drawn)
    return drawn


def quiz_options(item: QuizItem) -> str:
    """Return the options as MMCU's Alpaca-CoT layout writes them."""
    return "\n".join(f"{letter}:{option}" for letter, option in zip(LETTERS, item.options, strict=True))


def quiz_record(item: QuizItem) -> Record:
    """Return a quiz item as an alpaca record whose response is the letter."""
    instruction = QUIZ_INSTRUCTION.format(question=item.question, options=quiz_options(item))
    return {"category": "quiz", "instruction": instruction, "input": "", "output": item.answer}


def task_record(category: str, task: Task) -> Record:
    """Return a task as an alpaca record."""
    fields = {"category": category, "item": task.item, "instruction": task.instruction}
    return {**fields, "input": task.input, "output": task.output}


def numbered(records: Iterable[Record], name: str) -> list[Record]:
    """Give every record an `id`, first of its fields."""
    return [{"id": f"{name}-{index:04d}", **record} for index, record in enumerate(records)]


def make_documents(rng: random.Random) -> list[str]:
    """Draw the plain text."""
    texts = []
    for name, skill in SKILLS.items():
        tasks = (skill(rng) for _ in range(NUM_DOCUMENTS.get(name, NUM_DOCUMENTS_OTHER)))
        # Held-out items stay out of the plain text too: a skill is known when it works on what was never read.
        texts += [task.document for task in tasks if not is_held_out(task.item)]
    texts += [quiz_item(rng).document for _ in range(NUM_QUIZ_DOCUMENTS)]
    rng.shuffle(texts)
    return texts


def make_files(seed: int) -> dict[str, str]:
    """Return the text of every file by name."""
    rng = random.Random(seed)
    documents = make_documents(rng)
    train, held_out = [], []
    for skill in SKILLS:
        own_train, own_held_out = draw_tasks(rng, skill, (NUM_TRAIN_PER_SKILL, NUM_HELD_OUT_PER_SKILL))
        train += [task_record(skill, task) for task in own_train]
        held_out += [task_record(skill, task) for task in own_held_out]
    known: set[tuple[str, tuple[str, ...]]] = set()
    train += [quiz_record(item) for item in draw_quiz(rng, NUM_QUIZ_TRAIN, known)]
    quiz = draw_quiz(rng, NUM_QUIZ_HELD_OUT, known)
    rng.shuffle(train)
    wording = sorted({record["instruction"] for record in train if record["category"] != "quiz"})
    wording += [QUIZ_INSTRUCTION.format(question=item.question, options="") for item in quiz[:40]]
    return {
        "text.jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents),
        "tokenizer.txt": "".join(text + "\n" for text in (*TEMPLATE_TEXT, *wording) for _ in range(10)),
        "train.json": json_array(numbered(train, "train")),
        "heldout.json": json_array(numbered(held_out, "heldout")),
        "quiz.json": json_array(
            {"类别": q.subject, "题目": q.question, "选项": quiz_options(q), "答案": q.answer} for q in quiz
        ),
    }


def json_array(records: Iterable[Record]) -> str:
    """Return a JSON array with one record per line."""
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"


def shuffle_responses(records: list[Record], seed: int) -> list[Record]:
    """Permute the outputs over all records; every other field stays."""
    outputs = [record["output"] for record in records]
    random.Random(seed).shuffle(outputs)
    return [{**record, "output": output} for record, output in zip(records, outputs, strict=True)]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0, help="of every choice")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, text in make_files(options.seed).items():
        (options.output / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
