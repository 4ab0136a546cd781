"""A module with bottleneck adapters behind or beside it."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ift.errors import UserError

MERGE_REFUSAL = (
    "a bottleneck adapter has a non-linearity, which no weights of the base model can say. Load it beside its base "
    "model, or train LoRA, which can be merged, on the same modules (target_modules)."
)


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]  # PEFT is untyped
    """A linear layer or a whole sub-layer, and its adapters.

    Sequential: y + s f(y), where y is the module's output. Parallel: y + s f(x), where x is its input. The adapter is
    f(h) = up(dropout(g(down(h)))), with g the non-linearity, and s the scale; it is float32 whatever the base model is.

    Args:
        base_layer: what is adapted.
        adapter_name: of the first adapter.
        config: a `BottleneckConfig`.
        hidden_size: width of the residual stream, for modules that are no linear layers.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_scale")
    other_param_names = ("settings",)
    set_adapter: Any  # of BaseTunerLayer
    active_adapters: Any

    def __init__(self, base_layer: nn.Module, adapter_name: str, *, config: Any, hidden_size: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = widths(base_layer, hidden_size)
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_scale = nn.ParameterDict()
        self.settings: dict[str, Any] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter, or make one anew."""
        width = self.in_features if config.variant == "parallel" else self.out_features
        down = nn.Linear(width, config.bottleneck_size, bias=config.use_bias)
        up = nn.Linear(config.bottleneck_size, self.out_features, bias=config.use_bias)
        _start(down, up, config.init)
        device = next(self.base_layer.parameters()).device
        if down.weight.device.type != "meta":  # PEFT makes them there to fill them from files
            down, up = down.to(device), up.to(device)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        if config.scaling == "learned":
            self.bottleneck_scale[adapter_name] = nn.Parameter(torch.ones(1, device=down.weight.device))
        self.settings[adapter_name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns, its first tensor adapted."""
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return result
        output = result[0] if isinstance(result, tuple) else result
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                parallel = self.settings[name].variant == "parallel"
                source = (args[0] if args else kwargs["hidden_states"]) if parallel else output
                output = output + self._adapt(name, source).to(output.dtype)
        return (output, *result[1:]) if isinstance(result, tuple) else output

    def _adapt(self, name: str, source: torch.Tensor) -> torch.Tensor:
        settings = self.settings[name]
        down: Any = self.bottleneck_down[name]
        up = self.bottleneck_up[name]
        hidden = getattr(F, settings.non_linearity)(down(source.to(down.weight.dtype)))
        hidden = F.dropout(hidden, settings.dropout, training=self.training)
        scale = self.bottleneck_scale[name] if settings.scaling == "learned" else settings.scaling
        adapted: torch.Tensor = up(hidden) * scale
        return adapted

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError(MERGE_REFUSAL)

    def unmerge(self) -> None:
        """Do nothing, as nothing was merged."""

    def __repr__(self) -> str:
        return "bottleneck." + super().__repr__()


def _start(down: nn.Linear, up: nn.Linear, init: str) -> None:
    """Set the first values; `identity` leaves `down` as PyTorch draws a linear layer, but for its bias."""
    if init == "near_identity":
        nn.init.normal_(down.weight, std=0.02)
        nn.init.normal_(up.weight, std=0.02)
    else:
        nn.init.zeros_(up.weight)
    for layer in (down, up):
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def widths(module: nn.Module, hidden_size: int) -> tuple[int, int]:
    """Return the input's and output's width of a module.

    Args:
        module: a linear layer, quantized or not, or a sub-layer, which reads and writes the residual stream.
        hidden_size: width of the residual stream.

    Raises:
        UserError: the module is neither.
    """
    if (own := _linear_widths(module)) is not None:
        return own
    inner = [found for part in module.modules() if (found := _linear_widths(part)) is not None]
    reads, writes = {wide for wide, _ in inner}, {wide for _, wide in inner}
    if not list(module.parameters()) or (inner and not (hidden_size in reads and hidden_size in writes)):
        raise UserError(
            f"target_modules: a {type(module).__name__} can have no bottleneck adapter. Name linear layers, or "
            f"sub-layers that read and write the hidden states (of width {hidden_size})."
        )
    return hidden_size, hidden_size


def _linear_widths(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, Conv1D):  # of GPT-2, whose weight is transposed
        return module.nx, module.nf
    if isinstance(module, nn.Linear):  # quantized ones as well
        return module.in_features, module.out_features
    return None
