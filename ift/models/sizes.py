"""The one setting of each method that says how many parameters it trains, and the values that setting can have.

In: a method. Out: the name of its size, the same method in another size, and the sizes that fit a model. What a size
costs is not computed here: it is counted on a model.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from peft import AdaLoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ift.errors import UserError
from ift.models.base_weights import LastLayers, decoder_layers
from ift.models.methods import Method
from ift.models.targets import peft_type

KEY = "model.budget"
LARGEST = 2**24
"""No size is looked for beyond this, where the model sets no limit."""


@dataclass(frozen=True)
class Size:
    """A method's size."""

    parameter: str
    """Name of the setting."""
    scale: str | None = None
    """Setting that is divided by the size in the method's formula, and so kept in proportion to it."""
    limit: Literal["rank", "positions", "layers", "places"] | None = None
    """What of the model it cannot or should not exceed."""
    divides: Literal["inputs", "widths"] | None = None
    """What it must divide: the inputs of every adapted matrix, or inputs and outputs."""
    ragged: bool = False
    """Whether the count goes up and down from one size to the next."""


_RANK = Size("r", limit="rank")
_TOKENS = Size("num_virtual_tokens", limit="positions")
SIZES = {
    "LORA": Size("r", scale="lora_alpha", limit="rank"),
    "ADALORA": Size("init_r", scale="lora_alpha", limit="rank"),
    "ADAPTION_PROMPT": Size("adapter_len", limit="positions"),
    "BOFT": Size("boft_block_size", divides="inputs"),
    "BOTTLENECK": Size("bottleneck_size"),
    "C3A": Size("block_size", divides="widths"),
    "CARTRIDGE": _TOKENS,
    "DEFT": Size("r", scale="alpha", limit="rank"),
    "DELORA": _RANK,
    "FOURIERFT": Size("n_frequency"),
    "GLORA": _RANK,
    "GRALORA": Size("r", scale="alpha", limit="rank"),
    "HIRA": _RANK,
    "HRA": _RANK,
    "LILY": _RANK,
    "LOHA": Size("r", scale="alpha", limit="rank"),
    "LOKR": Size("r", scale="alpha", limit="rank"),
    "MISS": _RANK,
    "MULTITASK_PROMPT_TUNING": _TOKENS,
    "OFT": Size("oft_block_size", divides="inputs"),
    "OSF": Size("effective_rank", limit="rank"),
    "PEANUT": _RANK,
    "POLY": _RANK,
    "PREFIX_TUNING": _TOKENS,
    "PROMPT_TUNING": _TOKENS,
    "PSOFT": Size("r", scale="psoft_alpha", limit="rank"),
    "PVERA": _RANK,
    "P_TUNING": _TOKENS,
    "RANDLORA": Size("r", scale="randlora_alpha", limit="rank", ragged=True),
    "SHADOW": _RANK,
    "SHIRA": _RANK,
    "TINYLORA": Size("u"),
    "UNILORA": Size("theta_d_length", limit="places"),
    "VBLORA": Size("num_vectors"),
    "VERA": _RANK,
    "WAVEFT": Size("n_frequency"),
    "XLORA": Size("xlora_size"),
}
"""By PEFT's types; of others, `r` is taken for the size."""
WITHOUT_SIZE = frozenset(
    {"ADAMSS", "BEFT", "CPT", "FROD", "IA3", "LN_TUNING", "ROAD", "SUPERTUNING", "TRAINABLE_TOKENS"}
)
"""PEFT's types that no whole number makes larger, or whose count depends on values of weights (AdaMSS, FRoD)."""


def size_of(method: Method) -> Size | None:
    """Return a method's size, or `None` where it has none to choose."""
    if isinstance(method.config, LastLayers):
        return Size("num_layers", limit="layers")
    config = method.peft_config
    if config is None or peft_type(config) in WITHOUT_SIZE:
        return _lora_beside(config)
    return SIZES.get(peft_type(config), Size("r", limit="rank") if hasattr(config, "r") else None)


def _lora_beside(config: Any) -> Size | None:
    """Return the rank of the LoRA that SuperTuning may have beside its sparse values, of which there is a share."""
    has_lora = config is not None and peft_type(config) == "SUPERTUNING" and config.r is not None
    return Size("r", scale="lora_alpha", limit="rank") if has_lora else None


