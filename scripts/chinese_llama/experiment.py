"""Does a merged vocabulary pay? Chinese-LLaMA's stages against training on with the original vocabulary, measured.

A small LLaMA-type model with LLaMA's own tokenizer is trained on English and a tenth of the Chinese documents: the
base. Then two arms go on with the rest of the Chinese documents, each for the same compute (`compute_budget.py`):

original    the recipe of stage 2 (LoRA, embedding and head) with the vocabulary of the base
merged      stage 1 (embedding and head), then stage 2, with a Chinese vocabulary merged into it

Both are scored on Chinese documents that neither model nor vocabulary has seen, in bits per character, which do not
depend on how a text is cut into tokens. At last the merged arm is tuned on instructions, the third stage. Every step is
a command of this project, with a YAML of configs/chinese_llama; each is printed before it runs. The arms run beside one
another, each on one core, and what they say goes to `original.log` and `merged.log`.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from compute_budget import ModelShape, Trained, flops_per_token, steps_within  # noqa: E402
from outcome_table import Arm, Score, outcome  # noqa: E402
from small_base import write_original, write_small_base  # noqa: E402
from text_split import Part, split_texts, whole_text  # noqa: E402

from ift.errors import UserError, exit_code  # noqa: E402

CONFIGS = ROOT / "configs" / "chinese_llama"
INSTRUCTIONS = ROOT / "scripts" / "quickstart" / "data"
RANK = 8


@dataclass(frozen=True)
class Lab:
    """Where everything lies, and the sizes that are the same for all runs."""

    output: Path
    parts: dict[str, Part]
    width: int
    num_layers: int
    length: int
    blocks_per_step: int
    learning_rate: float

    def shape(self, num_rows: int) -> ModelShape:
        """Return the model with so many rows in its head."""
        return ModelShape(self.width, self.width * 8 // 3 // 8 * 8, self.num_layers, num_rows)

    def fit(self, name: str, stage: str, **keys: object) -> Path:
        """Train a stage by its YAML with other sizes, and return the run folder."""
        run = self.output / name
        settings: dict[str, object] = {
            "run_dir": run,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.precision": "32-true",
            "trainer.max_epochs": -1,
            "trainer.val_check_interval": 1.0,
            "trainer.enable_progress_bar": False,
            "model.gradient_checkpointing": False,
            "model.optimizer.init_args.lr": self.learning_rate,
            "data.cache_dir": self.output / "cache",
            "data.validation": None,
            "data.max_length": self.length,
            "data.global_batch_size": self.blocks_per_step,
            "data.micro_batch_tokens": 8 * self.length,
            **keys,
        }
        given = [part for key, value in settings.items() for part in (f"--{key}", _argument(value))]
        from ift.cli import main as ift

        call("ift", ift, ["fit", "--config", str(CONFIGS / f"{stage}.yaml"), *given])
        return run

    def text(self, *parts: str) -> list[dict[str, str]]:
        """Return sources of plain text."""
        return [{"path": str(self.parts[part].path), "layout": "text"} for part in parts]

    def steps(self, flops: float, num_rows: int, trained: Trained) -> int:
        """Return the steps that a budget pays for."""
        per_token = flops_per_token(self.shape(num_rows), trained, length=self.length, rank=RANK)
        return steps_within(flops, per_token, tokens_per_step=self.length * self.blocks_per_step)

    def score(self, name: str, model: list[str]) -> Score:
        """Score the held-out documents with a model, and return what came out."""
        from eval.__main__ import main as evaluate
        from ift.cli import main as ift

        held_out, folder = self.parts["held_out"], self.output / "scores" / name
        prompts, predictions = folder / "prompts.jsonl", folder / "predictions"
        data = ["--data", str(held_out.path)]
        call("python -m eval", evaluate, ["prepare", "perplexity", *data, "--output", str(prompts)])
        places = ["--data.path", str(prompts), "--output_dir", str(predictions)]
        call("ift", ift, ["predict", *model, *places, "--trainer.accelerator", "cpu"])
        predicted, report = predictions / "predictions.jsonl", folder / "report"
        places = ["--predictions", str(predicted), *data, "--output", str(report)]
        call("python -m eval", evaluate, ["score", "perplexity", *places])
        return Score.read(report / "report.json", predicted, characters=held_out.characters)


def call(program: str, main: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Print a command and run it in this process, which imports torch once.

    Raises:
        UserError: it failed, and has said why.
    """
    print(f"\n$ {program} {shlex.join(arguments)}", flush=True)
    if main(arguments) != 0:
        raise UserError(f"`{program} {arguments[0]}` failed, as said above.")


