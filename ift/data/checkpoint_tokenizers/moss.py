"""MOSS: `vocab.json` and `merges.txt`, byte-level BPE as GPT-2's, and `added_tokens.json`.

The class in the checkpoints (`tokenization_moss.py`) adds nothing to a text. End-of-text is `<eom>` there, unless
`tokenizer_config.json` names another (that of the base model names `<|endoftext|>`); the templates `moss` and
`moss_plugins` end a response with `<eom>` either way.
"""

from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ift.data.checkpoint_tokenizers.fast import as_fast
from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.errors import UserError

NAME = "MOSS"
NEEDS = ("vocab.json", "merges.txt")
_BEGIN, _END = "<|endoftext|>", "<eom>"


def recognises(files: CheckpointFiles) -> bool:
    """Whether a checkpoint is of this family."""
    return files.are_of(("mosstokenizer",), ("moss",))


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer."""
    merges = files.path("merges.txt")
    assert merges is not None
    vocabulary = files.json("vocab.json")
    # The first line is "#version", whatever it says; so the original reads it.
    lines = [line.split() for line in merges.read_text(encoding="utf-8").split("\n")[1:-1]]
    try:
        pairs = [(left, right) for left, right in lines]
        model = models.BPE(vocab=vocabulary, merges=pairs)
    except Exception as error:  # the Rust side raises the bare class
        raise UserError(f"vocab.json and merges.txt do not fit together ({error}). Fetch both again.") from error
    backend = tokenizers.Tokenizer(model)
    if files.settings.get("add_prefix_space"):
        backend.normalizer = normalizers.Prepend(" ")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    known = {*vocabulary, *files.added_tokens().values()}
    end = _END if _END in known else _BEGIN
    return as_fast(backend, files, files.tokens(bos_token=_BEGIN, eos_token=end, unk_token=_BEGIN))
