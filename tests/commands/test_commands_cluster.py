"""What the environment says of the processes of a job, what follows from it, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from ift import interruptions
from ift.commands.cluster import asked_devices, settle_devices
from ift.data.node_lock import build_once
from ift.errors import UserError
from ift.launch import Launch, launch
from ift.training.process_groups import LostProcessError, lost_process

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
}
SLURM = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NAME": "ift",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
}


def trainer(**keys: Any) -> dict[str, Any]:
    return {"accelerator": "cpu", "devices": "auto", "num_nodes": 1, **keys}


def test_a_process_knows_its_rank_before_any_process_group() -> None:
    assert launch(TORCHRUN) == Launch("torchrun", 5, 1, num_processes=8, processes_per_node=4)
    assert launch(SLURM) == Launch("SLURM", 5, 1, num_processes=8, processes_per_node=4)
    assert launch({**SLURM, **TORCHRUN}).program == "torchrun"  # started by it on each node, within a job
    assert launch({}) == Launch() and launch({}).is_first
    assert not launch({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}).is_first  # a child of Lightning's
    assert not launch({"NODE_RANK": "1"}).is_first
    assert launch({**SLURM, "SLURM_JOB_NAME": "bash"}).program is None


@pytest.mark.parametrize("devices", ["banana", "2x", "", [], "1.5"])
def test_what_is_no_number_of_devices_is_refused(devices: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.devices: .* neither a number"):
        asked_devices(devices)


@pytest.mark.parametrize(("devices", "number"), [("auto", None), (-1, None), (2, 2), ("2", 2), ("0,1,5", 3), ([3], 1)])
def test_devices_are_counted(devices: Any, number: int | None) -> None:
    assert asked_devices(devices) == number


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM], ids=["torchrun", "SLURM"])
def test_devices_and_nodes_are_those_that_were_started(environment: dict[str, str]) -> None:
    for devices in ("auto", -1, 4, "4", [0, 1, 2, 3], "0,1,2,3"):
        for num_nodes in (1, 2):
            settings = trainer(devices=devices, num_nodes=num_nodes)
            settle_devices(settings, environment)
            assert (settings["devices"], settings["num_nodes"]) == (4, 2)
    alone = trainer(devices=2)
    settle_devices(alone, {})
    assert alone == trainer(devices=2)


@pytest.mark.parametrize(
    ("environment", "keys", "message"),
    [
        (TORCHRUN, {"devices": 2}, "trainer.devices: 2, and torchrun has started 4 processes on each node"),
        (SLURM, {"devices": 8}, "trainer.devices: 8, and SLURM has started 4 processes on each node"),
        (SLURM, {"num_nodes": 3}, "trainer.num_nodes: 3, and SLURM has started processes on 2"),
        ({**TORCHRUN, "WORLD_SIZE": "7"}, {}, "the nodes have different numbers of them"),
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, {}, "SLURM_JOB_NAME: 'bash' stands for a shell"),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, {}, "SLURM_JOB_NAME: 'interactive' stands for a shell"),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": ""}, {}, "8 tasks (--ntasks) without --ntasks-per-node"),
        ({**SLURM, "SLURM_NTASKS": "7"}, {}, "7 tasks, and 2 nodes with 4 each"),
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, {}, "ift was started once, without srun"),
    ],
)
def test_what_cannot_work_is_refused(environment: dict[str, str], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        settle_devices(trainer(**keys), environment)
    assert message in str(error.value)


def test_a_shell_of_slurm_may_start_a_run_of_its_own() -> None:
    shell = {**SLURM, "SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "1"}
    settings = trainer(devices=2)
    settle_devices(settings, shell)
    assert settings == trainer(devices=2)


def test_a_task_that_sees_only_its_own_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="this one sees 1 GPU. Each must see all .* not --gpus-per-task"):
        settle_devices(trainer(accelerator="gpu"), SLURM)


def test_the_job_is_named_as_scontrol_wants_it() -> None:
    assert interruptions.job_id({}) is None
    assert interruptions.job_id({"SLURM_JOB_ID": "31"}) == "31"
    array = {"SLURM_JOB_ID": "31", "SLURM_ARRAY_JOB_ID": "30", "SLURM_ARRAY_TASK_ID": "7"}
    assert interruptions.job_id(array) == "30_7"


SCONTROL = """#!/bin/sh
echo "$@" >> {log}
[ "$1" = show ] && echo "JobId=31 JobName=x JobState={state} Reason=None"
exit {code}
"""


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a stand-in for SLURM's command on the path; returns the file of what it was asked."""

    def make(*, state: str = "RUNNING", code: int = 0) -> Path:
        program, log = tmp_path / "scontrol", tmp_path / "asked"
        program.write_text(SCONTROL.format(log=log, state=state, code=code), encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "31")
        return log

    return make


