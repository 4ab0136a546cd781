"""Measures how well `ift plan` predicts the peak memory of training, on random models of a few sizes.

usage: python scripts/bench/plan_accuracy.py [--accelerator cpu] [--repeats 1] [--only NAME]

Predicts each case as `ift plan` does, before anything is loaded, and trains it for two steps in a process of its own.
The measured peak is that of the steps: on the CPU, resident memory (Linux) less what the process held beside the
weights when training began; on a GPU, what torch has allocated. Prints predicted and measured peaks, and the error of
each: positive where more was predicted than was needed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import memory  # the benchmarks beside this one: records and tokenizer,
import optimizer_memory  # and how resident memory is read

from ift.small_objects import settings_for_start

STEPS = 2
PARTS = ("weights", "gradients", "optimizer", "activations", "logits")
MIB = 2**20
WARM = "warm"
"""A model that is trained first in each process, so that libraries are loaded when the measurement begins."""
SIZES: dict[str, dict[str, Any]] = {
    WARM: {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 2000, "intermediate_size": 128},
    "10M": {"hidden_size": 256, "num_hidden_layers": 8, "vocab_size": 8_000, "intermediate_size": 688},
    "30M": {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 49_954, "intermediate_size": 688},
    "60M": {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 32_000, "intermediate_size": 1376},
    "134M": {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 32_000, "intermediate_size": 2048},
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "vocab_size": 100_000,
        "intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
    "neox": {
        "model_type": "gpt_neox",
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "vocab_size": 16_000,
        "intermediate_size": 2048,
    },
    "deep": {"hidden_size": 320, "num_hidden_layers": 20, "vocab_size": 5_000, "intermediate_size": 864},
}
"""Llamas, unless another `model_type` is named."""
CASES: dict[str, dict[str, Any]] = {
    "30M lora": {"size": "30M", "adapter": "lora"},
    "30M full": {"size": "30M"},
    "60M lora": {"size": "60M", "adapter": "lora", "budget": 2048},
    "60M full": {"size": "60M"},
    "60M full, recomputed": {"size": "60M", "checkpointing": True},
    "10M lora": {"size": "10M", "adapter": "lora", "budget": 2048},
    "10M full": {"size": "10M", "budget": 2048},
    "30M full, bfloat16": {"size": "30M", "dtype": "bfloat16"},
    "60M lora, recomputed": {"size": "60M", "adapter": "lora", "checkpointing": True, "budget": 2048},
    "60M full, SGD": {"size": "60M", "optimizer": "torch.optim.SGD"},
    "60M full, LOMO": {"size": "60M", "optimizer": "ift.training.fused_optimizers.Lomo"},
    "60M last 2 layers": {"size": "60M", "adapter": "freeze"},
    "60M lora, bfloat16": {"size": "60M", "adapter": "lora", "dtype": "bfloat16", "budget": 2048},
    "134M full": {"size": "134M"},
    "134M lora, large budget": {"size": "134M", "adapter": "lora", "budget": 4096},
    "qwen2 lora": {"size": "qwen2", "adapter": "lora"},
    "qwen2 lora, recomputed": {"size": "qwen2", "adapter": "lora", "checkpointing": True, "budget": 4096},
    "qwen2 full": {"size": "qwen2"},
    "neox lora, recomputed": {"size": "neox", "adapter": "lora", "checkpointing": True},
    "neox full": {"size": "neox", "budget": 2048},
    "deep lora, padded": {"size": "deep", "adapter": "lora", "layout": "grouped"},
    "deep lora, recomputed": {"size": "deep", "adapter": "lora", "checkpointing": True},
    "deep full, recomputed": {"size": "deep", "checkpointing": True, "budget": 2048},
    "60M qlora": {"size": "60M", "adapter": "qlora"},
    "134M qlora, recomputed": {"size": "134M", "adapter": "qlora", "checkpointing": True, "budget": 2048},
    "60M lora, recomputed, packed": {
        "size": "60M",
        "adapter": "lora",
        "checkpointing": True,
        "layout": "packed",
        "budget": 4096,
    },
}
"""Defaults: float32, AdamW, a budget of 1024 positions in a micro-batch, nothing recomputed, all weights trained, rows
as `data.row_layout: auto` has them."""


def make_base(folder: Path, size: str) -> None:
    """Write a random model and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    memory.make_tokenizer(folder)
    settings: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": False, **SIZES[size]}
    settings["num_attention_heads"] = settings["hidden_size"] // 64
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).save_pretrained(str(folder))


