"""Runs of tiny models, in this process or in one of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ift.cli import main


@pytest.fixture
def fit() -> Callable[[Path], Path]:
    """Run `ift fit` on a config in this process and return the run folder."""

    def run(path: Path, *arguments: str) -> Path:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # bit-for-bit comparisons need one order of summation
        try:
            assert main(["fit", "--config", str(path), *arguments, "--debug"]) == 0
        finally:
            torch.set_num_threads(threads)
        return Path(yaml.safe_load(path.read_text(encoding="utf-8"))["run_dir"])

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start `ift` in a process of its own."""

    def run(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "ift", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    return run
