"""The quickstart: a tokenizer, a small base model, LoRA on bundled instructions, and scores before and after.

Every stage is a command of this project; each is printed before it runs, so that any can be repeated by hand.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = Path("scripts/quickstart/data")
sys.path.insert(0, str(ROOT))

from eval.__main__ import main as evaluate  # noqa: E402
from ift.cli import main as ift  # noqa: E402
from tokenizer.__main__ import main as train_tokenizer  # noqa: E402

BENCHMARKS = {"exact_match": "heldout.json", "quiz": "quiz.json"}
DECODING = ["--model.decoding.max_new_tokens", "32"]


class StageError(Exception):
    """A stage ended with an error, which it has printed."""


def stage(program: str, run: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Print a command and run it in this process, which imports torch once instead of nine times."""
    print(f"\n$ {program} {shlex.join(arguments)}", flush=True)
    if run(arguments) != 0:
        raise StageError


def new_folder(wanted: Path) -> Path:
    """Return the wanted folder, or the first free one of that name with a number, as nothing is overwritten."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def train_base(output: Path) -> None:
    """Train a tokenizer and a base model on plain text."""
    from make_base import make_base

    arguments = ["train", "--input", str(DATA / "text.jsonl"), str(DATA / "tokenizer.txt")]
    settings = ["--vocab-size", "700", "--model-type", "unigram", "--character-coverage", "1.0"]
    stage("python -m tokenizer", train_tokenizer, [*arguments, "--output", str(output / "tokenizer"), *settings])
    untrained = output / "untrained"
    print(f"\n$ python scripts/quickstart/make_base.py ... --output {untrained}")
    parameters = make_base(Path("configs/quickstart/base.json"), output / "tokenizer", untrained, seed=0)
    print(f"{untrained}: {parameters:,} parameters")
    paths = ["--run_dir", str(output / "language_model"), "--model.base", str(untrained)]
    stage("ift", ift, ["fit", "--config", "configs/quickstart/language_model.yaml", *paths])


def tune(output: Path, data: Path) -> None:
    """Tune the base model on instructions."""
    paths = ["--run_dir", str(output / "lora"), "--model.base", str(output / "language_model" / "model")]
    source = json.dumps([{"path": str(data / "train.json"), "layout": "alpaca"}])
    other = [] if data == DATA else ["--data.sources", source]
    stage("ift", ift, ["fit", "--config", "configs/quickstart/lora.yaml", *paths, *other])


def score(output: Path, name: str, model: list[str]) -> dict[str, Any]:
    """Predict and score the held-out benchmarks with one model."""
    reports = {}
    for benchmark, file in BENCHMARKS.items():
        data, prompts = str(DATA / file), output / "prompts" / f"{benchmark}.jsonl"
        if not prompts.exists():
            stage("python -m eval", evaluate, ["prepare", benchmark, "--data", data, "--output", str(prompts)])
        folder = output / "predictions" / f"{benchmark}_{name}"
        where = ["--data.path", str(prompts), "--data.batch_size", "32", "--output_dir", str(folder)]
        stage("ift", ift, ["predict", *model, *where, "--trainer.accelerator", "cpu", *DECODING])
        report = output / "reports" / f"{benchmark}_{name}"
        paths = ["--predictions", str(folder / "predictions.jsonl"), "--data", data, "--output", str(report)]
        stage("python -m eval", evaluate, ["score", benchmark, *paths])
        reports[benchmark] = json.loads((report / "report.json").read_text(encoding="utf-8"))["overall"]
    return reports


def table(output: Path, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    validation = json.loads((output / "lora" / "manifest.json").read_text(encoding="utf-8"))["validation"]
    rows = [("held-out validation loss", f"{validation[0]['loss']:.3f}", f"{validation[-1]['loss']:.3f}")]
    for benchmark, label in (("exact_match", "held-out exact match"), ("quiz", "four-option quiz accuracy")):
        cells = [
            f"{100 * one['score']:.1f} % [{100 * one['interval'][0]:.1f}, {100 * one['interval'][1]:.1f}]"
            for one in (before[benchmark], after[benchmark])
        ]
        rows.append((f"{label} (n = {before[benchmark]['n']})", cells[0], cells[1]))
    lines = ["| | before tuning | after tuning |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {name} | {one} | {two} |" for name, one, two in rows)])


def run(options: argparse.Namespace) -> None:
    """Run all stages and print the result."""
    started = time.monotonic()
    output = new_folder(options.output)
    data = DATA
    if options.shuffle_responses:
        from make_data import json_array, shuffle_responses

        data = output / "data"
        data.mkdir(parents=True)
        train = json.loads((DATA / "train.json").read_text(encoding="utf-8"))
        (data / "train.json").write_text(json_array(shuffle_responses(train, seed=0)), encoding="utf-8")
    train_base(output)
    # The template of the tuned run: before and after read the very same prompts.
    base = ["--model.base", str(output / "language_model" / "model"), "--data.template", "plain"]
    before = score(output, "before", base)
    tune(output, data)
    after = score(output, "after", ["--run", str(output / "lora")])
    result = table(output, before, after)
    (output / "result.md").write_text(result + "\n", encoding="utf-8")
    summary = {"before": before, "after": after, "seconds": round(time.monotonic() - started, 1)}
    (output / "result.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"\n{result}\n\n95 % intervals in brackets. Took {summary['seconds']} s.")
    print(f"run folder:  {output / 'lora'}\nadapter:     {output / 'lora' / 'adapter'}")
    print(f"reports:     {output / 'reports'}\ntensorboard: .venv/bin/tensorboard --logdir {output}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="new folder for everything made")
    parser.add_argument(
        "--shuffle-responses", action="store_true", help="train on responses of other instructions: no gain may appear"
    )
    try:
        run(parser.parse_args())
    except StageError:
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
