"""How long processes wait for each other, and what is said when one of them is gone."""

from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import distributed

from ift.errors import UserError

LONGEST_WAIT_SECONDS = 600
"""By default. Writing a checkpoint or scoring answers, which one rank does alone, must not take longer."""
EXIT_LOST = 69
"""Exit code where other processes are gone: EX_UNAVAILABLE, "a service that is needed is not there"."""
_GONE = (
    "Connection closed by",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Read error",
    "Write error",
    "Timed out waiting",
    "Socket Timeout",
    "wait timeout",
    "pair closure",
    "Software caused connection abort",
    "No route to host",
    "Network is unreachable",
    "recvValue failed",
    "sendBytes failed",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "collective operation timeout",
)
"""What gloo, NCCL and the store say where another process is gone or does not answer; NCCL also says other things."""


class LostProcessError(UserError):
    """Another process of the run has ended, or does not answer in time."""

    exit_code = EXIT_LOST


class ProcessGroupTimeout(Callback):
    """Gives every process group of a strategy the same longest wait; those of a mesh begin with one of torch's own.

    Args:
        timeout: the longest wait.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._timeout = timeout

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set it, once the strategy has made its groups."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        from torch.distributed import distributed_c10d

        for group in list(distributed_c10d._world.pg_map):
            if distributed.get_rank(group) >= 0:
                distributed_c10d._set_pg_timeout(self._timeout, group)


def set_timeout(strategy: Any, timeout: timedelta) -> None:
    """Let a strategy of several processes begin its groups with this longest wait."""
    if isinstance(strategy, DDPStrategy | ModelParallelStrategy):  # DeepSpeed's is one of the former
        assert hasattr(strategy, "_timeout"), f"{type(strategy).__name__} keeps its timeout elsewhere now"
        strategy._timeout = timeout


def lost_process(error: BaseException, *, timeout_seconds: float) -> LostProcessError | None:
    """Return what to say where an error means that another process is gone, else `None`.

    Args:
        error: of torch.
        timeout_seconds: the longest wait, for the text.
    """
    text = str(error)
    told = isinstance(error, distributed.DistNetworkError | distributed.DistStoreError)
    known = told or any(word in text for word in _GONE)
    if not isinstance(error, RuntimeError) or not known or isinstance(error, torch.cuda.OutOfMemoryError):
        return None
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return LostProcessError(
        f"another process of this run has ended, or has not answered for {timeout_seconds:g} seconds "
        f"(process_group_timeout_seconds): {first}. What it said itself, if it could, stands above or in its own log. "
        "Go on from the last checkpoint with the same command and --ckpt_path last."
    )