def _argument(value: object) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def make_vocabularies(lab: Lab, base_tokenizer: Path, *, size: int) -> tuple[Path, Path]:
    """Train a Chinese vocabulary and merge it, and return the folders of the original and the merged tokenizer.

    No document that is held out is read.
    """
    from tokenizer.__main__ import main as tokenizer

    chinese, merged = lab.output / "chinese_tokenizer", lab.output / "merged_tokenizer"
    files = [str(lab.parts[name].path) for name in ("base", "train")]
    arguments = ["train", "--input", *files, "--output", str(chinese), "--vocab-size", str(size)]
    call("python -m tokenizer", tokenizer, arguments)
    arguments = ["merge", "--base", str(base_tokenizer), "--add", str(chinese / "tokenizer.model")]
    call("python -m tokenizer", tokenizer, [*arguments, "--output", str(merged)])
    return write_original(base_tokenizer, lab.output / "original_tokenizer"), merged


def make_base(lab: Lab, tokenizer: Path, *, flops: float) -> Path:
    """Train the base on English and its part of the Chinese documents, and return its folder."""
    rows = num_rows(tokenizer)
    untrained = lab.output / "untrained"
    write_small_base(tokenizer, untrained, lab.shape(rows), positions=lab.length)
    keys: dict[str, object] = {
        "model.base": untrained,
        "model.vocabulary": None,
        "model.adapter": None,
        "data.sources": lab.text("english", "base"),
        "trainer.max_steps": lab.steps(flops, rows, "everything"),
    }
    return lab.fit("base", "stage1_embeddings", **keys) / "model"


def original_arm(lab: Lab, base: Path, *, flops: float) -> list[Arm]:
    """Train on with the vocabulary of the base."""
    rows = num_rows(base)
    steps = lab.steps(flops, rows, "lora")
    keys: dict[str, object] = {"model.base": base, "data.sources": lab.text("train"), "trainer.max_steps": steps}
    run = lab.fit("original", "stage2_lora", **keys)
    return [Arm.read("original vocabulary, stage 2", [run], rows, lab.score("original", ["--run", str(run)]))]


def merged_arm(lab: Lab, base: Path, tokenizer: Path, *, flops: float, stage1_share: float) -> list[Arm]:
    """Train both stages with the merged vocabulary."""
    rows = num_rows(tokenizer)
    keys: dict[str, object] = {
        "model.base": base,
        "model.vocabulary.tokenizer": tokenizer,
        "data.sources": lab.text("train"),
        "trainer.max_steps": lab.steps(stage1_share * flops, rows, "embeddings"),
    }
    first = lab.fit("stage1", "stage1_embeddings", **keys)
    keys = {
        "model.base": first / "model",
        "data.sources": lab.text("train"),
        "trainer.max_steps": lab.steps((1 - stage1_share) * flops, rows, "lora"),
    }
    second = lab.fit("stage2", "stage2_lora", **keys)
    scores = [lab.score(run.name, ["--run", str(run)]) for run in (first, second)]
    return [
        Arm.read("merged vocabulary, after stage 1", [first], rows, scores[0]),
        Arm.read("merged vocabulary, stages 1 and 2", [first, second], rows, scores[1]),
    ]


def in_log(log: Path, arm: Callable[..., list[Arm]], *arguments: Any, **options: Any) -> list[Arm]:
    """Run an arm in this process on one core; all that it says goes to a file."""
    import torch

    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    return arm(*arguments, **options)


