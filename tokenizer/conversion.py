"""Writes a SentencePiece model as a folder that transformers loads, with exactly SentencePiece's ids.

`tokenizer_config.json` names the general class `PreTrainedTokenizerFast` (transformers 5 calls it
`TokenizersBackend`), which takes `tokenizer.json` as it is, also beside a `config.json` of a Llama model;
`LlamaTokenizer` would read `tokenizer.model` on its own terms. The file holds the same pieces as `tokenizer.model`,
which lies beside it for programs that read SentencePiece. `ift.data.sentencepiece_models` says where ids may differ.
"""

import json
from pathlib import Path
from typing import Literal

from ift.data.sentencepiece_models import add_begin, fast_tokenizer

ModelType = Literal["bpe", "unigram"]
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL_PIECES = (UNK, BOS, EOS, PAD)
"""Ids 0 to 3."""


def write_tokenizer(folder: Path, model: bytes) -> None:
    """Write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`.

    Args:
        folder: an existing folder.
        model: a trained SentencePiece model with `SPECIAL_PIECES` as its first pieces.
    """
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer = fast_tokenizer(model)
    add_begin(tokenizer, BOS)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
