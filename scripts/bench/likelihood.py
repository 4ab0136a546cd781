"""Scores the same multiple-choice questions here and in lm-evaluation-harness, with the same model, in turn.

usage: python scripts/bench/likelihood.py [--shots 0 5] [--options letter text] [--questions N] [--data FOLDER]

Needs `pip install lm_eval==0.4.13`, which the rest of the project does not. The model is a random Llama made here, as
the scores' values do not matter; the questions are made here too, unless FOLDER holds CMMLU's or C-Eval's csv files
(`dev/` and `test/` or `val/`). Both sides read the same texts and the options' texts after them; tokenization counts
on both sides, loading on neither. lm-evaluation-harness first runs some questions with each of several batch sizes, and
then all with its best. Prints questions per second (medians over rounds in which the two take turns), their ratio, the
ratio of CPU time (which other work on the machine changes little), and the largest difference between the two of a
log-likelihood. Exits with 1 where that is more than 0.001.
"""

import argparse
import csv
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ift.data.conversation import Conversation, Message
from ift.data.encoding import Encoder, load_tokenizer
from ift.data.templates import TEMPLATES
from ift.inference.likelihood import Scorer
from ift.inference.prompts import RANKED_AT_ONCE

LETTERS = "ABCD"
BATCH_SIZE = 8
"""Of `ift predict`, its default."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
"""Of lm-evaluation-harness: the best is taken."""
Row = dict[str, str]


def made_rows(subjects: int, questions: int) -> dict[str, tuple[list[Row], list[Row]]]:
    """Return for each subject five examples and some questions, about as long as CMMLU's."""
    rng = random.Random(0)
    words = (
        "河流",
        "石头",
        "灯光",
        "云彩",
        "纸张",
        "绿色",
        "音乐",
        "冬天",
        "面包",
        "电路",
        "细胞",
        "法律",
        "价格",
        "温度",
    )
    asks = ("关于{}与{}的说法，正确的是", "下列哪一项最能说明{}对{}的影响", "在{}条件下，{}通常会发生什么变化")

    def row() -> Row:
        question = rng.choice(asks).format(*("".join(rng.sample(words, rng.randint(1, 6))) for _ in range(2)))
        options = {letter: "".join(rng.sample(words, rng.randint(1, 4))) for letter in LETTERS}
        return {"Question": question, **options, "Answer": rng.choice(LETTERS)}

    return {
        f"科目{number}": ([row() for _ in range(5)], [row() for _ in range(questions)]) for number in range(subjects)
    }


def read_rows(folder: Path, questions: int) -> dict[str, tuple[list[Row], list[Row]]]:
    """Return the same of csv files, for as many subjects as it takes."""
    asked = next(one for name in ("test", "val") if (one := folder / name).is_dir())
    found = {}
    for path in sorted(asked.glob("*.csv")):
        parts = []
        for file in (folder / "dev" / path.name.replace("_val", "_dev"), path):
            with file.open(encoding="utf-8", newline="") as lines:
                parts.append(
                    [{key[:1].upper() + key[1:]: text for key, text in row.items()} for row in csv.DictReader(lines)]
                )
        found[path.stem] = (parts[0], parts[1][:questions])
    return found


def block(row: Row) -> str:
    """Return a question as lm-evaluation-harness words it for C-Eval and CMMLU."""
    return row["Question"].strip() + "".join(f"\n{letter}. {row[letter]}" for letter in LETTERS) + "\n答案："


def prompts(rows: dict[str, tuple[list[Row], list[Row]]], *, shots: int, options: str) -> Iterator[dict[str, Any]]:
    """Yield the prompts with the texts that may follow."""
    for subject, (examples, questions) in rows.items():
        start = f"以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n"
        start += "".join(f"{block(one)} {one['Answer']}\n\n" for one in examples[:shots])
        for number, row in enumerate(questions):
            text = {"role": "user", "content": start + block(row)}
            texts = [f" {letter if options == 'letter' else row[letter].strip()}" for letter in LETTERS]
            yield {"id": f"{subject}-{number}", "messages": [text], "options": texts}


def make_base(folder: Path, texts: Sequence[str], arguments: argparse.Namespace) -> None:
    """Write a random model and, unless one is given, a byte-level tokenizer trained on the texts."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if arguments.tokenizer:
        tokenizer: Any = AutoTokenizer.from_pretrained(arguments.tokenizer)
    else:
        from tokenizers import ByteLevelBPETokenizer

        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts, vocab_size=4000, special_tokens=["</s>"], show_progress=False)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="</s>")
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(arguments.vocabulary, len(tokenizer)),
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        max_position_embeddings=4096,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))


def read_prompts(path: Path) -> list[tuple[str, list[str]]]:
    """Return the text of each prompt and of its options."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["messages"][0]["content"], line["options"]) for line in lines]


