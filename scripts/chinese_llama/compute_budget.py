"""What a training step costs, so that two vocabularies can be trained at equal compute.

Counted are floating-point operations of matrix products, two per weight and token: forward through every weight of the
decoder layers and of the head; backward the same again for the gradients of inputs; and once more for the gradients of
those weights that are trained. Causal attention over blocks of `length` tokens adds, per layer and token, 2 x width x
length forward (two products over half the block on average) and twice that backward. Embedding look-ups, norms, softmax
and the optimizer are not counted. The head counts with all of its rows, so a token of a larger vocabulary costs more.
"""

from dataclasses import dataclass
from typing import Literal

Trained = Literal["everything", "embeddings", "lora"]
"""All weights; embedding and head alone (stage 1); LoRA on all matrices of the layers beside them (stage 2)."""


@dataclass(frozen=True)
class ModelShape:
    """What decides the cost of a token in a LLaMA-type model with as many key-value heads as heads."""

    width: int
    inner_width: int
    num_layers: int
    num_rows: int
    """Of the head."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Sizes of the matrices of one layer."""
        return [(self.width, self.width)] * 4 + [(self.width, self.inner_width)] * 3

    @property
    def layer_weights(self) -> int:
        """Weights of all matrices of the layers."""
        return self.num_layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def head_weights(self) -> int:
        """Weights of the head."""
        return self.num_rows * self.width

    def lora_weights(self, rank: int) -> int:
        """Weights of LoRA on all matrices of the layers."""
        return self.num_layers * sum(rank * (rows + columns) for rows, columns in self.matrices)


def flops_per_token(shape: ModelShape, trained: Trained, *, length: int, rank: int = 8) -> int:
    """Return the operations of a training step per token.

    Args:
        shape: of the model.
        trained: what is.
        length: of a block.
        rank: of LoRA.
    """
    attention = 6 * shape.num_layers * shape.width * length
    if trained == "everything":
        return 6 * (shape.layer_weights + shape.head_weights) + attention
    lora = 6 * shape.lora_weights(rank) if trained == "lora" else 0
    return 4 * shape.layer_weights + lora + 6 * shape.head_weights + attention


def steps_within(flops: float, per_token: int, *, tokens_per_step: int) -> int:
    """Return the steps that a budget pays for, at least one."""
    return max(1, int(flops // (per_token * tokens_per_step)))
