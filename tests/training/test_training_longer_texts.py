"""`model.rope` and `model.attention` through the commands: trained so, recorded, and so wherever a run is used."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from comparing import largest_difference

from ift.artifacts import RunFolder
from ift.cli import main
from ift.commands.predict import run_settings
from ift.commands.stage_config import Layer, Stage
from ift.commands.stage_start import start_keys
from ift.errors import UserError
from ift.inference.module import PredictionModule
from ift.models.loading import load_base_model
from ift.models.methods import as_method, trained
from ift.models.rope import Rope
from ift.models.trained_adapters import load_adapter
from ift.training.module import InstructionModule

Config = Callable[..., Path]
Fit = Callable[..., Path]

ONE_EPOCH = {"max_epochs": 1}
LINEAR = {"type": "linear", "factor": 8.0}
POSITIONS = 48


@pytest.fixture(scope="session")
def short_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with fewer positions than the examples have tokens."""
    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("short") / "llama"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": POSITIONS}), encoding="utf-8")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.fixture
def run(config: Config, fit: Fit, short_base: Path) -> Path:
    """Trained with linear scaling on examples longer than the base model's own positions."""
    return fit(config("linear", model={"base": str(short_base), "rope": LINEAR}, trainer=ONE_EPOCH))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 3 + 2 * POSITIONS)[None]).logits  # type: ignore[no-any-return]


def check_stages(run: Path) -> None:
    """A stage that goes on with the run, or merges it, has its rotary positions unless it sets its own."""

    def keys(start: Any, **own: str) -> Any:
        places = dict.fromkeys(own, "file:1")
        stage = Stage(number=2, name="two", start=start, place="file:1", keys=places, layer=Layer("", {}))
        return start_keys(stage, RunFolder(run), as_method("lora"))["model"]  # type: ignore[index]

    assert keys("continue")["rope"]["factor"] == keys("merge")["rope"]["factor"] == 8.0
    assert "rope" not in keys("merge", **{"model.rope.factor": ""})


