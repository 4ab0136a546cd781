"""Adapters are attached with what the run decides, or refused with the reason."""

from pathlib import Path

import pytest
from peft import AdaLoraConfig
from quantized_twins import load

from ift.errors import UserError
from ift.models.adapters import attach
from ift.models.methods import METHODS, as_method


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
