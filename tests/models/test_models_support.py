"""The support matrix: it is what a trial finds today, it is complete, and what failed is refused before loading."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoHaConfig, LoraConfig, PrefixTuningConfig, UniLoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from quantized_twins import load
from tiny import ROOT
from transformers import AutoConfig

from ift.errors import UserError
from ift.models.bottleneck import BottleneckConfig
from ift.models.loading import read_config
from ift.models.methods import METHODS, as_method
from ift.models.packing import EXACT_ADAPTERS, EXACT_FAMILIES
from ift.models.quantization import Quantization
from ift.models.support import COLUMNS, YES, check_supported, support

sys.path.insert(0, str(ROOT / "scripts" / "support_matrix"))

from entries import FAMILIES, entries
from trials import try_method

PAIRS = [(name, family) for name in entries() for family in FAMILIES]


def answers(found: dict[str, str]) -> dict[str, str]:
    """Reasons hold numbers that may differ in the last digit."""
    return {column: answer if answer in (YES, "-") else "no" for column, answer in found.items()}


@pytest.mark.parametrize(("entry", "family"), random.Random(7).sample(PAIRS, 10))
def test_a_trial_finds_what_the_file_says(entry: str, family: str) -> None:
    assert answers(try_method(entries()[entry], family)) == answers(dict(support()[entry][family]))


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "family"), PAIRS)
def test_every_trial_finds_what_the_file_says(entry: str, family: str) -> None:
    assert answers(try_method(entries()[entry], family)) == answers(dict(support()[entry][family]))


def test_the_file_is_complete() -> None:
    assert list(support()) == list(entries())
    own = {one.__name__ for one in PEFT_TYPE_TO_CONFIG_MAPPING.values() if one.__module__.startswith("peft.")}
    assert own | METHODS.keys() <= support().keys()
    assert all(list(found) == list(FAMILIES) for found in support().values())
    assert all(tuple(one) == COLUMNS for found in support().values() for one in found.values())


def test_the_papers_methods_work_on_every_family() -> None:
    """All short names, but for biases where a family has none, and adapters beside an MLP that is no module."""
    failed = {
        (name, family): found["train"]
        for name in METHODS
        for family, found in support()[name].items()
        if {found["train"], found["reload"], found["generate"]} != {YES}
    }
    assert "whose MLP is no module" in failed.pop(("p_adapter", "opt"))
    assert {name for name, _ in failed} == {"bitfit"}
    assert all("no biases" in reason for reason in failed.values())


def test_rows_are_packed_only_where_that_was_seen_to_be_exact() -> None:
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if not config.__module__.startswith("peft."):
            continue
        found = support()[config.__name__]
        for family in EXACT_FAMILIES & found.keys():
            if str(getattr(kind, "value", kind)) in EXACT_ADAPTERS and found[family]["train"] == YES:
                assert found[family]["packed"] == YES, (config.__name__, family)


def refusal(adapter: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_supported("model.adapter", as_method(adapter), adapter, **options)
    return str(caught.value)


def test_what_failed_is_refused_with_the_nearest_choice() -> None:
    llama = AutoConfig.for_model("llama")
    nf4 = Quantization("nf4")
    assert "beside weights quantized with nf4: " in refusal(LoHaConfig(), config=llama, quantization=nf4)
    assert "are zero, without an error. Leave model.quantization out, or take 'VeraConfig'." in refusal(
        UniLoraConfig(), config=llama, quantization=nf4
    )
    said = refusal(PrefixTuningConfig(num_virtual_tokens=4), config=llama, checkpointing=True)
    assert said.startswith("model.gradient_checkpointing: true does not work with 'PrefixTuningConfig'")
    assert said.endswith("Set it to false, or model.adapter to 'prompt'.")
    assert "'LoraConfig eva' is not supported: it begins with a pass" in refusal(
        LoraConfig(init_lora_weights="eva"), config=llama
    )
    assert "full trains the base model's own weights" in refusal(None, config=llama, quantization=nf4)


def test_a_family_that_was_not_tried_is_refused_only_what_failed_everywhere() -> None:
    gemma = AutoConfig.for_model("gemma")
    assert "on every family that was tried" in refusal(UniLoraConfig(), config=gemma, quantization=Quantization("int8"))
    check_supported("model.adapter", as_method(LoraConfig()), LoraConfig(), config=gemma, checkpointing=True)
    check_supported("model.adapter", as_method(UniLoraConfig()), UniLoraConfig(), config=None)


def test_bottleneck_adapters_by_class_are_those_of_the_short_names() -> None:
    gpt2 = AutoConfig.for_model("gpt2")
    for variant in ("houlsby", "pfeiffer", "parallel"):
        adapter = BottleneckConfig(variant=variant, bottleneck_size=8)
        check_supported("model.adapter", as_method(adapter), adapter, config=gpt2)


def test_a_checkpoint_that_is_quantized_already_counts_as_quantized(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["llama"], Quantization("int8")).save_pretrained(str(tmp_path))
    config = read_config(str(tmp_path))
    assert "quantized with int8" in refusal(UniLoraConfig(), config=config)
    assert "quantized with int8" in refusal(LoraConfig(init_lora_weights="pissa_niter_4"), config=config)
    check_supported("model.adapter", as_method(LoraConfig()), LoraConfig(), config=config)
