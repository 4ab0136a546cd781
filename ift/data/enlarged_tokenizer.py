"""The tokenizer of a run: that of its base model, another one with more tokens, or either with special tokens added."""

from dataclasses import dataclass
from typing import Any

from ift.data.encoding import load_tokenizer
from ift.errors import UserError

KEY = "model.vocabulary"


@dataclass(frozen=True)
class EnlargedTokenizer:
    """What a tokenizer has more than that of the base model."""

    tokenizer: str | None = None
    """Folder or hub id of the tokenizer that is used in its place."""
    special_tokens: list[str] | None = None
    """Added to it behind its last token."""


def enlarged_tokenizer(base: str, settings: EnlargedTokenizer | None = None) -> Any:
    """Load the tokenizer of a run.

    Args:
        base: folder or hub id of the base model.
        settings: none takes the base model's own.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        UserError: as of `load_tokenizer`, or a special token that is an ordinary one already.
    """
    if settings is None or settings.tokenizer is None:
        tokenizer = load_tokenizer("model.base", base)
    else:
        tokenizer = load_tokenizer(f"{KEY}.tokenizer", settings.tokenizer)
    if settings is not None and settings.special_tokens:
        _add(tokenizer, settings.special_tokens)
    return tokenizer


def _add(tokenizer: Any, tokens: list[str]) -> None:
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    special = {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
    for token in tokens:
        if not token.strip():
            raise UserError(f"{KEY}.special_tokens: {token!r} is no token. Leave it out.")
        if token in known and token not in special:
            raise UserError(
                f"{KEY}.special_tokens: '{token}' is an ordinary token of the tokenizer already (id {known[token]}), "
                "and text that holds it would change its meaning. Take another name."
            )
    wanted = [token for token in dict.fromkeys(tokens) if token not in known]
    added = tokenizer.add_tokens([AddedToken(one, special=True, normalized=False) for one in wanted])
    if added != len(wanted):
        raise UserError(f"{KEY}.special_tokens: the tokenizer took {added} of the {len(wanted)} tokens {wanted}.")
