"""Runs that torchrun starts: equal to one process; a lost process ends them in time; each waits for preparation."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import largest_difference
from tiny import ROOT

pytestmark = pytest.mark.slow
Config = Callable[..., Path]
Fit = Callable[..., Path]
TIMEOUT = 15
"""Seconds that processes wait for each other here; the machine may be busy."""
MARGIN = 60
"""Seconds for what comes after that: a busy machine, and torchrun's own exit."""

SETTINGS: dict[str, Any] = {
    "model": {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
        "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}},
    },
    "data": {"global_batch_size": 5},
    "trainer": {"max_epochs": 2, "val_check_interval": 4, "log_every_n_steps": 1, "devices": "auto"},
    "checkpoint": {"every_n_train_steps": 2},
    "process_group_timeout_seconds": TIMEOUT,
}
CODE = '''
import os, signal, time
from pathlib import Path
from lightning.pytorch import Callback
from ift.data.conversation import Conversation, Message

class Fault(Callback):
    """Sends the last rank a signal after a step, the first time only."""
    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum
    def on_train_batch_end(self, trainer, *args):
        marker = Path(os.environ["MARKER"])
        if trainer.global_rank == 1 and trainer.global_step == self.step and not marker.exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), self.signum)

def slowly(row):
    """The node of the second process is slow, and prepares its own copy of the data."""
    if os.environ["RANK"] == "1":
        time.sleep(float(os.environ["PREPARATION_SECONDS"]) / 40)
    return Conversation((Message("user", row["instruction"]), Message("assistant", row["output"])))
'''


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "torchrun_code.py").write_text(CODE, encoding="utf-8")
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MARKER": str(tmp_path / "marker"), "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {**kept, **own}


SLOW_STEPS = f"""{CODE}

class SlowSteps(Callback):
    def on_train_batch_start(self, *args):
        time.sleep(0.7)
"""
TWO_HERE = ("--standalone", "--nproc-per-node=2")
Torchrun = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def torchrun(environment: dict[str, str], tmp_path: Path) -> Iterator[Torchrun]:
    """Start `ift fit` with two processes; all of them are killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def run(config: Path, *arguments: str, options: tuple[str, ...] = TWO_HERE, **more: Any) -> Any:
        prefix, variables = more.get("prefix", ()), more.get("variables", {})
        program = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "ift", "fit", "--config", str(config)]
        process = subprocess.Popen(
            [*prefix, *program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, **variables},
            start_new_session=True,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for pid in _descendants(process.pid):
            _kill(pid)
        process.wait(timeout=30)


def _descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, each in a session of its own or not."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def _is_running(pid: int) -> bool:
    """Whether a process has not ended; torchrun may be too busy to ask what became of one that has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _checkpoints(config: Path) -> set[str]:
    return {path.name for path in config.with_suffix("").glob("checkpoints/step-*.ckpt")}


def _wait_for_checkpoint(config: Path, processes: list[Any], *, known: set[str] | None = None) -> None:
    deadline = time.monotonic() + 180
    while not _checkpoints(config) - (known or set()):
        assert time.monotonic() < deadline and all(one.poll() is None for one in processes)
        time.sleep(0.1)


def manifest_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text(encoding="utf-8")))


def test_two_processes_of_torchrun_train_as_one(config: Config, fit: Fit, torchrun: Torchrun) -> None:
    alone = fit(config("alone", **SETTINGS))
    path = config("two", **SETTINGS)
    process = torchrun(path)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert manifest_of(path.with_suffix(""))["sessions"][0]["world_size"] == 2
    assert largest_difference(alone, path.with_suffix("")) < 1e-6
    assert output.count("tensorboard --logdir") == 1  # one process tells


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_process_ends_the_run_in_time_and_a_restart_resumes(
    config: Config, torchrun: Torchrun, signum: signal.Signals, tmp_path: Path
) -> None:
    whole = config("whole", **SETTINGS)
    assert torchrun(whole).wait(timeout=240) == 0
    fault = {"class_path": "torchrun_code.Fault", "init_args": {"step": 5, "signum": int(signum)}}
    path = config("lost", **{**SETTINGS, "trainer": {**SETTINGS["trainer"], "callbacks": [fault]}})
    process = torchrun(path)
    marker = tmp_path / "marker"
    deadline = time.monotonic() + 180
    while not marker.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    began = time.monotonic()
    output, _ = process.communicate(timeout=TIMEOUT + MARGIN)
    took = time.monotonic() - began
    assert process.returncode != 0 and took < TIMEOUT + MARGIN
    if signum == signal.SIGSTOP:  # the other one waits, and says so
        assert "error: another process of this run has ended, or has not answered for 15 seconds" in output, output
        assert took > TIMEOUT - 1
    assert manifest_of(path.with_suffix(""))["status"] == "running"
    again = torchrun(path, "--ckpt_path", "last")
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    sessions = manifest_of(path.with_suffix(""))["sessions"]
    assert sessions[1]["from_step"] == 4
    assert largest_difference(whole.with_suffix(""), path.with_suffix("")) == 0


