"""Every run under configs/ is parsed and its classes are made; what it needs of earlier stages is stood in for."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from tiny import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_configuration_makes_module_data_and_trainer(
    path: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    from ift.commands.stage_config import StageFiles, has_stages, read_chain
    from ift.commands.trainer import TrainingCLI

    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    arguments = ["--config", str(path), "--model.base", str(base), "--run_dir", str(run)]
    runs = [arguments]
    if has_stages(arguments):
        chain = read_chain(arguments)
        files = stack.enter_context(StageFiles(chain))
        runs = [files.arguments(stage) for stage in chain.stages]
        assert len(runs) > 1
    for one in runs:
        cli = TrainingCLI("fit", one)
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
