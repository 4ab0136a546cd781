"""Tiny random encoder-decoder models with a tokenizer in T5's layout, made here."""

import json
from pathlib import Path
from typing import Any

from tiny import make_rows

KINDS = ("t5", "t5_1_1", "mt5", "umt5")
"""The first T5 (one matrix for embedding and head, whose inputs are scaled), Flan-T5's kind, mT5, and umT5 (a bias of
relative positions in every layer)."""


def make_t5_tokenizer(folder: Path) -> Any:
    """Write and return a unigram tokenizer with T5's special tokens (padding 0, end-of-text 1) and ten sentinels."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    texts = [" ".join(row.values()) for row in make_rows(200)]
    tokenizer.train_from_iterator([*texts, "Below is an instruction. ### Response: ### Input:"], trainer)
    vocabulary = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    made = T5Tokenizer(vocab=vocabulary, extra_ids=10)
    made.save_pretrained(str(folder))
    return made


def make_t5(folder: Path, kind: str = "t5", **settings: Any) -> Path:
    """Write a tiny random encoder-decoder with its tokenizer; its vocabulary is padded, as that of the real ones."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    tokenizer = make_t5_tokenizer(folder)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    sizes |= {"vocab_size": len(tokenizer) + 6, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    own: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind != "t5" else {}
    config = AutoConfig.for_model("t5" if kind == "t5_1_1" else kind, **{**sizes, **own, **settings})
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    if kind != "t5":
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "lm_head" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder))
    # As in the files of the real models: what transformers 5 writes of this key says nothing.
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written["tie_word_embeddings"] = kind == "t5"
    written.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder
