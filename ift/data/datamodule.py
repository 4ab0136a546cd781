"""`InstructionDataModule`: instruction data from sources to steps, as Lightning wants it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ift.data.encoding import Encoder, load_tokenizer, make_renderer
from ift.data.layouts import resolve_layout
from ift.data.micro_batches import GROUPED, IndexArray, RowLayoutChoice, RowLayoutSetting
from ift.data.preparation import ExampleStore, prepare, reject_report
from ift.data.rows import Source, check_source
from ift.data.steps import (
    EpochSampler,
    Position,
    Step,
    StepPlan,
    TrainingSteps,
    ValidationSteps,
    epoch_size,
)
from ift.data.templates import Template, resolve_template
from ift.errors import UserError


def _identity(step: Any) -> Any:
    return step


class InstructionDataModule(LightningDataModule):
    """Streams formatted instruction data with output-only loss masks, in steps of a fixed number of examples.

    Args:
        sources: where the rows come from; each has `path`, `layout`, optional `weight` and `split`.
        base: folder or hub id whose tokenizer is used; follows `model.base`.
        max_length: longest example in tokens; longer ones are rejected and counted, never cut.
        global_batch_size: examples per optimizer step, over all ranks.
        micro_batch_tokens: most positions (rows times longest row) that go through the model at once; changes speed
            and memory, never the result.
        row_layout: how examples share rows: `packed` end to end in several rows, `flattened` in one row, `grouped` one
            per row with others of its length, or `auto`, the fastest that the model computes exactly; changes speed,
            never the result.
        template: alpaca, chinese_alpaca, plain, `tokenizer` (its own chat template), or a template written out.
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
        _check_sources("data.sources", sources)
        if isinstance(validation, list):
            _check_sources("data.validation", validation)
        elif validation is not None and not (validation >= 1 if isinstance(validation, int) else 0 < validation < 1):
            raise UserError(
                f"data.validation: {validation} is neither a share between 0 and 1 (0.05), nor a number of examples "
                "(200), nor a list of sources."
            )
        self.sources, self.base, self.max_length = sources, base, max_length
        self.global_batch_size, self.micro_batch_tokens = global_batch_size, micro_batch_tokens
        self.row_layout = row_layout
        self.row_layout_choice = GROUPED if row_layout == "auto" else RowLayoutChoice(row_layout, "asked for")
        """What steps are cut by. Data do not know the model; whoever does sets it, before the loaders are built."""
        self.template = resolve_template("data.template", template)
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
        self.tokenizer = load_tokenizer("model.base", self.base)
        self.encoder = Encoder(self.tokenizer, make_renderer(self.tokenizer, self.template))
        self.store = self._open_store("data.sources", self.sources)
        everything = np.arange(len(self.store))
        held_out = self._held_out()
        kept = np.setdiff1d(everything, held_out)
        self._train_indices = [kept[self.store.source[kept] == number] for number in range(len(self.sources))]
        self.num_train_examples = sum(len(own) for own in self._train_indices)
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

    @property
    def num_validation_examples(self) -> int:
        """Examples that validation counts."""
        return len(self._validation_indices)

    @property
    def longest_example(self) -> int:
        """Tokens of the longest example, to train on or to validate with."""
        return int(max(self.store.num_tokens.max(), self._validation_store.num_tokens.max()))

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
            "prepared": self.store.key,
            "preparation_seconds": round(self.store.preparation_seconds, 3),
            "train_examples": self.num_train_examples,
            "validation_examples": self.num_validation_examples,
            "steps_per_epoch": self.num_steps_per_epoch,
        }
        if isinstance(self.validation, list):
            described["validation_sources"] = [asdict(counts) for counts in self._validation_store.counts]
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
        number, rows = sum(one.num_rejected for one in counts), sum(one.rows for one in counts)
        return f"{number} of {rows} rows cannot be used and are left out:\n{reject_report(counts)}" if counts else ""

    def _open_store(self, key: str, sources: list[Source]) -> ExampleStore:
        folder = prepare(sources, self.encoder, max_length=self.max_length, cache_dir=self.cache_dir, key=key)
        store = ExampleStore(folder)
        for counts, source in zip(store.counts, sources, strict=True):
            counts.weight = source.weight  # no part of what is prepared, so the store may know an older one
        rows = sum(counts.rows for counts in store.counts)
        rejected = sum(counts.num_rejected for counts in store.counts)
        if rejected > self.max_rejected * rows:
            raise UserError(
                f"{key}: {rejected} of {rows} rows cannot be used, more than data.max_rejected {self.max_rejected:g} "
                f"allows:\n{reject_report(store.counts)}\nAll of them: {store.rejects_path}\n"
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
        order = np.random.default_rng([self.seed, 0x5EED]).permutation(len(self.store))
        return np.sort(order[:number])

    def _check_size(self) -> None:
        weights = [source.weight for source in self.sources]
        size = epoch_size(self._train_indices, weights)
        if size < self.global_batch_size:
            raise UserError(
                f"data.global_batch_size: a step takes {self.global_batch_size} examples, and an epoch has only "
                f"{size}. Lower it, or add data."
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
        weights = [source.weight for source in self.sources]
        plan = self._plan(rank, world_size)
        return TrainingSteps(self.store, self._train_indices, weights, plan=plan, seed=self.seed)

    def _loader(self, steps: Any, sampler: EpochSampler | None) -> DataLoader[Step]:
        return DataLoader(
            steps,
            batch_size=None,
            sampler=sampler,
            collate_fn=_identity,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _check_sources(key: str, sources: list[Source]) -> None:
    for number, source in enumerate(sources):
        check_source(f"{key}[{number}]", source)
        resolve_layout(f"{key}[{number}].layout", source.layout)
