"""Every method by its short name, through `ift fit` on tiny models: it learns, is saved, comes back equal, resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training.families import make_model

from ift.cli import main
from ift.models.loading import load_base_model
from ift.models.methods import METHODS
from ift.models.support import support
from ift.models.trained_adapters import load_adapter

Config = Callable[..., Path]
Fit = Callable[..., Path]

SMALL: dict[str, dict[str, Any]] = {
    "pissa": {"r": 4, "lora_alpha": 4},
    "prompt": {"num_virtual_tokens": 8},
    "prefix": {"num_virtual_tokens": 8},
    "p_tuning": {"num_virtual_tokens": 8, "encoder_hidden_size": 16},
    "freeze": {"num_layers": 1},
    "lisa": {"num_layers": 1, "period": 3},
    "adalora": {"interval": 2},
    "sadapter_h": {"bottleneck_size": 16},
    "sadapter_p": {"bottleneck_size": 16},
    "p_adapter": {"bottleneck_size": 16},
}
"""Settings for models that are small; all else as in the papers."""
RATES = {
    "adalora": 5e-2,
    "prompt": 3e-1,
    "prefix": 1e-1,
    "p_tuning": 5e-2,
    "ia3": 5e-2,
    "ln_tuning": 5e-2,
    "bitfit": 5e-2,
}
"""Learning rates of methods that train little."""
PROBE = torch.arange(3, 40)[None]
TRAINER = {"max_steps": 20, "num_sanity_val_steps": -1}


@pytest.fixture(scope="module", params=["qwen3", "gpt_neox"])
def tiny_base(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of an architecture, with the tokenizer of `base`."""
    import shutil

    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    size = len(AutoTokenizer.from_pretrained(str(base)))
    make_model(request.param, vocabulary=size).save_pretrained(str(folder))
    for file in base.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def settings(method: str, base: Path) -> dict[str, Any]:
    rate = RATES.get(method, 5e-3)
    return {
        "base": str(base),
        "adapter": {"class_path": method, "init_args": SMALL.get(method, {})},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate, "weight_decay": 0.0}},
    }


def losses(run: Path) -> list[float]:
    return [one["loss"] for one in json.loads((run / "manifest.json").read_text())["validation"]]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_learns_and_comes_back_equal(
    method: str, tiny_base: Path, config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    if method == "bitfit" and "qwen" in str(tiny_base):
        pytest.skip("the model has no biases")
    run = fit(config("run", model=settings(method, tiny_base), trainer=TRAINER))
    before, *_, after = losses(run)
    assert after < before - 0.02
    assert validated(run, tiny_base, config, capsys) == pytest.approx(after, abs=1e-6)
    tuned = load_trained(run, tiny_base)
    untuned = load_base_model("model.base", str(tiny_base), "float32").eval()
    with torch.no_grad():
        change = tuned(PROBE).logits[:, -PROBE.shape[1] :] - untuned(PROBE).logits
    assert change.abs().max() > 1e-3
    family = "qwen3" if "qwen3" in str(tiny_base) else "gpt_neox"
    merges = support()[method][family]["merge"] == "yes"
    merged = run.with_name("merged")
    arguments = ["merge", str(run), "--output", str(merged), "--num_prompts", "4", "--response_tokens", "8"]
    assert main(arguments) == (0 if merges else 2)
    if not merges:
        assert "cannot be merged: " in capsys.readouterr().err and not merged.exists()
    elif method != "qlora":  # whose adapter is probed here beside unquantized weights; its certificate knows
        plain = load_base_model("model.base", str(merged), "float32").eval()
        with torch.no_grad():
            assert (plain(PROBE).logits - tuned(PROBE).logits).abs().max() < 1e-4 * tuned(PROBE).logits.abs().max()


def validated(run: Path, base: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> float:
    """Return the validation loss of what a run left, read by a second command."""
    whole = run / "model"
    quantization = json.loads((run / "manifest.json").read_text())["quantization"]
    model = {"base": str(base), "adapter": str(run), "quantization": quantization}
    if whole.is_dir():
        model = {"base": str(whole), "adapter": None}
    capsys.readouterr()
    assert main(["validate", "--config", str(config("again", model=model)), "--debug"]) == 0
    return float(json.loads(capsys.readouterr().out)["loss"])


def load_trained(run: Path, base: Path) -> Any:
    """Return what a run trained, from its folder alone, under another state of the random numbers."""
    torch.manual_seed(1234)
    if (run / "model").is_dir():
        return load_base_model("model.base", str(run / "model"), "float32").eval()
    return load_adapter("model.adapter", load_base_model("model.base", str(base), "float32"), run / "adapter").eval()
