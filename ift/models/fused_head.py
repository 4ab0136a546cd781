"""Which models' heads are fused with the loss, and how: the head is asked for the loss in the place of logits.

The whole model is called as ever, through PEFT, hooks and whatever shards its weights; only the head's own `forward`
is another while it lasts. That is right where the model does nothing to what the head returns: no scaling, no cap.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional as F

from ift.models.fused_cross_entropy import Buffers, fused_cross_entropy

# fmt: off
FUSED_FAMILIES = frozenset([
    "bloom", "codegen", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "falcon", "gemma", "glm", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "helium", "hunyuan_v1_dense", "ift_baichuan_13b", "internlm3",
    "llama", "mistral", "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
])
# fmt: on
"""Model types (`model_type` of their config) whose `forward` ends with the head; a test runs every one."""


class FusedHead:
    """The head of a loaded model, which gives the loss in the place of logits where it is asked to.

    Args:
        head: a plain linear layer, the last thing that its model computes.
    """

    def __init__(self, head: nn.Linear) -> None:
        self._head: Any = head
        self._buffers = Buffers()
        self._loss: torch.Tensor | None = None

    @contextmanager
    def giving_loss(self, targets: torch.Tensor) -> Iterator[None]:
        """Let the head return the summed cross-entropy, float32 `(1, 1)`, of all positions that it is given.

        Args:
            targets: int64, `(positions,)`.
        """
        plain = self._head.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            rows = hidden.reshape(-1, hidden.shape[-1])
            self._loss = self._fused(rows, targets) if self._fits(rows) else _plain(plain(rows), targets)
            # No view: after one that is changed in place, FSDP2 would not gather weights, and warns of every one.
            return self._loss.expand(1, 1).clone()

        self._head.forward = forward
        try:
            yield
        finally:
            del self._head.forward

    def loss(self, returned: torch.Tensor) -> torch.Tensor:
        """Return the loss of the last call as a float32 scalar.

        Args:
            returned: what the model returned as its logits; some strategies cast that to the dtype of its weights.
        """
        exact, self._loss = self._loss, None
        assert exact is not None, "the model did not call its head"
        returned = returned.float().reshape(())
        return returned + (exact.detach() - returned.detach())

    def _fused(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight, bias = self._head.weight, self._head.bias
        if torch.is_autocast_enabled(hidden.device.type):  # as autocast does for a linear layer
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = bias.to(dtype) if bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            return fused_cross_entropy(hidden, weight, bias, targets=targets, buffers=self._buffers)

    def _fits(self, hidden: torch.Tensor) -> bool:
        """Whether the weights are here as a whole, and of the dtype that they are multiplied with."""
        weight = self._head.weight
        whole = type(weight) in (torch.Tensor, nn.Parameter) and weight.shape == (
            self._head.out_features,
            self._head.in_features,
        )
        return bool(whole) and (weight.dtype == hidden.dtype or torch.is_autocast_enabled(hidden.device.type))


def _plain(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def fusable_head(base: Any) -> FusedHead | None:
    """Return the head of a model of transformers, or `None` where it is not known to be fused exactly.

    Args:
        base: with its adapters in it, but not wrapped by PEFT.
    """
    head = base.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):  # a head that is trained beside an adapter
        head = head.modules_to_save[head.active_adapters[0]]
    # Adapters, quantized layers and whatever else takes the place of a linear layer have types of their own.
    if base.config.model_type not in FUSED_FAMILIES or type(head) is not nn.Linear or "forward" in vars(head):
        return None
    return FusedHead(head)
