"""Byte-level BPE tokenizers (GPT-2, Llama 3, Qwen) as `tokenizer.json` describes them, and what can be added to them.

Merges of a tokenizer.json are applied in their order, so merges that are appended come after all old ones: a text is
first cut as before, and then neighbours of that cut become new tokens. So an encoding never gets longer, and a text
without a new token in its encoding has the same ids as before. All ids stay, those of added tokens (`<|eot_id|>`) too;
new ids begin behind the last one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers

from ift.errors import UserError

Merge = tuple[str, str]
BYTE_BLANK = "Ġ"
"""How byte-level characters write a blank."""

_SPELLER = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


class ByteLevel:
    """A byte-level BPE tokenizer that can be added to.

    Args:
        key: the option that named the file, for errors.
        path: `tokenizer.json`.

    Raises:
        UserError: no such tokenizer.
    """

    def __init__(self, key: str, path: Path) -> None:
        try:
            self._content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exceptions
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{key}: {path}: cannot be read as a tokenizer.json ({reason}).") from error
        if not is_byte_level(self._content):
            kind = self._content["model"].get("type", "unknown")
            raise UserError(
                f"{key}: {path}: holds a {kind} model that is not byte-level BPE. Give the SentencePiece model "
                "(tokenizer.model) where there is one."
            )
        model = self._content["model"]
        self._old_merges = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in model["merges"]]
        self._vocabulary: dict[str, int] = dict(model["vocab"])
        for token in self._content.get("added_tokens", []):
            # In the model's own list too, or their ids would follow its new size when the file is read.
            self._vocabulary.setdefault(token["content"], token["id"])
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.first_new_id = max(self._vocabulary.values()) + 1
        self._by_id = {index: token for token, index in self._vocabulary.items()}
        self._new: list[str] = []
        self._new_merges: list[Merge] = []

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """The new tokens in the order of their ids, in byte-level characters."""
        return tuple(self._new)

    def __contains__(self, token: str) -> bool:
        return token in self._vocabulary

    def token(self, index: int) -> str:
        """Return an old token by its id."""
        return self._by_id[index]

    def token_of(self, text: str) -> str | None:
        """Return a text in byte-level characters, or `None` where normalisation or pre-tokenisation stand against it.

        Only what pre-tokenisation leaves in one part can ever be one token.
        """
        normalizer = self.tokenizer.normalizer
        if normalizer is not None and normalizer.normalize_str(text) != text:
            return None
        (token,) = _SPELLER.pre_tokenize_str(text)[0][:1]
        return token if self.parts(text) in ([token], [BYTE_BLANK + token]) else None

    def parts(self, text: str) -> list[str]:
        """Return the parts that pre-tokenisation cuts a text into, in byte-level characters."""
        normalizer = self.tokenizer.normalizer
        normalized = normalizer.normalize_str(text) if normalizer is not None else text
        return [part for part, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]

    def append(self, merge: Merge) -> None:
        """Append a merge, and its result if that is new.

        Args:
            merge: two tokens; what they make is new, or was appended before.
        """
        token = "".join(merge)
        if token not in self._vocabulary:
            self._vocabulary[token] = self.first_new_id + len(self._new)
            self._new.append(token)
        self._new_merges.append(merge)

    def is_old(self, token: str) -> bool:
        """Whether a token was there before anything was appended."""
        return self._vocabulary.get(token, self.first_new_id) < self.first_new_id

    def extended(self) -> tokenizers.Tokenizer:
        """Return the tokenizer with what was appended; all else is as in its file."""
        model = self._content["model"] | {
            "vocab": self._vocabulary,
            "merges": [list(merge) for merge in [*self._old_merges, *self._new_merges]],
        }
        return tokenizers.Tokenizer.from_str(json.dumps(self._content | {"model": model}, ensure_ascii=False))


def is_byte_level(content: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` holds a byte-level BPE."""
    if (content.get("model") or {}).get("type") != "BPE":
        return False
    step = content.get("pre_tokenizer") or {}
    steps = [step, *step.get("pretokenizers", [])]
    return any(one.get("type") == "ByteLevel" for one in steps)


def text_of(token: str) -> str | None:
    """Return the text of a token in byte-level characters, or `None` where it is not whole characters."""
    text: str = decoders.ByteLevel().decode([token])
    return text if [part for part, _ in _SPELLER.pre_tokenize_str(text)] == [token] else None


def texts_of(tokens: Sequence[str]) -> list[str]:
    """Return tokens as people read them; parts of characters as byte-level characters."""
    return [text_of(token) or token for token in tokens]
