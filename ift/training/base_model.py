"""How the base model of a module is loaded: into memory, or left in its files where a rank needs rows of it only."""

from contextlib import nullcontext
from typing import Any

import torch

from ift.models.kernels import KernelChoice, choose_kernels, use_liger
from ift.models.loading import load_base_model, read_config
from ift.models.quantization import is_quantized
from ift.models.sharded_loading import can_defer
from ift.training.engines import engine_of


def kernels_of(module: Any, device: str) -> KernelChoice:
    """Return which kernels a module computes with, before its base model is loaded.

    Args:
        module: an `InstructionModule`.
        device: type of the device that it will be on.

    Raises:
        UserError: as `choose_kernels`.
    """
    whole = not engine_of(module).in_step
    return choose_kernels(
        module.kernels, config=read_config(module.base), device=device, compiled=module.compiles, whole=whole
    )


def load_base_of(module: Any) -> Any:
    """Load the base model; where each rank is to keep its own rows only, leave the weights in their files.

    Args:
        module: an `InstructionModule`, checked, with its engine.

    Raises:
        UserError: as `load_base_model`.
    """
    ranks = module.engine.keeps_rows
    below: dict[str, Any] = {"quantization": module.quantization, "merged": bool(module.merged_chain)}
    wished = ranks or module.defers
    deferred = wished and can_defer("model.base", module.base, method=module.method, ranks=ranks, **below)
    # What has to be loaded whole may be too large for the device of a rank that keeps a part of it; what is quantized
    # is not, and is quantized on the way there.
    on_host = ranks and not deferred and not is_quantized(read_config(module.base), module.quantization)
    with module.engine.loading(), torch.device("cpu") if on_host else nullcontext():
        model = load_base_model(
            "model.base",
            module.base,
            module.dtype_name,
            quantization=module.quantization,
            attention=module.attention,
            rope=module.rope,
            deferred=deferred,
        )
    if module.kernel_choice.used == "liger":
        use_liger(model)
    return model