def test_torchrun_restarts_the_processes_itself(config: Config, torchrun: Torchrun) -> None:
    whole = config("whole", **SETTINGS)
    assert torchrun(whole).wait(timeout=240) == 0
    fault = {"class_path": "torchrun_code.Fault", "init_args": {"step": 5, "signum": int(signal.SIGKILL)}}
    path = config("lost", **{**SETTINGS, "trainer": {**SETTINGS["trainer"], "callbacks": [fault]}})
    options = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    process = torchrun(path, "--ckpt_path", "last", options=options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert largest_difference(whole.with_suffix(""), path.with_suffix("")) == 0


def test_preparing_longer_than_the_time_out_is_waited_for(
    config: Config, torchrun: Torchrun, rows_file: Path, tmp_path: Path
) -> None:
    sources = [{"path": str(rows_file), "layout": "torchrun_code.slowly"}]
    settings = {**SETTINGS, "data": {"global_batch_size": 5, "sources": sources}}
    path = config("slow", **settings)
    address = (
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        "--rdzv-id=1",
        "--rdzv-endpoint=127.0.0.1:29611",
    )
    caches = [("--data.cache_dir", str(tmp_path / f"cache{number}")) for number in (0, 1)]
    variables = {"PREPARATION_SECONDS": str(TIMEOUT * 3), "GLOO_SOCKET_IFNAME": "lo"}
    more: dict[str, Any] = {"options": (*address, "--local-addr=127.0.0.1"), "variables": variables}
    # Two nodes have two disks, and locks of their own.
    first = torchrun(path, *caches[0], **{**more, "variables": {**variables, "TMPDIR": str(tmp_path)}})
    second = torchrun(path, *caches[1], **more)
    output = "".join(one.communicate(timeout=300)[0] for one in (first, second))
    assert (first.returncode, second.returncode) == (0, 0), output
    assert manifest_of(path.with_suffix(""))["status"] == "finished"
    for cache, _ in ((tmp_path / "cache0", 0), (tmp_path / "cache1", 1)):
        assert list(cache.glob("*/counts.json"))


def test_data_are_prepared_by_one_process_of_a_node(config: Config, torchrun: Torchrun, rows_file: Path) -> None:
    sources = [{"path": str(rows_file), "layout": "torchrun_code.slowly"}]
    path = config("slow", **{**SETTINGS, "data": {"global_batch_size": 5, "sources": sources}})
    process = torchrun(path, variables={"PREPARATION_SECONDS": "4"})
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert len(list((path.parent / "cache").glob("*/counts.json"))) == 1


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """Two nodes: network namespaces with a cable between them."""
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True).returncode:
        pytest.skip("network namespaces need root and ip")
    one, two = f"ift{os.getpid()}a", f"ift{os.getpid()}b"
    card = {one: f"v{os.getpid() % 10**6}a", two: f"v{os.getpid() % 10**6}b"}
    commands = [f"netns add {one}", f"netns add {two}", f"link add {card[one]} type veth peer name {card[two]}"]
    for name, address in ((one, "10.77.0.1"), (two, "10.77.0.2")):
        commands += [f"link set {card[name]} netns {name}", f"-n {name} link set lo up"]
        commands += [f"-n {name} addr add {address}/24 dev {card[name]}", f"-n {name} link set {card[name]} up"]
    try:
        for command in commands:
            if subprocess.run(["ip", *command.split()], capture_output=True).returncode:
                pytest.skip(f"network namespaces cannot be made here (ip {command})")
        yield one, two
    finally:
        for name in (one, two):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _on_nodes(
    torchrun: Torchrun, network: tuple[str, str], config: Path, *arguments: str, restarts: int = 0
) -> list[Any]:
    started = []
    for number, name in enumerate(network):
        card = f"v{os.getpid() % 10**6}{'ab'[number]}"
        options = (
            "--nnodes=2",
            "--nproc-per-node=1",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=10.77.0.1:29500",
            "--rdzv-id=lab",
            f"--local-addr=10.77.0.{number + 1}",
            f"--rdzv-conf=timeout=60,last_call_timeout=3,join_timeout=60,is_host={'true' if number == 0 else 'false'}",
            f"--max-restarts={restarts}",
        )
        more: dict[str, Any] = {"options": options, "prefix": ("ip", "netns", "exec", name)}
        started.append(torchrun(config, *arguments, variables={"GLOO_SOCKET_IFNAME": card}, **more))
    return started


