"""What all runners of `training.py` train on: a random Llama, records made here, and the steps that ift makes of them.

Comes in: sizes. Goes out: a folder with `base/` (model and tokenizer), `records.jsonl`, `cache/` (ift's prepared
examples) and `steps.pt` (for every optimizer step its examples' ids and labels, in ift's own order).
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LETTERS = "bcdfghjklmnprstvw"
VOWELS = "aeiou"
MAX_LENGTH = 512
EXAMPLES_PER_STEP = 8
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """Of the model."""

    vocabulary: int = 49_954
    hidden: int = 256
    intermediate: int = 688
    layers: int = 4
    heads: int = 4


def small_sizes() -> Sizes:
    """Return sizes for a look whether everything runs."""
    return Sizes(vocabulary=9000, hidden=64, intermediate=128, layers=2)


def words(number: int, generator: random.Random) -> list[str]:
    """Return made-up words, Latin and Chinese by turns."""
    latin = [
        "".join(generator.choice(LETTERS) + generator.choice(VOWELS) for _ in range(generator.randint(1, 4)))
        for _ in range(number // 2)
    ]
    chinese = ["".join(chr(0x4E00 + generator.randrange(3000)) for _ in range(2)) for _ in range(number // 2)]
    return latin + chinese


def records(number: int) -> Iterator[dict[str, str]]:
    """Yield alpaca records in two languages whose lengths spread as those of real ones do."""
    generator = random.Random(SEED)
    known = words(2000, generator)
    latin, chinese = known[: len(known) // 2], known[len(known) // 2 :]
    for count in range(number):
        own, joint = (latin, " ") if count % 2 else (chinese, "")

        def text(mean: float, spread: float, own: list[str] = own, joint: str = joint) -> str:
            length = max(1, round(mean * math.exp(generator.gauss(-spread * spread / 2, spread))))
            return joint.join(generator.choice(own) for _ in range(min(length, 380)))

        context = text(25, 0.6) if generator.random() < 0.3 else ""
        yield {"instruction": text(22, 0.6), "input": context, "output": text(100, 0.8)}


def make_tokenizer(folder: Path, texts: list[str]) -> None:
    """Train a byte-level BPE tokenizer on the records."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(str(folder))


def make_base(folder: Path, sizes: Sizes) -> None:
    """Write a random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))


def ift_settings(folder: Path) -> dict[str, Any]:
    """Return the data settings of a run."""
    return {
        "sources": [{"path": str(folder / "records.jsonl"), "layout": "alpaca"}],
        "max_length": MAX_LENGTH,
        "global_batch_size": EXAMPLES_PER_STEP,
        "micro_batch_tokens": EXAMPLES_PER_STEP * MAX_LENGTH,
        "max_rejected": 0.2,  # those that are too long
        "cache_dir": str(folder / "cache"),
    }


def make_work(folder: Path, sizes: Sizes, *, steps: int) -> dict[str, Any]:
    """Write everything, prepared examples too, and return what it is like."""
    import torch

    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source
    from ift.data.templates import resolve_template

    rows = list(records(EXAMPLES_PER_STEP * (steps + 2) * 5 // 4))
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    make_base(folder / "base", sizes)
    alpaca = resolve_template("", "alpaca")
    template = json.dumps(alpaca.describe()) if alpaca is not None else ""
    make_tokenizer(folder / "base", [*(text for row in records(3000) for text in row.values()), *[template] * 300])
    settings = ift_settings(folder) | {"sources": [Source(str(folder / "records.jsonl"), "alpaca")]}
    data = InstructionDataModule(base=str(folder / "base"), seed=SEED, **settings)
    data.load()
    kept = []
    for step in data.train_dataloader():
        examples = [
            (row_ids[:length], row_labels[:length])
            for batch in step.micro_batches
            for row_ids, row_labels, (length,) in zip(batch.input_ids, batch.labels, batch.lengths, strict=True)
        ]
        kept.append([(ids.clone(), labels.clone()) for ids, labels in examples])
        if len(kept) == steps:
            break
    torch.save(kept, folder / "steps.pt")
    lengths = [len(ids) for step in kept for ids, _ in step]
    supervised = sum(int((labels[1:] >= 0).sum()) for step in kept for _, labels in step)
    return asdict(sizes) | {
        "mean_tokens": sum(lengths) / len(lengths),
        "supervised_share": supervised / sum(lengths),
        "padded_share": 1 - sum(lengths) / sum(len(step) * max(len(ids) for ids, _ in step) for step in kept),
    }
