"""Fixtures that all tests share: a trained tokenizer, a tiny model, rows, and a small run as YAML."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Lightning's log handlers keep the stderr of the moment of import; inside a test that would be one soon closed.
import lightning.pytorch  # noqa: F401
import pytest
from tiny import make_llama, make_rows, write_json


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
