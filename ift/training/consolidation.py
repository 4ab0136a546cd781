"""A checkpoint as a folder to use: one adapter that PEFT loads, or one model that transformers loads.

In: a checkpoint of any strategy, of one file or of the files of many ranks, and the module that its run trained, whose
base model lies in its files still. Out: a folder. One process does it, without a process group, tensor by tensor;
memory holds one file of the result and one tensor, or the base model where its weights cannot be left in their files
(`ift.models.sharded_loading`). Nothing in a checkpoint is executed.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ift.artifacts import RunFolder, check_new_folder
from ift.errors import UserError
from ift.models.deferred import Deferred, in_place, read_for_good, values_of
from ift.models.families.normalized_head import NormalizedHead, settle_heads
from ift.models.initial_adapters import save_adapter
from ift.models.original_layout import write_shards
from ift.training.checkpoints import read_checkpoint, told_way_on
from ift.training.module import CHECKPOINT_KEY, InstructionModule
from ift.training.seals import check_seal
from ift.training.sharded_checkpoints import check_parts, check_whole, is_sharded_checkpoint
from ift.training.sharded_tensors import deferred_weights


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that was opened, not read."""

    path: Path
    step: int
    """Optimizer steps before it was written."""
    weights: Mapping[str, Deferred]
    """What was trained, by the name of the parameter."""
    own: Mapping[str, Any]
    """What `InstructionModule` wrote beside the weights."""


def open_checkpoint(key: str, path: Path) -> StoredCheckpoint:
    """Open a checkpoint of `ift fit`, all of whose bytes are as they were written.

    Args:
        key: names it, for errors.
        path: a file, or the folder that many ranks wrote.

    Raises:
        UserError: its bytes are not those that were written, it holds more than tensors and plain values, or is of
            another program.
    """
    sharded = is_sharded_checkpoint(path)
    with told_way_on(path, resumes=False):
        if sharded:
            check_whole(key, path)
            check_parts(key, path)
        else:
            check_seal(key, path)
    found = read_checkpoint(key, path)
    if not isinstance(found, dict) or CHECKPOINT_KEY not in found:
        raise UserError(f"{key}: '{path}' was not written by ift fit. Take another checkpoint.")
    if sharded:
        weights = deferred_weights(key, path, found["state_dict"])
    else:
        weights = {name: in_place(one) for name, one in found["state_dict"].items()}
    return StoredCheckpoint(path, int(found["global_step"]), weights, found[CHECKPOINT_KEY])


def consolidate(
    module: InstructionModule,
    checkpoint: StoredCheckpoint,
    *,
    run: RunFolder,
    output: Path,
    shard_size: str,
    report: Callable[[str], None],
) -> None:
    """Write what a checkpoint holds as a folder, which is whole or not there.

    Args:
        module: of the run, without its model.
        checkpoint: of the run.
        run: for the tokenizer, and the start of an adapter that took it out of the base model.
        output: new folder.
        shard_size: largest file of weights (5GB).
        report: told what is being done.

    Raises:
        UserError: the folder exists, or the checkpoint does not fit the run.
    """
    check_new_folder("--output", output)
    module.defers = True
    module.configure_model()
    module.check_weights({name: tuple(one.shape) for name, one in checkpoint.weights.items()}, key="RUN_OR_CHECKPOINT")
    _put_in(module, checkpoint)
    building = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(building, ignore_errors=True)  # left by a killed consolidation to the same place
    building.mkdir(parents=True)
    try:
        if module.method.trains_base:
            _write_model(module.model, building, shard_size=shard_size, report=report)
            shutil.copytree(run.tokenizer, building, dirs_exist_ok=True)
        else:
            report(f"writing the adapter: {len(checkpoint.weights)} tensors")
            save_adapter(module.model, building, initial=run.initial_adapter)
        os.rename(building, output)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _put_in(module: InstructionModule, checkpoint: StoredCheckpoint) -> None:
    """Let trained weights be those of the checkpoint; whole matrices of the base model stay unread."""
    trained = dict(module.named_parameters())
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, one in part.named_parameters(recurse=False):
            places.setdefault(id(one), []).append((part, name))
    for name, stored in checkpoint.weights.items():
        one = trained[name]
        if stored.dtype != one.dtype:
            raise UserError(
                f"RUN_OR_CHECKPOINT: '{name}' is in {stored.dtype} there, and in {one.dtype} in its run. They do not "
                "belong together."
            )
        if not module.method.trains_base:
            with torch.no_grad():
                one.copy_(values_of(stored))
            continue
        parameter = nn.Parameter(stored, requires_grad=one.requires_grad)
        for part, own_name in places[id(one)]:
            setattr(part, own_name, parameter)
    module._course.load_state(checkpoint.own.get("method", {}))


def _write_model(model: Any, folder: Path, *, shard_size: str, report: Callable[[str], None]) -> None:
    """Write a model as its `save_pretrained` would, file by file."""
    from transformers.core_model_loading import revert_weight_conversion

    for module in model.modules():
        if type(module) is NormalizedHead:
            read_for_good(module)  # its rows are divided in place
    settle_heads(model, trained=True)  # as the class that is written has them
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, one in model.state_dict(keep_vars=True).items():
        if id(one) not in seen:  # tied weights are written once
            seen.add(id(one))
            tensors[name] = one.detach()
    parts = {name: (one,) for name, one in revert_weight_conversion(model, tensors).items()}
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    model.config.save_pretrained(str(folder))
    if model.can_generate():
        model.generation_config.save_pretrained(str(folder))
    write_shards(parts, folder, shard_size=shard_size, report=report)
    for path in folder.glob("*.safetensors"):  # written for their owner alone
        path.chmod((folder / "config.json").stat().st_mode)
