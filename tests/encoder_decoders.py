"""Tiny random encoder-decoder models with a tokenizer in T5's layout, made here."""

import json
from pathlib import Path
from typing import Any

from tiny import make_rows

KINDS = ("t5", "t5_1_1", "mt5")
"""The first T5 (one matrix for embedding and head, whose inputs are scaled), Flan-T5's kind, and mT5."""


def make_t5_tokenizer(folder: Path) -> Any:
    """Write and return a unigram tokenizer with T5's special tokens (padding 0, end-of-text 1) and ten sentinels."""
    from transformers import T5Tokenizer

    texts = [text for row in make_rows(200) for text in row.values()]
    texts.append("Below is an instruction that describes a task, paired with ### Response: ### Input: You HF.")
    words = sorted({f"▁{word}" for text in texts for word in text.split() if word.isascii()})
    characters = sorted({character for text in texts for character in text if character != " "})
    pieces = [(word, -4.0) for word in words] + [(one, -9.0) for one in ["▁", *characters] if one not in words]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=special + pieces, extra_ids=10)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def make_t5(folder: Path, kind: str = "t5", **settings: Any) -> Path:
    """Write a tiny random encoder-decoder with its tokenizer; the decoder has more layers than the encoder."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    tokenizer = make_t5_tokenizer(folder)
    sizes = {"d_model": 32, "d_kv": 4, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    sizes |= {"vocab_size": len(tokenizer) + 6, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    own: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind != "t5" else {}
    config = AutoConfig.for_model("t5" if kind == "t5_1_1" else kind, **{**sizes, **own, **settings})
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    if kind != "t5":
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    model.save_pretrained(str(folder))
    # As in the files of the real models: what transformers 5 writes of this key says nothing.
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written["tie_word_embeddings"] = kind == "t5"
    written.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder
