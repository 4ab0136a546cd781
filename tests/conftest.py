"""Tiny real things for tests: tokenizers trained here, models made from a config, data written here."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

ROOT = Path(__file__).parent.parent

WORDS = ["river", "stone", "lamp", "cloud", "paper", "green", "seven", "music", "winter", "bread"]
CHINESE = ["河流", "石头", "灯光", "云彩", "纸张", "绿色", "音乐", "冬天", "面包", "朋友"]


def make_rows(number: int, *, start: int = 0) -> list[dict[str, str]]:
    """Return alpaca rows of varied length, half of them with an input, in two languages."""
    rows = []
    for i in range(start, start + number):
        words = [WORDS[(i * 3 + k) % 10] for k in range(1 + i % 7)]
        chinese = [CHINESE[(i + k) % 10] for k in range(1 + i % 4)]
        if i % 2:
            rows.append({"instruction": f"Repeat item {i}.", "input": " ".join(words), "output": " ".join(words)})
        else:
            rows.append(
                {"instruction": f"请重复第{i}项：{'、'.join(chinese)}", "input": "", "output": "，".join(chinese)}
            )
    return rows


def write_json(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bit-for-bit comparisons need one way to add numbers up."""
    yield


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece tokenizer trained by this project's own program."""
    from tokenizer.__main__ import main

    folder = tmp_path_factory.mktemp("tokenizer")
    rows = make_rows(60)
    text = "\n".join(f"{row['instruction']} {row['input']} {row['output']}" for row in rows)
    (folder / "text.txt").write_text(text + "\nBelow is an instruction. ### Response: ### Input:\n", encoding="utf-8")
    target = folder / "spm"
    assert main(["train", "--input", str(folder / "text.txt"), "--output", str(target), "--vocab-size", "420"]) == 0
    return target


def make_llama(folder: Path, vocabulary: int, **settings: Any) -> Path:
    """Write a tiny random Llama with a seeded initialisation."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **settings,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A tiny random Llama with its tokenizer, in one folder."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("base") / "llama"
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    make_llama(folder, len(tokenizer))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """Forty alpaca rows."""
    return write_json(tmp_path / "rows.json", make_rows(40))


@pytest.fixture
def config(tmp_path: Path, base: Path, rows_file: Path) -> Callable[..., Path]:
    """Write a small run as YAML; keyword arguments replace whole sections' keys (`data={'max_length': 64}`)."""
    import yaml

    def write(name: str = "run", **sections: Any) -> Path:
        values: dict[str, Any] = {
            "run_dir": str(tmp_path / name),
            "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "enable_progress_bar": False},
            "model": {
                "base": str(base),
                "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
            "data": {
                "sources": [{"path": str(rows_file), "layout": "alpaca"}],
                "validation": 8,
                "max_length": 256,
                "global_batch_size": 8,
                "micro_batch_tokens": 512,
                "cache_dir": str(tmp_path / "cache"),
            },
            "samples": {"num_samples": 1, "max_new_tokens": 4},
        }
        for section, changes in sections.items():
            if isinstance(changes, dict):
                values[section] = {**values.get(section, {}), **changes}
            else:
                values[section] = changes
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        return path

    return write
