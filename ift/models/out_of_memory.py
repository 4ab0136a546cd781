"""Memory that runs out: how it is told from other errors, and what is said where a model did not fit at all."""

import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from ift.errors import LocalError
from ift.models.encoder_decoder import auto_class

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "ALLOC_FAILED")
"""What the messages of PyTorch's allocators, of the system and of NVIDIA's libraries hold."""
GIB = 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign.lower() in str(error).lower() for sign in _SIGNS)


def first_line(error: BaseException) -> str:
    """Return what an error says, short enough to stand within a message; only text, as errors hold on to memory."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


@contextmanager
def told_while_loading(key: str, base: str, *, config: Any, dtype: str, quantized: bool) -> Iterator[None]:
    """Say what would fit where memory runs out while a model is loaded.

    Args:
        key: the configuration key that named it.
        base: folder or hub id.
        config: transformers' config, or `None` where it cannot be read.
        dtype: of its weights.
        quantized: whether they are held in fewer bits.

    Raises:
        LocalError: memory ran out, on this process.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        failure, on_gpu = first_line(error), isinstance(error, torch.OutOfMemoryError)
    gc.collect()
    raise LocalError(_advice(key, base, failure, config=config, dtype=dtype, quantized=quantized, on_gpu=on_gpu))


def tells_of_memory(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Let a module's `configure_model` say what would fit where memory runs out in it: adapters, trials and all."""

    @wraps(load)
    def loading(module: Any) -> None:
        from ift.models.loading import read_config
        from ift.models.quantization import is_quantized

        config = read_config(module.base)
        quantized = is_quantized(config, module.quantization)
        below = {"config": config, "dtype": module.dtype_name, "quantized": quantized}
        with told_while_loading("model.base", module.base, **below):
            load(module)

    return loading


def _advice(key: str, base: str, failure: str, *, config: Any, dtype: str, quantized: bool, on_gpu: bool) -> str:
    number = _num_parameters(config)
    size = f"{number * getattr(torch, dtype).itemsize / GIB:.2f} GiB"
    there = f"the {_limit(on_gpu=on_gpu) / GIB:.2f} GiB that the {'GPU' if on_gpu else 'process'} may have at all"
    facts = [f"its {number:,} weights take {size} in {dtype}, of {there}"] if number else [f"there are {there}"]
    ways = []
    if dtype == "float32" and not quantized:
        ways.append("set model.dtype to bfloat16, which takes half")
    if not quantized:
        ways.append("hold it in 4 bits beside an adapter (model.quantization, or model.adapter qlora)")
    ways.append("share it out among several devices (trainer.strategy fsdp)")
    advice = f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else ways[0]
    return (
        f"{key}: memory ran out while '{base}' was loaded ({failure}); {facts[0]}. "
        f"{advice[0].upper()}{advice[1:]}; 'ift plan' tells what fits."
    )


def _num_parameters(config: Any) -> int:
    """Return the number of a model's weights; 0 where none can be made."""
    if config is None:
        return 0
    try:
        with torch.device("meta"):
            model = auto_class(config).from_config(config)
    except Exception:  # this is said beside another error, and must not take its place
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def _limit(*, on_gpu: bool) -> int:
    """Return the bytes of a GPU, or of main memory as far as this process may have it."""
    if on_gpu and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    return machine if allowed == resource.RLIM_INFINITY else min(machine, allowed)
