"""What each rank of a run holds at most, under each strategy; from a simulated micro-batch and the optimizer's state.

Every rank holds weights, their gradients, what the optimizer keeps, and what a micro-batch computes. Strategies share
out the first three, and hold for a moment what they gather:

one device      all of it
ddp             all of it, and buckets in which gradients are exchanged, as large as these
fsdp            a share of weights, gradients and state; the weights of two layers and of all that is outside of the
                layers, gathered; the gradient of one layer, before it is shared out
deepspeed_1     a share of the state, and of the float32 copy of the trained weights that DeepSpeed updates
deepspeed_2     a share of the gradients as well, in float32, and buckets of 50 million numbers
deepspeed_3     a share of the weights as well
..._offload     state, float32 copy and gradients (in stage 3 weights, too) in main memory instead of the device's
"""

from dataclasses import dataclass

from ift.models.out_of_memory import GIB as GIB  # for those who show what is planned
from ift.models.simulation import Simulation
from ift.training.deepspeed_config import NAMES, ZeroSettings
from ift.training.optimizer_memory import OptimizerMemory
from ift.training.planned_model import Weights

ONE_DEVICE = "one device"
PLANNED = (ONE_DEVICE, "ddp", "fsdp", *sorted(NAMES, key=lambda name: name.endswith("_offload")))
"""In the order in which they are told of, those with `_offload` last."""
FLOAT32_BYTES = 4
BUCKET_BYTES = FLOAT32_BYTES * ZeroSettings.bucket_elements
"""Of DeepSpeed, which exchanges gradients in float32."""


@dataclass(frozen=True)
class Parts:
    """Bytes of a rank at its peak."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Logits and loss not among them."""
    logits: float
    gathered: float
    """Of other ranks' weights and gradients, and buffers to exchange them."""
    host: float = 0.0
    """In main memory instead of the device's."""

    @property
    def total(self) -> float:
        """On the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.gathered


@dataclass(frozen=True)
class RankMemory:
    """What a rank holds of a run."""

    weights: Weights
    simulation: Simulation
    num_micro_batches: int
    """Most of a step."""
    optimizer: OptimizerMemory
    float32_state: int
    """Bytes that the optimizer keeps where it updates float32 copies."""
    lost_share: float = 0.0
    """Of activations, what the allocator takes beside them."""

    def parts(self, strategy: str, world_size: int) -> Parts:
        """Return the bytes of a rank at its peak.

        Args:
            strategy: one of `PLANNED`.
            world_size: number of ranks.
        """
        if strategy.startswith("deepspeed"):
            return self._under_deepspeed(int(strategy.split("_")[1]), world_size, offload="offload" in strategy)
        share = 1 / world_size if strategy == "fsdp" else 1.0
        state = share * self.optimizer.state
        gathered = 0.0
        if strategy == "ddp":
            gathered = self.simulation.gradients
        elif strategy == "fsdp":
            gathered = self._gathered() + FLOAT32_BYTES * self.weights.largest_layer_trained
        return self._peak((self.weights.frozen + self.weights.trained) * share, state, gathered, gradient_share=share)

    def _gathered(self) -> float:
        return 2 * self.weights.largest_layer + self.weights.outside

    def _peak(self, weights: float, state: float, gathered: float, *, gradient_share: float) -> Parts:
        """Return the larger of a micro-batch's peak and the update's."""
        course = self.simulation
        computing = course.peak(num_micro_batches=self.num_micro_batches, share=gradient_share)
        gradients = gradient_share * course.gradients
        updating = gradients + gradient_share * self.optimizer.temporary
        if updating > computing + self.lost_share * course.activations + gathered:
            return Parts(weights, gradients, state + updating - gradients, 0.0, 0.0, 0.0)
        # Where gradients rise while activations fall, what is told of both is what makes up the peak.
        activations = min(float(course.activations), float(computing))
        logits, lost = min(activations, float(course.logits)), 1 + self.lost_share
        return Parts(weights, computing - activations, state, lost * (activations - logits), lost * logits, gathered)

    def _under_deepspeed(self, stage: int, world_size: int, *, offload: bool) -> Parts:
        course, share = self.simulation, 1 / world_size
        in_float32 = FLOAT32_BYTES * self.weights.num_trainable
        copies = share * (in_float32 + self.float32_state)
        weights = float(self.weights.frozen + self.weights.trained)
        kept_gradients = share * in_float32 if stage > 1 else float(course.gradients)
        gathered = 2.0 * min(BUCKET_BYTES, in_float32)
        if stage == 3:
            weights, gathered = weights * share, gathered + self._gathered()
        host = 0.0
        if offload:
            host = copies + share * in_float32 + (weights if stage == 3 else 0.0)
            copies, weights = 0.0, 0.0 if stage == 3 else weights
            kept_gradients = kept_gradients if stage == 1 else 0.0
        update = 0.0 if offload or stage > 1 else share * in_float32  # gradients in float32, for the update
        lost = 1 + self.lost_share
        activations, logits = lost * course.activations, lost * course.logits
        largest = max(activations + gathered, update)
        if largest == update:
            return Parts(weights, kept_gradients + update, copies, 0.0, 0.0, 0.0, host)
        return Parts(weights, kept_gradients, copies, activations - logits, logits, gathered, host)
