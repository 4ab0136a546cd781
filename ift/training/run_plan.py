"""The plan of a run: what its ranks hold under each strategy, and how much there is to compute.

In: a checked `InstructionModule` and the shapes of its steps. Out: `RankMemory` for its own settings and for others.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ift.models.flops import Flops, num_pairs
from ift.models.heap import can_ask
from ift.models.loading import read_config
from ift.models.quantization import Quantization
from ift.models.simulation import MicroBatchShape, Simulation
from ift.training.memory_plan import RankMemory
from ift.training.optimizer_memory import OptimizerMemory, optimizer_memory
from ift.training.planned_model import PlannedModel, planned_heap, planned_memory, planned_weights
from ift.training.refusals import Surroundings, refusal
from ift.training.step_shapes import StepShapes

HEAP_SHARE = 0.6
"""On a CPU whose C library does not tell the size of its heap, what freed activations leave of it that the next ones
cannot use: a share of them, about what was measured with glibc without recomputation."""
LAYERS_ASKED, LAYERS_ASKED_OF_OTHERS = 20, 8
"""Layers of which the heap is asked, for the run itself and for what it is compared with: of 4, 8, 12 and 20 layers of
one model the heap lost 44 %, 68 %, 79 % and 80 % of their activations, in 0.4, 1.0, 1.2 and 3 s for a micro-batch."""


@dataclass(frozen=True)
class Variant:
    """Settings of a run that change how much memory it takes, and not what it learns (but for rounding)."""

    checkpointing: bool
    quantization: Quantization | None


class RunPlanner:
    """Predicts memory and operations of one run; what was found once is kept.

    Args:
        module: a checked `InstructionModule`.
        precision: `trainer.precision`.
        on_gpu: whether the run is to be on a GPU.
        is_alternative: whether the module is another than the run's, to compare with.
    """

    def __init__(self, module: Any, *, precision: str, on_gpu: bool, is_alternative: bool = False) -> None:
        self._module, self._on_gpu, self._is_alternative = module, on_gpu, is_alternative
        self._autocast = torch.bfloat16 if precision == "bf16-mixed" else None
        self._simulations: dict[Any, Simulation] = {}
        self._lost: dict[bool, float] = {}
        self._refusals: dict[Any, str | None] = {}
        self._models: dict[Quantization | None, PlannedModel] = {}
        self._optimizers: dict[Quantization | None, tuple[OptimizerMemory, int]] = {}

    @property
    def own(self) -> Variant:
        """The run's own settings."""
        return Variant(self._module.gradient_checkpointing, self._module.quantization)

    @property
    def method(self) -> str:
        """Name of the method that is planned."""
        return str(self._module.method.name)

    def refusal(self, variant: Variant, strategy: str, around: Surroundings) -> str | None:
        """Return why `ift fit` would refuse these settings, or `None`."""
        key = (_key(variant.quantization), variant.checkpointing, strategy, around)
        if key not in self._refusals:
            options: dict[str, Any] = {"quantization": variant.quantization, "checkpointing": variant.checkpointing}
            self._refusals[key] = refusal(self._module, strategy, around=around, **options)
        return self._refusals[key]

    def model(self, quantization: Quantization | None) -> PlannedModel:
        """Return what weights the run has, quantized in this way."""
        key = _key(quantization)
        if key not in self._models:
            self._models[key] = planned_weights(self._module, quantization=quantization)
        return self._models[key]

    def memory(self, variant: Variant, shapes: StepShapes) -> RankMemory:
        """Return what a rank holds.

        Raises:
            UserError: the model cannot be run without its weights.
        """
        model = self.model(variant.quantization)
        key = (_key(variant.quantization), variant.checkpointing, shapes.largest)
        if key not in self._simulations:
            self._simulations[key] = planned_memory(
                self._module,
                shapes.largest,
                quantization=variant.quantization,
                checkpointing=variant.checkpointing,
                autocast=self._autocast,
            )
        simulation = self._simulations[key]
        optimizer, copied = self._optimizer(model, variant.quantization)
        lost = 0.0 if self._on_gpu else self._lost_share(variant, shapes.sequence)
        return RankMemory(model.weights, simulation, shapes.num_micro_batches, optimizer, copied, lost)

    def _lost_share(self, variant: Variant, sequence: tuple[MicroBatchShape, ...]) -> float:
        """Return what the heap takes beside activations, as a share of them.

        Asked once with and once without recomputation; of the run's own settings more exactly.
        """
        if not can_ask():
            return HEAP_SHARE
        if variant.checkpointing not in self._lost:
            own = variant == self.own and not self._is_alternative
            self._lost[variant.checkpointing] = planned_heap(
                self._module,
                sequence if own else sequence[:1],
                quantization=variant.quantization,
                checkpointing=variant.checkpointing,
                autocast=self._autocast,
                most_layers=LAYERS_ASKED if own else LAYERS_ASKED_OF_OTHERS,
            )
        return self._lost[variant.checkpointing]

    def _optimizer(self, model: PlannedModel, quantization: Quantization | None) -> tuple[OptimizerMemory, int]:
        key = _key(quantization)
        if key not in self._optimizers:
            build = self._module.optimizer_callable
            found = optimizer_memory(build, model.trained, on_gpu=self._on_gpu)
            copied = optimizer_memory(build, model.trained, on_gpu=self._on_gpu, dtype=torch.float32)
            self._optimizers[key] = found, copied.state
        return self._optimizers[key]

    def flops(self, memory: RankMemory, shapes: StepShapes) -> Flops:
        """Return the operations of a step, in the mean, over all ranks."""
        model = memory.simulation.flops
        pairs = {window: num_pairs(shapes.lengths, window) / shapes.num_steps for window in model.pair}
        return model.of(tokens=shapes.tokens, positions=shapes.positions, supervised=shapes.supervised, pairs=pairs)

    def widths(self) -> tuple[int, int]:
        """Return the vocabulary, and roughly how many numbers all layers keep for a position."""
        config: Any = read_config(self._module.base).get_text_config(decoder=True)  # type: ignore[union-attr]
        layers, width = int(getattr(config, "num_hidden_layers", 1)), int(getattr(config, "hidden_size", 1))
        kept = 1 if self._module.gradient_checkpointing else 30
        return self.model(self._module.quantization).vocabulary, layers * width * kept


def _key(quantization: Quantization | None) -> Any:
    return repr(quantization)
