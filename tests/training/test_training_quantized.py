"""LoRA on a base model of 4 or 8 bits: the run is that of the weights it stands for, however it is cut or broken."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from comparing import largest_difference, trained_weights
from peft import PeftModel
from test_training_resume import SETTINGS, wait_for_step
from transformers import AutoTokenizer

from ift.cli import main
from ift.models.loading import load_base_model
from ift.models.quantization import Quantization
from ift.models.quantized_layers import dequantized

Config = Callable[..., Path]
Fit = Callable[..., Path]

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
every_scheme = pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
both_widths = pytest.mark.parametrize("scheme", ["nf4", "int8"])  # fp4 differs from nf4 in a table only


def with_tokenizer(model: Any, base: Path, folder: Path) -> Path:
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(base)).save_pretrained(str(folder))
    return folder


def quantized(base: Path, scheme: Any) -> Any:
    return load_base_model("model.base", str(base), "float32", quantization=Quantization(scheme))


@every_scheme
def test_a_run_is_that_of_the_weights_it_stands_for(
    config: Config, fit: Fit, base: Path, tmp_path: Path, scheme: Any
) -> None:
    """Steps and validations between them, against a plain model of the dequantized weights."""
    trainer = {"val_check_interval": 2}
    ours = {"quantization": {"scheme": scheme}, "optimizer": SGD}
    run = fit(config("quantized", model=ours, trainer=trainer))
    plain = with_tokenizer(dequantized(quantized(base, scheme)), base, tmp_path / "plain")
    reference = fit(config("dense", model={"base": str(plain), "optimizer": SGD}, trainer=trainer))
    assert largest_difference(run, reference) < 1e-6
    manifest, expected = (json.loads((one / "manifest.json").read_text()) for one in (run, reference))
    losses = [[result["loss"] for result in one["validation"]] for one in (manifest, expected)]
    assert len(losses[0]) >= 4 and losses[0] == pytest.approx(losses[1], abs=1e-6) and losses[0][-1] < losses[0][0]
    assert manifest["quantization"] == {
        "scheme": scheme,
        "double": True,
        "compute_dtype": None,
        "skip_modules": None,
    }
    assert expected["quantization"] is None and manifest["fingerprint"] != expected["fingerprint"]
    assert manifest["parameters"]["trainable"] == expected["parameters"]["trainable"]


@both_widths
def test_a_quantized_folder_trains_as_the_model_quantized_here(
    config: Config, fit: Fit, base: Path, tmp_path: Path, scheme: Any
) -> None:
    folder = with_tokenizer(quantized(base, scheme), base, tmp_path / "saved")
    trainer = {"max_epochs": 1}
    one = fit(config("here", model={"quantization": {"scheme": scheme}}, trainer=trainer))
    other = fit(config("there", model={"base": str(folder)}, trainer=trainer))
    assert largest_difference(one, other) == 0


@both_widths
def test_how_a_step_is_cut_changes_nothing(config: Config, fit: Fit, scheme: Any) -> None:
    model = {"quantization": {"scheme": scheme}, "optimizer": SGD}
    trainer = {"max_epochs": 1}
    reference = fit(config("grouped", model=model, trainer=trainer, data={"row_layout": "grouped"}))
    for name, data in {
        "packed": {"row_layout": "packed", "micro_batch_tokens": 700},
        "flattened": {"row_layout": "flattened", "micro_batch_tokens": 100_000},
    }.items():
        other = fit(config(name, model=model, trainer=trainer, data=data))
        assert largest_difference(reference, other) < 1e-6, name
    checkpointed = {**model, "gradient_checkpointing": True}
    other = fit(config("checkpointed", model=checkpointed, trainer=trainer, data={"row_layout": "grouped"}))
    assert largest_difference(reference, other) == 0


@both_widths
def test_validation_between_steps_changes_nothing(config: Config, fit: Fit, scheme: Any) -> None:
    model = {"quantization": {"scheme": scheme}}
    never, often = (
        fit(config(name, model=model, trainer={"max_epochs": 1, **trainer}))
        for name, trainer in (
            ("never", {"limit_val_batches": 0, "num_sanity_val_steps": 0}),
            ("often", {"val_check_interval": 1, "num_sanity_val_steps": 2}),
        )
    )
    assert len(json.loads((often / "manifest.json").read_text())["validation"]) == 4
    assert largest_difference(never, often) == 0


@every_scheme
def test_a_run_cut_short_resumes_exactly(config: Config, fit: Fit, scheme: Any) -> None:
    settings: dict[str, Any] = {**SETTINGS, "trainer": {"max_epochs": 2, "val_check_interval": 4}}
    settings["checkpoint"] = {"every_n_train_steps": 5, "save_top_k": -1}
    settings["model"] = {**SETTINGS["model"], "quantization": {"scheme": scheme}}
    reference = fit(config("reference", **settings))
    checkpoint = reference / "checkpoints" / "step-00000005.ckpt"
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    # 7 matrices in 2 layers, and the output embedding is none of them.
    assert len(kept) == 2 * 2 * 7 and all(".lora_" in name for name in kept)
    run = fit(config("resumed", **settings), "--ckpt_path", str(checkpoint))
    assert largest_difference(reference, run) == 0


def test_a_killed_run_ends_bit_for_bit_the_same(config: Config, fit: Fit, start: Any) -> None:
    settings: dict[str, Any] = {**SETTINGS, "trainer": {"max_epochs": 6, "val_check_interval": 4}}
    settings["model"] = {**SETTINGS["model"], "quantization": {"scheme": "nf4"}}
    reference = fit(config("reference", **settings))
    path = config("killed", **settings)
    run = path.with_suffix("")
    process = start("fit", "--config", str(path))
    wait_for_step(run, 9, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "adapter").exists(), "the run ended before it could be killed"
    fit(path, "--ckpt_path", "last")
    assert largest_difference(reference, run) == 0


@pytest.mark.slow
def test_two_ranks_train_as_one(config: Config, fit: Fit, start: Any) -> None:
    sections: dict[str, Any] = {"trainer": {"max_epochs": 1}, "data": {"global_batch_size": 5}}
    sections["model"] = {"quantization": {"scheme": "nf4"}, "optimizer": SGD}
    one = fit(config("one", **sections))
    path = config("two", **sections)
    process = start("fit", "--config", str(path), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert largest_difference(one, path.with_suffix("")) < 1e-6


@pytest.mark.parametrize("precision", [None, "bf16-mixed"])
@both_widths
def test_a_base_model_in_bfloat16_trains_an_adapter_in_float32(
    config: Config, fit: Fit, base: Path, tmp_path: Path, scheme: Any, precision: str | None
) -> None:
    plain = dequantized(load_base_model("base", str(base), "bfloat16", quantization=Quantization(scheme)))
    sections: dict[str, Any] = {"trainer": {"max_epochs": 1, "precision": precision}}
    half = {"dtype": "bfloat16", "optimizer": SGD}
    run = fit(config("half", model={**half, "quantization": {"scheme": scheme}}, **sections))
    folder = with_tokenizer(plain, base, tmp_path / "plain")
    reference = fit(config("dense", model={**half, "base": str(folder)}, **sections))
    assert {weight.dtype for weight in trained_weights(run).values()} == {torch.float32}
    # PEFT adds LoRA's part before or after rounding to bfloat16, as the layer is quantized or not. B begins at zero.
    ours, theirs = (
        torch.cat([w.flatten() for n, w in trained_weights(one).items() if "lora_B" in n]) for one in (run, reference)
    )
    assert float(theirs.norm()) > 0 and float((ours - theirs).norm() / theirs.norm()) < 0.01


@every_scheme
def test_predictions_come_from_the_quantized_model(
    config: Config, fit: Fit, base: Path, tmp_path: Path, capsys: Any, scheme: Any
) -> None:
    model = {"quantization": {"scheme": scheme, "skip_modules": ["down_proj"]}}
    run = fit(config("run", model=model, trainer={"max_epochs": 1}))
    prompt = {"id": "a", "messages": [{"role": "user", "content": "Repeat: river stone"}]}
    options = {"id": "b", **prompt, "options": ["river", "stone lamp"]} | {"id": "b"}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (prompt, options)))
    arguments = ["predict", f"--data.path={tmp_path / 'prompts.jsonl'}", "--trainer.accelerator=cpu"]
    arguments += ["--trainer.enable_progress_bar=false", "--model.decoding.max_new_tokens=4"]

    def predict(name: str, *more: str) -> list[dict[str, Any]]:
        output = tmp_path / name
        assert main([*arguments, "--output_dir", str(output), *more]) == 0, capsys.readouterr().err
        return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]

    found = predict("quantized", "--run", str(run))
    about = json.loads((tmp_path / "quantized" / "predict.json").read_text())["identity"]
    assert about["quantization"] == json.loads((run / "manifest.json").read_text())["quantization"]
    assert about["quantization"]["scheme"] == scheme and about["quantization"]["skip_modules"] == ["down_proj"]
    # The same adapter over the plain model with the same weights, merged by PEFT.
    plain = dequantized(
        load_base_model("base", str(base), "float32", quantization=Quantization(scheme, skip_modules=["down_proj"]))
    )
    merged = PeftModel.from_pretrained(plain, str(run / "adapter")).merge_and_unload()
    template = ["--data.template", "alpaca"]
    expected = predict("merged", "--model.base", str(with_tokenizer(merged, base, tmp_path / "m")), *template)
    assert found[0]["prompt"] == expected[0]["prompt"] and found[0]["response"] == expected[0]["response"]
    assert found[1]["option_scores"] == pytest.approx(expected[1]["option_scores"], abs=1e-4)
    # Over the weights as they were, the scores are others.
    unquantized = predict("other", "--model.base", str(base), "--model.adapter", str(run / "adapter"), *template)
    assert found[1]["option_scores"] != pytest.approx(unquantized[1]["option_scores"], abs=1e-4)


def test_a_run_decides_the_quantization_of_its_predictions(
    config: Config, fit: Fit, tmp_path: Path, capsys: Any
) -> None:
    run = fit(config("run", model={"quantization": {"scheme": "nf4"}}, trainer={"max_epochs": 1}))
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "x"}]}))
    arguments = ["predict", "--run", str(run), f"--data.path={tmp_path / 'prompts.jsonl'}"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--model.quantization.scheme", "int8"]
    capsys.readouterr()
    assert main(arguments) == 2
    assert f"model.quantization: with --run '{run}' it is decided by that run" in capsys.readouterr().err


def test_a_run_is_not_continued_with_another_quantization(config: Config, fit: Fit, capsys: Any) -> None:
    path = config("run", model={"quantization": {"scheme": "nf4"}}, trainer={"max_epochs": 1})
    fit(path)
    values = yaml.safe_load(path.read_text())
    values["model"]["quantization"]["double"] = False
    path.write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2
    assert "model.quantization.double: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"quantization": {"scheme": "nf4"}, "adapter": None}, "model.adapter: full trains the base model's own"),
        ({"quantization": {"scheme": "nf4"}, "dtype": "float16"}, "model.dtype"),
        ({"quantization": {"scheme": "nf5"}}, "model.quantization"),
        ({"quantization": {"scheme": "nf4", "skip_modules": ["q_porj"]}}, "Did you mean 'q_proj'?"),
        ({"quantization": {"scheme": "int8", "compute_dtype": "bfloat16"}}, "compute_dtype: 'bfloat16' has no effect"),
        (
            {"quantization": {"scheme": "nf4"}, "adapter": {"class_path": "peft.LoHaConfig"}},
            "model.adapter: 'LoHaConfig' does not train beside weights quantized with nf4",
        ),
    ],
    ids=["full", "float16", "scheme", "skipped", "int8-compute", "loha"],
)
def test_what_cannot_be_is_refused_before_loading(
    config: Config, base: Path, tmp_path: Path, capsys: Any, model: dict[str, Any], message: str
) -> None:
    shutil.copytree(base, tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    path = config("run", model={"base": str(tmp_path / "weightless"), **model})
    assert main(["fit", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not path.with_suffix("").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every_scheme
def test_a_gpu_trains_as_a_cpu(config: Config, fit: Fit, scheme: Any) -> None:
    model = {"quantization": {"scheme": scheme}, "optimizer": SGD}
    runs = [
        fit(config(place, model=model, trainer={"max_epochs": 1, "accelerator": place})) for place in ("cpu", "gpu")
    ]
    assert largest_difference(*runs) < 1e-4
