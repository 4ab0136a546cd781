"""What libraries say that means nothing here is not told, and what else they say is."""

import logging
import subprocess
import sys

import pytest
from tiny import ROOT

from ift.library_messages import hide_missing_kernel

LOGGER = "bitsandbytes.backends.cpu.ops"


def test_one_message_is_hidden_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger=LOGGER)  # whatever was set for all of bitsandbytes before
    hide_missing_kernel()
    hide_missing_kernel()
    logger = logging.getLogger(LOGGER)
    assert len(logger.filters) == 1
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    logger.warning("This CPU cannot quantize.")
    assert [record.message for record in caplog.records if record.name == LOGGER] == ["This CPU cannot quantize."]


def test_no_command_tells_of_kernels_that_it_does_not_call() -> None:
    program = "from ift import cli; cli._imported('ift.commands.planning'); import bitsandbytes; bitsandbytes.nn"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "gemm_4bit_forward" not in done.stderr + done.stdout
