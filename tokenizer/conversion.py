"""Writes a SentencePiece model as a folder that transformers loads, with exactly SentencePiece's ids.

`tokenizer_config.json` names the general class `PreTrainedTokenizerFast` (transformers 5 calls it
`TokenizersBackend`), which takes `tokenizer.json` as it is, also beside a `config.json` of a Llama model;
`LlamaTokenizer` would read `tokenizer.model` on its own terms. The file holds the same pieces as `tokenizer.model`,
which lies beside it for programs that read SentencePiece. `ift.data.sentencepiece_models` says where ids may differ.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import processors

from ift.data.sentencepiece_models import fast_tokenizer
from tokenizer.output import write_json

ModelType = Literal["bpe", "unigram"]
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL_PIECES = (UNK, BOS, EOS, PAD)
"""Ids 0 to 3 of a vocabulary that is trained here."""
LLAMA_SETTINGS: Mapping[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": UNK,
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
}
"""`tokenizer_config.json` of a vocabulary that is trained here."""


def write_tokenizer(folder: Path, model: bytes, settings: Mapping[str, Any] = LLAMA_SETTINGS) -> None:
    """Write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`.

    Args:
        folder: an existing folder.
        model: a SentencePiece model.
        settings: `tokenizer_config.json`; the tokens that `add_bos_token` and `add_eos_token` ask for frame every text.
    """
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer = fast_tokenizer(model)
    begin = [settings["bos_token"]] if settings.get("add_bos_token") else []
    end = [settings["eos_token"]] if settings.get("add_eos_token") else []
    if begin or end:
        tokenizer.post_processor = _frame(begin, end, tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)


def _frame(begin: list[str], end: list[str], tokenizer: tokenizers.Tokenizer) -> processors.TemplateProcessing:
    """Return what puts special tokens around a text, unless told not to."""
    single = [*begin, "$A", *end]
    pair = [*single, *(f"{one}:1" for one in (*begin, "$B", *end))]
    special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*begin, *end])]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