def test_a_warned_job_is_requeued(scontrol: Callable[..., Path]) -> None:
    log = scontrol()
    assert interruptions.requeue(signal.SIGUSR1) == "Job 31 is requeued."
    assert log.read_text() == "requeue 31\n"
    assert interruptions.requeue(signal.SIGINT) == ""


@pytest.mark.parametrize(
    ("state", "again"), [("RUNNING", True), ("TIMEOUT", True), ("CANCELLED", False), ("PREEMPTED", False)]
)
def test_a_job_that_is_cancelled_stays_so(scontrol: Callable[..., Path], state: str, again: bool) -> None:
    log = scontrol(state=state)
    told = interruptions.requeue(signal.SIGTERM)
    assert ("is requeued" in told) == again
    assert ("requeue 31" in log.read_text()) == again


def test_a_job_that_cannot_be_requeued_says_so(scontrol: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(code=1)
    assert "could not be requeued" in interruptions.requeue(signal.SIGUSR1)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "scontrol cannot be run" in interruptions.requeue(signal.SIGUSR1)


SIGNALLED = """
import atexit, os, signal, sys, threading
from ift import cli
atexit.register(os.kill, os.getpid(), signal.SIGTERM)  # a second signal, while libraries are torn down
def run(command, arguments):
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000000): pass
cli._imported = lambda module: type("M", (), {{"run": staticmethod(run)}})
sys.argv = ["ift", "fit"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 75), ("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_before_training_is_no_crash(name: str, code: int) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    program = [sys.executable, "-c", SIGNALLED.format(name=name)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == code
    assert done.stderr == ("interrupted\n" if code == 130 else f"{name} received\n")


def test_an_error_of_all_processes_is_written_once(tmp_path: Path) -> None:
    code = (
        "import sys; from ift import cli, errors; errors._PATIENCE_SECONDS = 100.0\n"
        "sys.exit(cli.main(['fit', '--config', '/nowhere.yaml']))"
    )
    environment = {**os.environ, **TORCHRUN, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    first, second = (
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={**environment, **rank})
        for rank in ({"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "1"})
    )
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 2 and said.count("error: ") == 1 and "/nowhere.yaml" in said
    second.send_signal(signal.SIGTERM)  # as torchrun does
    assert "error" not in second.communicate(timeout=120)[1]


def test_what_libraries_say_of_a_lost_process_is_explained() -> None:
    texts = ["[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2", "Timed out waiting 20000ms"]
    for text in texts:
        found = lost_process(RuntimeError(text), timeout_seconds=20)
        assert isinstance(found, LostProcessError) and found.exit_code == 69
        assert "process_group_timeout_seconds" in str(found) and text.split("]")[0] in str(found)
    own = distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:3, invalid usage (run with NCCL_DEBUG=WARN)"
    )
    assert lost_process(own, timeout_seconds=20) is None, "a mistake of this process is nobody's end"
    assert lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), timeout_seconds=20) is None
    assert lost_process(ValueError("Connection closed by peer"), timeout_seconds=20) is None


def test_two_nodes_on_one_file_system_may_prepare_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of one node is unknown to the other: the second to be done finds the folder there, and takes it."""
    folder = tmp_path / "store"

    def build(building: Path) -> None:
        if not folder.exists():  # the other node, meanwhile
            monkeypatch.setattr("ift.data.node_lock._node", lambda: "other")
            monkeypatch.setattr("ift.data.node_lock.lock_file", lambda folder: str(tmp_path / "other.lock"))
            build_once(folder, lambda inner: (inner / "file").write_text("whole") and None)
        (building / "file").write_text("whole")

    build_once(folder, build)
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert not list(tmp_path.glob("*.tmp"))


def test_processes_of_a_node_build_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ift.data.node_lock import build_once\n"
        "def build(folder):\n"
        "    open(sys.argv[2], 'a').write('built\\n'); time.sleep(1); (folder / 'x').write_text('x')\n"
        "build_once(Path(sys.argv[1]), build)"
    )
    program = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / "log")]
    processes = [subprocess.Popen(program) for _ in range(3)]
    started = time.monotonic()
    assert [one.wait(timeout=60) for one in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n" and time.monotonic() - started < 60
