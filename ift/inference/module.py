"""`PredictionModule`: a base model with or without a trained adapter, answering prompts."""

from typing import Any

import torch
from lightning.pytorch import LightningModule

from ift.errors import UserError
from ift.hub import check_base
from ift.inference.generation import Decoding, generate, option_scores
from ift.inference.prompts import Prompt, PromptBatch
from ift.models.adapters import num_virtual_tokens
from ift.models.loading import Dtype, check_vocabulary, load_base_model, max_positions, read_config
from ift.models.merging import merge_adapters
from ift.models.methods import trained
from ift.models.quantization import Quantization, check_quantization
from ift.models.trained_adapters import MergedAdapter, adapter_folder, load_adapter, merged_before, merged_chain
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
        decoding: how responses are written.
        seed: of sampling, mixed with the number of the batch; follows `seed_everything`.
    """

    def __init__(
        self,
        base: str,
        adapter: str | None = None,
        merged_adapters: list[str] | None = None,
        dtype: Dtype = "float32",
        quantization: Quantization | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_base("model.base", base)
        check_quantization("model.base", base, config=read_config(base), quantization=quantization)
        self.quantization = quantization
        self.merged_chain = _chain(base, merged_adapters or [], adapter)
        self.base, self.adapter, self.dtype_name = base, adapter, dtype
        self.decoding, self.seed = decoding, seed
        self.model: Any = None

    def configure_model(self) -> None:
        """Load the base model and the adapter; does nothing twice."""
        if self.model is not None:
            return
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._check_lengths(datamodule.prompts)
        model = load_base_model("model.base", self.base, self.dtype_name, quantization=self.quantization)
        check_vocabulary("model.base", model, datamodule.encoder.tokenizer)
        model = merge_adapters("model.merged_adapters", model, self.merged_chain, self.dtype_name)
        self.model = load_adapter("model.adapter", model, self.adapter) if self.adapter else model
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
        options = [[self._encoder.response_ids(option) for option in prompt.options] for prompt in prompts]
        scores = option_scores(self.model, [prompt.ids for prompt in prompts], options)
        return {
            prompt.id: Prediction(
                id=prompt.id,
                prompt=self._shown(prompt),
                options=prompt.options,
                option_scores=tuple(own_scores),
                option_num_tokens=tuple(len(option) for option in own),
                reference=prompt.reference,
                meta=prompt.meta,
            )
            for prompt, own_scores, own in zip(prompts, scores, options, strict=True)
        }

    def _shown(self, prompt: Prompt) -> str:
        return str(self._encoder.tokenizer.decode(prompt.ids, skip_special_tokens=False))

    def _check_lengths(self, prompts: list[Prompt]) -> None:
        limit = max_positions(self.base)
        virtual = num_virtual_tokens(trained(self.adapter)) if self.adapter is not None else 0
        sizes = [(virtual + len(prompt.ids) + self._longest_answer(prompt), prompt) for prompt in prompts]
        long = [(length, prompt) for length, prompt in sizes if limit is not None and length > limit]
        if long:
            length, prompt = long[0]
            behind = f", {virtual} of them virtual" if virtual else ""
            raise UserError(
                f"model.decoding.max_new_tokens: {len(long)} of {len(prompts)} prompts with their responses are longer "
                f"than the model's {limit} positions, first '{prompt.id}' with {length} tokens{behind}. Lower "
                "model.decoding.max_new_tokens, or take those prompts out."
            )

    def _longest_answer(self, prompt: Prompt) -> int:
        if not prompt.options:
            return self.decoding.max_new_tokens
        return max(len(self._encoder.response_ids(option)) for option in prompt.options)


def _chain(base: str, folders: list[str], adapter: str | None) -> list[MergedAdapter]:
    """Return the adapters to merge, and refuse others than those that the adapter was trained on top of."""
    chain = merged_chain("model.merged_adapters", folders, base=base)
    before = merged_before(adapter_folder("model.adapter", adapter)) if adapter is not None else []
    if before and [one.files for one in before] != [one.files for one in chain]:
        raise UserError(
            f"model.merged_adapters: '{adapter}' was trained on top of [{', '.join(one.folder for one in before)}]. "
            "Set it to that."
        )
    return chain
