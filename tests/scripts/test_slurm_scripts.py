"""The batch scripts: what they must say, without a SLURM."""

import subprocess
from pathlib import Path

import pytest
from tiny import ROOT

SCRIPTS = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))


def test_there_is_one_for_one_node_and_one_for_several() -> None:
    assert [path.stem for path in SCRIPTS] == ["one_node", "several_nodes"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_batch_script_keeps_to_the_rules(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    directives = " ".join(line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH"))
    assert text.count("# EDIT (") == 3
    assert lines[-1] == "exit $?" and lines[-2].startswith("srun --kill-on-bad-exit=1 ")
    assert "--ckpt_path last" in lines[-2]
    for option in ("--requeue", "--signal=SIGUSR1@", "--ntasks-per-node=", "--open-mode=append", "--job-name=ift"):
        assert option in directives
    assert "--ntasks=" not in directives and "--gpus-per-task" not in directives
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$@"\nexit 7\n', encoding="utf-8")
    srun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "IFT": "env ift"}
    done = subprocess.run(
        ["bash", str(path), "a b.yaml", "--trainer.max_epochs", "2"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr  # as srun's
    expected = "--kill-on-bad-exit=1 env ift fit --config a b.yaml --ckpt_path last --trainer.max_epochs 2\n"
    assert done.stdout == expected
