"""InternLM of 2023: `tokenizer.model`, a BPE model of SentencePiece with symbols that are never cut (`<eoh>`, `<eoa>`).

The class in the checkpoints (`tokenization_internlm.py`) puts begin-of-text before a text unless
`tokenizer_config.json` says `add_bos_token: false`.
"""

from typing import Any

from ift.data.checkpoint_tokenizers.fast import from_pieces
from ift.data.checkpoint_tokenizers.files import CheckpointFiles

NAME = "InternLM"
NEEDS = ("tokenizer.model",)


def recognises(files: CheckpointFiles) -> bool:
    """Whether a checkpoint is of this family."""
    return files.are_of(("internlmtokenizer",), ("internlm",))


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer."""
    return from_pieces(files)
