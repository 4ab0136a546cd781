"""Adapters are attached with what the run decides, or refused with the reason."""

from pathlib import Path

import pytest
from peft import AdaLoraConfig
from quantized_twins import load
from transformers import MixtralConfig, MixtralForCausalLM

from ift.errors import UserError
from ift.models.adapters import attach
from ift.models.methods import METHODS, as_method, lora


def test_adalora_follows_the_real_number_of_steps(folders: dict[str, Path]) -> None:
    method = METHODS["adalora"](warmup_share=0.2, final_share=0.25)
    config = attach(load(folders["llama"]), method, seed=0, num_steps=60, training=True).active_peft_config
    assert (config.total_step, config.tinit, config.tfinal) == (60, 12, 15)


def test_adalora_without_a_duration_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"how many there are is not known with streams. Set trainer\.max_steps"):
        attach(load(folders["llama"]), METHODS["adalora"](), seed=0, num_steps=None, training=True)
    attach(load(folders["llama"]), METHODS["adalora"](), seed=0, num_steps=None)  # to validate, nothing is dealt out


def test_adalora_by_its_class_must_name_the_real_duration(folders: dict[str, Path]) -> None:
    method = as_method(AdaLoraConfig(init_r=4, target_r=2, total_step=50, tinit=5, tfinal=10))
    with pytest.raises(UserError, match=r"model\.adapter\.total_step: 50, and this run has 60 steps"):
        attach(load(folders["llama"]), method, seed=0, num_steps=60, training=True)
    attach(load(folders["llama"]), method, seed=0, num_steps=50, training=True)


def test_dropout_on_experts_is_refused_with_what_to_set() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    with pytest.raises(UserError, match=r"Set model\.adapter\.init_args\.lora_dropout to 0"):
        attach(model, lora(), seed=0, num_steps=None)
