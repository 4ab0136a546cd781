"""`ift validate`: the loss of a checkpoint or of a base model, without touching any run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BAR = ["--trainer.enable_progress_bar", "true"]


def loss_in(text: str) -> float:
    (loss,) = re.findall(r"validation loss ([\d.]+), perplexity", text)
    return float(loss)


def test_a_run_is_measured_again_from_its_own_configuration(
    config: Callable[..., Path], ift: Any, tmp_path: Path
) -> None:
    assert ift("fit", "--config", config()).code == 0
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    measured = ift("validate", "--config", run / "config.yaml", "--ckpt_path", "last", *BAR)
    assert measured.code == 0, measured.err
    results = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["validation"]
    assert loss_in(measured.err) == pytest.approx(results[-1]["loss"], abs=5e-5)
    untrained = loss_in(ift("validate", "--config", run / "config.yaml", *BAR).err)
    assert untrained > results[-1]["loss"] + 0.05
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("size", [1, 5])
def test_the_loss_does_not_depend_on_the_step(size: int, config: Callable[..., Path], ift: Any, tmp_path: Path) -> None:
    usual = loss_in(ift("validate", "--config", config(), *BAR).err)
    path = config(data={"global_batch_size": size, "micro_batch_tokens": 256})
    assert loss_in(ift("validate", "--config", path, *BAR).err) == usual
    assert not (tmp_path / "run").exists()


def test_the_configuration_of_a_run_gives_the_same_run(config: Callable[..., Path], ift: Any, tmp_path: Path) -> None:
    """What is saved in the run folder is whole: no other file is needed to run it again."""
    assert ift("fit", "--config", config(data={"template": "plain"}, seed_everything=3)).code == 0
    again = ["--config", tmp_path / "run" / "config.yaml", "--run_dir", tmp_path / "again"]
    assert ift("fit", *again).code == 0
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("run", "again")]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    assert manifests[0]["validation"] == manifests[1]["validation"]
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]
