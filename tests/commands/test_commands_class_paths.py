"""Class paths lie where ift is started; the installed script has that folder on no path of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tiny import ROOT

SCRIPT = "import sys\nfrom ift.cli import main\n\nsys.exit(main())\n"
CALLBACK = "from lightning.pytorch import Callback\n\n\nclass Mine(Callback):\n    pass\n"


def test_a_class_beside_the_configuration_is_found(config: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ift").write_text(SCRIPT)  # as the entry point of an installed package
    (tmp_path / "work").mkdir()
    (tmp_path / "work/of_mine.py").write_text(CALLBACK)
    # A file that has the name of an installed package must not take its place.
    (tmp_path / "work/peft.py").write_text("raise RuntimeError('the wrong peft')\n")
    path = config("run", trainer={"callbacks": [{"class_path": "of_mine.Mine"}]})
    command = [sys.executable, str(tmp_path / "bin/ift"), "fit", "--config", str(path), "--print_config"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "class_path: of_mine.Mine" in done.stdout


def test_a_class_that_is_not_there_is_told_with_the_folder(
    config: Callable[..., Path], refused: Callable[..., str]
) -> None:
    path = config("run", trainer={"callbacks": [{"class_path": "not_there.during_training.Mine"}]})
    message = refused("fit", "--config", path)
    assert "run.yaml line" in message and "'not_there.during_training.Mine' cannot be imported" in message
    assert f"start ift in the folder that holds the package (now {Path.cwd()})" in message
