"""`model.compile`: torch.compile on each block of a model, in place.

Blocks have the same code, so that it is compiled once for all of them; between them lies what compiles badly and costs
little (masks, rotary positions, the loss). In place, no parameter has another name: checkpoints and adapters are those
of a run without it. What is compiled for training does not write responses, whose lengths change with every token.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from ift.errors import UserError

KEY = "model.compile"
_VARIANTS = 64
"""Of a block's code: with and without gradients, mask, dropout, several rows; beyond it, torch goes on uncompiled."""


def check_compilable(device: str | None = None) -> None:
    """Refuse to compile where the compiler's own tools are missing.

    Args:
        device: type of the device that the model will be on; `None` for the best there is.

    Raises:
        UserError: what is missing.
    """
    on = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if on == "cuda" and find_spec("triton") is None:
        raise UserError(f"{KEY}: true needs the package triton on a GPU, which is not installed. Set it to false.")
    compiler = os.environ.get("CXX", "g++")
    if on == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"{KEY}: true needs a C++ compiler on a CPU, and there is no '{compiler}'. Install g++ (or name another "
            "with the environment variable CXX), or set it to false."
        )


def compile_blocks(model: Any, *, backend: str = "inductor") -> int:
    """Compile the blocks of a model when they are first run, in place; shapes may change from batch to batch.

    Args:
        model: of transformers, wrapped by PEFT or not; adapters must be attached already.
        backend: of torch.compile.

    Returns:
        Number of blocks.

    Raises:
        UserError: none are found.
    """
    from ift.models.record_attention import attend_outside_graphs

    blocks = list(_blocks(model))
    if not blocks:
        raise UserError(f"{KEY}: {type(model).__name__} has no blocks that transformers knows. Set it to false.")
    attend_outside_graphs()
    # Random numbers as without it, so that dropout is the same.
    options = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    for block in blocks:
        block.compile(dynamic=True, backend=backend, recompile_limit=_VARIANTS, **options)
    return len(blocks)


def _blocks(model: Any) -> Iterator[torch.nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


def uncompiled(model: Any) -> AbstractContextManager[Any]:
    """Run a model as it was written, within a `with` statement."""
    compiled = any(block._compiled_call_impl is not None for block in _blocks(model))
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
