"""Fits the Trainer's devices and nodes to the processes that SLURM or torchrun has started; refuses what cannot be."""

import os
from collections.abc import Mapping
from typing import Any

from ift.errors import UserError
from ift.launch import INTERACTIVE_JOB_NAMES, Launch, launch


def settle_devices(trainer: Any, environment: Mapping[str, str] | None = None) -> None:
    """Set `trainer.devices` (auto) and `trainer.num_nodes` (1) to what was started; refuse other values than that.

    Args:
        trainer: its settings, which are changed.
        environment: by default this process's own.

    Raises:
        UserError: processes that would not know of each other, or wait for some that nobody has started.
    """
    found = os.environ if environment is None else environment
    place = launch(found)
    if place.program != "torchrun":
        _check_job(found)
    if place.program is None:
        return
    per_node = place.processes_per_node or 1
    if place.num_processes % per_node:
        raise UserError(
            f"trainer.devices: {place.program} has started {place.num_processes} processes, {per_node} on this node, "
            "so the nodes have different numbers of them. Start as many on each."
        )
    num_nodes = place.num_processes // per_node
    _check_visible_gpus(trainer, place, per_node)
    said = asked_devices(trainer["devices"])
    names = _VARIABLES[place.program]
    if said is not None and said != per_node:
        raise UserError(
            f"trainer.devices: {trainer['devices']}, and {place.program} has started {per_node} processes on each node "
            f"({names[0]}). Leave trainer.devices out (auto), or start {said} on each."
        )
    if trainer["num_nodes"] not in (1, num_nodes):
        raise UserError(
            f"trainer.num_nodes: {trainer['num_nodes']}, and {place.program} has started processes on {num_nodes} "
            f"({names[1]}). Leave trainer.num_nodes out, or start them on {trainer['num_nodes']}."
        )
    trainer["devices"], trainer["num_nodes"] = per_node, num_nodes


_VARIABLES = {
    "torchrun": ("LOCAL_WORLD_SIZE; torchrun --nproc-per-node", "WORLD_SIZE; torchrun --nnodes"),
    "SLURM": ("SLURM_NTASKS_PER_NODE; sbatch --ntasks-per-node", "SLURM_NNODES; sbatch --nodes"),
}


def _check_job(found: Mapping[str, str]) -> None:
    """Refuse tasks of SLURM that would not know of each other."""
    name = found.get("SLURM_JOB_NAME")
    num_tasks = int(found.get("SLURM_STEP_NUM_TASKS") or 1)
    if name in INTERACTIVE_JOB_NAMES:
        if num_tasks > 1:
            raise UserError(
                f"SLURM_JOB_NAME: '{name}' stands for a shell in which programs are started by hand, so each of the "
                f"{num_tasks} tasks would train alone and overwrite the others. Give the job another name "
                "(sbatch --job-name=ift; within an allocation srun --job-name=ift)."
            )
        return
    num_tasks = int(found.get("SLURM_NTASKS") or 1)
    if num_tasks > 1 and not found.get("SLURM_NTASKS_PER_NODE"):
        raise UserError(
            f"SLURM_NTASKS: {num_tasks} tasks (--ntasks) without --ntasks-per-node, so nothing says how many a node "
            "has. Give --nodes and --ntasks-per-node instead."
        )
    if num_tasks > 1 and "SLURM_STEP_ID" not in found:
        raise UserError(
            f"SLURM_NTASKS: the job has {num_tasks} tasks, and ift was started once, without srun: it would wait for "
            "the others. Write 'srun --kill-on-bad-exit=1 ift ...' in the batch script."
        )
    num_nodes, per_node = found.get("SLURM_NNODES"), found.get("SLURM_NTASKS_PER_NODE")
    if num_nodes and per_node and int(num_nodes) * int(per_node) != num_tasks and num_tasks > 1:
        raise UserError(
            f"SLURM_NTASKS: {num_tasks} tasks, and {num_nodes} nodes with {per_node} each (--ntasks-per-node) are "
            f"{int(num_nodes) * int(per_node)}. Leave --ntasks out."
        )


def asked_devices(devices: Any) -> int | None:
    """Return how many devices `trainer.devices` asks for, or `None` for all that there are.

    Raises:
        UserError: no number, no list of numbers, and not `auto`.
    """
    text = ",".join(map(str, devices)) if isinstance(devices, list) else str(devices).strip()
    if text in ("auto", "-1"):
        return None
    parts = [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(
            f"trainer.devices: '{devices}' is neither a number, 'auto' nor a list such as 0,1. Give one of these."
        )
    return int(text) if text.isdecimal() and not isinstance(devices, list) else len(parts)


def _check_visible_gpus(trainer: Any, place: Launch, per_node: int) -> None:
    """Refuse tasks that see fewer GPUs than there are processes on a node: each takes the one of its own number."""
    if trainer["accelerator"] not in ("auto", "gpu", "cuda"):
        return
    import torch

    visible = torch.cuda.device_count()
    if 0 < visible < per_node:
        raise UserError(
            f"trainer.devices: {per_node} processes on each node, and this one sees {visible} GPU"
            f"{'s' if visible > 1 else ''}. Each must see all of its node's: "
            + (
                "ask for them with --gres=gpu:N or --gpus-per-node=N, not --gpus-per-task or --gpu-bind."
                if place.program == "SLURM"
                else "start as many processes as there are GPUs, or set trainer.accelerator to cpu."
            )
        )


def cluster_plugins() -> list[Any]:
    """Return Lightning's plugin for SLURM without its requeueing, which is ours; none elsewhere."""
    if launch().program != "SLURM":
        return []
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)]
