"""`PredictionModule`: a base model with or without a trained adapter, answering prompts."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from ift.errors import UserError
from ift.hub import check_base
from ift.inference.generation import Decoding, generate
from ift.inference.lengths import check_lengths, tokens_of
from ift.inference.likelihood import Scorer
from ift.inference.prompts import Prompt, PromptBatch
from ift.inference.windows import Windows, cut
from ift.models.adapters import num_virtual_tokens
from ift.models.attention import Attention, check_attention
from ift.models.encoder_decoder import check_encoder_decoder
from ift.models.enlarging import enlarge
from ift.models.families.normalized_head import settle_heads
from ift.models.loading import Dtype, check_vocabulary, load_base_model, max_positions, read_config
from ift.models.merging import merge_adapters
from ift.models.methods import trained
from ift.models.out_of_memory import tells_of_memory
from ift.models.positions import steady_length
from ift.models.quantization import Quantization, check_quantization
from ift.models.rope import Rope, check_rope, with_rope
from ift.models.trained_adapters import (
    MergedAdapter,
    adapter_folder,
    check_rope_of,
    load_adapter,
    merged_before,
    merged_chain,
)
from ift.models.vocabulary import Growth, Vocabulary, growth_of
from ift.records import Prediction
from ift.seeds import mixed_seed


class PredictionModule(LightningModule):
    """Answers batches of prompts.

    Args:
        base: folder or hub id of the base model and its tokenizer.
        adapter: folder of a trained adapter; none for the base model alone.
        merged_adapters: folders of adapters or runs, merged into the base model first; a run's own with `--run`.
        dtype: of the weights.
        quantization: holds the base model's weights in 4 or 8 bits; a run's own with `--run`.
        attention: how attention is computed, which changes speed and memory; by default as transformers chooses.
        rope: rotary positions for longer texts than the base model was trained on; a run's own with `--run`.
        vocabulary: a tokenizer with more tokens than the base model's, as of `ift fit`; a run's own with `--run`.
        decoding: how responses are written.
        seed: of sampling, mixed with the number of the batch; follows `seed_everything`.
        windows: how texts that stand alone are cut to be scored.
    """

    def __init__(
        self,
        base: str,
        adapter: str | None = None,
        merged_adapters: list[str] | None = None,
        dtype: Dtype = "float32",
        quantization: Quantization | None = None,
        attention: Attention | None = None,
        rope: Rope | None = None,
        vocabulary: Vocabulary | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
        seed: int = 0,
        windows: Windows = Windows(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        check_base("model.base", base)
        config = read_config(base)
        check_encoder_decoder("model.base", base, config=config, dtype=dtype)
        check_quantization("model.base", base, config=config, quantization=quantization)
        check_attention(attention, config=config, dtype=dtype)
        check_rope(rope, config=config)
        self.quantization, self.attention, self.rope = quantization, attention, rope
        self.vocabulary, self.growth = vocabulary, growth_of(vocabulary, base, seed=seed)
        self.merged_chain = _chain(base, merged_adapters or [], adapter, growth=self.growth)
        last = adapter_folder("model.adapter", adapter) if adapter is not None else None
        if last is not None or self.merged_chain:  # the last that was trained knows the positions of all
            check_rope_of(last or Path(self.merged_chain[-1].folder), rope)
        self.base, self.adapter, self.dtype_name = base, adapter, dtype
        self.decoding, self.seed, self.windows = decoding, seed, windows
        self.model: Any = None
        self._scorer: Scorer | None = None

    @tells_of_memory
    def configure_model(self) -> None:
        """Load the base model and the adapter; does nothing twice."""
        if self.model is not None:
            return
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._check_lengths(datamodule.prompts)
        model = load_base_model(
            "model.base",
            self.base,
            self.dtype_name,
            quantization=self.quantization,
            attention=self.attention,
            rope=self.rope,
        )
        model = enlarge(model, self.growth)
        check_vocabulary("model.base", model, datamodule.encoder.tokenizer)
        model = merge_adapters("model.merged_adapters", model, self.merged_chain, self.dtype_name)
        self.model = load_adapter("model.adapter", model, self.adapter) if self.adapter else model
        settle_heads(self.model, trained=True)
        self.eval()

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        """Answer the prompts of a batch, in order."""
        torch.manual_seed(mixed_seed(self.seed, batch.index))
        free = [prompt for prompt in batch.prompts if not prompt.options]
        ranked = [prompt for prompt in batch.prompts if prompt.options]
        answers = {**self._generate(free), **self._rank(ranked)}
        return [answers[prompt.id] for prompt in batch.prompts]

    @property
    def _encoder(self) -> Any:
        return self.trainer.datamodule.encoder  # type: ignore[attr-defined]

    def _generate(self, prompts: list[Prompt]) -> dict[str, Prediction]:
        if not prompts:
            return {}
        responses = generate(
            self.model,
            [prompt.ids for prompt in prompts],
            decoding=self.decoding,
            stop_token_ids=self._encoder.stop_token_ids,
            pad_token_id=self._encoder.pad_token_id,
        )
        return {
            prompt.id: Prediction(
                id=prompt.id,
                prompt=self._shown(prompt),
                response=self._encoder.decode(response.ids),
                finish_reason=response.finish_reason,
                reference=prompt.reference,
                meta=prompt.meta,
            )
            for prompt, response in zip(prompts, responses, strict=True)
        }

    def _rank(self, prompts: list[Prompt]) -> dict[str, Prediction]:
        if not prompts:
            return {}
        answers: dict[str, Prediction] = {}
        for prompt, scores in zip(prompts, self._scores(prompts), strict=True):
            answers[prompt.id] = Prediction(
                id=prompt.id,
                prompt=self._shown(prompt),
                options=prompt.options,
                option_scores=tuple(scores),
                option_num_tokens=tuple(len(option) for option in prompt.option_ids),
                reference=prompt.reference,
                meta=prompt.meta,
            )
        return answers

    def _scores(self, prompts: list[Prompt]) -> list[list[float]]:
        if self._scorer is None:
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self._scorer = Scorer(self.model, rows_at_once=datamodule.batch_size)
        ranked = [prompt for prompt in prompts if not prompt.standing_alone]
        found = self._scorer.scores([prompt.ids for prompt in ranked], [prompt.option_ids for prompt in ranked])
        by_id = {prompt.id: scores for prompt, scores in zip(ranked, found, strict=True)}
        for prompt in prompts:
            if prompt.standing_alone:
                by_id[prompt.id] = [self._text_score(prompt, option) for option in prompt.option_ids]
        return [by_id[prompt.id] for prompt in prompts]

    def _text_score(self, prompt: Prompt, ids: list[int]) -> float:
        """Return the likelihood of a text of any length, each of its tokens predicted once."""
        assert self._scorer is not None
        length, stride = self.windows.within(self._positions())
        windows = list(cut(ids, begin=prompt.ids[-length:], length=length, stride=stride))
        found = self._scorer.scores([before for before, _ in windows], [[own] for _, own in windows])
        return sum(score for (score,) in found)

    def _shown(self, prompt: Prompt) -> str:
        return str(self._encoder.tokenizer.decode(prompt.ids, skip_special_tokens=False))

    def _check_lengths(self, prompts: list[Prompt]) -> None:
        self._warn_of_company(prompts)
        self.windows.within(self._positions())
        check_lengths(
            prompts,
            limit=max_positions(self.base, self.rope),
            num_virtual_tokens=self._num_virtual_tokens(),
            max_new_tokens=self.decoding.max_new_tokens,
        )

    def _warn_of_company(self, prompts: list[Prompt]) -> None:
        """Say where answers follow from what else is in a batch."""
        steady = steady_length(with_rope(read_config(self.base), self.rope))
        taken = self._num_virtual_tokens()
        long = [
            one
            for one in prompts
            if steady is not None and taken + tokens_of(one, self.decoding.max_new_tokens) > steady
        ]
        if long:
            rank_zero_warn(
                f"{len(long)} of {len(prompts)} prompts may be longer with their answers than {steady} tokens, first "
                f"'{long[0].id}'. Beyond that, the rotary positions of this model follow from the longest text of a "
                "batch (dynamic scaling, or longrope): answers depend on data.batch_size, and scores of options on "
                "what they share. Set data.batch_size to 1 for the least of it."
            )

    def _num_virtual_tokens(self) -> int:
        return num_virtual_tokens(trained(self.adapter)) if self.adapter is not None else 0

    def _positions(self) -> int | None:
        """Return how many tokens of a text the model can read at once."""
        limit = max_positions(self.base, self.rope)
        return limit - self._num_virtual_tokens() if limit is not None else None


def _chain(base: str, folders: list[str], adapter: str | None, *, growth: Growth | None) -> list[MergedAdapter]:
    """Return the adapters to merge, and refuse others than those that the adapter was trained on top of."""
    chain = merged_chain("model.merged_adapters", folders, base=base, growth=growth)
    before = merged_before(adapter_folder("model.adapter", adapter)) if adapter is not None else []
    if before and [one.files for one in before] != [one.files for one in chain]:
        raise UserError(
            f"model.merged_adapters: '{adapter}' was trained on top of [{', '.join(one.folder for one in before)}]. "
            "Set it to that."
        )
    return chain
