"""Segments to token ids and labels: the one owner of special tokens.

Segments are tokenized one by one, so the ids of a prompt are the same in training, validation and prediction. Text of
messages never becomes a special token, whatever it contains.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ift.data.checkpoint_tokenizers import load_checkpoint_tokenizer
from ift.data.conversation import Conversation, Message
from ift.data.layouts import RowError
from ift.data.templates import Renderer, Segment, Template
from ift.errors import UserError
from ift.hub import check_place, has_encoder, local_folder

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
    """Load the tokenizer of a base model, without remote code; checkpoints of 2023 that need it are read here.

    Args:
        key: the configuration key that named it, for errors.
        base: folder or hub id.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        UserError: no tokenizer there, none with a fast backend, or one without end-of-text.
    """
    check_place(key, base)
    tokenizer = load_checkpoint_tokenizer(key, base)
    if tokenizer is None:
        tokenizer = _auto_tokenizer(key, base)
    if not tokenizer.is_fast:
        raise UserError(f"{key}: the tokenizer of '{base}' has no fast (Rust) version, which ift needs.")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{key}: the tokenizer of '{base}' has no end-of-text token, so a model could not learn to stop. "
            f"Name one as 'eos_token' in {Path(base) / 'tokenizer_config.json'}."
        )
    return tokenizer


def _auto_tokenizer(key: str, base: str) -> Any:
    from transformers import AutoTokenizer

    folder = local_folder(base)
    try:
        return AutoTokenizer.from_pretrained(str(folder) if folder else base, trust_remote_code=False)
    except Exception as error:  # transformers raises many types here; each means that there is no usable tokenizer
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: no tokenizer could be loaded from '{base}': {reason}") from error


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a sha256 that changes with the ids that a tokenizer gives, special tokens included."""
    described = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map])
    return hashlib.sha256(described.encode()).hexdigest()


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded conversations as columns, the tokens of all of them laid end to end."""

    input_ids: npt.NDArray[np.int32]
    """`(tokens,)`."""
    loss: npt.NDArray[np.uint8]
    """`(tokens,)`: `NO_LOSS`, `LOSS` or `STOP_LOSS` for each token."""
    num_tokens: npt.NDArray[np.int32]
    """`(conversations,)`."""

    def __len__(self) -> int:
        return len(self.num_tokens)

    @cached_property
    def starts(self) -> IntArray:
        """int64, `(conversations + 1,)`: where each conversation begins, and the end of the last."""
        return np.concatenate(([0], np.cumsum(self.num_tokens, dtype=np.int64)))

    @cached_property
    def num_supervised(self) -> IntArray:
        """int64, `(conversations,)`: labels that count; the first of a conversation never does."""
        counted = (self.loss != NO_LOSS).astype(np.int64)
        total = np.concatenate(([0], np.cumsum(counted)))
        starts = self.starts
        first = np.where(self.num_tokens > 0, counted[np.minimum(starts[:-1], max(0, len(counted) - 1))], 0)
        return total[starts[1:]] - total[starts[:-1]] - first

    def digests(self) -> npt.NDArray[np.uint64]:
        """Return a hash of each conversation's ids, uint64; equal conversations have equal ones."""
        data, starts = self.input_ids.tobytes(), (self.starts * self.input_ids.itemsize).tolist()
        hashes = [hashlib.blake2b(data[start:end], digest_size=8).digest() for start, end in pairwise(starts)]
        return np.frombuffer(b"".join(hashes), dtype=np.uint64)

    def take(self, kept: npt.NDArray[np.bool_]) -> "EncodedBatch":
        """Return the conversations where `kept`, bool, `(conversations,)`, is true."""
        tokens = np.repeat(kept, self.num_tokens)
        return EncodedBatch(self.input_ids[tokens], self.loss[tokens], self.num_tokens[kept])


NO_LOSS, LOSS, STOP_LOSS = 0, 1, 2
"""What the label of a token is: none; the token itself; end-of-text, though another token stands there."""