def test_a_cut_cable_ends_both_nodes_in_time_and_a_restart_resumes(
    config: Config, torchrun: Torchrun, network: tuple[str, str]
) -> None:
    whole = config("whole", **SETTINGS)
    assert torchrun(whole).wait(timeout=240) == 0
    slow = {"class_path": "torchrun_code.SlowSteps", "init_args": {}}
    (whole.parent / "torchrun_code.py").write_text(SLOW_STEPS, encoding="utf-8")
    path = config("cut", **{**SETTINGS, "trainer": {**SETTINGS["trainer"], "callbacks": [slow]}})
    nodes = _on_nodes(torchrun, network, path)
    _wait_for_checkpoint(path, nodes)
    card = f"v{os.getpid() % 10**6}b"
    subprocess.run(["ip", "-n", network[1], "link", "set", card, "down"], check=True)
    began = time.monotonic()
    # The programs end in time; torchrun itself asks the other node's store for minutes before it gives up.
    while any(_is_running(pid) for one in nodes for pid in _descendants(one.pid)[1:]):
        assert time.monotonic() - began < TIMEOUT + MARGIN
        time.sleep(0.2)
    for one in nodes:
        one.kill()
    said = [one.communicate(timeout=30)[0] for one in nodes]
    assert all("another process of this run has ended, or has not answered" in text for text in said), "\n".join(said)
    subprocess.run(["ip", "-n", network[1], "link", "set", card, "up"], check=True)
    again = _on_nodes(torchrun, network, path, "--ckpt_path", "last")
    output = "".join(one.communicate(timeout=240)[0] for one in again)
    assert all(one.returncode == 0 for one in again), output
    assert manifest_of(path.with_suffix(""))["sessions"][1]["from_step"] > 0
    assert largest_difference(whole.with_suffix(""), path.with_suffix("")) == 0


def test_a_killed_node_ends_the_other_in_time_and_its_program_alone_is_started_again(
    config: Config, torchrun: Torchrun, network: tuple[str, str], tmp_path: Path
) -> None:
    whole = config("whole", **SETTINGS)
    assert torchrun(whole).wait(timeout=240) == 0
    (tmp_path / "torchrun_code.py").write_text(SLOW_STEPS, encoding="utf-8")
    slow = {"class_path": "torchrun_code.SlowSteps", "init_args": {}}
    path = config("killed", **{**SETTINGS, "trainer": {**SETTINGS["trainer"], "callbacks": [slow]}})
    nodes = _on_nodes(torchrun, network, path)
    _wait_for_checkpoint(path, nodes)
    for pid in _descendants(nodes[1].pid):
        _kill(pid)
    output, _ = nodes[0].communicate(timeout=TIMEOUT + MARGIN)
    assert nodes[0].returncode != 0 and "error: another process of this run has ended" in output, output
    # Now only the program of the second node dies, in the run that goes on: torchrun starts both anew.
    again = _on_nodes(torchrun, network, path, "--ckpt_path", "last", restarts=1)
    _wait_for_checkpoint(path, again, known=_checkpoints(path))
    for pid in _descendants(again[1].pid)[1:]:
        _kill(pid)
    output = "".join(one.communicate(timeout=300)[0] for one in again)
    assert all(one.returncode == 0 for one in again), output
    sessions = manifest_of(path.with_suffix(""))["sessions"]
    assert [one["world_size"] for one in sessions] == [2, 2, 2]
    assert 0 < sessions[1]["from_step"] < sessions[2]["from_step"]
    assert largest_difference(whole.with_suffix(""), path.with_suffix("")) == 0


def test_a_signal_to_torchrun_saves_and_a_restart_resumes(config: Config, torchrun: Torchrun, tmp_path: Path) -> None:
    whole = config("whole", **SETTINGS)
    assert torchrun(whole).wait(timeout=240) == 0
    (tmp_path / "torchrun_code.py").write_text(SLOW_STEPS, encoding="utf-8")
    slow = {"class_path": "torchrun_code.SlowSteps", "init_args": {}}
    path = config("ended", **{**SETTINGS, "trainer": {**SETTINGS["trainer"], "callbacks": [slow]}})
    process = torchrun(path)
    _wait_for_checkpoint(path, [process])
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "is saved in" in output
    assert manifest_of(path.with_suffix(""))["status"] == "preempted"
    again = torchrun(path, "--ckpt_path", "last")
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert largest_difference(whole.with_suffix(""), path.with_suffix("")) == 0
