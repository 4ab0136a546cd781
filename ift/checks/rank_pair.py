"""Two worker processes that run the cases of several ranks, one after the other, from a single start."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WORKER = "ift.commands.check_worker"
_SECONDS = 300.0
"""In which the ranks must start, and then do each job; a hang of one rank is a violation, and not for ever."""


@dataclass(frozen=True)
class Job:
    """A command that both ranks run together."""

    name: str
    command: str
    arguments: list[str]


class RankPair:
    """Runs jobs on two ranks of this machine.

    Args:
        folder: new, for jobs and results.
        num_ranks: processes.
    """

    def __init__(self, folder: Path, *, num_ranks: int = 2) -> None:
        self._folder, self._num_ranks = folder, num_ranks
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, jobs: Sequence[Job]) -> None:
        """Start the processes on these jobs."""
        self._folder.mkdir(parents=True)
        (self._folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]), encoding="utf-8")
        port = _free_port()
        for rank in range(self._num_ranks):
            with (self._folder / f"rank-{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", WORKER, str(self._folder)],
                    env=_environment(rank, self._num_ranks, port),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._processes.append(process)

    def result(self, name: str) -> dict[str, Any]:
        """Wait for a job and return what it told: its seconds, and for `validate` the result.

        Raises:
            RuntimeError: a rank failed, ended or hung.
        """
        path = self._folder / f"{name}.json"
        while not path.is_file():
            time.sleep(0.05)
            for rank, process in enumerate(self._processes):
                if process.poll() not in (None, 0):
                    self.close()
                    raise RuntimeError(f"rank {rank} ended with {process.returncode}: {self._last_words(rank)}")
            if time.time() - self._last_sign() > _SECONDS:
                self.close()
                raise RuntimeError(f"the ranks hung for {_SECONDS:.0f} s: {self._last_words(0)}")
            if all(process.poll() == 0 for process in self._processes) and not path.is_file():
                raise RuntimeError("the ranks ended without a result")
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["error"] is not None:
            raise RuntimeError(told["error"])
        return told

    def _last_sign(self) -> float:
        """Return when the last job was done, or the first was given."""
        return max(path.stat().st_mtime for path in self._folder.glob("*.json"))

    def _last_words(self, rank: int) -> str:
        text = (self._folder / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace")
        return " ".join(text.split())[-400:]

    def close(self) -> None:
        """End the processes that still run, with all that they started."""
        for process in self._processes:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of a session of its own, and what it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """Return what torchrun tells its processes, so that Lightning starts none itself."""
    given = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCHELASTIC_"))}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    return {
        **given,
        **{key: str(value) for key, value in ranks.items()},
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "ift-check",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
