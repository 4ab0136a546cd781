"""DeepSpeed's settings and what is refused under it; needs no DeepSpeed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig

from ift.cli import main
from ift.errors import UserError
from ift.models.methods import as_method, full, lisa, lora
from ift.models.quantization import Quantization
from ift.training import deepspeed_checks
from ift.training.deepspeed_checks import check_accelerator, check_deepspeed, check_method, notes
from ift.training.deepspeed_config import KEYS, NAMES, check_config, deepspeed_config, settings_of
from ift.training.deepspeed_strategy import WeightsAsTheyAre, ZeroStrategy
from ift.training.optimizers import optimizer_traits
from ift.training.parameter_groups import parameter_groups
from ift.training.strategies import STRATEGIES, check_strategy_name

Config = Callable[..., Path]


@pytest.mark.parametrize("name", NAMES)
def test_settings_follow_from_the_name_and_the_run(name: str) -> None:
    config = deepspeed_config(settings_of(name, gradient_clip_norm=0.5))
    check_config(config)
    assert config.keys() == KEYS
    zero = config["zero_optimization"]
    stage, offloads = int(name[len("deepspeed_")]), name.endswith("_offload")
    assert zero["stage"] == stage
    assert config["gradient_clipping"] == 0.5
    assert ("offload_optimizer" in zero) == offloads
    assert ("offload_param" in zero) == (offloads and stage == 3)
    assert ("stage3_param_persistence_threshold" in zero) == (stage == 3)
    # ift divides by the step's tokens and counts micro-batches itself; nothing is rounded on the way.
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == 1
    assert config["communication_data_type"] == config["data_types"]["grad_accum_dtype"] == "fp32"
    assert "bf16" not in config and "fp16" not in config


def test_names_are_strategies_and_none_clips_nothing() -> None:
    assert len(NAMES) == 6 and set(NAMES) <= set(STRATEGIES)
    assert deepspeed_config(settings_of("deepspeed_2"))["gradient_clipping"] == 0.0
    pinned = deepspeed_config(settings_of("deepspeed_2_offload", pin_memory=False))
    assert not pinned["zero_optimization"]["offload_optimizer"]["pin_memory"]


def test_a_key_that_deepspeed_would_pass_over_is_refused() -> None:
    config = deepspeed_config(settings_of("deepspeed_1"))
    with pytest.raises(UserError, match="no 'gradient_cliping'"):
        check_config({**config, "gradient_cliping": 1.0})


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}, "Take deepspeed_1"),
        ("deepspeed_stage_2", "deepspeed_2"),
        ("deepspeed", "deepspeed_"),
        ("deepspeed_4", "deepspeed_"),
    ],
)
def test_other_ways_to_deepspeed_are_refused(strategy: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_strategy_name(strategy, "fit")


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_commands_that_only_read_weights_are_refused(command: str) -> None:
    with pytest.raises(UserError, match=f"Set it to auto for '{command}'"):
        check_strategy_name("deepspeed_2", command)


def test_without_deepspeed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, config: Config, capsys: Any) -> None:
    monkeypatch.setattr(deepspeed_checks, "is_installed", lambda: False)
    assert main(["fit", "--config", str(config()), "--trainer.strategy=deepspeed_3_offload"]) == 2
    message = capsys.readouterr().err
    assert "trainer.strategy: deepspeed_3_offload needs DeepSpeed" in message
    assert "pip install 'ift[deepspeed]'" in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("version", "fits"), [("0.19.7", False), ("0.19.8", True), ("0.19.12", True), ("0.20.0", False)]
)
def test_only_versions_that_were_tried_are_taken(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_checks, "is_installed", lambda: True)
    monkeypatch.setattr(deepspeed_checks.importlib.metadata, "version", lambda package: version)
    if fits:
        deepspeed_checks.check_installed("deepspeed_2")
        monkeypatch.setenv("PL_DEEPSPEED_CONFIG_PATH", "other.json")
        with pytest.raises(UserError, match="PL_DEEPSPEED_CONFIG_PATH names 'other.json'"):
            deepspeed_checks.check_installed("deepspeed_2")
    else:
        with pytest.raises(UserError, match=version):
            deepspeed_checks.check_installed("deepspeed_2")


def test_the_cpu_is_refused() -> None:
    check_accelerator(CUDAAccelerator())
    with pytest.raises(UserError, match=r"accelerator is cpu here\. Take fsdp or ddp"):
        check_accelerator(CPUAccelerator())


STOPPING = SimpleNamespace(settings=SimpleNamespace(action="stop"))
"""Of bad steps."""


def run_of(name: str, **settings: Any) -> tuple[Any, Any]:
    """Return what of a module and of a trainer is looked at."""
    strategy = ZeroStrategy.__new__(ZeroStrategy)  # its own base class needs DeepSpeed
    strategy.name, strategy.settings = name, settings_of(name)
    trainer = SimpleNamespace(
        strategy=strategy, accelerator=CUDAAccelerator(), precision=settings.pop("precision", "32-true")
    )
    traits = optimizer_traits("model.optimizer", settings.pop("optimizer", torch.optim.AdamW))
    chosen = {"optimizer_traits": traits, "method": lora(), "compiles": False, "quantization": None}
    return SimpleNamespace(**{**chosen, "growth": None, "bad_steps": STOPPING, **settings}), trainer


@pytest.mark.parametrize("name", NAMES)
def test_what_was_seen_to_work_passes(name: str) -> None:
    for settings in ({}, {"method": full()}, {"method": as_method(None), "optimizer": torch.optim.SGD}):
        check_deepspeed(*run_of(name, **settings))


class AdamW(torch.optim.AdamW):
    """Of the name of torch's, and not torch's."""


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("deepspeed_1", {"precision": "bf16-mixed"}, "trainer.precision: bf16-mixed"),
        ("deepspeed_1", {"compiles": True}, "model.compile: true"),
        ("deepspeed_1", {"optimizer": AdamW}, "model.optimizer: .*AdamW may look at the shape"),
        ("deepspeed_2", {"optimizer": torch.optim.Adagrad}, "model.optimizer: .*Adagrad may look"),
        ("deepspeed_2", {"method": lisa()}, "model.adapter: lisa trains other layers"),
        ("deepspeed_1", {"method": as_method(AdaLoraConfig(total_step=10))}, "AdaLoRA weighs its ranks"),
        ("deepspeed_3", {"quantization": Quantization("nf4")}, "model.quantization: deepspeed_3 shares out"),
        ("deepspeed_3", {"growth": object()}, "model.vocabulary: deepspeed_3"),
        ("deepspeed_3", {"method": as_method(LoraConfig(use_dora=True))}, "'use_dora' was not tried"),
        (
            "deepspeed_3",
            {"method": as_method(PrefixTuningConfig(num_virtual_tokens=2))},
            "was not tried with deepspeed_3",
        ),
    ],
)
def test_what_would_not_be_exact_is_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_deepspeed(*run_of(name, **settings))


def test_stages_that_keep_weights_whole_take_more() -> None:
    for method in (as_method(LoraConfig(use_dora=True)), as_method(PrefixTuningConfig(num_virtual_tokens=2))):
        check_method("model.adapter", method, name="deepspeed_2", stage=2)
    check_deepspeed(*run_of("deepspeed_2", quantization=Quantization("nf4")))


def test_offload_says_which_optimizer_is_made_for_it() -> None:
    assert "DeepSpeedCPUAdam" in notes(*run_of("deepspeed_2_offload"))[0]
    assert notes(*run_of("deepspeed_2")) == []


def test_weights_and_steps_stay_as_they_are() -> None:
    plugin, module = WeightsAsTheyAre("32-true"), torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    assert plugin.convert_module(module).weight.dtype == torch.bfloat16
    assert plugin.convert_input(step := object()) is step


def test_a_matrix_that_is_shared_out_decays_as_a_matrix() -> None:
    left: Any = torch.nn.Parameter(torch.zeros(0))
    left.ds_shape = torch.Size((4, 2))  # as DeepSpeed notes it
    decaying, steady = parameter_groups([("matrix", left), ("norm", torch.nn.Parameter(torch.zeros(4)))])
    assert decaying["params"][0] is left and "weight_decay" not in decaying
    assert steady["weight_decay"] == 0.0
