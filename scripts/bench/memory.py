"""Measures the peak resident memory of preparation and of reading a store in training, for few and for many records.

usage: python scripts/bench/memory.py [--few 100000] [--many 2000000] [--steps 200]

Writes alpaca records of about 200 bytes as JSON lines, prepares them in a process of its own, and reads steps of 128
examples out of the store in another, as training does. Both use a small tokenizer made here. Exits with 1 where the
many records take more than LIMIT times the memory of the few.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 1.1
EXAMPLES_PER_STEP = 128
MAX_LENGTH = 256
WORDS = ["river", "stone", "lamp", "cloud", "paper", "green", "seven", "music", "winter", "bread"]
WORDS += ["河流", "石头", "灯光", "云彩", "纸张", "绿色", "音乐", "冬天", "面包", "朋友"]


def record(number: int) -> dict[str, str]:
    """Return the alpaca record of a number; no two are equal."""
    words = [WORDS[(number * 7 + k * k + number // 20) % len(WORDS)] for k in range(4 + number % 9)]
    return {
        "instruction": f"Put item {number} in order and say why.",
        "input": " ".join(words),
        "output": f"{' '.join(sorted(words))}, as {number} asks for.",
    }


def write_records(path: Path, number: int) -> None:
    """Write so many records as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            file.write(json.dumps(record(i), ensure_ascii=False) + "\n")


def make_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer on the first records and write it as transformers reads it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((" ".join(record(i).values()) for i in range(2000)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(str(folder))


def _module(folder: Path, records: Path) -> Any:
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    return InstructionDataModule(
        [Source(str(records), "alpaca")],
        str(folder / "tokenizer"),
        max_length=MAX_LENGTH,
        global_batch_size=EXAMPLES_PER_STEP,
        micro_batch_tokens=8192,
        cache_dir=str(folder / f"cache_{records.stem}"),
    )


def prepare(folder: Path, records: Path, steps: int) -> None:
    """Build the store of the records."""
    _module(folder, records).load()


def train(folder: Path, records: Path, steps: int) -> None:
    """Open the store and read so many steps."""
    module = _module(folder, records)
    module.load()
    for number, step in enumerate(module.train_dataloader()):
        if number == steps:
            break
        assert step.num_tokens, "an empty step"


PHASES: dict[str, Callable[[Path, Path, int], None]] = {"prepare": prepare, "train": train}


def peak_mib() -> float:
    """Return the most memory that this process ever held, in MiB (ru_maxrss is in KiB on Linux, in bytes on macOS)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def measure(phase: str, folder: Path, records: Path, steps: int) -> tuple[float, float]:
    """Run a phase in a process of its own and return its peak in MiB and its seconds."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder), "--records", str(records)]
    done = subprocess.run([*command, "--steps", str(steps)], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1]), time.monotonic() - started


def compare(few: int, many: int, *, steps: int) -> int:
    """Print the peaks of both phases for both numbers of records, and return the exit code."""
    code = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tokenizer(folder / "tokenizer")
        peaks: dict[tuple[str, int], float] = {}
        for number in (few, many):
            records = folder / f"records_{number}.jsonl"
            write_records(records, number)
            print(f"{number:,} records, {records.stat().st_size / 1e6:.0f} MB")
            for phase in PHASES:
                peaks[phase, number], seconds = measure(phase, folder, records, steps)
                print(f"  {phase:<8} {peaks[phase, number]:8.1f} MiB at most, {seconds:6.1f} s", flush=True)
        for phase in PHASES:
            ratio = peaks[phase, many] / peaks[phase, few]
            code = code or int(ratio > LIMIT)
            print(f"{phase:<8} {ratio:5.3f} times the memory; {LIMIT} are allowed")
    return code


def main() -> int:
    """Read the command line, and measure or be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=100_000, help="records of the small store (default: 100000)")
    parser.add_argument("--many", type=int, default=2_000_000, help="records of the large store (default: 2000000)")
    parser.add_argument("--steps", type=int, default=200, help="steps read from each store (default: 200)")
    parser.add_argument("--phase", choices=list(PHASES), help="run one phase and print its peak (used by the script)")
    parser.add_argument("--folder", type=Path, help="with --phase: folder of tokenizer and cache")
    parser.add_argument("--records", type=Path, help="with --phase: file of the records")
    arguments = parser.parse_args()
    if arguments.phase:
        PHASES[arguments.phase](arguments.folder, arguments.records, arguments.steps)
        print(peak_mib())
        return 0
    return compare(arguments.few, arguments.many, steps=arguments.steps)


if __name__ == "__main__":
    sys.exit(main())
