"""Baichuan-7B, Baichuan-13B, Baichuan2: `tokenizer.model`, a BPE model of SentencePiece.

The class in the checkpoints (`tokenization_baichuan.py`) puts begin-of-text before a text unless
`tokenizer_config.json` says `add_bos_token: false`, as those of Baichuan-13B and Baichuan2 do.
"""

from typing import Any

from ift.data.checkpoint_tokenizers.fast import from_pieces
from ift.data.checkpoint_tokenizers.files import CheckpointFiles

NAME = "Baichuan"
NEEDS = ("tokenizer.model",)


def recognises(files: CheckpointFiles) -> bool:
    """Whether a checkpoint is of this family."""
    return files.are_of(("baichuantokenizer",), ("baichuan",))


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer."""
    return from_pieces(files)