def write_records(path: Path) -> None:
    """Write records with longer responses than the other benchmarks', up to about 400 tokens."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(400):
            record = memory.record(number)
            record["output"] = " ".join([record["output"]] * (1 + number % 8))
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def module_of(case: dict[str, Any], folder: Path) -> Any:
    """Return the module of a case."""
    import importlib

    from ift.models import methods
    from ift.training.module import InstructionModule

    place, _, name = case.get("optimizer", "torch.optim.AdamW").rpartition(".")
    kind = getattr(importlib.import_module(place), name)
    adapter = case.get("adapter")
    return InstructionModule(
        str(folder / case["size"]),
        lambda parameters: kind(parameters, lr=1e-4),
        adapter=getattr(methods, adapter)() if adapter is not None else None,
        dtype=case.get("dtype", "float32"),
        gradient_clip_norm=None if name == "Lomo" else 1.0,
        gradient_checkpointing=case.get("checkpointing", False),
    )


def data_of(case: dict[str, Any], folder: Path) -> Any:
    """Return the records as the trainer reads them."""
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    return InstructionDataModule(
        [Source(str(folder / "records.jsonl"), "alpaca")],
        str(folder / case["size"]),
        max_length=512,
        global_batch_size=8,
        micro_batch_tokens=case.get("budget", 1024),
        row_layout=case.get("layout", "auto"),
        cache_dir=str(folder / "cache"),
    )


def choose_rows(module: Any, data: Any, accelerator: str) -> None:
    """Lay out rows as `ift fit` does."""
    from dataclasses import replace

    from ift.models.adapters import peft_config_of
    from ift.models.packing import choose_row_layout

    options: dict[str, Any] = {"base": module.base, "adapter": peft_config_of(module.method)}
    device = "cpu" if accelerator == "cpu" else None
    choice = choose_row_layout("data.row_layout", data.row_layout, device=device, **options)
    data.row_layout_choice = replace(choice, whole_step=module.optimizer_traits.fused)


def train(case: dict[str, Any], folder: Path, accelerator: str) -> float:
    """Train for a few steps and return the peak in MiB."""
    import torch
    from lightning.pytorch import Callback, Trainer

    class Peak(Callback):
        """Forgets the peak of loading when training starts."""

        other, peak = 0.0, 0.0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if accelerator == "cpu":
                for parameter in pl_module.parameters():
                    parameter.sum()  # reads what was only mapped from the file
                self.other = optimizer_memory.resident("VmRSS") - optimizer_memory.weight_mib(pl_module)
                Path("/proc/self/clear_refs").write_text("5")
            else:
                torch.cuda.reset_peak_memory_stats()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if accelerator == "cpu":
                self.peak = optimizer_memory.resident("VmHWM") - self.other
            else:
                self.peak = torch.cuda.max_memory_allocated() / MIB

    peak = Peak()
    for one in ({**case, "size": WARM}, case):
        module, data = module_of(one, folder), data_of(one, folder)
        module.check()
        choose_rows(module, data, accelerator)
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator=accelerator, devices=1, max_steps=STEPS, callbacks=[peak], **options)
        trainer.fit(module, data)
    return peak.peak


def predict(case: dict[str, Any], folder: Path, accelerator: str) -> dict[str, float]:
    """Return the predicted peak and its parts in MiB."""
    from dataclasses import asdict

    from ift.training.memory_plan import ONE_DEVICE
    from ift.training.run_plan import RunPlanner
    from ift.training.step_shapes import counted_shapes

    module, data = module_of(case, folder), data_of(case, folder)
    module.check()
    choose_rows(module, data, accelerator)
    data.load()
    planner = RunPlanner(module, precision="32-true", on_gpu=accelerator != "cpu")
    vocabulary, width = planner.widths()
    shapes = counted_shapes(data, world_size=1, vocabulary=vocabulary, width=width, num_steps=STEPS)
    parts = planner.memory(planner.own, shapes).parts(ONE_DEVICE, 1)
    return {"total": parts.total / MIB, **{name: value / MIB for name, value in asdict(parts).items()}}


def in_own_process(task: str, name: str, folder: Path, accelerator: str) -> Any:
    """Train or predict in a process of its own, and return what it printed."""
    command = [sys.executable, __file__, task, name, "--folder", str(folder), "--accelerator", accelerator]
    # As `ift fit` has it.
    environment = {**(settings_for_start() or os.environ), "THP_MEM_ALLOC_ENABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace) -> None:
    """Predict and measure every case and print the table."""
    names = [name for name in CASES if arguments.only in name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in {WARM, *(CASES[name]["size"] for name in names)}:
            make_base(folder / size, size)
        write_records(folder / "records.jsonl")
        errors = []
        print(
            f"{'':<34} {'predicted':>9} {'measured':>9} {'error':>7}   weights gradients optimizer activations logits"
        )
        for name in names:
            found = in_own_process("--predict", name, folder, arguments.accelerator)
            peaks = [in_own_process("--train", name, folder, arguments.accelerator) for _ in range(arguments.repeats)]
            errors.append(found["total"] / median(peaks) - 1)
            told = " ".join(f"{found[part]:11.0f}" for part in PARTS)
            print(f"{name:<34} {found['total']:9.0f} {median(peaks):9.0f} {errors[-1]:+7.1%} {told}", flush=True)
    print(f"MiB; error {min(errors):+.1%} to {max(errors):+.1%}, {len(errors)} cases, {arguments.repeats} repeats")


def main() -> int:
    """Read the command line, and measure or be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--repeats", type=int, default=1, help="trainings of each case (default: 1)")
    parser.add_argument("--only", default="", help="cases whose names hold this (default: all)")
    parser.add_argument("--train", choices=list(CASES), help="train once and print the peak (used by the script)")
    parser.add_argument("--predict", choices=list(CASES), help="print a prediction (used by the script)")
    parser.add_argument("--folder", type=Path, help="with these two: folder of base models and records")
    arguments = parser.parse_args()
    if arguments.train:
        print(train(CASES[arguments.train], arguments.folder, arguments.accelerator))
        return 0
    if arguments.predict:
        print(json.dumps(predict(CASES[arguments.predict], arguments.folder, arguments.accelerator)))
        return 0
    compare(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
