"""The quickstart as a stranger runs it, and once more with shuffled responses: the gain is real, or there is none."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_readme import readme_commands
from tiny import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repository in another folder, where runs can be made."""
    folder = tmp_path_factory.mktemp("clone") / "ift"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_in(clone: Path, command: list[str]) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def result(clone: Path) -> dict[str, Any]:
    run_in(clone, [sys.executable, "scripts/quickstart/run.py"])
    found: dict[str, Any] = json.loads((clone / "runs" / "quickstart" / "result.json").read_text())
    return found


def test_the_model_learns_to_follow_instructions(result: dict[str, Any]) -> None:
    before, after = result["before"]["exact_match"], result["after"]["exact_match"]
    assert after["score"] >= before["score"] + 0.15
    assert after["interval"][0] > before["interval"][1], "the intervals overlap"


def test_every_further_command_of_the_readme_runs(clone: Path, result: dict[str, Any]) -> None:
    skipped = ("scripts/quickstart.sh", "scripts/test.sh", "tensorboard")
    for command in readme_commands():
        if command[0] not in skipped:
            run_in(clone, [sys.executable, *command[1:]] if command[0] == "python" else command)


def test_shuffled_responses_teach_nothing(clone: Path) -> None:
    output = "runs/shuffled"
    run_in(clone, [sys.executable, "scripts/quickstart/run.py", "--shuffle-responses", "--output", output])
    found = json.loads((clone / output / "result.json").read_text())
    references = [r["output"] for r in json.loads((ROOT / "scripts/quickstart/data/heldout.json").read_text("utf-8"))]
    most_frequent = Counter(references).most_common(1)[0][1] / len(references)
    # One answer to everything can be learned from shuffled responses; anything above it would be a leak.
    assert found["after"]["exact_match"]["interval"][0] <= most_frequent
    assert found["after"]["exact_match"]["score"] < 0.1
    assert found["after"]["quiz"]["interval"][0] <= 0.25
