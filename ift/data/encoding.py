"""Segments to token ids and labels: the one owner of special tokens.

Segments are tokenized one by one, so the ids of a prompt are the same in training, validation and prediction. Text of
messages never becomes a special token, whatever it contains.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ift.data.conversation import Conversation, Message
from ift.data.templates import Renderer, Segment, Template
from ift.errors import UserError
from ift.hub import check_place, local_folder

IGNORE_INDEX = -100
"""Label of a position that the loss does not count (the default of PyTorch's cross-entropy)."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One encoded conversation."""

    input_ids: IntArray
    """int64, `(length,)`."""
    labels: IntArray
    """int64, `(length,)`, not shifted: `input_ids` where supervised, `IGNORE_INDEX` elsewhere."""
    source: str = ""

    @property
    def num_supervised(self) -> int:
        """Number of labels that count; the first position never does, as nothing predicts it."""
        return int((self.labels[1:] != IGNORE_INDEX).sum())


def load_tokenizer(key: str, base: str) -> Any:
    """Load the tokenizer of a base model, without remote code.

    Args:
        key: the configuration key that named it, for errors.
        base: folder or hub id.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        UserError: no tokenizer there, none with a fast backend, or one without end-of-text.
    """
    check_place(key, base)
    from transformers import AutoTokenizer

    folder = local_folder(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder else base, trust_remote_code=False)
    except Exception as error:  # transformers raises many types here; each means that there is no usable tokenizer
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: no tokenizer could be loaded from '{base}': {reason}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{key}: the tokenizer of '{base}' has no fast (Rust) version, which ift needs.")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{key}: the tokenizer of '{base}' has no end-of-text token, so a model could not learn to stop. "
            f"Name one as 'eos_token' in {Path(base) / 'tokenizer_config.json'}."
        )
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a sha256 that changes with the ids that a tokenizer gives, special tokens included."""
    described = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map])
    return hashlib.sha256(described.encode()).hexdigest()


class Encoder:
    """Tokenizes rendered conversations.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: a `Template`, or another `Renderer`.
    """

    def __init__(self, tokenizer: Any, template: Renderer) -> None:
        self.tokenizer = tokenizer
        self.template = template
        own = tokenizer("a").input_ids
        # Whether begin-of-text stands before every text is the tokenizer's decision, not ours.
        self._begin = [tokenizer.bos_token_id] if own and own[0] == tokenizer.bos_token_id else []
        # transformers' SentencePiece tokenizers drop the blank that a text begins with; a second one keeps it.
        self._loses_blank = tokenizer.decode(self._ids([" a"])[0]) == "a"

    @property
    def pad_token_id(self) -> int:
        """Id for padding; padding is masked by position, so that any id serves."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end a response: end-of-text, and the token by which the template ends one."""
        probe = Conversation((Message("user", "a"), Message("assistant", "b", supervised=True)))
        (example,) = self.encode([self.template.render(probe)])
        supervised = example.labels[example.labels != IGNORE_INDEX]
        return sorted({int(self.tokenizer.eos_token_id), int(supervised[-1])})

    def encode(self, rendered: Sequence[list[Segment]]) -> list[Example]:
        """Encode rendered conversations, each segment on its own; all texts go through the tokenizer in one call."""
        texts = [segment.text for segments in rendered for segment in segments if segment.kind == "text"]
        ids = iter(self._text_ids(texts))
        return [self._example([(s, next(ids) if s.kind == "text" else self._special(s)) for s in r]) for r in rendered]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return the ids that a model reads before it writes the last response."""
        (example,) = self.encode([self.template.render(conversation.prompt)])
        return [int(token) for token in example.input_ids]

    def response_ids(self, text: str) -> list[int]:
        """Return the ids of a response, as they follow a prompt in training, without end-of-text."""
        return self._text_ids([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a response's ids."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _example(self, pieces: list[tuple[Segment, list[int]]]) -> Example:
        input_ids = np.array([token for _, ids in pieces for token in ids], dtype=np.int64)
        mask = np.array([segment.supervised for segment, ids in pieces for _ in ids], dtype=bool)
        return Example(input_ids, np.where(mask, input_ids, IGNORE_INDEX))

    def _special(self, segment: Segment) -> list[int]:
        if segment.kind == "begin":
            return self._begin
        if segment.kind == "end":
            return [int(self.tokenizer.eos_token_id)]
        return [int(self.tokenizer.convert_tokens_to_ids(segment.text))]

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        if self._loses_blank:
            texts = [" " + text if text.startswith(" ") else text for text in texts]
        return self._ids(texts)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def make_renderer(tokenizer: Any, template: Template | None) -> Renderer:
    """Return the template, or for `None` the tokenizer's own chat template."""
    if template is not None:
        return template
    from ift.data.chat_templates import ChatTemplate

    return ChatTemplate(tokenizer)
