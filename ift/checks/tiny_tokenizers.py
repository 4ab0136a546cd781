"""Tiny tokenizers, trained while a check runs: byte-level BPE as GPT-2's, and BPE with byte fallback as Llama's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(folder: Path, texts: Sequence[str], *, size: int = 420) -> Path:
    """Write a byte-level BPE tokenizer without begin-of-text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _save(backend, folder)


def byte_fallback(folder: Path, texts: Sequence[str], *, size: int = 520) -> Path:
    """Write a BPE tokenizer in the manner of SentencePiece: blanks are `▁`, unknown characters fall into bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNKNOWN, fuse_unk=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(stages)
    special = [UNKNOWN, BEGIN, END, *_BYTES]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, max_token_length=8, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    described = json.loads(backend.to_str())
    # The pieces of bytes are ordinary ones: text that reads like one is not one.
    described["added_tokens"] = [one for one in described["added_tokens"] if one["content"] not in _BYTES]
    backend = Tokenizer.from_str(json.dumps(described))
    begin = backend.token_to_id(BEGIN)
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return _save(backend, folder)


def _save(backend: Any, folder: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    unknown = {"unk_token": UNKNOWN} if backend.token_to_id(UNKNOWN) is not None else {}
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END, **unknown).save_pretrained(
        str(folder)
    )
    return folder
