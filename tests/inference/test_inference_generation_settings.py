"""What a checkpoint's own generation settings say changes no response."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from ift.inference.generation import Decoding, generate
from ift.models.loading import load_base_model

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
SETTINGS: list[dict[str, Any]] = [
    {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.9},
    {"min_new_tokens": 9, "suppress_tokens": list(range(30)), "bad_words_ids": [[50], [60]]},
    {"forced_eos_token_id": 9, "sequence_bias": [[[55], 9.0]]},
    {"penalty_alpha": 0.6, "top_k": 4},  # transformers fetches code for it
    {"stop_strings": ["a"]},
    {"guidance_scale": 2.0},
    {"max_length": 7, "max_time": 1e-4},
]


def responses(model: Any) -> list[list[int]]:
    decoding = Decoding(max_new_tokens=8)
    return [one.ids for one in generate(model, PROMPTS, decoding=decoding, stop_token_ids=[2], pad_token_id=0)]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("adapted", [False, True])
def test_generation_settings_of_a_checkpoint_change_no_response(
    settings: dict[str, Any], adapted: bool, base: Path
) -> None:
    model = load_base_model("model.base", str(base), "float32").eval()
    if adapted:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(init_lora_weights=False)).eval()
    plain = responses(model)
    inner = model.base_model.model if adapted else model
    inner.generation_config = own = GenerationConfig(**settings)
    assert responses(model) == plain
    assert inner.generation_config is own