def tune(lab: Lab, *, steps: int) -> dict[str, Any]:
    """Tune the merged arm on the bundled instructions, and return the held-out losses before and after."""
    source = {name: [{"path": str(INSTRUCTIONS / f"{name}.json"), "layout": "alpaca"}] for name in ("train", "heldout")}
    keys: dict[str, object] = {
        "model.base": lab.output / "stage1" / "model",
        "model.merged_adapters": [str(lab.output / "stage2")],
        "data.sources": source["train"],
        "data.validation": source["heldout"],
        "data.global_batch_size": 16,
        "trainer.num_sanity_val_steps": -1,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
        "trainer.check_val_every_n_epoch": None,
        "samples.num_samples": 2,
    }
    run = lab.fit("instruction", "instruction", **keys)
    found = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["validation"]
    return {"before": found[0]["loss"], "after": found[-1]["loss"], "steps": found[-1]["step"]}


def num_rows(tokenizer: Path) -> int:
    """Return the number of tokens of a tokenizer."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(str(tokenizer)))


def run(options: argparse.Namespace) -> None:
    """Run the experiment and write `outcome.md` and `outcome.json`.

    Raises:
        UserError: a file that is not there, an output that is, or a command that fails.
    """
    started = time.monotonic()
    if options.output.exists():
        raise UserError(f"--output: {options.output} exists, and nothing is overwritten. Give another folder.")
    output = options.output.resolve()
    (output / "text").mkdir(parents=True)
    parts = split_texts(options.chinese, output / "text")
    parts["english"] = whole_text(options.english, output / "text" / "english.jsonl")
    sizes = (options.width, options.layers, options.block, options.blocks_per_step, options.learning_rate)
    lab = Lab(output, parts, *sizes)
    original, merged = make_vocabularies(lab, options.base_tokenizer.resolve(), size=options.vocab_size)
    base = make_base(lab, original, flops=options.base_flops)
    budget = {"flops": options.flops}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:  # two cores: an arm on each
        one = pool.submit(in_log, output / "original.log", original_arm, lab, base, **budget)
        share = {"stage1_share": options.stage1_share}
        other = pool.submit(in_log, output / "merged.log", merged_arm, lab, base, merged, **budget, **share)
        arms = [*one.result(), *other.result()]
    score = lab.score("base", ["--model.base", str(base), "--data.template", "raw"])
    arms.insert(0, Arm.read("base", [output / "base"], num_rows(original), score))
    tuned = tune(lab, steps=options.instruction_steps)
    sizes_told = f"Width {lab.width}, {lab.num_layers} layers, blocks of {lab.length} tokens"
    found = outcome(arms, tuned, sizes=sizes_told, flops=options.flops, seconds=time.monotonic() - started)
    (output / "outcome.md").write_text(found.text, encoding="utf-8")
    (output / "outcome.json").write_text(json.dumps(found.described, indent=2) + "\n", encoding="utf-8")
    print(f"\n{found.text}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--chinese", nargs="+", required=True, metavar="PATH", help="folders or files of Chinese text")
    made.add_argument("--english", nargs="+", required=True, metavar="PATH", help="of English text, for the base")
    made.add_argument("--base-tokenizer", type=Path, required=True, metavar="FILE", help="LLaMA's tokenizer.model")
    made.add_argument("--output", type=Path, default=Path("runs/chinese_llama_small"), help="new folder for all of it")
    made.add_argument("--vocab-size", type=int, default=16_000, help="pieces of the Chinese vocabulary")
    made.add_argument("--flops", type=float, default=2e13, help="compute of each arm")
    made.add_argument("--base-flops", type=float, default=8e12, help="compute of the base")
    made.add_argument("--stage1-share", type=float, default=0.25, help="of the compute of the merged arm")
    made.add_argument("--instruction-steps", type=int, default=50)
    made.add_argument("--width", type=int, default=128)
    made.add_argument("--layers", type=int, default=6)
    made.add_argument("--block", type=int, default=256, help="tokens of a block")
    made.add_argument("--blocks-per-step", type=int, default=4)
    made.add_argument("--learning-rate", type=float, default=2e-3, help="of all stages; small models need more")
    return made


def main() -> int:
    """Run the experiment that the command line asks for."""
    options = parser().parse_args()
    return exit_code(lambda: run(options), debug=False)


if __name__ == "__main__":
    sys.exit(main())
