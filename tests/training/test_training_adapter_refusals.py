"""What would be saved in part, trained to no end or not at all, is refused or said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ift.cli import main
from ift.models.loading import load_base_model
from ift.models.quantization import Quantization

Config = Callable[..., Path]
Fit = Callable[..., Path]

SHORT = {"max_epochs": -1, "max_steps": 2, "num_sanity_val_steps": 0}
PISSA = {"r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj"]}


def refusal(capsys: pytest.CaptureFixture[str], path: Path, command: str = "fit") -> str:
    assert main([command, "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            ("LoraConfig", {**PISSA, "target_modules": ["q_proj", "embed_tokens"]}),
            "is saved as the difference of two LoRA",
        ),
        (("LoraConfig", {**PISSA, "modules_to_save": ["lm_head"]}), "is saved as the difference of two LoRA"),
        (("LoraConfig", {**PISSA, "trainable_token_indices": [5]}), "is saved as the difference of two LoRA"),
        (
            ("LoraConfig", {**PISSA, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
            "model.adapter.use_rslora: PEFT",
        ),
        (("LoraConfig", {"target_modules": "["}), "model.adapter: LoraConfig cannot be applied to this model: "),
        (("adalora", {"interval": 0}), "model.adapter.interval: 0 is less than 1 step"),
        (("adalora", {"init_r": 2, "target_r": 4}), "model.adapter.target_r: 4 is above init_r 2"),
        (("adalora", {"warmup_share": -0.5}), "model.adapter.warmup_share: -0.5 is no share"),
        (("lora_plus", {"learning_rate_ratio": -1}), "model.adapter.learning_rate_ratio: -1"),
        (("prompt", {"num_virtual_tokens": 0}), "model.adapter.num_virtual_tokens: 0 is less than 1"),
    ],
)
def test_settings_that_lead_nowhere_are_refused_before_loading(
    adapter: tuple[str, dict[str, Any]], message: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"adapter": {"class_path": adapter[0], "init_args": adapter[1]}}
    assert message in refusal(capsys, config(model=model, trainer=SHORT))


def test_an_adapter_with_missing_weights_is_refused(
    config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(config("first", model={"adapter": "lora"}, trainer=SHORT))
    file = run / "adapter" / "adapter_model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if "down_proj" not in name}, file)
    capsys.readouterr()
    said = refusal(capsys, config("second", model={"adapter": str(run / "adapter")}, trainer=SHORT))
    assert "does not fit the base model: weights are missing from its file" in said and "down_proj" in said


@pytest.mark.parametrize("content", ["{", "{}", '{"peft_type": "NEW"}', "[]"])
def test_a_damaged_adapter_is_refused(
    content: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "adapter_config.json").write_text(content)
    path = config("run", model={"adapter": str(tmp_path / "damaged")}, trainer=SHORT)
    assert "model.adapter: " in refusal(capsys, path)


def test_what_was_not_saved_is_not_gone_on_with(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT keeps what the network of p_tuning wrote, not the network; it may be validated all the same."""
    small = {"class_path": "p_tuning", "init_args": {"num_virtual_tokens": 4, "encoder_hidden_size": 8}}
    run = fit(config("first", model={"adapter": small}, trainer=SHORT))
    capsys.readouterr()
    path = config("second", model={"adapter": str(run)}, trainer=SHORT)
    assert f"model.adapter: '{run}' cannot be trained further" in refusal(capsys, path)
    assert main(["validate", "--config", str(path)]) == 0


def test_the_logged_rate_of_lora_plus_is_that_of_its_a_matrices(config: Config, fit: Fit) -> None:
    model = {
        "adapter": "lora_plus",
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "schedule": {"kind": "constant", "warmup": 0},
    }
    run = fit(config(model=model, trainer={**SHORT, "log_every_n_steps": 1}))
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["last_logged"]["train/learning_rate"] == pytest.approx(0.001)


def test_all_weights_in_a_small_dtype_are_warned_of(config: Config, fit: Fit, recwarn: pytest.WarningsRecorder) -> None:
    fit(config(model={"adapter": "full", "dtype": "bfloat16"}, trainer=SHORT))
    assert any("small updates of them are rounded" in str(one.message) for one in recwarn)


def test_weights_in_four_bits_are_counted_by_number(config: Config, fit: Fit) -> None:
    plain, packed = (
        json.loads((fit(config(name, model=model, trainer=SHORT)) / "manifest.json").read_text())["parameters"]
        for name, model in (
            ("plain", {"adapter": "lora"}),
            ("packed", {"adapter": {"class_path": "qlora", "init_args": {"r": 8}}}),
        )
    )
    assert plain == packed


def test_adapters_trained_beside_other_weights_are_told_of_when_merged(
    config: Config, fit: Fit, recwarn: pytest.WarningsRecorder
) -> None:
    run = fit(config("first", model={"adapter": {"class_path": "qlora", "init_args": {"r": 4}}}, trainer=SHORT))
    fit(config("second", model={"adapter": "lora", "merged_adapters": [str(run)]}, trainer=SHORT))
    assert any("model.merged_adapters: " in str(one.message) and "nf4" in str(one.message) for one in recwarn)


@pytest.mark.parametrize("key", ["monteclora_config", "velora_config"])
def test_what_keeps_averages_outside_of_its_weights_is_not_resumed(
    key: str, config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = {"class_path": "LoraConfig", "init_args": {"r": 4, key: {}}}
    path = config("run", model={"adapter": adapter}, trainer=SHORT, checkpoint={"every_n_train_steps": 1})
    fit(path)
    capsys.readouterr()
    assert main(["fit", "--config", str(path), "--ckpt_path", "last", "--trainer.max_steps", "4"]) == 2
    assert f"--ckpt_path: a run with model.adapter.{key} cannot be resumed exactly" in capsys.readouterr().err


def test_a_run_beside_a_quantized_checkpoint_is_not_merged(
    config: Config, fit: Fit, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = tmp_path / "quantized"
    load_base_model("model.base", str(base), "float32", quantization=Quantization("nf4")).save_pretrained(quantized)
    for file in base.glob("*token*"):
        shutil.copy(file, quantized)
    run = fit(config("run", model={"base": str(quantized), "adapter": "lora"}, trainer=SHORT))
    capsys.readouterr()
    assert main(["merge", str(run), "--output", str(tmp_path / "merged")]) == 2
    said = capsys.readouterr().err
    assert "whose files hold quantized weights; a merge would round them again" in said and "Traceback" not in said
    assert not (tmp_path / "merged").exists()