def score_here(scorer: Scorer, encoder: Encoder, asked: Sequence[tuple[str, list[str]]]) -> list[float]:
    """Return all scores, from texts to numbers, in the parts in which `ift predict` computes them."""
    found: list[float] = []
    for start in range(0, len(asked), RANKED_AT_ONCE):
        part = asked[start : start + RANKED_AT_ONCE]
        encoded = [encoder.option_ids(Conversation((Message("user", text),)), options) for text, options in part]
        for scores in scorer.scores([ids for ids, _ in encoded], [options for _, options in encoded]):
            found += scores
    return found


def score_there(harness: Any, asked: Sequence[tuple[str, list[str]]]) -> list[float]:
    """Return all scores by lm-evaluation-harness's own call for multiple choice."""
    from lm_eval.api.instance import Instance  # type: ignore[import-not-found]

    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(text, option), idx=number)
        for text, options in asked
        for number, option in enumerate(options)
    ]
    return [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]


@dataclass(frozen=True)
class Run:
    """One pass over all questions."""

    scores: list[float]
    wall_seconds: float
    cpu_seconds: float
    """Of all threads: what the pass would take with the machine to itself, times the threads."""


def run(call: Callable[[], list[float]]) -> Run:
    """Return the result and the cost of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    scores = call()
    return Run(scores, time.perf_counter() - wall, time.process_time() - cpu)


def compare(model: Any, tokenizer: Any, asked: list[tuple[str, list[str]]], rounds: int) -> tuple[float, str]:
    """Return the largest difference of a score, and a line of results."""
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    encoder = Encoder(tokenizer, TEMPLATES["raw"])

    def there(size: int, asked: list[tuple[str, list[str]]]) -> Run:
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device="cpu", max_length=4096)
        return run(lambda: score_there(harness, asked))

    def here(size: int, asked: list[tuple[str, list[str]]]) -> Run:
        scorer = Scorer(model, rows_at_once=size, shares=True)
        return run(lambda: score_here(scorer, encoder, asked))

    some = asked[:: max(1, len(asked) // 24)]
    best_there = min(BATCH_SIZES, key=lambda size: there(size, some).cpu_seconds)
    pairs = [(here(BATCH_SIZE, asked), there(best_there, asked)) for _ in range(rounds)]
    differences = (abs(one - two) for one, two in zip(pairs[0][0].scores, pairs[0][1].scores, strict=True))
    rates = [len(asked) / statistics.median(one.wall_seconds for one in side) for side in zip(*pairs, strict=True)]
    wall = statistics.median(two.wall_seconds / one.wall_seconds for one, two in pairs)
    cpu = statistics.median(two.cpu_seconds / one.cpu_seconds for one, two in pairs)
    difference = max(differences)
    return difference, (
        f"ift {rates[0]:7.2f} questions/s, lm_eval {rates[1]:7.2f} (batch {best_there}), ratio {wall:5.2f} "
        f"(of CPU time {cpu:5.2f}), largest difference {difference:.1e}"
    )


def main() -> int:
    """Run all comparisons and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with dev/ and test/ (or val/) of csv files")
    parser.add_argument("--questions", type=int, default=40, help="per subject")
    parser.add_argument("--subjects", type=int, default=2, help="of questions made here")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 5])
    parser.add_argument("--options", nargs="+", choices=("letter", "text"), default=["letter", "text"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", help="folder of another tokenizer")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    rows = (
        read_rows(arguments.data, arguments.questions)
        if arguments.data
        else made_rows(arguments.subjects, arguments.questions)
    )
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_base(base, [block(row) for parts in rows.values() for part in parts for row in part], arguments)
        from transformers import LlamaForCausalLM

        tokenizer = load_tokenizer("base", str(base))
        model = LlamaForCausalLM.from_pretrained(str(base), dtype=torch.float32).eval()
        for options in arguments.options:
            for shots in arguments.shots:
                path = Path(folder) / f"{options}-{shots}.jsonl"
                asked = prompts(rows, shots=shots, options=options)
                path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked), encoding="utf-8")
                difference, line = compare(model, tokenizer, read_prompts(path), arguments.rounds)
                worst = max(worst, difference)
                print(f"{options:<6} {shots}-shot: {line}", flush=True)
    return 1 if worst > 1e-3 else 0


if __name__ == "__main__":
    sys.exit(main())
