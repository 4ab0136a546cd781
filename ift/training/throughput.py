"""What a run does per second and what it takes: tokens, operations, utilisation, memory.

In: the steps, as they are done. Out: numbers for the log and the manifest. Counts are of Python integers, so that no
step waits for the device; the first step alone is listened to (`ift.models.flops`).
"""

import resource
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from ift.data.encoding import IGNORE_INDEX
from ift.data.steps import Step
from ift.models.flops import Flops, FlopsModel, Recording, flops_model, recording
from ift.models.out_of_memory import GIB
from ift.training.matmul_peak import MatmulPeak
from ift.training.objective import shifted_targets


@dataclass
class Work:
    """What was done in a span of steps."""

    seconds: float = 0.0
    supervised: int = 0
    """Supervised tokens, over all ranks."""
    tokens: int = 0
    """Real tokens, over all ranks."""
    padded: int = 0
    """Padding positions; of this rank until they are summed."""
    pairs: dict[int | None, int] = field(default_factory=dict)
    """Pairs of tokens that attend to one another, per sliding window; of this rank until they are summed."""

    def add(self, other: "Work") -> None:
        """Take another span in."""
        self.seconds, self.supervised = self.seconds + other.seconds, self.supervised + other.supervised
        self.tokens, self.padded = self.tokens + other.tokens, self.padded + other.padded
        for window, number in other.pairs.items():
            self.pairs[window] = self.pairs.get(window, 0) + number

    def taken_back(self) -> "Work":
        """Return what makes nothing of this span when it is added."""
        pairs = {window: -number for window, number in self.pairs.items()}
        return Work(-self.seconds, -self.supervised, -self.tokens, -self.padded, pairs)

    def flops(self, model: FlopsModel) -> Flops:
        """Return the operations of the span."""
        tokens, positions = self.tokens, self.tokens + self.padded
        return model.of(tokens=tokens, positions=positions, supervised=self.supervised, pairs=self.pairs)

    def rates(self, model: FlopsModel | None, peak: MatmulPeak | None, *, world_size: int) -> dict[str, float]:
        """Return rates over the span, all ranks together.

        Args:
            model: of the run's operations, where they are known.
            peak: of one device.
            world_size: number of devices.
        """
        seconds = max(self.seconds, 1e-9)
        rates = {
            "supervised_tokens_per_second": self.supervised / seconds,
            "tokens_per_second": self.tokens / seconds,
            "padded_tokens_per_second": (self.tokens + self.padded) / seconds,
        }
        if model is None:
            return rates
        flops = self.flops(model)
        rates |= {
            "model_flops_per_second": flops.model / seconds,
            "hardware_flops_per_second": flops.hardware / seconds,
        }
        if peak is not None:
            rates["utilization"] = flops.model / seconds / (peak.flops_per_second * world_size)
        return rates


class FirstStep:
    """Listens to the first step of a session, and knows from then on what steps cost.

    A compiled model is not listened to, as it would be compiled anew; nothing is then said of its operations.
    """

    def __init__(self) -> None:
        self._stack, self._heard = ExitStack(), Recording()
        self.model: FlopsModel | None = None

    def begin(self, module: Any) -> None:
        """Listen to what follows."""
        if not module.compiles:
            self._heard = self._stack.enter_context(recording(module.model))

    def end(self, module: Any, step: Step) -> None:
        """Listen no more, and count."""
        self._stack.close()
        if not self._heard.positions:
            return
        # This waits for the device; the first step is logged anyway.
        supervised = sum(int((shifted_targets(one.labels) != IGNORE_INDEX).sum()) for one in step.micro_batches)
        positions = sum(one.input_ids.numel() for one in step.micro_batches)
        # An optimizer that is fused with the backward pass may run it twice.
        passes = max(1, round(self._heard.positions / positions))
        self.model = flops_model(
            module.model, self._heard, supervised=supervised * passes, checkpointing=module.gradient_checkpointing
        )


def work_of(step: Step, model: FlopsModel | None, seconds: float) -> Work:
    """Return what a step did."""
    pairs: dict[int | None, int] = {}
    if model is not None:
        pairs = model.pairs_of([length for one in step.micro_batches for row in one.lengths for length in row])
    return Work(seconds, step.num_supervised, step.num_tokens, step.num_padded, pairs)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this process ever held, in GiB: resident on a CPU, torch's on a GPU."""
    if device.type == "cuda":
        return {
            "peak_memory_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "reserved_memory_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
    # In KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}


def compute_dtype(module: Any, precision: str) -> torch.dtype:
    """Return in which dtype most products of a run are computed.

    Args:
        module: of the run.
        precision: `trainer.precision`.
    """
    quantization = module.quantization
    computed = quantization.compute_dtype if quantization is not None else None
    found: torch.dtype = getattr(torch, computed or module.dtype_name)
    return torch.bfloat16 if precision == "bf16-mixed" else found
