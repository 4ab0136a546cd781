"""`model.budget` in whole runs: the manifest's numbers are those of what was trained, and a run goes on with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from ift.cli import main

Config = Callable[..., Path]
Fit = Callable[..., Path]
BRIEF = {"max_epochs": 1}


def manifest_of(run: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return manifest


def refused(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["fit", "--config", str(path), *arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert not (path.with_suffix("") / "manifest.json").exists()
    return message


def test_a_run_trains_what_its_budget_allows(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(model={"adapter": "lora", "budget": 5500}, trainer=BRIEF)
    run = fit(path)
    manifest = manifest_of(run)
    weights = load_file(str(run / "adapter" / "adapter_model.safetensors"))
    trained = sum(weight.numel() for weight in weights.values())
    rank = json.loads((run / "adapter" / "adapter_config.json").read_text())["r"]
    assert manifest["budget"] == {"asked": 5500, "parameter": "r", "value": rank, "trainable": trained}
    assert manifest["parameters"]["trainable"] == trained
    assert abs(trained - 5500) <= trained / rank / 2  # no other rank is nearer
    said = capsys.readouterr().err
    assert said.count(f"model.budget: 5,500 asked for; r {rank} trains {trained:,}") == 1
    kept = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert kept["budget"] == 5500 and kept["adapter"]["init_args"]["r"] == 8


def test_a_run_with_a_budget_is_resumed_and_read(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(model={"adapter": "sadapter_p", "budget": 1500}, trainer=BRIEF)
    run = fit(path)
    before = manifest_of(run)
    fit(path, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    after = manifest_of(run)
    assert after["steps"] == 2 * before["steps"] and after["budget"] == before["budget"]
    capsys.readouterr()
    assert main(["validate", "--config", str(path), "--ckpt_path", "last"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(after["validation"][-1]["loss"], abs=1e-6)
    assert "began with 1500" in refused_again(capsys, path)


def refused_again(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    capsys.readouterr()
    assert main(["fit", "--config", str(path), "--ckpt_path", "last", "--model.budget", "3000"]) == 2
    return capsys.readouterr().err


def test_a_quantized_model_with_a_saved_module_and_a_budget(config: Config, fit: Fit) -> None:
    init = {"r": 8, "target_modules": "all-linear", "modules_to_save": ["norm"]}
    adapter = {"class_path": "LoraConfig", "init_args": init}
    quantization = {"scheme": "nf4"}
    model = {"adapter": adapter, "budget": 5500, "quantization": quantization}
    manifest = manifest_of(fit(config(model=model, trainer={"max_steps": 1})))
    assert manifest["quantization"]["scheme"] == "nf4"
    assert manifest["budget"]["trainable"] == manifest["parameters"]["trainable"]
    plain = manifest_of(fit(config("plain", model={**model, "quantization": None}, trainer={"max_steps": 1})))
    assert plain["budget"] == manifest["budget"]


def test_a_budget_on_top_of_merged_adapters(config: Config, fit: Fit) -> None:
    first = fit(config("first", model={"adapter": "lora"}, trainer={"max_steps": 1}))
    model = {"adapter": "adalora", "budget": 8000, "merged_adapters": [str(first)]}
    manifest = manifest_of(fit(config("second", model=model, trainer={"max_steps": 10})))
    assert manifest["budget"]["parameter"] == "init_r" and len(manifest["merged_adapters"]) == 1
    assert manifest["budget"]["trainable"] == manifest["parameters"]["trainable"]


def test_predict_takes_the_size_from_the_run(config: Config, fit: Fit, tmp_path: Path) -> None:
    run = fit(config(model={"adapter": "lora", "budget": 3000}, trainer={"max_steps": 1}))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "1", "messages": [{"role": "user", "content": "Repeat item 3."}]}) + "\n")
    given = {"run": run, "data.path": prompts, "output_dir": tmp_path / "answers", "trainer.accelerator": "cpu"}
    options = {**given, "model.decoding.max_new_tokens": 2, "trainer.enable_progress_bar": "false"}
    assert main(["predict", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert (tmp_path / "answers" / "predictions.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"adapter": "lora", "budget": 50}, r"model.budget: 50, and no size of lora"),
        ({"adapter": "lora", "budget": 0}, "model.budget: 0 is no number of trainable parameters"),
        ({"adapter": "ia3", "budget": 5000}, "model.budget: ia3 has no size to choose; on this model it trains"),
        ({"adapter": None, "budget": 5000}, "model.budget: full has no size to choose"),
        ({"adapter": "lora", "budget": "many"}, "model.budget: Expected int"),
        ({"adapter": "lora", "budget": 5500.5}, "model.budget: Expected int"),
        ({"adapter": "lora", "budget": True}, "model.budget: Expected int"),
    ],
)
def test_budgets_that_cannot_be_are_refused_with_the_key(
    model: dict[str, Any], said: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, config(model=model))


@pytest.mark.parametrize("written", ["5_500", "5500"])
def test_numbers_as_people_write_them(written: str, config: Config, fit: Fit) -> None:
    path = config(model={"adapter": "lora", "budget": "THIS"}, trainer={"max_steps": 1})
    path.write_text(path.read_text().replace("THIS", written))
    assert manifest_of(fit(path))["budget"]["asked"] == 5500


@pytest.mark.parametrize("written", ["4e6", "4.0e+6"])
def test_powers_of_ten_are_no_whole_numbers(written: str, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(model={"adapter": "lora", "budget": "THIS"})
    path.write_text(path.read_text().replace("THIS", written))
    assert "model.budget: Expected int. Got value: 4" in refused(capsys, path)
