"""DeepSpeed's own settings (its JSON), built from those of a run and checked before anything is loaded."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ift.errors import UserError

NAMES = tuple(f"deepspeed_{stage}{offload}" for stage in (1, 2, 3) for offload in ("", "_offload"))
"""What `trainer.strategy` calls them."""

KEYS = frozenset(
    {
        "communication_data_type",
        "data_types",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
"""Keys that a run may have at the top; DeepSpeed passes over any it does not know."""


@dataclass(frozen=True)
class ZeroSettings:
    """What of a run decides DeepSpeed's settings."""

    stage: Literal[1, 2, 3]
    """What is shared out among ranks: 1 the optimizer's state, 2 gradients as well, 3 weights as well."""
    offload: bool = False
    """Whether what is shared out lies in main memory instead of the GPU's; the optimizer then computes there."""
    gradient_clip_norm: float | None = None
    """`model.gradient_clip_norm`."""
    bucket_elements: int = 50_000_000
    """Numbers that are exchanged at once; each rank holds a buffer or two of them in float32."""
    pin_memory: bool = True
    """Whether main memory for the GPU is page-locked."""


def settings_of(name: str, **others: Any) -> ZeroSettings:
    """Return the settings behind a name of `trainer.strategy`.

    Args:
        name: one of `NAMES`.
        others: fields of `ZeroSettings` that do not follow from it.
    """
    stage: Any = int(name.split("_")[1])
    return ZeroSettings(stage, offload=name.endswith("_offload"), **others)


def deepspeed_config(settings: ZeroSettings) -> dict[str, Any]:
    """Return DeepSpeed's settings for steps that are exact here.

    Losses are divided by the step's supervised tokens already, so DeepSpeed must not divide by its micro-batches, which
    ift counts itself. There is no `bf16` section: it would turn adapters into bfloat16, too. Without one, weights keep
    the dtype that they were loaded in, and DeepSpeed holds a float32 copy of the trained ones to update.
    """
    zero: dict[str, Any] = {
        "stage": settings.stage,
        "contiguous_gradients": True,
        # Its side stream may read gradients of a micro-batch that the next one is about to change.
        "overlap_comm": False,
        "reduce_bucket_size": settings.bucket_elements,
        "allgather_bucket_size": settings.bucket_elements,
        "reduce_scatter": True,
    }
    if settings.stage == 3:
        zero |= {"stage3_prefetch_bucket_size": settings.bucket_elements, "stage3_param_persistence_threshold": 100_000}
    if settings.offload:
        place = {"device": "cpu", "pin_memory": settings.pin_memory}
        zero["offload_optimizer"] = dict(place)
        if settings.stage == 3:
            zero["offload_param"] = dict(place)
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clip_norm or 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "wall_clock_breakdown": False,
    }


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse settings that DeepSpeed does not know, or that contradict one another.

    Args:
        config: DeepSpeed's settings.

    Raises:
        UserError: with the key.
    """
    if unknown := sorted(config.keys() - KEYS):
        raise UserError(f"trainer.strategy: DeepSpeed's settings have no '{unknown[0]}'; known are {sorted(KEYS)}.")
    if not is_installed():
        return
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(dict(config))
    except Exception as error:  # of pydantic, assertions, and its own kinds
        raise UserError(f"trainer.strategy: DeepSpeed refuses its settings: {' '.join(str(error).split())}") from error


def is_installed() -> bool:
    """Whether there is a DeepSpeed to import."""
    return importlib.util.find_spec("deepspeed") is not None
