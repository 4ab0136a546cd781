"""Measures the peak resident memory of a merge, in sizes of the model.

usage: python scripts/bench/merge_memory.py [--megabytes 600] [--shard_size 100MB] [--dtype bfloat16]

Makes a random Llama of about that size and a LoRA adapter for it, merges and writes in a process of its own, and prints
the peak beyond what the libraries take before anything is loaded. Exits with 1 where that is more than one copy of the
model, one shard and LIMIT_MEGABYTES.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_MEGABYTES = 150
"""For the adapter, the float32 copies of the matrix at hand, and activations."""
MEGABYTE = 1 << 20


def make(folder: Path, megabytes: int, dtype: str) -> int:
    """Write base model and adapter, and return the bytes of the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    width, vocabulary = 768, 16_000
    size = 2 if dtype == "bfloat16" else 4
    per_layer = (4 * width * width + 3 * width * 4 * width) * size
    layers = max(1, (megabytes * MEGABYTE - 2 * vocabulary * width * size) // per_layer)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(str(folder / "base"))
    total: int = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).save_pretrained(str(folder / "adapter"))
    return total


def merge_and_write(folder: Path, shard_size: str, dtype: str) -> None:
    """Do what `ift merge` does with the model: measure, merge, write, load, measure. Prints both peaks in bytes."""
    import bitsandbytes  # noqa: F401
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM  # noqa: F401

    from ift.models.certificate import Logits, PromptSample
    from ift.models.loading import load_base_model
    from ift.models.merging import merge, write_model

    torch.set_num_threads(1)
    before = peak()
    samples = [PromptSample(list(range(40)), list(range(40, 60)))]
    model = PeftModel.from_pretrained(load_base_model("base", str(folder / "base"), dtype), str(folder / "adapter"))  # type: ignore[arg-type]
    Logits(folder / "one", model, samples, float32=True)
    model = merge("base", model, dtype)  # type: ignore[arg-type]
    write_model(model, folder / "merged", shard_size=shard_size, stop_token_ids=[2], pad_token_id=0)
    del model
    gc.collect()
    Logits(folder / "two", load_base_model("base", str(folder / "merged"), dtype), samples, float32=True)  # type: ignore[arg-type]
    print(peak() - before)


def peak() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    # Not getrusage, whose peak begins with that of the process which started this one.
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--shard_size", default="100MB")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--merge", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.merge is not None:
        merge_and_write(options.merge, options.shard_size, options.dtype)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make(folder, options.megabytes, options.dtype)
        command = [sys.executable, __file__, "--merge", name, "--shard_size", options.shard_size]
        command += ["--dtype", options.dtype]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        shard = max(path.stat().st_size for path in (folder / "merged").glob("*.safetensors"))
    grown = int(result.stdout.split()[-1])
    limit = size + shard + LIMIT_MEGABYTES * MEGABYTE
    print(f"model {size / MEGABYTE:.0f} MB, largest shard {shard / MEGABYTE:.0f} MB")
    print(f"peak beyond the libraries {grown / MEGABYTE:.0f} MB: {grown / size:.2f} models")
    return int(grown > limit)


if __name__ == "__main__":
    raise SystemExit(main())
