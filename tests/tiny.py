"""Tiny real things for tests: rows written here, models made from a config."""

import json
from pathlib import Path
from typing import Any

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


def make_llama(folder: Path, vocabulary: int, **settings: Any) -> Path:
    """Write a tiny random Llama with a seeded initialisation."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = LlamaConfig(vocab_size=vocabulary, **{**sizes, **heads, **settings})
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder
