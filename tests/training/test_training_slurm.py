"""Jobs of a real SLURM with two nodes, submitted with the scripts that users get."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import largest_difference
from tiny import ROOT

LAB = ROOT.parent / "shared" / "lab"
SCRIPT = ROOT / "scripts" / "slurm" / "several_nodes.sbatch"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(
        not (LAB / "slurm-up.sh").is_file() or os.geteuid() != 0, reason="no SLURM lab beside the checkout, or no root"
    ),
]
Config = Callable[..., Path]
Fit = Callable[..., Path]

SETTINGS: dict[str, Any] = {
    "model": {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
        "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}},
    },
    "data": {"global_batch_size": 5},
    "trainer": {"max_epochs": 2, "val_check_interval": 4, "log_every_n_steps": 1, "devices": "auto"},
    "checkpoint": {"every_n_train_steps": 100},
}
CODE = '''
import os, signal, time
from lightning.pytorch import Callback
from ift.data.conversation import Conversation, Message

class SlowSteps(Callback):
    """Takes its time, on the second rank only: the first one waits for it in the exchange of gradients."""
    def on_train_batch_start(self, trainer, *args):
        time.sleep(0.6 if trainer.global_rank else 0.0)
        if trainer.is_global_zero:
            open(os.environ["PROGRESS"], "w").write(str(trainer.global_step))

class WarnOneRank(Callback):
    """Sends the second rank alone the warning, in the first start of the job."""
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_rank == 1 and trainer.global_step == 3 and "SLURM_RESTART_COUNT" not in os.environ:
            os.kill(os.getpid(), signal.SIGUSR1)

def slowly(row):
    time.sleep(float(os.environ.get("PREPARATION_SECONDS", "0")) / 40)
    open(os.environ["PROGRESS"], "w").write("preparing")
    return Conversation((Message("user", row["instruction"]), Message("assistant", row["output"])))
'''


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start SLURM where it does not run, and stop it again; yields the environment of its commands."""
    lab = Path(os.environ.get("SLURM_LAB", "/tmp/slurm-lab"))
    ran = (lab / "run" / "slurmctld.pid").exists()
    subprocess.run(["bash", str(LAB / "slurm-up.sh")], check=True, timeout=300, capture_output=True)
    own = {"SLURM_CONF": str(lab / "etc" / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    yield {**os.environ, **own, "IFT": f"{sys.executable} -m ift", "OMP_NUM_THREADS": "1"}
    if not ran:
        subprocess.run(["bash", str(LAB / "slurm-down.sh"), "--purge"], check=True, timeout=120, capture_output=True)


class Job:
    """A submitted job."""

    def __init__(
        self,
        environment: dict[str, str],
        config: Path,
        *options: str,
        arguments: tuple[str, ...] = (),
        script: Path = SCRIPT,
    ) -> None:
        self.folder, self.environment = config.parent, environment
        (self.folder / "slurm_code.py").write_text(CODE, encoding="utf-8")
        self.progress, self.output = self.folder / "progress", self.folder / f"{config.stem}.out"
        path = f"{ROOT}{os.pathsep}{self.folder}"
        self.environment = {**environment, "PYTHONPATH": path, "PROGRESS": str(self.progress)}
        size = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=1800", "--time=10"]
        command = ["sbatch", "--parsable", *size, f"--output={self.output}", *options, str(script), str(config)]
        self.id = self.call(*command, *arguments).strip()

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, check=True, timeout=60, capture_output=True, text=True
        )
        return done.stdout

    def show(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", self.call("scontrol", "show", "job", "--oneliner", self.id))
        assert found is not None
        return found.group(1)

    def wait_until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.said() + self.call("squeue")
            time.sleep(0.3)

    def wait_for_progress(self, step: int) -> None:
        self.wait_until(lambda: self.progress.exists() and self.progress.read_text().isdecimal() and self.step >= step)

    @property
    def step(self) -> int:
        return int(self.progress.read_text() or 0)

    def wait_for_end(self) -> str:
        """Return the state that the job ends in."""
        states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until(lambda: self.show("JobState") in states)
        return self.show("JobState")

    def signal(self, name: str) -> None:
        self.call("scancel", f"--signal={name}", self.id)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""


@pytest.fixture
def submit(slurm: dict[str, str]) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def run(config: Path, *options: str, environment: dict[str, str] | None = None, **more: Any) -> Job:
        jobs.append(Job({**slurm, **(environment or {})}, config, *options, **more))
        return jobs[-1]

    yield run
    for job in jobs:
        subprocess.run(["scancel", job.id], env=job.environment, timeout=60, capture_output=True)


def manifest_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text(encoding="utf-8")))


def slow(**trainer: Any) -> dict[str, Any]:
    return {**SETTINGS, "trainer": {**SETTINGS["trainer"], "callbacks": [{"class_path": "slurm_code.SlowSteps"}]}}


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_two_nodes_train_as_one_process_also_when_they_are_asked_to_end(
    config: Config, fit: Fit, submit: Callable[..., Job], name: str
) -> None:
    alone = fit(config("alone", **SETTINGS))
    whole = submit(config("whole", **SETTINGS))
    assert whole.wait_for_end() == "COMPLETED", whole.said()
    run = whole.output.with_suffix("")
    assert manifest_of(run)["sessions"][0]["world_size"] == 2
    assert largest_difference(alone, run) < 1e-6
    ended = submit(config("ended", **slow()))
    ended.wait_for_progress(3)
    ended.signal(name)
    assert ended.wait_for_end() == "COMPLETED", ended.said()
    assert "is saved in" in ended.said() and f"Job {ended.id} is requeued." in ended.said()
    assert "Traceback" not in ended.said()
    assert ended.show("Restarts") == "1"
    manifest = manifest_of(ended.output.with_suffix(""))
    assert [one.get("status") for one in manifest["sessions"]] == ["preempted", None]
    assert manifest["sessions"][1]["from_step"] == manifest["sessions"][0]["to_step"] > 0
    assert manifest["status"] == "finished"
    assert largest_difference(run, ended.output.with_suffix("")) == 0


def test_shards_of_two_nodes_are_saved_where_one_rank_is_warned(
    config: Config, fit: Fit, submit: Callable[..., Job]
) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != "model"}
    settings["model"] = {"optimizer": SETTINGS["model"]["optimizer"]}  # all weights: checkpoints are folders of shards
    alone = fit(config("alone", **settings))
    fsdp = {**SETTINGS["trainer"], "strategy": "fsdp"}
    whole = submit(config("whole", **{**settings, "trainer": fsdp}))
    assert whole.wait_for_end() == "COMPLETED", whole.said()
    run = whole.output.with_suffix("")
    assert largest_difference(alone, run) < 1e-6
    fsdp["callbacks"] = [{"class_path": "slurm_code.WarnOneRank"}]
    ended = submit(config("ended", **{**settings, "trainer": fsdp}))
    assert ended.wait_for_end() == "COMPLETED", ended.said()
    assert f"Job {ended.id} is requeued." in ended.said() and "Traceback" not in ended.said()
    sessions = manifest_of(ended.output.with_suffix(""))["sessions"]
    assert [(one.get("status"), one["from_step"]) for one in sessions] == [("preempted", 0), (None, 3)]
    assert largest_difference(run, ended.output.with_suffix("")) == 0


def test_the_script_of_one_node_trains_as_one_process(config: Config, fit: Fit, submit: Callable[..., Job]) -> None:
    alone = fit(config("alone", **SETTINGS))
    script = ROOT / "scripts" / "slurm" / "one_node.sbatch"
    job = submit(config("whole", **SETTINGS), "--nodes=1", "--ntasks-per-node=2", script=script)
    assert job.wait_for_end() == "COMPLETED", job.said()
    assert manifest_of(job.output.with_suffix(""))["sessions"][0]["world_size"] == 2
    assert largest_difference(alone, job.output.with_suffix("")) < 1e-6


def test_a_cancelled_job_stays_cancelled(config: Config, submit: Callable[..., Job]) -> None:
    job = submit(config("cancelled", **slow()))
    job.wait_for_progress(2)
    job.call("scancel", job.id)
    assert job.wait_for_end() == "CANCELLED"
    time.sleep(8)
    assert job.show("JobState") == "CANCELLED" and job.show("Restarts") == "0"
    assert "is requeued" not in job.said()
    manifest = manifest_of(job.output.with_suffix(""))
    assert manifest["status"] == "preempted" and "is saved in" in job.said()


def test_a_task_of_an_array_warned_while_data_are_prepared_is_requeued(
    config: Config, submit: Callable[..., Job], rows_file: Path
) -> None:
    sources = [{"path": str(rows_file), "layout": "slurm_code.slowly"}]
    path = config("early", **{**SETTINGS, "data": {"global_batch_size": 5, "sources": sources}})
    job = submit(path, "--array=7", environment={"PREPARATION_SECONDS": "20"})
    job.wait_until(job.progress.exists)
    job.call("scancel", "--signal=USR1", f"{job.id}_7")
    job.wait_until(lambda: f"Job {job.id}_7 is requeued." in job.said())
    assert job.wait_for_end() == "COMPLETED", job.said()
    assert job.show("Restarts") == "1" and "Traceback" not in job.said()
    assert manifest_of(job.output.with_suffix(""))["status"] == "finished"


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (("--job-name=bash",), (), "SLURM_JOB_NAME: 'bash' stands for a shell"),
        ((), ("--trainer.devices=3",), "trainer.devices: 3, and SLURM has started 1 processes on each node"),
        ((), ("--trainer.num_nodes=4",), "trainer.num_nodes: 4, and SLURM has started processes on 2"),
    ],
    ids=["shell", "devices", "nodes"],
)
def test_a_job_that_cannot_work_is_refused(
    config: Config, submit: Callable[..., Job], options: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    job = submit(config("refused", **SETTINGS), *options, arguments=arguments)
    assert job.wait_for_end() == "FAILED"
    assert job.said().count(f"error: {message}") == (2 if "bash" in message else 1)
    # Where the first task's 2 ends the other before that has come to the same, srun returns what was left of it.
    assert "Traceback" not in job.said() and job.show("ExitCode") in ("2:0", "75:0", "143:0")
