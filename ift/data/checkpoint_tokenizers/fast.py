"""From a `tokenizers.Tokenizer` to a fast tokenizer of transformers, with the settings of a checkpoint."""

from collections.abc import Mapping
from typing import Any

import tokenizers

from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.data.sentencepiece_models import fast_tokenizer
from ift.errors import UserError

_NO_LENGTH = int(1e30)
"""What transformers writes for "no limit"."""


def add_tokens(backend: tokenizers.Tokenizer, files: CheckpointFiles) -> None:
    """Add the tokens that a checkpoint adds to its vocabulary. All are special: no text becomes one of them.

    Raises:
        UserError: their ids are not those that follow the vocabulary.
    """
    for index, token in sorted(files.added_tokens().items()):
        known = backend.token_to_id(token)
        if known is None and index == backend.get_vocab_size():
            known = index
        if known != index:
            place = f"the vocabulary has it at {known}" if known is not None else f"{backend.get_vocab_size()} is next"
            raise UserError(f"the added token '{token}' has the id {index}, but {place}. Mend added_tokens.json.")
        backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True)])


def as_fast(
    backend: tokenizers.Tokenizer, files: CheckpointFiles, tokens: Mapping[str, str | None], *, begins: bool = False
) -> Any:
    """Return a fast tokenizer of transformers.

    Args:
        backend: adds nothing to a text.
        files: of the checkpoint, which say how it is used.
        tokens: the special tokens by their roles (`bos_token`, ...).
        begins: whether begin-of-text stands before every text, unless the files say `add_bos_token`.

    Raises:
        UserError: a special token is not in the vocabulary.
    """
    from transformers import PreTrainedTokenizerFast

    add_tokens(backend, files)
    present = {role: token for role, token in tokens.items() if token is not None}
    special = [*present.items(), *(("additional_special_tokens", token) for token in files.more_special_tokens())]
    for role, token in special:
        if backend.token_to_id(token) is None:
            raise UserError(f"{role}: '{token}' is not in the vocabulary. Mend tokenizer_config.json.")
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for _, token in special])
    length = files.settings.get("model_max_length")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **present,
        add_bos_token=bool(files.settings.get("add_bos_token", begins)),
        add_eos_token=bool(files.settings.get("add_eos_token", False)),
        model_max_length=int(length) if length else _NO_LENGTH,
        padding_side=files.settings.get("padding_side", "right"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = files.chat_template()
    return tokenizer


def pad_of_config(backend: tokenizers.Tokenizer, files: CheckpointFiles) -> str | None:
    """Return the token for padding that `config.json` names by its id."""
    index = files.config.get("pad_token_id")
    return backend.id_to_token(index) if isinstance(index, int) and index >= 0 else None


def from_pieces(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer of `tokenizer.model` with LLaMA's special tokens, begin-of-text before every text.

    Raises:
        UserError: as of `as_fast`.
    """
    path = files.path("tokenizer.model")
    assert path is not None
    backend = fast_tokenizer(path)
    pad = pad_of_config(backend, files)
    tokens = files.tokens(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad)
    return as_fast(backend, files, tokens, begins=True)
