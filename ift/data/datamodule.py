"""`InstructionDataModule`: instruction data from sources to steps, as Lightning wants it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ift.data.audit import audit, problems
from ift.data.conversation import TrainOn
from ift.data.counts import SourceCounts, reject_report
from ift.data.encoding import Encoder, load_tokenizer, make_renderer
from ift.data.filters import NO_FILTERS, Deduplicate, FilterSettings
from ift.data.layouts import resolve_layout
from ift.data.length import OverLong
from ift.data.micro_batches import GROUPED, RowLayoutChoice, RowLayoutSetting
from ift.data.order import IndexArray, Members, Mixing, Mixture, Permutation, uses_per_epoch
from ift.data.preparation import PreparationSettings, prepare
from ift.data.row_conversations import locate
from ift.data.rows import Source, check_source
from ift.data.steps import EpochSampler, Position, Step, StepPlan, TrainingSteps, ValidationSteps
from ift.data.store import ExampleStore
from ift.data.templates import Template, resolve_template
from ift.errors import UserError


def _identity(step: Any) -> Any:
    return step


class InstructionDataModule(LightningDataModule):
    """Streams formatted instruction data with output-only loss masks, in steps of a fixed number of examples.

    Args:
        sources: where the rows come from; each has a `path`, and what else is known of it.
        base: folder or hub id whose tokenizer is used; follows `model.base`.
        max_length: longest example in tokens; what becomes of longer ones says `over_long`.
        global_batch_size: examples per optimizer step, over all ranks.
        micro_batch_tokens: most positions (rows times longest row) that go through the model at once; changes speed
            and memory, never the result.
        row_layout: how examples share rows: `packed` end to end in several rows, `flattened` in one row, `grouped` one
            per row with others of its length, or `auto`, the fastest that the model computes exactly; changes speed,
            never the result.
        template: name of a template (`ift/data/templates.yaml`), `tokenizer` (its own chat template), or a template
            written out.
        template_options: variables that the tokenizer's own chat template reads, such as `enable_thinking: false`.
        train_on: what the loss counts: `outputs` (every response), `last_output`, or `everything`.
        over_long: what becomes of examples beyond `max_length`: `drop`, `cut_start`, `cut_end` (tokens on that side),
            or `cut_turns` (the last turns); each is counted, and none is kept without a supervised token.
        mixing: what a source's weight means: how often its examples occur (`repeats`), or its share of the `examples`
            or `tokens` of an epoch.
        deduplicate: which conversations are left out where an earlier one stays: `none`, `exact`, or `near` (MinHash,
            Jaccard similarity of character 5-grams of at least 0.8). Left out ones are counted and kept in a file.
        benchmarks: files of benchmark items; a conversation that shares a run of 13 tokens with an item is left out.
        validation: what is held out: a share (0.05), a number of examples (200), or a list of own sources.
        max_rejected: largest share of rows that may be unusable before the run stops.
        cache_dir: where prepared examples are kept between runs.
        num_workers: processes that collate steps ahead of training.
        seed: of the order and of the validation split; follows `seed_everything`.
    """

    def __init__(
        self,
        sources: list[Source],
        base: str,
        max_length: int,
        global_batch_size: int,
        micro_batch_tokens: int,
        row_layout: RowLayoutSetting = "auto",
        template: str | Template = "alpaca",
        template_options: dict[str, bool | str] | None = None,
        train_on: TrainOn = "outputs",
        over_long: OverLong = "drop",
        mixing: Mixing = "repeats",
        deduplicate: Deduplicate = "none",
        benchmarks: list[str] | None = None,
        validation: int | float | list[Source] | None = None,
        max_rejected: float = 0.01,
        cache_dir: str = "~/.cache/ift",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not sources:
            raise UserError("data.sources: the list is empty. Name at least one source with 'path' and 'layout'.")
        for name, value in (("max_length", max_length), ("global_batch_size", global_batch_size)):
            if value < 1:
                raise UserError(f"data.{name}: {value} is less than 1.")
        if micro_batch_tokens < max_length:
            raise UserError(
                f"data.micro_batch_tokens: {micro_batch_tokens} is less than data.max_length {max_length}, so the "
                f"longest example would not fit. Set it to {max_length} or more."
            )
        if not 0 <= max_rejected <= 1:
            raise UserError(f"data.max_rejected: {max_rejected} is no share between 0 and 1.")
        self.sources = _located("data.sources", sources)
        if isinstance(validation, list):
            validation = _located("data.validation", validation)
        elif validation is not None and not (validation >= 1 if isinstance(validation, int) else 0 < validation < 1):
            raise UserError(
                f"data.validation: {validation} is neither a share between 0 and 1 (0.05), nor a number of examples "
                "(200), nor a list of sources."
            )
        self.base, self.max_length = base, max_length
        self.global_batch_size, self.micro_batch_tokens = global_batch_size, micro_batch_tokens
        self.row_layout = row_layout
        self.row_layout_choice = GROUPED if row_layout == "auto" else RowLayoutChoice(row_layout, "asked for")
        """What steps are cut by. Data do not know the model; whoever does sets it, before the loaders are built."""
        self.template = resolve_template("data.template", template)
        self.template_options = template_options or {}
        self.train_on, self.over_long, self.mixing = train_on, over_long, mixing
        self.filters = FilterSettings(deduplicate, tuple(benchmarks or ()))
        self.filters.check("data")
        self.validation, self.max_rejected = validation, max_rejected
        self.cache_dir, self.num_workers, self.seed = Path(cache_dir).expanduser(), num_workers, seed
        self.position = Position()
        self._loaded = False

    def load(self) -> None:
        """Load the tokenizer and the prepared examples, and check them. Needs no process group; does nothing twice.

        Raises:
            UserError: too many rejected rows, or too few examples for one step.
        """
        if self._loaded:
            return
        self._load_encoder()
        self.store = self._open_store("data.sources", self.sources)
        held_out = self._held_out()
        self.mixture = self._mixture(held_out)
        self.num_train_examples = sum(len(members) for members in self.mixture.members)
        if isinstance(self.validation, list):
            self._validation_store = self._open_store("data.validation", self.validation)
            self._validation_indices: IndexArray = np.arange(len(self._validation_store))
        else:
            self._validation_store, self._validation_indices = self.store, held_out
        self._check_size()
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
        self.store = self._prepared("data.sources", self.sources)
        return self.store, self._held_out() if len(self.store) else np.zeros(0, dtype=np.int64)

    def problems(self) -> list[str]:
        """Return what makes it senseless to train on the data, one text each."""
        found = problems(audit(self.store), "data.sources")
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
        return max(self.store.longest, self._validation_store.longest)

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training data."""
        return self._training_steps(0, 1).num_steps_per_epoch

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
        pairs: list[tuple[list[int], list[int]]] = []
        for index in self._validation_indices:
            if len(pairs) == number:
                break
            example = self._validation_store[int(index)]
            supervised = np.flatnonzero(example.labels == example.input_ids)
            last_response = np.split(supervised, np.flatnonzero(np.diff(supervised) > 1) + 1)[-1]
            start, end = last_response[0], last_response[-1] + 1
            if start > 0:
                pairs.append((example.input_ids[:start].tolist(), example.input_ids[start:end].tolist()))
        return pairs

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data."""
        return {"next_step": self.position.next_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position in the data."""
        self.position.next_step = int(state_dict["next_step"])

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of the data: per source what became of its rows, and what is held out."""
        described: dict[str, Any] = {
            "sources": [asdict(counts) for counts in self.store.counts],
            "audit": audit(self.store).describe(),
            "prepared": self.store.key,
            "preparation_seconds": round(self.store.preparation_seconds, 3),
            "train_examples": self.num_train_examples,
            "validation_examples": self.num_validation_examples,
            "steps_per_epoch": self.num_steps_per_epoch,
        }
        if isinstance(self.validation, list):
            described["validation_sources"] = [asdict(counts) for counts in self._validation_store.counts]
            described["validation_audit"] = audit(self._validation_store).describe()
            described["validation_prepared"] = self._validation_store.key
        return described

    def rejects_files(self) -> list[Path]:
        """Return the files that hold the rejected rows, one JSON object per line."""
        stores = {store.key: store for store in (self.store, self._validation_store)}
        return [store.rejects_path for store in stores.values()]

    def rejected(self) -> str:
        """Return how many rows became no example and why, or an empty text where all did."""
        stores = {store.key: store for store in (self.store, self._validation_store)}.values()
        counts = [one for store in stores for one in store.counts if one.num_rejected]
        number = sum(one.num_rejected for one in counts)
        everything = sum(_num_outcomes(one) for one in counts)
        if not counts:
            return ""
        return f"{number} of {everything} rows cannot be used and are left out:\n{reject_report(counts)}"

    def notes(self) -> list[str]:
        """Return what was decided for the user and may not be what they expect, one line each."""
        stores = {store.key: store for store in (self.store, self._validation_store)}.values()
        lines = []
        for counts in (one for store in stores for one in store.counts):
            if counts.detected:
                lines.append(f"{counts.path}: no layout is named; its first rows have layout '{counts.layout}'")
            if counts.cut:
                lines.append(f"{counts.path}: {counts.cut} examples cut to data.max_length {self.max_length}")
            for name, number in counts.removed.items():
                lines.append(f"{counts.path}: {number} conversations left out ({name})")
        for token, instead in self.encoder.missing_tokens().items():
            lines.append(
                f"data.template: the tokenizer lacks the special token '{token}'; {instead} is written instead"
            )
        return lines

    def _load_encoder(self) -> None:
        self.tokenizer = load_tokenizer("model.base", self.base)
        self.encoder = Encoder(self.tokenizer, make_renderer(self.tokenizer, self.template, self.template_options))

    def _prepared(self, key: str, sources: list[Source]) -> ExampleStore:
        """Return the examples of the sources, whatever became of their rows."""
        # What validation measures is not the run's to choose: filters are for training data.
        filters = self.filters if sources is self.sources else NO_FILTERS
        settings = PreparationSettings(self.max_length, self.over_long, self.train_on, filters)
        store = ExampleStore(prepare(sources, self.encoder, settings, cache_dir=self.cache_dir, key=key))
        for counts, source in zip(store.counts, sources, strict=True):
            counts.weight = source.weight  # no part of what is prepared, so the store may know an older one
        return store

    def _open_store(self, key: str, sources: list[Source]) -> ExampleStore:
        store = self._prepared(key, sources)
        everything = sum(map(_num_outcomes, store.counts))
        rejected = sum(counts.num_rejected for counts in store.counts)
        if rejected > self.max_rejected * everything:
            raise UserError(
                f"{key}: {rejected} of {everything} rows cannot be used, more than data.max_rejected "
                f"{self.max_rejected:g} allows:\n{reject_report(store.counts)}\nAll of them: {store.rejects_path}\n"
                "Mend the rows or their layout, or raise data.max_rejected (and data.max_length where rows are long)."
            )
        if not len(store):
            raise UserError(f"{key}: no row in {', '.join(source.path for source in sources)}.")
        return store

    def _held_out(self) -> IndexArray:
        if self.validation is None or isinstance(self.validation, list):
            return np.zeros(0, dtype=np.int64)
        asked = self.validation
        number = asked if isinstance(asked, int) else max(1, round(asked * len(self.store)))
        if number >= len(self.store):
            raise UserError(f"data.validation: {number} examples held out of {len(self.store)} leave none to train on.")
        # A stream of its own, so that the split does not move when anything else draws random numbers.
        return np.sort(Permutation(len(self.store), self.seed, 0x5EED)(np.arange(number)))

    def _mixture(self, held_out: IndexArray) -> Mixture:
        members = []
        for number, source in enumerate(self.sources):
            start, stop = self.store.source_range(number)
            own = held_out[(held_out >= start) & (held_out < stop)]
            members.append(Members(start, stop, own, cap=source.max_examples, seed=(self.seed, number, 0xCA9)))
        uses = uses_per_epoch(
            [len(one) for one in members],
            [source.weight for source in self.sources],
            [counts.tokens / max(1, counts.examples) for counts in self.store.counts],
            mixing=self.mixing,
        )
        return Mixture(tuple(members), uses, self.seed)

    def _check_size(self) -> None:
        if len(self.mixture) < self.global_batch_size:
            raise UserError(
                f"data.global_batch_size: a step takes {self.global_batch_size} examples, and an epoch has only "
                f"{len(self.mixture)}. Lower it, or add data."
            )

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

    def _training_steps(self, rank: int, world_size: int) -> TrainingSteps:
        return TrainingSteps(self.store, self.mixture, plan=self._plan(rank, world_size))

    def _loader(self, steps: Any, sampler: EpochSampler | None) -> DataLoader[Step]:
        return DataLoader(
            steps,
            batch_size=None,
            sampler=sampler,
            collate_fn=_identity,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _located(key: str, sources: list[Source]) -> list[Source]:
    """Return the sources with what the catalogue knows of them, each checked."""
    located = []
    for number, source in enumerate(sources):
        source = locate(f"{key}[{number}]", source)
        check_source(f"{key}[{number}]", source)
        if source.layout is not None:
            resolve_layout(f"{key}[{number}].layout", source.layout)
        located.append(source)
    return located


def _num_outcomes(counts: SourceCounts) -> int:
    """Return the number of conversations that a source held, used or not."""
    return counts.examples + counts.num_rejected + counts.num_removed
