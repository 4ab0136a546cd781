"""Every run under configs/ is parsed and its classes are made; what it needs of earlier stages is stood in for."""

from pathlib import Path

import pytest
import yaml
from tiny import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_configuration_makes_module_data_and_trainer(
    path: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ift.commands.trainer import TrainingCLI

    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    cli = TrainingCLI("fit", ["--config", str(path), "--model.base", str(base), "--run_dir", str(run)])
    assert cli.trainer.max_epochs or cli.trainer.max_steps
    assert cli.datamodule.base == cli.model.base == str(base)
    assert not run.exists(), "nothing may be written before the run begins"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_header_tells_command_and_hardware(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert f"ift fit --config {path.relative_to(ROOT)}" in "\n".join(header)
    assert "Hardware:" in "\n".join(header)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["run_dir"].startswith("runs/")


def test_there_are_configurations() -> None:
    assert len(CONFIGS) >= 2
