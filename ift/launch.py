"""Who started this process, and which of how many it is, told by the environment before any process group is.

Starts without torch.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

INTERACTIVE_JOB_NAMES = ("bash", "interactive")
"""Names of jobs that Lightning takes for a shell of SLURM's, in which programs are started by hand."""


@dataclass(frozen=True)
class Launch:
    """A process of a job."""

    program: Literal["torchrun", "SLURM"] | None = None
    """What has started all processes; `None` where this one was started alone, or by Lightning."""
    rank: int = 0
    """Over all nodes."""
    local_rank: int = 0
    """On this node."""
    num_processes: int = 1
    """Over all nodes."""
    processes_per_node: int | None = None
    """`None` where it is not known, as of `--ntasks` alone."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0


def launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Return what the environment says of this process.

    Args:
        environment: by default this process's own.
    """
    found = os.environ if environment is None else environment

    def number(name: str, default: int = 0) -> int:
        return int(found.get(name) or default)

    if "TORCHELASTIC_RUN_ID" in found:
        return Launch(
            "torchrun",
            number("RANK"),
            number("LOCAL_RANK"),
            num_processes=number("WORLD_SIZE", 1),
            processes_per_node=number("LOCAL_WORLD_SIZE", 1),
        )
    if "SLURM_NTASKS" in found and found.get("SLURM_JOB_NAME") not in INTERACTIVE_JOB_NAMES:
        num_tasks = number("SLURM_NTASKS", 1)
        alone = 1 if num_tasks == 1 else None
        return Launch(
            "SLURM",
            number("SLURM_PROCID"),
            number("SLURM_LOCALID"),
            num_processes=num_tasks,
            processes_per_node=number("SLURM_NTASKS_PER_NODE") or alone,
        )
    # Lightning starts the other processes of a node itself, and tells them these two.
    local, node = number("LOCAL_RANK"), number("NODE_RANK")
    per_node = number("WORLD_SIZE", 1)
    return Launch(rank=node * per_node + local, local_rank=local, num_processes=per_node)
