"""Measures how long a run takes to its first optimizer step when its data is prepared already, with few and many rows.

usage: python scripts/bench/second_start.py [--small 1000] [--large 300000] [--rounds 5]

For each size it writes generated alpaca records, prepares them once, then starts `ift fit` for one step again and
again; the two sizes take turns, and the median of the ratios counts. The model is a random Llama of a few thousand
parameters, so that what is measured is the start. The first start is printed beside it, for what the second saves.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]


def make_base(folder: Path) -> Path:
    """Write a tiny random Llama with a tokenizer trained on digits and a few words."""
    text = folder / "text.txt"
    lines = [f"Write the number {number} backwards. The answer is {str(number)[::-1]}." for number in range(300)]
    text.write_text("\n".join(lines) + "\n### Instruction: ### Response: Below is a task.\n", encoding="utf-8")
    command = ["-m", "tokenizer", "train", "--input", text, "--output", folder / "base", "--vocab-size", "320"]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "base"))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(str(folder / "base"))
    return folder / "base"


def write_rows(path: Path, number: int) -> None:
    """Write generated alpaca records, one per line."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            row = {"instruction": f"Write the number {i} backwards.", "input": "", "output": str(i)[::-1]}
            file.write(json.dumps(row) + "\n")


def seconds_to_fit(folder: Path, base: Path, name: str) -> float:
    """Run one step and return the seconds of the whole process."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    settings = {
        "run_dir": folder / "run",
        "trainer.max_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.enable_progress_bar": False,
        "model.base": base,
        "model.optimizer": "torch.optim.SGD",
        "model.optimizer.lr": 0.1,
        "data.sources": json.dumps([{"path": str(folder / f"{name}.jsonl"), "layout": "alpaca"}]),
        "data.max_length": 256,
        "data.global_batch_size": 32,
        "data.micro_batch_tokens": 4096,
        "data.cache_dir": folder / "cache",
    }
    arguments = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ift", "fit", *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print first and second starts, and the ratio of the second ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--large", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_base(folder)
        sizes = {"small": arguments.small, "large": arguments.large}
        for size, number in sizes.items():
            write_rows(folder / f"{size}.jsonl", number)
            print(f"first start, {number:>9,} rows   {seconds_to_fit(folder, base, size):7.2f} s")
        times = [{size: seconds_to_fit(folder, base, size) for size in sizes} for _ in range(arguments.rounds)]
    for size, number in sizes.items():
        print(f"second start, {number:>8,} rows   {statistics.median(one[size] for one in times):7.2f} s")
    ratio = statistics.median(one["large"] / one["small"] for one in times)
    print(f"ratio of second starts             {ratio:7.2f}   (median of {len(times)} rounds)")


if __name__ == "__main__":
    main()
