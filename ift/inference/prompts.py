"""`PromptDataModule`: prompts to answer, from any layout, in batches that do not depend on the number of devices."""

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from ift.data.conversation import Conversation
from ift.data.duplicates import conversation_digest
from ift.data.encoding import Encoder, load_tokenizer, make_renderer
from ift.data.layouts import RowError, resolve_layout
from ift.data.row_conversations import to_conversations
from ift.data.rows import RawRow, Source, check_source, read_rows
from ift.data.templates import Template, resolve_template
from ift.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for the model."""

    id: str
    ids: list[int]
    options: tuple[str, ...]
    option_ids: tuple[list[int], ...]
    """Token ids of each option."""
    reference: str | None
    meta: dict[str, Any]
    standing_alone: bool = False
    """Whether the options are whole texts that no request stands before; they may be of any length."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that go through the model together."""

    index: int
    """Number of the batch in the file of prompts; seeds its sampling."""
    prompts: tuple[Prompt, ...]

    def to(self, device: Any, **options: Any) -> "PromptBatch":
        """Return itself; the tensors are made on the device later."""
        return self


class PromptDataModule(LightningDataModule):
    """Reads the prompts of one source, checks them all, and deals them out in batches in the order of the file.

    Args:
        path: local `.json` or `.jsonl` file, or hub id.
        base: folder or hub id whose tokenizer is used; follows `model.base`.
        layout: of the rows; a last response is the reference. Rows of layout messages may hold `options` to rank,
            `reference` and `meta`; with one empty message of the assistant, the options are texts that stand alone.
        template: as for training; from a run folder, the one it was trained with.
        template_options: likewise.
        tokenizer: folder or hub id of another tokenizer than the base model's.
        batch_size: prompts, or options to rank, that go through the model at once.
        join_options: whether options are tokenized together with the text before them, as lm-evaluation-harness does;
            else as responses in training are, on their own. By default what the `meta` of a row says under
            `join_options`, else false.
    """

    def __init__(
        self,
        path: str,
        base: str,
        layout: str = "messages",
        template: str | Template = "alpaca",
        template_options: dict[str, bool | str] | None = None,
        tokenizer: str | None = None,
        batch_size: int = 8,
        join_options: bool | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size: {batch_size} is less than 1.")
        self.source = Source(path=path, layout=layout)
        check_source("data", self.source)
        self.row_function = resolve_layout("data.layout", layout)
        self.template = resolve_template("data.template", template)
        self.template_options = template_options or {}
        self.base, self.tokenizer_name, self.batch_size = base, tokenizer, batch_size
        self.join_options = join_options
        self.done: Container[str] = ()
        """Ids that an interrupted run has answered already."""
        self._digest = hashlib.sha256()
        self._loaded = False

    @property
    def digest(self) -> str:
        """A hash of all prompts as their rows were read, whatever layout, columns and row function gave them.

        It changes with no template and no tokenizer.
        """
        return self._digest.hexdigest()

    def load(self, tokenizer: Any | None = None) -> None:
        """Load the tokenizer and read all prompts.

        Args:
            tokenizer: loaded before, where none is named.

        Raises:
            UserError: a row that is no prompt, or an id that occurs twice; with file and line.
        """
        if self._loaded:
            return
        if self.tokenizer_name is not None or tokenizer is None:
            key = "data.tokenizer" if self.tokenizer_name else "model.base"
            tokenizer = load_tokenizer(key, self.tokenizer_name or self.base)
        renderer = make_renderer(tokenizer, self.template, self.template_options, base=self.base)
        self.encoder = Encoder(tokenizer, renderer)
        self.prompts = list(self._read())
        if not self.prompts:
            raise UserError(f"data.path: no prompt in '{self.source.path}'.")
        self._loaded = True

    def setup(self, stage: str) -> None:
        """Load, for Lightning."""
        self.load()

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """Yield this rank's batches that hold a prompt without an answer; one without prompts if there is none."""
        batches = [PromptBatch(number, tuple(prompts)) for number, prompts in enumerate(self._batches())]
        open_batches = [batch for batch in batches if any(prompt.id not in self.done for prompt in batch.prompts)]
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        # Never empty: Lightning skips a rank without batches, and the others would wait for it at the end for ever.
        own: Any = open_batches[rank::world_size] or [PromptBatch(0, ())]
        return DataLoader(own, batch_size=None, sampler=_InOrder(len(own)), collate_fn=_identity)

    def _batches(self) -> Iterator[list[Prompt]]:
        """Yield the prompts in parts that depend on the file only, so that any number of devices answers alike."""
        start = 0
        while start < len(self.prompts):
            end = start + self.batch_size
            while end < start + RANKED_AT_ONCE and _all_ranked(self.prompts[start : end + 1]):
                end += 1
            yield self.prompts[start:end]
            start = end

    def _read(self) -> Iterator[Prompt]:
        seen: set[str] = set()
        for number, row in enumerate(read_rows(self.source)):
            place = f"data.path: {self.source.path} {row.place}"
            try:
                prompt = self._prompt(row, number)
            except RowError as error:
                raise UserError(f"{place}: {error}. Mend the row, or name its layout with data.layout.") from error
            if prompt.id in seen:
                raise UserError(f"{place}: the id '{prompt.id}' occurs twice, so answers could not be told apart.")
            seen.add(prompt.id)
            yield prompt

    def _prompt(self, row: RawRow, number: int) -> Prompt:
        conversation, *more = to_conversations(row, self.row_function, needs_response=False)
        if isinstance(conversation, RowError):
            raise conversation
        if more:
            raise RowError("the row holds several conversations, and a prompt is one")
        meta = dict(conversation.meta)
        options, reference = meta.pop("options", None) or (), meta.pop("reference", None)
        standing_alone = not conversation.prompt.messages
        if standing_alone and (conversation.response or not options):
            raise RowError("the row holds no request")
        if not isinstance(options, list | tuple) or not all(isinstance(option, str) and option for option in options):
            raise RowError("'options' must be a list of texts")
        if reference is not None and not isinstance(reference, str):
            raise RowError(f"'reference' must be text, found {type(reference).__name__}")
        meta = meta.pop("meta", None) or meta
        joined = bool(meta.get("join_options")) if self.join_options is None else self.join_options
        ids, option_ids = self._ids(conversation, options, joined=joined)
        if reference is None and not standing_alone:
            reference = conversation.response
        prompt = Prompt(
            id=conversation.id or f"{Path(self.source.path).stem}-{number:06d}",
            ids=ids,
            options=tuple(options),
            option_ids=tuple(option_ids),
            reference=reference,
            meta=meta,
            standing_alone=standing_alone,
        )
        told = [prompt.id, conversation_digest(conversation.prompt).hex(), options, prompt.reference, prompt.meta]
        self._digest.update(json.dumps(told, default=str).encode() + b"\n")
        return prompt

    def _ids(
        self, conversation: Conversation, options: Sequence[str], *, joined: bool
    ) -> tuple[list[int], list[list[int]]]:
        """Return the ids of prompt and options; where nothing stands before a text, one token does."""
        if options and joined:
            ids, option_ids = self.encoder.option_ids(conversation, options)
        else:
            ids = self.encoder.prompt_ids(conversation)
            option_ids = [self.encoder.response_ids(option) for option in options]
        return (ids or [self.encoder.start_token_id]) if options else ids, option_ids


RANKED_AT_ONCE = 64
"""Prompts in a batch where all are to be ranked: those that share examples then share their computation, too, and no
more than `batch_size` texts go through the model at once all the same."""


def _all_ranked(prompts: Sequence[Prompt]) -> bool:
    return all(prompt.options and not prompt.standing_alone for prompt in prompts)


class _InOrder(Sampler[int]):
    """Numbers in order; Lightning must not put its distributed sampler in the place of a sequential one."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._length))


def _identity(batch: Any) -> Any:
    return batch
