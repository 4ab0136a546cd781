"""InternLM of 2023: `tokenizer.model`, a BPE model of SentencePiece with symbols that are never cut (`<eoh>`, `<eoa>`).

The class in the checkpoints (`tokenization_internlm.py`) puts begin-of-text before a text unless
`tokenizer_config.json` says `add_bos_token: false`.
"""

from typing import Any

from ift.data.checkpoint_tokenizers.fast import as_fast, pad_of_config
from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.data.sentencepiece_models import fast_tokenizer

NAME = "InternLM"
NEEDS = ("tokenizer.model",)


def recognises(files: CheckpointFiles) -> bool:
    """Whether a checkpoint is of this family."""
    return files.are_of(("internlmtokenizer",), ("internlm",))


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer."""
    path = files.path("tokenizer.model")
    assert path is not None
    backend = fast_tokenizer(path)
    pad = pad_of_config(backend, files)
    tokens = files.tokens(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad)
    return as_fast(backend, files, tokens, begins=True)