def labels_of(input_ids: IntArray, loss: npt.NDArray[np.uint8], *, end_token_id: int) -> IntArray:
    """Return the labels, int64, `(length,)`, of one example.

    Args:
        input_ids: int64, `(length,)`.
        loss: uint8, `(length,)`.
        end_token_id: the label of `STOP_LOSS`.
    """
    labels = np.where(loss == LOSS, input_ids, IGNORE_INDEX)
    return np.where(loss == STOP_LOSS, end_token_id, labels)


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
        self._begin = [int(tokenizer.bos_token_id)] if own and own[0] == tokenizer.bos_token_id else []
        self.begin_token_id: int | None = self._begin[0] if self._begin else None
        self.end_token_id = int(tokenizer.eos_token_id)
        # transformers' own call builds lists for every text that nobody reads; the backend gives the same ids.
        self._backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.encode_special_tokens = True  # text never becomes a special token
        self._backend.no_truncation()
        self._backend.no_padding()
        self._known: dict[str, list[int] | None] = {}
        # transformers' SentencePiece tokenizers drop the blank that a text begins with; a second one keeps it.
        one, two = (str(tokenizer.decode(ids)) for ids in self._ids([" a", "  a"]))
        self._loses_blank = (one, two) == ("a", " a")

    @property
    def start_token_id(self) -> int:
        """Id before the first token of a text that nothing stands before: begin-of-text, else end-of-text."""
        begin = self.tokenizer.bos_token_id
        return int(begin) if begin is not None else self.end_token_id

    @property
    def unknown_token_id(self) -> int | None:
        """Id of text that the tokenizer has no token for; `None` where it has a token for every text."""
        unknown = self.tokenizer.unk_token_id
        others = (self.tokenizer.bos_token_id, self.end_token_id, self.tokenizer.pad_token_id)
        return int(unknown) if unknown is not None and unknown not in others else None

    @property
    def keeps_lines(self) -> bool:
        """Whether line breaks outlast the tokenizer; T5's writes none."""
        return "\n" in self.decode(self.response_ids("a\nb"))

    @property
    def pad_token_id(self) -> int:
        """Id for padding; padding is masked by position, so that any id serves."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end a response: end-of-text, and the token by which the template ends one."""
        call = (Message("assistant", "b", supervised=True, call=True), Message("tool", "c"))
        plain = (Message("user", "a"), Message("assistant", "b", supervised=True))
        segments: list[Segment] = []
        for probe in (plain, (*plain, *plain), (plain[0], *call, plain[1])):
            with suppress(RowError):  # a chat template may know no tools
                segments += self.template.render(Conversation(probe))
        ends = [self._segment_ids(s) for s in segments if s.ends_response and s.kind != "text"]
        return sorted({self.end_token_id, *(ids[0] for ids in ends if ids)})

    @property
    def opening_ids(self) -> list[int]:
        """Ids that are learned and yet end the prompt of a last response, which begins behind them (ChatGLM)."""
        plain = Conversation((Message("user", "a"), Message("assistant", "b", supervised=True)))
        opening = [s for s in self.template.render(plain) if s.begins_response and s.supervised]
        return [token for s in opening if not self._is_text(s) for token in self._segment_ids(s)]

    def encode(self, rendered: Sequence[list[Segment]]) -> list[Example]:
        """Encode rendered conversations, each segment on its own; all texts go through the tokenizer in one call."""
        return self.examples(self.encode_batch(rendered))

    def examples(self, batch: EncodedBatch, *, source: str = "") -> list[Example]:
        """Return the conversations of a batch one by one."""
        examples = []
        for start, end in pairwise(batch.starts.tolist()):
            input_ids = batch.input_ids[start:end].astype(np.int64)
            labels = labels_of(input_ids, batch.loss[start:end], end_token_id=self.end_token_id)
            examples.append(Example(input_ids, labels, source=source))
        return examples

    def encode_batch(self, rendered: Sequence[list[Segment]]) -> EncodedBatch:
        """Encode rendered conversations into columns."""
        ids = iter(self._text_ids([s.text for segments in rendered for s in segments if self._is_text(s)]))
        tokens: list[int] = []
        sizes: list[int] = []
        losses: list[int] = []
        stops: list[int] = []
        num_tokens = []
        for segments in rendered:
            before = len(tokens)
            for segment in segments:
                own = next(ids) if self._is_text(segment) else self._segment_ids(segment)
                if segment.stop_label and own:
                    stops.append(len(tokens))
                tokens += own
                sizes.append(len(own))
                counted = segment.supervised and not (segment.begins_response and self._is_text(segment))
                losses.append(LOSS if counted else NO_LOSS)
            num_tokens.append(len(tokens) - before)
        loss = np.repeat(np.array(losses, dtype=np.uint8), np.array(sizes, dtype=np.int64))
        loss[stops] = STOP_LOSS
        return EncodedBatch(np.array(tokens, dtype=np.int32), loss, np.array(num_tokens, dtype=np.int32))

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return the ids that a model reads before it writes the last response."""
        (example,) = self.encode([self.template.render(conversation.prompt)])
        return [int(token) for token in example.input_ids]

    def option_ids(self, conversation: Conversation, options: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Return the ids of a prompt and of texts that continue it, each tokenized together with what is before it.

        As in lm-evaluation-harness: the text that the prompt ends with is tokenized with each option behind it, and
        the option's ids are those beyond the ids of that text alone; blanks at its end go to the options. Without
        special tokens inside the prompt, that text is all of it. By `prompt_ids` and `response_ids`, each is tokenized
        on its own instead, as in training; SentencePiece tokenizers then write a blank before an option.

        Raises:
            RowError: an option has no ids of its own, as its characters belong to the last token of the prompt.
        """
        *head, tail = [*self.template.render(conversation.prompt), Segment("")]
        if head and self._is_text(head[-1]):
            *head, tail = head
        before = tail.text.rstrip()
        (example,) = self.encode([head])
        alone, *joined = self._text_ids([before, *(tail.text + option for option in options)])
        own = [ids[len(alone) :] for ids in joined]
        for option, ids in zip(options, own, strict=True):
            if not ids:
                raise RowError(f"the tokenizer makes one token of the option {option!r} and the text before it")
        return [*map(int, example.input_ids), *alone], own

    def response_ids(self, text: str) -> list[int]:
        """Return the ids of a response, as they follow a prompt in training, without end-of-text."""
        return self._text_ids([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a response's ids."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def missing_tokens(self) -> dict[str, str]:
        """Return the special tokens of the template that the tokenizer lacks, and what stands for each."""
        probe = Conversation(
            (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")),
            system="e",
        )
        tokens = [segment for segment in self.template.render(probe) if segment.kind == "token"]
        return {
            segment.text: "end-of-text" if segment.ends_response else "its text"
            for segment in tokens
            if self._special(segment.text) is None
        }

    def _is_text(self, segment: Segment) -> bool:
        """Whether a segment goes through the tokenizer: text, or a special token that the tokenizer lacks."""
        if segment.kind == "text":
            return True
        return segment.kind == "token" and not segment.ends_response and self._special(segment.text) is None

    def _segment_ids(self, segment: Segment) -> list[int]:
        """Return the ids of a segment that is no text."""
        if segment.kind == "begin":
            return self._begin
        found = self._special(segment.text) if segment.kind == "token" else None
        return found if found is not None else [self.end_token_id]

    def _special(self, token: str) -> list[int] | None:
        if token not in self._known:
            found = self.tokenizer.convert_tokens_to_ids(token)
            unknown = found is None or (found == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token)
            self._known[token] = None if unknown else [int(found)]
        return self._known[token]

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        if self._loses_blank:
            texts = [" " + text if text.startswith(" ") else text for text in texts]
        return self._ids(texts)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


def make_renderer(
    tokenizer: Any,
    template: Template | None,
    options: Mapping[str, bool | str] | None = None,
    *,
    base: str | None = None,
) -> Renderer:
    """Return the template as a model needs it, or for `None` the tokenizer's own chat template.

    Args:
        tokenizer: of transformers.
        template: a template of ours.
        options: variables that the tokenizer's chat template reads, such as `{"enable_thinking": False}`.
        base: folder or hub id of the model, if it has one: the prompts of an encoder-decoder model are read by its
            encoder.

    Raises:
        UserError: the chat template cannot be used, or options are given for a template that reads none.
    """
    split = base is not None and has_encoder(base)
    if split and template is None:
        raise UserError(
            "data.template: 'tokenizer' writes request and response as one text, and the encoder of an encoder-decoder "
            "model reads the request alone. Name a template (alpaca, plain)."
        )
    if template is not None and split:
        template = template.for_encoder_decoder()
    if template is not None:
        if options:
            raise UserError(
                f"data.template_options: {dict(options)} are for the tokenizer's own chat template, and data.template "
                f"is '{template.name}', which reads none. Leave them out."
            )
        return template
    from ift.data.chat_templates import ChatTemplate

    return ChatTemplate(tokenizer, options)
