"""LLaMA and what grew from it, with `tokenizer.model` alone and no `tokenizer.json`.

transformers has a class for it, which loses the blank that a text begins with, reads a unigram model as BPE, and writes
a blank before every text also where the model says not to.
"""

from collections.abc import Sequence
from typing import Any

from ift.data.checkpoint_tokenizers.fast import as_fast
from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.data.sentencepiece_models import fast_tokenizer, read_model, why_inexact
from ift.errors import UserError

NAME = "LLaMA"
NEEDS = ("tokenizer.model",)


def recognises(files: CheckpointFiles) -> bool:
    """Whether a checkpoint is of this kind, and its model one that can be read exactly."""
    if not files.are_of(("llamatokenizer", "llamatokenizerfast"), ("llama",)):
        return False
    path = files.path("tokenizer.model")
    if path is None or files.path("tokenizer.json") is not None:
        return False
    try:
        message = read_model(path)
    except UserError:  # Llama 3's file of that name is of another kind; transformers reads it
        return False
    pieces = [piece.piece for piece in message.pieces]
    return not why_inexact(message) and _adds_only(files, pieces)


def _adds_only(files: CheckpointFiles, pieces: Sequence[str]) -> bool:
    """Whether added tokens follow the pieces and rename none; transformers has rules of its own for the rest."""
    added = files.added_tokens()
    last = sorted(index for index in added if index >= len(pieces))
    named = all(pieces[index] == token for index, token in added.items() if index < len(pieces))
    known = {*pieces, *added.values()}
    roles = [token for token in files.tokens(bos_token="<s>", eos_token="</s>", unk_token="<unk>").values() if token]
    return (
        named
        and last == list(range(len(pieces), len(pieces) + len(last)))
        and known.issuperset([*roles, *files.more_special_tokens()])
    )


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer."""
    path = files.path("tokenizer.model")
    assert path is not None
    tokens = files.tokens(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return as_fast(fast_tokenizer(path), files, tokens, begins=True)