def test_a_run_with_longer_texts_is_used_as_it_was_trained(
    run: Path, short_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert {name: value for name, value in manifest["rope"].items() if value is not None} == LINEAR
    assert manifest["sessions"][0]["attention"] == "sdpa"
    # What was trained, put together by hand.
    scaled = load_base_model("base", str(short_base), "float32", rope=Rope(**LINEAR))  # type: ignore[arg-type]
    expected = logits(load_adapter("adapter", scaled, run))
    plain = load_adapter("adapter", load_base_model("base", str(short_base), "float32"), run)
    assert float((logits(plain) - expected).abs().max()) > 1e-3

    # ift merge: the folder needs nothing of ift.
    assert main(["merge", str(run), "--output", str(tmp_path / "merged")]) == 0
    merged = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert merged["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "linear", "factor": 8.0}
    assert merged["max_position_embeddings"] == 8 * POSITIONS
    assert "linear" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    whole = load_base_model("base", str(tmp_path / "merged"), "float32")
    torch.testing.assert_close(logits(whole), expected, atol=1e-5, rtol=0)

    # ift predict --run: prompts that the base model alone would have no positions for.
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps({"id": "1", "messages": [{"role": "user", "content": "river stone " * 20}]}) + "\n", encoding="utf-8"
    )
    shared = [f"--data.path={tmp_path / 'prompts.jsonl'}", "--model.decoding.max_new_tokens=4"]
    shared += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    outputs = {name: tmp_path / name for name in ("out", "eager")}
    for name, output in outputs.items():
        attention = [f"--model.attention={name}"] if name == "eager" else []
        assert main(["predict", "--run", str(run), "--output_dir", str(output), *shared, *attention]) == 0
    found = [json.loads((one / "predictions.jsonl").read_text())["response"] for one in outputs.values()]
    assert found[0] == found[1]
    told = refused(capsys, "predict", "--run", run, "--output_dir", tmp_path / "no", *shared, "--model.rope.theta=9")
    assert "model.rope: with --run" in told
    for given in (("--model.adapter", run), (f"--model.merged_adapters=[{run}]",)):
        alone = ["--model.base", short_base, *given, "--data.template=alpaca"]
        told = refused(capsys, "predict", *alone, "--output_dir", tmp_path / "no", *shared)
        assert "was trained with {'type': 'linear', 'factor': 8.0}. Set it to that" in told
    assert run_settings(RunFolder(run), untuned=True)["model.rope"]["type"] == "linear"
    check_stages(run)
    going_on = InstructionModule(str(short_base), partial(torch.optim.SGD, lr=0.1), adapter=trained(str(run)))
    with pytest.warns(UserWarning, match=r"trained with model.rope {'type': 'linear', 'factor': 8.0}, .* is null"):
        going_on.check()


def test_examples_longer_than_the_positions_are_refused(
    config: Config, short_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(**model: Any) -> str:
        path = config("long", model={"base": str(short_base), **model})
        return refused(capsys, "fit", "--config", path)

    assert f"the model only {POSITIONS} positions. Set data.max_length to {POSITIONS}" in said()
    assert f"only {2 * POSITIONS} positions" in said(rope={"type": "linear", "factor": 2.0})
    assert "model.rope.factor: None; 'linear' needs one" in said(rope={"type": "linear"})
    told = said(rope={"type": "dynamic", "factor": 8.0})
    assert f"Beyond {POSITIONS}, this model's rotary positions follow from the longest text" in told
    assert "or model.rope.type to linear, yarn or llama3" in told


@pytest.mark.slow
def test_a_whole_model_trained_with_it_keeps_it(config: Config, fit: Fit, short_base: Path) -> None:
    whole = fit(config("whole", model={"base": str(short_base), "rope": LINEAR, "adapter": None}, trainer=ONE_EPOCH))
    stored = json.loads((whole / "model" / "config.json").read_text(encoding="utf-8"))
    assert stored["rope_parameters"]["rope_type"] == "linear"
    assert stored["max_position_embeddings"] == 8 * POSITIONS
    settings = run_settings(RunFolder(whole))
    assert settings["model.base"] == str(whole / "model") and "model.rope" not in settings
    # A later run on it may say the same again.
    fit(config("again", model={"base": str(whole / "model"), "rope": LINEAR}, trainer=ONE_EPOCH))


def test_another_attention_trains_the_same_and_may_resume(config: Config, fit: Fit) -> None:
    sections: dict[str, Any] = {"trainer": ONE_EPOCH, "checkpoint": {"every_n_train_steps": 4}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    model = {name: {"attention": name, "optimizer": optimizer} for name in ("eager", "sdpa")}
    runs = [fit(config(name, model=model[name], **sections)) for name in model]
    assert largest_difference(*runs) < 1e-6
    manifests = [json.loads((one / "manifest.json").read_text(encoding="utf-8")) for one in runs]
    assert [one["sessions"][0]["attention"] for one in manifests] == ["eager", "sdpa"]
    path = runs[0].with_suffix(".yaml")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["model"]["attention"], settings["trainer"]["max_epochs"] = "sdpa", 2
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    fit(path, "--ckpt_path", "last")
    manifest = json.loads((runs[0] / "manifest.json").read_text(encoding="utf-8"))
    assert [one["attention"] for one in manifest["sessions"]] == ["eager", "sdpa"]
    settings["model"]["rope"] = LINEAR
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2


def test_an_adapter_of_shorter_texts_may_predict_longer_ones(config: Config, fit: Fit, base: Path) -> None:
    """Scaling at prediction alone is what dynamic scaling was made for."""
    adapter = fit(config("short", trainer=ONE_EPOCH))
    PredictionModule(str(base), adapter=str(adapter), rope=Rope("dynamic", 2.0))
    with pytest.raises(UserError, match="model.rope: 'gpt2' models have no rotary"):
        from transformers import AutoConfig

        AutoConfig.for_model("gpt2").save_pretrained(str(adapter / "gpt2"))
        PredictionModule(str(adapter / "gpt2"), rope=Rope("dynamic", 2.0))