def with_size(method: Method, size: Size, value: int) -> Method:
    """Return a method in another size, with its scale.

    LoRA's `lora_alpha` stays in proportion to r (to the square root of r in rsLoRA), so that the update is scaled as
    before; AdaLoRA's `target_r` stays in proportion to `init_r`.

    Raises:
        UserError: single modules have sizes of their own.
    """
    changed = copy.copy(method)
    if isinstance(method.config, LastLayers):
        changed.config = replace(method.config, num_layers=value)
        return changed
    config: Any = copy.deepcopy(method.config)
    _check_patterns(config)
    before = _divisor(config, size)
    if isinstance(config, AdaLoraConfig):
        config.target_r = max(1, round(value * config.target_r / config.init_r))
    setattr(config, size.parameter, value)
    if size.parameter == "oft_block_size":
        config.r = 0  # the number of blocks, of which PEFT takes one only
    elif size.parameter == "boft_block_size":
        config.boft_block_num = 0
    scale = getattr(config, size.scale) if size.scale is not None else None
    if size.scale is not None and scale is not None:
        setattr(config, size.scale, _whole_if_it_is(scale * _divisor(config, size) / before))
    changed.config = config
    return changed


def _check_patterns(config: Any) -> None:
    for name in ("rank_pattern", "alpha_pattern"):
        if getattr(config, name, None):
            raise UserError(
                f"{KEY}: finds one size for all modules, and model.adapter.{name} gives some of them their own. Leave "
                "out either."
            )


def _divisor(config: Any, size: Size) -> float:
    """Return what the scale is divided by."""
    value = float(getattr(config, size.parameter) or 1)
    if getattr(config, "use_rslora", False):
        return math.sqrt(value)
    return value + getattr(config, "hybrid_r", 0)  # GraLoRA's, a second rank beside the first


def _whole_if_it_is(value: float) -> float:
    """Return a whole number as an int, as PEFT's configurations declare it."""
    nearest = round(value)
    return nearest if math.isclose(value, nearest, rel_tol=1e-12) else value


class Choices:
    """The sizes a method can have on a model, ascending.

    Args:
        method: with the size.
        size: of the method.
        model: with the method attached in its smallest size, without weights.
    """

    def __init__(self, method: Method, size: Size, model: Any) -> None:
        self._step = _step(method)
        self._lowest = smallest(method)
        last = min(LARGEST, *_limits(method, size, model))
        shared = _shared_width(size, model)
        self._listed: list[int] | None = None
        if shared is not None:
            self._listed = [one for one in range(self._lowest, shared + 1) if shared % one == 0]
        elif _needs_divisors(method):
            width = math.gcd(*_widths(model))
            self._listed = [one for one in range(1, width + 1) if width % one == 0]
        self._number = max(1, (last - self._lowest) // self._step + 1)

    def __len__(self) -> int:
        return len(self._listed) if self._listed is not None else self._number

    def __getitem__(self, index: int) -> int:
        return self._listed[index] if self._listed is not None else self._lowest + index * self._step


def smallest(method: Method) -> int:
    """Return the smallest size that trains something."""
    config: Any = method.peft_config
    kind = peft_type(config) if config is not None else ""
    if kind == "VBLORA":
        return int(config.topk)
    if kind == "CARTRIDGE":
        return int(config.num_frozen_tokens) + 1
    if kind in ("OFT", "BOFT"):
        return 2  # the only rotation of one number is no rotation
    return _step(method)


def _step(method: Method) -> int:
    config: Any = method.peft_config
    kind = peft_type(config) if config is not None else ""
    if kind == "GRALORA":
        return int(config.gralora_k)
    # Pairs of HRA's reflections undo each other at the start; an odd one would change the model.
    return 2 if kind == "HRA" and config.init_weights else 1


def _needs_divisors(method: Method) -> bool:
    config: Any = method.peft_config
    return config is not None and peft_type(config) == "MISS" and config.init_weights == "bat"


def _limits(method: Method, size: Size, model: Any) -> Iterator[int]:
    if size.limit == "rank":
        # Above the larger rank no matrix has more to give.
        yield from _at_most(max, (min(shape) for shape in _shapes(model)))
    elif size.limit == "places":
        rank = int(getattr(method.peft_config, "r", 1))
        yield from _at_most(sum, (rank * sum(shape) for shape in _shapes(model)))
    elif size.limit == "layers":
        yield len(decoder_layers(model))
    elif size.limit == "positions":
        config = getattr(model, "config", None)
        positions = getattr(config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 1:
            yield positions - 1
    yield LARGEST


def _at_most(total: Callable[[list[int]], int], values: Iterator[int]) -> Iterator[int]:
    if found := list(values):
        yield total(found)


def _shared_width(size: Size, model: Any) -> int | None:
    if size.divides is None:
        return None
    if size.divides == "widths":
        return math.gcd(*_widths(model))
    return math.gcd(*(int(layer.in_features) for layer in _layers(model)))


def _widths(model: Any) -> list[int]:
    return [width for shape in _shapes(model) for width in shape]


def _shapes(model: Any) -> list[tuple[int, int]]:
    """Return the shapes of the adapted matrices."""
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in _layers(model)]
    return [
        (int(one.shape[0]), int(one.shape[1])) for one in weights if isinstance(one, nn.Parameter) and one.ndim == 2
    ]


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
