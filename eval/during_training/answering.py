"""Answers of a model that is being trained: those of `ift predict`, and training goes on as without them."""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ift.data.templates import TOKENIZER_TEMPLATE
from ift.inference.generation import Decoding
from ift.inference.lengths import check_lengths
from ift.inference.module import PredictionModule
from ift.inference.prompts import Prompt, PromptBatch, PromptDataModule
from ift.models.compiling import uncompiled
from ift.models.loading import max_positions
from ift.models.rope import Rope
from ift.records import Prediction, PromptRecord, write_jsonl


def read_prompts(
    records: Iterable[PromptRecord], datamodule: Any, *, batch_size: int, join_options: bool | None
) -> PromptDataModule:
    """Return prompts as `ift predict` reads them, with base model and template of a run's data.

    Args:
        records: the prompts.
        datamodule: the run's `InstructionDataModule`.
        batch_size: prompts that go through the model at once.
        join_options: whether options are tokenized together with the text before them; `None`: as the prompts say.

    Raises:
        UserError: a prompt that the template cannot say.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        write_jsonl(path, records)
        prompts = PromptDataModule(
            str(path),
            base=datamodule.base,
            template=datamodule.template or TOKENIZER_TEMPLATE,
            template_options=datamodule.template_options,
            batch_size=batch_size,
            join_options=join_options,
        )
        prompts.load(datamodule.tokenizer)
    return prompts


class _Place:
    """What `PredictionModule` asks its Trainer for."""

    def __init__(self, datamodule: PromptDataModule) -> None:
        self.datamodule = datamodule


class LiveModel(PredictionModule):
    """Answers with a model that is lent for each answer, and kept by nobody in between.

    Args:
        base: of the run.
        prompts: to answer.
        max_new_tokens: longest response, in tokens.
        num_virtual_tokens: positions that the run's adapter takes before the text.
        rope: rotary positions of the run.

    Raises:
        UserError: a prompt with its response is longer than the model's positions.
    """

    def __init__(
        self,
        base: str,
        prompts: PromptDataModule,
        *,
        max_new_tokens: int,
        num_virtual_tokens: int,
        rope: Rope | None = None,
    ) -> None:
        super().__init__(base, rope=rope, decoding=Decoding(max_new_tokens=max_new_tokens))
        self.trainer = _Place(prompts)  # type: ignore[assignment]
        self._virtual = num_virtual_tokens
        self.batches: list[PromptBatch] = list(prompts.predict_dataloader())
        self._check_sizes(prompts.prompts)

    def answers(self, model: Any, batches: Iterable[PromptBatch]) -> list[Prediction]:
        """Return the model's answers to batches of prompts."""
        self.model = model
        try:
            with undisturbed(model), uncompiled(model):
                return [answer for number, batch in enumerate(batches) for answer in self.predict_step(batch, number)]
        finally:
            self.model = self._scorer = None

    def _num_virtual_tokens(self) -> int:
        return self._virtual

    def _check_sizes(self, prompts: Sequence[Prompt]) -> None:
        check_lengths(
            prompts,
            limit=max_positions(self.base, self.rope),
            num_virtual_tokens=self._virtual,
            max_new_tokens=self.decoding.max_new_tokens,
            decoding_key="max_new_tokens",
            data_key="data",
        )


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode without gradients; afterwards, modes and random numbers are as they were."""
    modes = {module: module.training for module in model.modules()}
    states: tuple[Any, Any] = random.getstate(), np.random.get_state()
    cuda = model.device.type == "cuda"
    try:
        # Not in inference mode, which Lightning is in while it validates: tensors made there can never be trained with.
        with torch.random.fork_rng([model.device] if cuda else []), torch.inference_mode(False), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
        if cuda:
            torch.cuda.empty_cache()  # keys and values in sizes that training has no use for
