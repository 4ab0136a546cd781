"""The last layer's feed-forward block, computed only at the positions whose logits count.

After the last layer nothing reads one position to compute another, and the loss reads some of them only. What the
block would give elsewhere is read by nothing and has no gradient: nothing stands in its place, and loss and gradients
stay what they are.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from ift.models.base_weights import decoder_layers

_BLOCKS = ("mlp", "feed_forward", "ffn")
"""What a decoder layer calls its feed-forward block, in transformers."""
_BY_POSITION = (nn.Linear, Conv1D, DoraLinearLayer, nn.ParameterDict)
_ADAPTERS_BY_POSITION = ("peft.tuners.lora.", "peft.tuners.ia3.")
_LINEAR = ("Linear", "Linear4bit")
"""Types that are told by their names, as bitsandbytes is not to be imported. What it holds in 8 bits depends on all
positions: which features are outliers, they say together."""


class LastBlock:
    """The feed-forward block of a model's last layer, which can be told where it is read.

    Args:
        block: one or more `(batch, length, width)` to another, each position for itself.
        layer: that it is in.
    """

    def __init__(self, block: nn.Module, layer: Any) -> None:
        self._block: Any = block
        self._positions: torch.Tensor | None = None
        repeat = getattr(layer, "_gradient_checkpointing_func", None)
        if repeat is not None:
            layer._gradient_checkpointing_func = partial(repeat, context_fn=self._both_times)

    @contextmanager
    def only_at(self, positions: torch.Tensor) -> Iterator[None]:
        """Compute these positions only, and give zeros elsewhere.

        Args:
            positions: int64, of the flattened `(batch, length)`.
        """
        plain = self._block.forward

        def forward(*hidden: torch.Tensor) -> Any:  # with some families, what the block's output is added to as well
            batch, length, _ = hidden[0].shape
            if not 0 < len(positions) < batch * length:
                return plain(*hidden)
            computed = plain(*(one.reshape(-1, one.shape[-1])[positions][None] for one in hidden))[0]
            whole = computed.new_zeros(batch * length, computed.shape[-1])
            return whole.index_copy(0, positions, computed).view(batch, length, -1)

        before, self._positions = self._positions, positions
        self._block.forward = forward
        try:
            yield
        finally:
            del self._block.forward
            self._positions = before

    def _both_times(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what gradient checkpointing runs the layer in at first, and when it repeats it."""
        return nullcontext(), self.only_at(self._positions) if self._positions is not None else nullcontext()


def last_block(base: Any) -> LastBlock | None:
    """Return the last feed-forward block of a model of transformers, or `None` where it is not known to be exact.

    Args:
        base: with its adapters in it, but not wrapped by PEFT; gradient checkpointing must be on already, if it is.
    """
    layer = decoder_layers(base)[-1]
    if _drops_out(base.config):
        return None
    block = next((one for name, one in layer.named_children() if name in _BLOCKS), None)
    repeated = any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    if block is None or not _by_position(block) or (repeated and not isinstance(layer, GradientCheckpointingLayer)):
        return None
    return LastBlock(block, layer)


def _drops_out(config: Any) -> bool:
    """Whether a model draws random numbers: where all positions are computed (compiled, sharded), others than here."""

    def rates(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                yield from rates(value)
            elif isinstance(value, int | float) and "drop" in name:
                yield name, value

    return any(rate > 0 and not name.startswith(("classifier", "summary")) for name, rate in rates(config.to_dict()))


def _by_position(block: nn.Module) -> bool:
    """Whether all that has weights in it is known to compute each position for itself, whatever the others are."""
    return "forward" not in vars(block) and all(map(_computes_by_position, block.modules()))


def _computes_by_position(module: Any) -> bool:
    kind = type(module)
    if isinstance(module, nn.Dropout) and module.p:
        return False
    if isinstance(module, BaseTunerLayer):
        variants = getattr(module, "lora_variant", {}).values()
        known = kind.__module__.startswith(_ADAPTERS_BY_POSITION) and kind.__name__ in _LINEAR
        return known and all(isinstance(one, DoraLinearVariant) for one in variants)
    return not module._parameters or kind in _BY_POSITION or kind.__name__ == "Linear4bit"
