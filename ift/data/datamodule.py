"""`InstructionDataModule`: instruction data from sources to steps, as Lightning wants it."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ift.data.audit import audit, problems
from ift.data.conversation import TrainOn
from ift.data.data_report import (
    block_notes,
    check_held_out,
    check_loss,
    check_members,
    check_not_empty,
    check_rejected,
    check_shares,
    check_sizes,
    check_uses,
    check_validation_sources,
    choose_held_out,
    describe_store,
    members_of,
    rejected_text,
    source_notes,
    stream_notes,
    token_notes,
)
from ift.data.encoding import Encoder, make_renderer
from ift.data.enlarged_tokenizer import EnlargedTokenizer, enlarged_tokenizer
from ift.data.filters import NO_FILTERS, Deduplicate, FilterSettings
from ift.data.length import LengthPolicy, OverLong
from ift.data.micro_batches import GROUPED, RowLayoutChoice, RowLayoutSetting
from ift.data.order import IndexArray, Mixing, Mixture, uses_per_epoch
from ift.data.preparation import PreparationSettings, prepare
from ift.data.row_conversations import checked_sources
from ift.data.rows import Source
from ift.data.step_loader import StepLoader
from ift.data.steps import EpochSampler, Position, Step, StepPlan, TrainingSteps, ValidationSteps
from ift.data.store import ExampleStore, first_prompts
from ift.data.stream_steps import StoredPart, StreamSteps
from ift.data.streaming import (
    Stream,
    StreamCounts,
    StreamSettings,
    check_streams,
    describe_streams,
    row_shares,
    stream_parts,
    try_stream,
)
from ift.data.templates import Renderer, Template, resolve_template
from ift.errors import UserError


class InstructionDataModule(LightningDataModule):
    """Streams formatted instruction data with output-only loss masks, in steps of a fixed number of examples.

    Args:
        sources: where the rows come from; each has a `path`, and what else is known of it.
        base: folder or hub id whose tokenizer is used; follows `model.base`.
        max_length: longest example in tokens; what becomes of longer ones says `over_long`.
        global_batch_size: examples per optimizer step, over all ranks.
        micro_batch_tokens: most positions (rows times longest row) that go through the model at once; changes speed
            and memory, and the result only by rounding, and by the masks where there is dropout.
        auto_micro_batch: when memory runs out, halve `micro_batch_tokens` until the step is cut otherwise, compute it
            again, and keep the smaller budget; changes the result as that does. One device and ddp only.
        row_layout: how examples share rows: `packed` end to end in several rows, `flattened` in one row, `grouped` one
            per row with others of its length, or `auto`, the fastest that the model computes exactly; changes speed,
            and the result as `micro_batch_tokens` does.
        template: name of a template (`ift/data/templates.yaml`), `tokenizer` (its own chat template), or a template
            written out.
        template_options: variables that the tokenizer's own chat template reads, such as `enable_thinking: false`;
            and `date`, which one that prints the date of today prints instead, on every day.
        train_on: what the loss counts: `outputs` (every response), `last_output`, or `everything`.
        over_long: what becomes of examples beyond `max_length`: `drop`, `cut_start`, `cut_end` (tokens on that side),
            or `cut_turns` (the last turns); each is counted, and none is kept without a supervised token.
        text_blocks: whether plain texts (layout `text`) are joined, end-of-text behind each, and cut into blocks of
            `max_length` supervised tokens, the last one shorter; of a stream, within the rows of each step.
        mixing: what a source's weight means: how often its examples occur (`repeats`), or its share of the `examples`
            or `tokens` of an epoch.
        deduplicate: which conversations are left out where an earlier one stays: `none`, `exact`, or `near` (MinHash,
            Jaccard similarity of character 5-grams of at least 0.8). Left out ones are counted and kept in a file.
        benchmarks: files of benchmark items; a conversation that shares a run of 13 tokens with an item is left out.
        shuffle_buffer: rows of a streaming source that are shuffled together.
        validation: what is held out: a share (0.05), a number of examples (200), or a list of own sources.
        max_rejected: largest share of rows that may be unusable before the run stops.
        cache_dir: where prepared examples are kept between runs.
        num_workers: processes that collate steps ahead of training.
        seed: of the order and of the validation split; follows `seed_everything`.
        tokenizer: what the tokenizer has more than the base model's; follows `model.vocabulary`.
    """

    def __init__(
        self,
        sources: list[Source],
        base: str,
        max_length: int,
        global_batch_size: int,
        micro_batch_tokens: int,
        auto_micro_batch: bool = False,
        row_layout: RowLayoutSetting = "auto",
        template: str | Template = "alpaca",
        template_options: dict[str, bool | str] | None = None,
        train_on: TrainOn = "outputs",
        over_long: OverLong = "drop",
        text_blocks: bool = False,
        mixing: Mixing = "repeats",
        deduplicate: Deduplicate = "none",
        benchmarks: list[str] | None = None,
        shuffle_buffer: int = 10_000,
        validation: int | float | list[Source] | None = None,
        max_rejected: float = 0.01,
        cache_dir: str = "~/.cache/ift",
        num_workers: int = 0,
        seed: int = 0,
        tokenizer: EnlargedTokenizer | None = None,
    ) -> None:
        super().__init__()
        if not sources:
            raise UserError("data.sources: the list is empty. Name at least one source with 'path' and 'layout'.")
        check_sizes(max_length, global_batch_size, micro_batch_tokens=micro_batch_tokens, text_blocks=text_blocks)
        check_shares(max_rejected, shuffle_buffer)
        self.sources = checked_sources("data.sources", sources)
        if isinstance(validation, list):
            validation = checked_sources("data.validation", validation)
            check_validation_sources(validation)
        elif validation is not None:
            check_held_out(validation)
        self.base, self.enlarged, self.max_length = base, tokenizer, max_length
        self.global_batch_size, self.micro_batch_tokens = global_batch_size, micro_batch_tokens
        self.auto_micro_batch, self.row_layout = auto_micro_batch, row_layout
        self.row_layout_choice = GROUPED if row_layout == "auto" else RowLayoutChoice(row_layout, "asked for")
        """What steps are cut by. Data do not know the model; whoever does sets it, before the loaders are built."""
        self.template = resolve_template("data.template", template)
        self.template_options = template_options or {}
        self.train_on, self.over_long, self.mixing, self.text_blocks = train_on, over_long, mixing, text_blocks
        self.filters = FilterSettings(deduplicate, tuple(benchmarks or ()))
        self.filters.check("data")
        check_streams(self.sources, mixing=mixing, deduplicate=deduplicate, num_benchmarks=len(self.filters.benchmarks))
        self.validation, self.max_rejected, self.shuffle_buffer = validation, max_rejected, shuffle_buffer
        self.cache_dir, self.num_workers, self.seed = Path(cache_dir).expanduser(), num_workers, seed
        self.position, self.stream_counts, self._loaded = Position(), StreamCounts(), False
        self.streams: list[Stream] = []
        self._stream_states: tuple[dict[str, Any] | None, ...] = (None,) * len(self.sources)

    def load(self) -> None:
        """Load the tokenizer and the prepared examples, and check them. Needs no process group; does nothing twice.

        Raises:
            UserError: too many rejected rows, or too few examples for one step.
        """
        if self._loaded:
            return
        self._load_encoder()
        self.store = self._open_store("data.sources", self._stored_sources)
        held_out = self._held_out()
        self.members = members_of(self.store, self._stored_sources, held_out, seed=self.seed)
        self.num_train_examples = sum(map(len, self.members))
        self._length = LengthPolicy(self.encoder, self.max_length, self.over_long, self.train_on, self.text_blocks)
        streaming = [(number, source) for number, source in enumerate(self.sources) if source.stream]
        self.streams = [try_stream(number, source, self.encoder, self._length) for number, source in streaming]
        if isinstance(self.validation, list):
            self._validation_store = self._open_store("data.validation", self.validation)
            self._validation_indices: IndexArray = np.arange(len(self._validation_store))
        else:
            self._validation_store, self._validation_indices = self.store, held_out
        self.check_size()
        self._loaded = True

    def setup(self, stage: str) -> None:
        """Load, for Lightning."""
        self.load()

    def look(self, *, validation: bool) -> tuple[ExampleStore, IndexArray]:
        """Prepare data to look at them, whatever became of their rows.

        Args:
            validation: whether to look at the validation sources, where `data.validation` lists some.

        Returns:
            The examples, and the indices of those that are held out for validation.
        """
        self._load_encoder()
        if validation and isinstance(self.validation, list):
            store = self._prepared("data.validation", self.validation)
            return store, np.arange(len(store))
        self.store = self._prepared("data.sources", self._stored_sources)
        held_out = self._held_out() if len(self.store) else np.zeros(0, dtype=np.int64)
        self.members = members_of(self.store, self._stored_sources, held_out, seed=self.seed)
        return self.store, held_out

    def problems(self) -> list[str]:
        """Return what makes it senseless to train on the data, one text each."""
        found = problems(audit(self.store), "data.sources", numbers=self.stored_numbers)
        if isinstance(self.validation, list):
            found += problems(audit(self._validation_store), "data.validation")
        return found

    @property
    def num_validation_examples(self) -> int:
        """Examples that validation counts."""
        return len(self._validation_indices)

    @property
    def longest_example(self) -> int:
        """Tokens of the longest example, to train on or to validate with."""
        streamed = self.max_length if self.streams else 0
        return max(streamed, self.store.longest, self._validation_store.longest)

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training data."""
        return self._training_steps(0, 1).num_steps_per_epoch

    @property
    def stored_numbers(self) -> list[int]:
        """Numbers of the sources that are prepared before training."""
        return [number for number, source in enumerate(self.sources) if not source.stream]

    @property
    def _stored_sources(self) -> list[Source]:
        return [self.sources[number] for number in self.stored_numbers]

    def train_dataloader(self) -> DataLoader[Step]:
        """Yield one `Step` per optimizer step, from the position in the data on."""
        steps = self._training_steps(*self._place())
        return self._loader(steps, EpochSampler(self.position, steps.num_steps_per_epoch))

    def val_dataloader(self) -> DataLoader[Step] | list[DataLoader[Step]]:
        """Yield every validation example once; an empty list without validation data."""
        if not len(self._validation_indices):
            return []
        steps = ValidationSteps(self._validation_store, self._validation_indices, self._plan(*self._place()))
        return self._loader(steps, None)

    def validation_prompts(self, number: int) -> list[tuple[list[int], list[int]]]:
        """Return `(prompt ids, response ids)` of the first validation examples that have a prompt."""
        return first_prompts(self._validation_store, self._validation_indices, number, opening=self.encoder.opening_ids)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data."""
        state: dict[str, Any] = {"next_step": self.position.next_step}
        if self.streams:
            state |= {"streams": list(self._stream_states), "stream_counts": asdict(self.stream_counts)}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position in the data."""
        self.position.next_step = int(state_dict["next_step"])
        if self.streams:
            self._stream_states = tuple(state_dict["streams"])
            self.stream_counts = StreamCounts(**state_dict["stream_counts"])

    def advance(self, step: Step) -> None:
        """Move the position past a finished step.

        Raises:
            UserError: too many rows of the streams cannot be used.
        """
        self.position.next_step = step.index + 1
        if step.progress is not None:
            self._stream_states = step.progress.states
            self.stream_counts.add(step.progress, max_rejected=self.max_rejected)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of the data: per source what became of its rows, and what is held out."""
        described = describe_store(self.store) | {
            "preparation_seconds": round(self.store.preparation_seconds, 3),
            "train_examples": self.num_train_examples,
            "validation_examples": self.num_validation_examples,
        }
        if self.streams:
            described["streams"] = self.describe_streams()
        else:
            described["steps_per_epoch"] = self.num_steps_per_epoch
        if isinstance(self.validation, list):
            described |= {f"validation_{name}": one for name, one in describe_store(self._validation_store).items()}
        return described

    def describe_streams(self) -> dict[str, Any]:
        """Return what the streams are and what has become of their rows so far."""
        return describe_streams(self.streams, self.stream_counts, buffer=self.shuffle_buffer)

    def rejects_files(self) -> list[Path]:
        """Return the files that hold the rejected rows, one JSON object per line."""
        return [store.rejects_path for store in self._stores]

    @property
    def num_rejected(self) -> int:
        """Rows, or conversations of rows, that became no example so far: the lines of those files, and of streams."""
        prepared = sum(counts.num_rejected for store in self._stores for counts in store.counts)
        return prepared + sum(self.stream_counts.rejected.values())

    def removed_files(self) -> list[Path]:
        """Return the files that hold the rows which filters left out; none where there are no such rows."""
        stores = [store for store in self._stores if any(counts.num_removed for counts in store.counts)]
        return [store.removed_path for store in stores]

    def rejected(self) -> str:
        """Return how many rows became no example and why, or an empty text where all did."""
        return rejected_text(self._stores)

    def notes(self) -> list[str]:
        """Return what was decided for the user and may not be what they expect, one line each."""
        notes = source_notes(self._stores, max_length=self.max_length)
        notes += block_notes(self._stores, self.streams, text_blocks=self.text_blocks, validation=self.validation)
        return [*notes, *stream_notes(self.streams, mixing=self.mixing), *token_notes(self.encoder)]

    @property
    def _stores(self) -> list[ExampleStore]:
        return list({store.key: store for store in (self.store, self._validation_store)}.values())

    def _load_encoder(self) -> None:
        self.tokenizer = enlarged_tokenizer(self.base, self.enlarged)
        self.encoder = Encoder(self.tokenizer, self._renderer())

    def _renderer(self) -> Renderer:
        renderer = make_renderer(self.tokenizer, self.template, self.template_options, base=self.base)
        check_loss(self.train_on, renderer, text_blocks=self.text_blocks)
        return renderer

    def _prepared(self, key: str, sources: list[Source]) -> ExampleStore:
        """Return the examples of the sources, whatever became of their rows."""
        # What validation measures is not the run's to choose: filters are for training data.
        filters = self.filters if key == "data.sources" else NO_FILTERS
        settings = PreparationSettings(self.max_length, self.over_long, self.train_on, filters, self.text_blocks)
        place: Any = {"key": key, "numbers": self.stored_numbers if key == "data.sources" else None}
        store = ExampleStore(prepare(sources, self.encoder, settings, cache_dir=self.cache_dir, **place))
        for counts, source in zip(store.counts, sources, strict=True):
            counts.weight = source.weight  # no part of what is prepared, so the store may know an older one
        return store

    def _open_store(self, key: str, sources: list[Source]) -> ExampleStore:
        store = self._prepared(key, sources)
        check_rejected(key, store, max_rejected=self.max_rejected)
        check_not_empty(key, store)
        return store

    def _held_out(self) -> IndexArray:
        if self.validation is None or isinstance(self.validation, list):
            return np.zeros(0, dtype=np.int64)
        return choose_held_out(self.validation, len(self.store), seed=self.seed)

    @cached_property
    def _mixture(self) -> Mixture:
        uses = uses_per_epoch(
            [len(one) for one in self.members],
            [source.weight for source in self.sources],
            [counts.tokens / max(1, counts.examples) for counts in self.store.counts],
            mixing=self.mixing,
        )
        return Mixture(self.members, uses, self.seed)

    def check_size(self) -> None:
        """Refuse sources of which nothing is left to train on, or too little for one step."""
        check_members(
            self.sources, dict(zip(self.stored_numbers, self.members, strict=True)), with_streams=bool(self.streams)
        )
        if not self.streams:
            check_uses(self.sources, self._mixture, global_batch_size=self.global_batch_size)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _plan(self, rank: int, world_size: int) -> StepPlan:
        return StepPlan(
            global_batch_size=self.global_batch_size,
            micro_batch_tokens=self.micro_batch_tokens,
            pad_token_id=self.encoder.pad_token_id,
            row_layout=self.row_layout_choice,
            rank=rank,
            world_size=world_size,
        )

    def _training_steps(self, rank: int, world_size: int) -> TrainingSteps | StreamSteps:
        if not self.streams:
            return TrainingSteps(self.store, self._mixture, plan=self._plan(rank, world_size))
        parts = stream_parts(
            self.sources,
            self.streams,
            [StoredPart(self.store, own, (self.seed, number, 0x57)) for number, own in enumerate(self.members)],
            encoder=self.encoder,
            settings=StreamSettings(self._length, self.shuffle_buffer, self.seed),
            states=self._stream_states,
        )
        stored = iter(counts.tokens / max(1, counts.examples) for counts in self.store.counts)
        streamed = iter(stream.mean_tokens for stream in self.streams)
        means = [next(streamed if source.stream else stored) for source in self.sources]
        shares = row_shares([source.weight for source in self.sources], means, mixing=self.mixing)
        num_steps = int(self.trainer.max_steps) if self.trainer else 0
        return StreamSteps(parts, shares, plan=self._plan(rank, world_size), num_steps=num_steps)

    def _loader(self, steps: Any, sampler: EpochSampler | None) -> DataLoader[Step]:
        return StepLoader(steps, sampler, num_workers=self.num_workers)
