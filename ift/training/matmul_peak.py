"""The most operations per second that matrix products reach on this machine, by which a run's are judged.

Measured once per device, dtype and number of threads, in well under a second, and kept in a file; so that it costs a
run nothing, it is measured after the first step.
"""

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

BUDGET_SECONDS = 0.4
SIZES = (512, 1024, 2048, 4096, 8192)
"""Widths of the square matrices; those beyond `ALWAYS` are tried while time is left for them."""
ALWAYS = 1024
FILE = "matmul_peak.json"


@dataclass(frozen=True)
class MatmulPeak:
    """What was measured."""

    device: str
    """Name of the device; of a CPU with its number of threads."""
    dtype: str
    flops_per_second: float
    size: int
    """Width of the square matrices that were fastest."""


def matmul_peak(device: torch.device, dtype: torch.dtype, *, folder: Path | None) -> MatmulPeak:
    """Return the speed of matrix products on a device, measured or as measured before.

    Args:
        device: of the run.
        dtype: in which the model computes.
        folder: of the file in which measurements are kept; `None` keeps none.
    """
    name = device_name(device)
    file = folder / FILE if folder is not None else None
    known = _read(file)
    # Another version of torch may multiply in another way.
    key = f"{name}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}"
    with suppress(KeyError, TypeError):
        return MatmulPeak(**known[key])
    measured = _measured(device, dtype, torch.get_num_threads())
    _write(file, {**_read(file), key: asdict(measured)})
    return measured


@cache
def _measured(device: torch.device, dtype: torch.dtype, num_threads: int) -> MatmulPeak:
    """Measure once per process and number of threads, too: it may train several times."""
    return measure(device, dtype)


def device_name(device: torch.device) -> str:
    """Return a device's name, which tells how fast it is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype, *, seconds: float = BUDGET_SECONDS) -> MatmulPeak:
    """Multiply square matrices of growing size for a fraction of a second and return the best rate.

    Args:
        device: to measure.
        dtype: of the matrices.
        seconds: at most, but for one product more.
    """
    end = time.perf_counter() + seconds
    best, best_size = 0.0, SIZES[0]
    for size in SIZES:
        # Drawn without torch's generator, on which a run's dropout may depend.
        left = torch.linspace(-1, 1, size * size, dtype=torch.float32, device=device).to(dtype).view(size, size)
        right = left.T.contiguous()
        out = left @ right  # warms up
        repeats, left_for_size = 1, max(seconds / 10, (end - time.perf_counter()) / 2)
        while left_for_size > 0:
            rate, taken = _rate(left, right, out, repeats)
            left_for_size -= taken
            if rate > best:
                best, best_size = rate, size
            # The best of several short spells: others may use the machine too.
            repeats = repeats * 2 if taken < seconds / 50 else repeats
        # One of the next size takes eight times as long; small ones may have waited for threads more than computed.
        if size >= ALWAYS and 3 * 2.0 * (2 * size) ** 3 / best > end - time.perf_counter():
            break
    return MatmulPeak(device_name(device), str(dtype).removeprefix("torch."), best, best_size)


def _rate(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Return operations per second of so many products, and the seconds that they took."""
    _wait(left.device)
    started = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right, out=out)
    _wait(left.device)
    taken = max(time.perf_counter() - started, 1e-9)
    return 2.0 * left.shape[0] ** 3 * repeats / taken, taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    """Return the name of the processor, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(file: Path | None) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
        return found if isinstance(found, dict) else {}
    return {}


def _write(file: Path | None, values: dict[str, Any]) -> None:
    """Write beside the file and rename; a folder that cannot be written to only means measuring again."""
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        building = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        building.write_text(json.dumps(values, indent=1), encoding="utf-8")
        building.replace(file)
