"""Answer prompts by free generation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ift.errors import UserError
from ift.models.calling import calling_of
from ift.models.compiling import uncompiled


@dataclass(frozen=True)
class Decoding:
    """How responses are written; names as in transformers' generation."""

    max_new_tokens: int = 256
    """Longest response, in tokens."""
    do_sample: bool = False
    """Draw tokens at random rather than taking the likeliest."""
    temperature: float = 1.0
    """Flattens (above 1) or sharpens (below 1) the distribution; only with `do_sample`."""
    top_p: float = 1.0
    """Draw from the fewest tokens that have this share of the probability; only with `do_sample`."""
    top_k: int = 0
    """Draw from so many likeliest tokens, 0 from all; only with `do_sample`."""
    num_beams: int = 1
    """Width of the beam search."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that stand there already become less likely (Keskar et al. 2019)."""
    no_repeat_ngram_size: int = 0
    """No run of so many tokens occurs twice in prompt and response together (in the response of an encoder-decoder
    model); 0 forbids none."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"model.decoding.max_new_tokens: {self.max_new_tokens} is less than 1.")
        sampling = (self.temperature, self.top_p, self.top_k) != (1.0, 1.0, 0)
        if sampling and not self.do_sample:
            raise UserError(
                "model.decoding: temperature, top_p and top_k have no effect without do_sample. Set "
                "model.decoding.do_sample to true, or leave them out."
            )
        if self.temperature <= 0:
            raise UserError(
                f"model.decoding.temperature: {self.temperature} is not above 0; greedy is do_sample: false."
            )
        if self.no_repeat_ngram_size < 0:
            raise UserError(
                f"model.decoding.no_repeat_ngram_size: {self.no_repeat_ngram_size} is negative. Give the length of the "
                "shortest run of tokens that may not occur twice, or 0 to forbid none."
            )

    def options(self) -> dict[str, Any]:
        """Return the arguments for transformers' `generate`."""
        chosen: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        if self.do_sample:
            chosen |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return chosen


@dataclass(frozen=True)
class Generated:
    """One response."""

    ids: list[int]
    """Without the token that ended it."""
    finish_reason: Literal["stop", "length"]


@torch.no_grad()
def generate(
    model: Any, prompts: Sequence[list[int]], *, decoding: Decoding, stop_token_ids: list[int], pad_token_id: int
) -> list[Generated]:
    """Write one response to each prompt, in order.

    Args:
        model: a language model in evaluation mode.
        prompts: token ids, of any lengths; padded here, on the left, or for an encoder on the right.
        decoding: how.
        stop_token_ids: any of them ends a response.
        pad_token_id: for padding; masked by position, so any id serves.
    """
    if not calling_of(model).reads_prompts:
        return _generate(model, prompts, decoding, stop_token_ids, pad_token_id)
    responses: dict[int, Generated] = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        numbers = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
        alike = [prompts[number] for number in numbers]
        answers = _generate(model, alike, decoding, stop_token_ids, pad_token_id)
        responses |= dict(zip(numbers, answers, strict=True))
    return [responses[number] for number in range(len(prompts))]


def _generate(
    model: Any, prompts: Sequence[list[int]], decoding: Decoding, stop_token_ids: list[int], pad_token_id: int
) -> list[Generated]:
    from transformers import GenerationConfig

    calling = calling_of(model)
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        start = 0 if calling.split is not None else longest - len(prompt)
        input_ids[row, start : start + len(prompt)] = torch.tensor(prompt)
        attention_mask[row, start : start + len(prompt)] = 1
    # A whole configuration of our own: what a checkpoint's generation_config.json says must not change results.
    config = GenerationConfig(
        **decoding.options(),
        eos_token_id=stop_token_ids,
        pad_token_id=pad_token_id,
        use_cache=True,
        decoder_start_token_id=calling.split.start_token_id if calling.split is not None else None,
    )
    with uncompiled(model), _settings_set_aside(model):
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=config,
            **calling.task(len(prompts), model.device),
            **(calling.split.cache() if calling.split is not None else {}),
        )
    # A decoder of its own writes its start token and the response; another model, prompt and response.
    before = longest if calling.split is None else 1
    return [_until_stop(row, stop_token_ids) for row in output[:, before:].tolist()]


@contextmanager
def _settings_set_aside(model: Any) -> Iterator[None]:
    """Let a model forget its generation settings, from which transformers fills in what a configuration leaves open."""
    from transformers import GenerationConfig

    own = {module: module.generation_config for module in model.modules() if "generation_config" in vars(module)}
    try:
        for module in own:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, settings in own.items():
            module.generation_config = settings


def _until_stop(ids: list[int], stop_token_ids: list[int]) -> Generated:
    for position, token in enumerate(ids):
        if token in stop_token_ids:
            return Generated(ids[:position], "stop")
    return Generated(ids, "length")
