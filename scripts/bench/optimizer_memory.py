"""Measures the peak memory of full fine-tuning with LOMO and AdaLomo beside SGD, AdamW and 8-bit AdamW.

usage: python scripts/bench/optimizer_memory.py [--accelerator cpu] [--hidden 768] [--layers 12] [--repeats 3]

Trains all weights of a random Llama (134 million by default, float32) with `ift`'s own module for a few steps, each
time in a process of its own, the optimizers by turns. The peak is that of the training steps: on the CPU, resident
memory (Linux) less what the process held beside the weights when training began; on a GPU, what torch has allocated.
Prints the medians, and how many times the weights' own size they are.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import memory  # the benchmark beside this one: its records and tokenizer

VOCABULARY = 32_000
EXAMPLES_PER_STEP = 4
MIB = 2**20
FUSED = "ift.training.fused_optimizers"
OPTIMIZERS: dict[str, tuple[str, float | None]] = {
    "Lomo": (f"{FUSED}.Lomo", None),
    "Lomo, clipped": (f"{FUSED}.Lomo", 1.0),
    "AdaLomo": (f"{FUSED}.AdaLomo", None),
    "SGD": ("torch.optim.SGD", None),
    "AdamW8bit": ("bitsandbytes.optim.AdamW8bit", None),
    "AdamW": ("torch.optim.AdamW", None),
}
"""Per row of the table, class path and gradient clipping. It is LOMO that clips by another way, in two passes."""


def make_base(folder: Path, hidden: int, layers: int) -> None:
    """Write a random Llama and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    memory.make_tokenizer(folder)
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": hidden * 8 // 3, "num_hidden_layers": layers}
    heads: dict[str, Any] = {"num_attention_heads": hidden // 64, "tie_word_embeddings": False}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads)).save_pretrained(str(folder))


def resident(name: str) -> float:
    """Return `VmRSS` or the peak `VmHWM` of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def weight_mib(module: Any) -> float:
    """Return the size of a model's weights."""
    return float(sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()) / MIB)


def data_of(folder: Path) -> Any:
    """Return the records as the trainer reads them."""
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    return InstructionDataModule(
        [Source(str(folder / "records.jsonl"), "alpaca")],
        str(folder / "base"),
        max_length=memory.MAX_LENGTH,
        global_batch_size=EXAMPLES_PER_STEP,
        micro_batch_tokens=EXAMPLES_PER_STEP * memory.MAX_LENGTH,
        cache_dir=str(folder / "cache"),
    )


def train(name: str, folder: Path, steps: int, accelerator: str) -> dict[str, float]:
    """Train with one optimizer and return the peak of the steps in MiB, and the seconds of a step."""
    import importlib

    import torch
    from lightning.pytorch import Callback, Trainer

    from ift.training.module import InstructionModule

    class Peak(Callback):
        """Forgets the peak of loading when training starts, and the first step, which builds the state, when timing."""

        other, peak, started = 0.0, 0.0, 0.0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if accelerator == "cpu":
                for parameter in pl_module.parameters():
                    parameter.sum()  # reads what was only mapped from the file
                self.other = resident("VmRSS") - weight_mib(pl_module)
                Path("/proc/self/clear_refs").write_text("5")
            else:
                torch.cuda.reset_peak_memory_stats()

        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            self.started = self.started or time.monotonic()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if accelerator == "cpu":
                self.peak = resident("VmHWM") - self.other
            else:
                self.peak = torch.cuda.max_memory_allocated() / MIB

    class_path, clip_norm = OPTIMIZERS[name]
    module_name, _, class_name = class_path.rpartition(".")
    kind = getattr(importlib.import_module(module_name), class_name)
    module = InstructionModule(
        str(folder / "base"),
        lambda parameters: kind(parameters, lr=1e-4),
        gradient_clip_norm=clip_norm,
        gradient_checkpointing=True,
    )
    data = data_of(folder)
    peak = Peak()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator=accelerator, devices=1, max_steps=steps, callbacks=[peak], **options)
    trainer.fit(module, data)
    seconds = (time.monotonic() - peak.started) / (steps - 1)
    return {"peak": peak.peak, "weights": weight_mib(module), "seconds": seconds}


def measure(name: str, folder: Path, steps: int, accelerator: str) -> dict[str, float]:
    """Train in a process of its own."""
    command = [sys.executable, __file__, "--train", name, "--folder", str(folder)]
    command += ["--steps", str(steps), "--accelerator", accelerator]
    # Freed tensors go back to the system at once, so that what is resident is what is needed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(MIB)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(arguments: argparse.Namespace) -> None:
    """Measure every optimizer by turns and print the table."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in OPTIMIZERS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_base(folder / "base", arguments.hidden, arguments.layers)
        memory.write_records(folder / "records.jsonl", 200)
        data_of(folder).load()  # so that no training begins by preparing them
        for _ in range(arguments.repeats):
            for name in OPTIMIZERS:
                found[name].append(measure(name, folder, arguments.steps, arguments.accelerator))
                print(f"{name:<14} {found[name][-1]['peak']:9.1f} MiB", file=sys.stderr, flush=True)
    weights = found["AdamW"][0]["weights"]
    adamw = median(one["peak"] for one in found["AdamW"])
    print(f"{arguments.accelerator}, weights {weights:.0f} MiB, {arguments.repeats} repeats of {arguments.steps} steps")
    print("optimizer       peak MiB    spread   / weights   / AdamW   s/step")
    for name, several in found.items():
        peaks = [one["peak"] for one in several]
        peak, seconds = median(peaks), median(one["seconds"] for one in several)
        spread = max(peaks) - min(peaks)
        print(f"{name:<14} {peak:9.1f} {spread:9.1f} {peak / weights:11.2f} {peak / adamw:9.2f} {seconds:8.2f}")


def main() -> int:
    """Read the command line, and measure or be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--hidden", type=int, default=768, help="width of the model, in 64s (default: 768)")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model (default: 12)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a training, at least 2 (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="trainings with each optimizer (default: 3)")
    parser.add_argument("--train", choices=list(OPTIMIZERS), help="train once and print the peak (used by the script)")
    parser.add_argument("--folder", type=Path, help="with --train: folder of base model and records")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps: {arguments.steps} is less than 2; the first step is not timed")
    if arguments.train:
        print(json.dumps(train(arguments.train, arguments.folder, arguments.steps, arguments.accelerator)))
        return 0
    compare(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
