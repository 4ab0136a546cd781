"""Scores the same multiple-choice questions here and in lm-evaluation-harness, with the same model, in turn.

usage: python scripts/bench/likelihood.py [--shots 0 5] [--options letter text] [--questions N] [--data FOLDER]

Needs `pip install lm_eval==0.4.13`, which the rest of the project does not. The model is a random Llama made here, as
the scores' values do not matter; the questions are made here too, unless FOLDER holds CMMLU's or C-Eval's csv files
(`dev/` and `test/` or `val/`). Both sides read the same texts and the options' texts behind them; tokenization counts
on both sides, loading on neither. lm-evaluation-harness runs with each of several batch sizes first, and then with its
best. Prints questions per second (medians over rounds in which the two take turns), their ratio, and the largest
difference between the two of a log-likelihood. Exits with 1 where that is more than 0.001.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ift.inference.likelihood import Scorer
from ift.inference.prompts import PromptDataModule

LETTERS = "ABCD"
BATCH_SIZES = (1, 4, 8, 16, 32)
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


def score_here(model: Any, path: Path, base: Path, batch_size: int) -> list[float]:
    """Return all scores, from the file to the numbers, as `ift predict` computes them."""
    module = PromptDataModule(str(path), str(base), template="raw", join_options=True, batch_size=batch_size)
    module.load()
    scorer = Scorer(model, rows_at_once=batch_size)
    found: list[float] = []
    for batch in module.predict_dataloader():
        ids = [prompt.ids for prompt in batch.prompts]
        for scores in scorer.scores(ids, [prompt.option_ids for prompt in batch.prompts]):
            found += scores
    return found


def score_there(harness: Any, path: Path) -> list[float]:
    """Return all scores by lm-evaluation-harness's own call for multiple choice."""
    from lm_eval.api.instance import Instance  # type: ignore[import-not-found]

    requests = []
    for line in path.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)
        for number, option in enumerate(prompt["options"]):
            texts = (prompt["messages"][0]["content"], option)
            requests.append(Instance(request_type="loglikelihood", doc={}, arguments=texts, idx=number))
    return [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]


def seconds_of(call: Any) -> tuple[float, list[float]]:
    """Return how long a call takes, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def compare(model: Any, base: Path, path: Path, arguments: argparse.Namespace) -> tuple[float, str]:
    """Return the largest difference of a score, and a line of results."""
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))

    def there(batch_size: int) -> Any:
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu", max_length=4096)
        return lambda: score_there(harness, path)

    def here(batch_size: int) -> Any:
        return lambda: score_here(model, path, base, batch_size)

    best_there = min(BATCH_SIZES, key=lambda size: seconds_of(there(size))[0])
    best_here = min(BATCH_SIZES, key=lambda size: seconds_of(here(size))[0])
    times: dict[str, list[float]] = {"here": [], "there": []}
    scores: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, call in (("here", here(best_here)), ("there", there(best_there))):
            seconds, scores[name] = seconds_of(call)
            times[name].append(seconds)
    number = len(path.read_text(encoding="utf-8").splitlines())
    rates = {name: number / statistics.median(own) for name, own in times.items()}
    ratio = statistics.median(two / one for one, two in zip(times["here"], times["there"], strict=True))
    difference = max(abs(one - two) for one, two in zip(scores["here"], scores["there"], strict=True))
    return difference, (
        f"ift {rates['here']:7.2f} questions/s (batch {best_here}), "
        f"lm_eval {rates['there']:7.2f} (batch {best_there}), ratio {ratio:5.2f}, largest difference {difference:.1e}"
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

        model = LlamaForCausalLM.from_pretrained(str(base), dtype=torch.float32).eval()
        for options in arguments.options:
            for shots in arguments.shots:
                path = Path(folder) / f"{options}-{shots}.jsonl"
                asked = prompts(rows, shots=shots, options=options)
                path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked), encoding="utf-8")
                difference, line = compare(model, base, path, arguments)
                worst = max(worst, difference)
                print(f"{options:<6} {shots}-shot: {line}", flush=True)
    return 1 if worst > 1e-3 else 0


if __name__ == "__main__":
    sys.exit(main())
