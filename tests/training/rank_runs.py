"""Several runs, one after another, in the same few processes: starting a process costs more than such a run."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ARGUMENTS = "arguments"


def run_on_ranks(
    folder: Path,
    runs: Sequence[Sequence[str]],
    *,
    ranks: int = 2,
    timeout: float = 240,
    kill_when: Callable[[], bool] | None = None,
    program: str = __file__,
) -> list[str]:
    """Run `ift` with each list of arguments on several ranks.

    Args:
        folder: for what the ranks say.
        runs: arguments of each.
        ranks: processes.
        timeout: seconds after which all of them are killed.
        kill_when: says whether to kill all of them now; asked again and again.
        program: that calls `main_of`.

    Returns:
        Per run what its ranks said; empty where all of them ended well. A run on which one fails is the last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(json.dumps([list(run) for run in runs]), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environment = {
            **os.environ,
            **{name: str(value) for name, value in places.items()},
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        log = (folder / f"rank-{rank}.log").open("w", encoding="utf-8")
        command = [sys.executable, program, str(folder)]
        processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if kill_when is not None and kill_when():
                break  # told by what is missing
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [(folder / f"rank-{rank}.log").read_text(encoding="utf-8") for rank in range(ranks)]
    done = [_codes(folder / f"rank-{rank}.jsonl") for rank in range(ranks)]
    outcomes = []
    for number in range(len(runs)):
        codes = [own[number] if number < len(own) else None for own in done]
        outcomes.append("" if codes == [0] * ranks else f"{codes}\n" + "\n".join(text[-6000:] for text in said))
    return outcomes


def _codes(path: Path) -> list[int]:
    return [int(line) for line in path.read_text(encoding="utf-8").split()] if path.is_file() else []


def main_of(folder: Path) -> None:
    """Run what `run_on_ranks` wrote down, as one of its ranks."""
    import torch

    from ift.cli import main

    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    with (folder / f"rank-{rank}.jsonl").open("w", encoding="utf-8") as told:
        for arguments in json.loads((folder / "runs.json").read_text(encoding="utf-8")):
            print("===", *arguments, flush=True)
            print(main(arguments), file=told, flush=True)


if __name__ == "__main__":
    main_of(Path(sys.argv[1]))
