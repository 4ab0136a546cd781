"""Rotary positions for longer texts than a base model was trained on (RoPE scaling), set on its config before loading.

Comes in: `model.rope` and transformers' config of a base model. Goes out: the config to load it with.
"""

import copy
import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from ift.errors import UserError, unknown_name
from ift.models.positions import positions_of, scalable

KEY = "model.rope"
RopeType = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
_OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
}
"""Fields that one type knows and others do not."""
_FACTORS = ("factor", "theta", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
_REPLACED = frozenset({"rope_type", "type", "factor", "original_max_position_embeddings", "truncate"}).union(
    {"mscale", "mscale_all_dim"}, *_OWN_FIELDS.values()
)
"""What another scaling takes the place of; the base, the share of each head that is rotated and the like stay."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions other than the base model's own, so that it reads longer texts; training adapts it to them."""

    type: RopeType | None = None
    """`linear`: positions divided by the factor (Chen et al. 2023); `dynamic`: a base that grows with the longest text
    of a batch (NTK-aware), for prediction; `yarn`: low frequencies interpolated, high ones kept (Peng et al. 2023);
    `llama3`: the same by wavelength, as in Llama 3.1; `longrope`: a factor for each frequency (Ding et al. 2024). None
    keeps the base model's own."""
    factor: float | None = None
    """How many times longer texts become than `original_max_position_embeddings`."""
    theta: float | None = None
    """Base of the rotary frequencies (10000 in Llama 2, 500000 in Llama 3); by default the base model's."""
    original_max_position_embeddings: int | None = None
    """Positions before scaling; by default those of the base model's config. Must be given where that is scaled
    already, and its scaling is then replaced."""
    max_position_embeddings: int | None = None
    """Positions after scaling; by default the factor times the original ones."""
    attention_factor: float | None = None
    """Of yarn and longrope: what queries and keys are multiplied by; by default as the papers have it."""
    beta_fast: float | None = None
    """Of yarn: from so many turns within the original positions on, a frequency is kept (32)."""
    beta_slow: float | None = None
    """Of yarn: up to so many turns, a frequency is interpolated wholly (1)."""
    low_freq_factor: float | None = None
    """Of llama3: the original positions divided by this are the wavelength that is interpolated wholly (1)."""
    high_freq_factor: float | None = None
    """Of llama3: the original positions divided by this are the wavelength that is kept (4)."""
    short_factor: list[float] | None = None
    """Of longrope: divisor of each frequency while no text is longer than the original positions."""
    long_factor: list[float] | None = None
    """Of longrope: divisor of each frequency for longer texts."""

    def __post_init__(self) -> None:
        if self.type is not None and self.type not in _OWN_FIELDS:
            raise unknown_name(f"{KEY}.type", self.type, _OWN_FIELDS)
        if self.type is None and self.theta is None:
            raise UserError(f"{KEY}: neither a type of scaling nor another theta. Give one of them, or leave it out.")
        known = ("factor", "original_max_position_embeddings", *_OWN_FIELDS[self.type]) if self.type else ()
        for name in (one.name for one in fields(self)):
            if name not in ("type", "theta", "max_position_embeddings", *known) and getattr(self, name) is not None:
                raise UserError(f"{KEY}.{name}: has no effect with type {self.type or 'null'}. Leave it out.")
        self._check_numbers()
        if self.type is not None and (self.factor is None or self.factor < 1):
            raise UserError(f"{KEY}.factor: {self.factor}; '{self.type}' needs one of at least 1, as 4.0. Set it.")
        if self.type == "dynamic" and self.max_position_embeddings is not None:
            raise UserError(f"{KEY}.max_position_embeddings: follows from factor with type dynamic. Leave it out.")
        if self.type == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise UserError(f"{KEY}: 'longrope' needs short_factor and long_factor, a number for each frequency.")
        if self.type == "llama3" and (self.high_freq_factor or 4.0) <= (self.low_freq_factor or 1.0):
            raise UserError(f"{KEY}.high_freq_factor: is not above low_freq_factor. Take 4 and 1, as in Llama 3.1.")
        if self.type == "yarn" and (self.beta_fast or 32.0) <= (self.beta_slow or 1.0):
            raise UserError(f"{KEY}.beta_fast: is not above beta_slow. Take 32 and 1, as in the paper.")

    def _check_numbers(self) -> None:
        for name in (*_FACTORS, "original_max_position_embeddings", "max_position_embeddings"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{KEY}.{name}: {value} is not above 0.")
        for name in ("short_factor", "long_factor"):
            if any(not (math.isfinite(one) and one > 0) for one in getattr(self, name) or ()):
                raise UserError(f"{KEY}.{name}: not all numbers are above 0.")


def with_rope(config: Any, rope: Rope | None) -> Any:
    """Return the config to load a base model with.

    Args:
        config: transformers' config of the base model, left as it is; `None` where it cannot be read.
        rope: `model.rope`; none returns `config` itself.

    Raises:
        UserError: a model without rotary positions, one that is scaled already, or settings that it does not take.
    """
    if rope is None or config is None:
        return config
    changed = copy.deepcopy(config)
    text = changed.get_text_config(decoder=True)
    parameters = scalable(text)
    if parameters is None:
        raise UserError(
            f"{KEY}: '{config.model_type}' models have no rotary positions that transformers lets one set; theirs are "
            f"learned, a fixed table, or biases. Leave {KEY} out."
        )
    if rope.theta is not None:
        parameters["rope_theta"] = rope.theta
    if rope.type is None:
        text.max_position_embeddings = rope.max_position_embeddings or text.max_position_embeddings
    else:
        _scale(text, parameters, rope)
    try:
        text.validate_rope()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{KEY}: '{config.model_type}' models do not take this: {' '.join(str(error).split())}"
        ) from error
    return changed


def _scale(text: Any, parameters: dict[str, Any], rope: Rope) -> None:
    """Set the scaling in place."""
    before, wished = parameters.get("rope_type") or "default", _wished(rope)
    original = rope.original_max_position_embeddings
    if before not in ("default", *_OWN_FIELDS):
        raise UserError(f"{KEY}: rotary positions of type '{before}' cannot be scaled. Leave {KEY} out.")
    if before != "default" and original is None:
        positions = rope.max_position_embeddings or text.max_position_embeddings
        same = positions == text.max_position_embeddings
        if same and all(parameters.get(name) == value for name, value in wished.items()):
            return  # a model that was trained so, and saved with it
        raise UserError(
            f"{KEY}: the base model's rotary positions are scaled already ({_described(parameters)}), to "
            f"{positions_of(text)} positions. Leave {KEY} out to train with that, or give "
            "original_max_position_embeddings, the positions before any scaling, to replace it."
        )
    original = original or text.max_position_embeddings
    for name in _REPLACED & parameters.keys():
        del parameters[name]
    parameters |= wished
    if rope.type == "longrope":
        _check_frequencies(text, parameters)
    if rope.type not in ("linear", "dynamic"):
        parameters["original_max_position_embeddings"] = original
        if hasattr(text, "original_max_position_embeddings"):  # and would win
            text.original_max_position_embeddings = original
    # Of dynamic scaling, transformers takes this for the positions before scaling.
    grown = rope.max_position_embeddings or math.floor(original * float(rope.factor or 1))
    text.max_position_embeddings = original if rope.type == "dynamic" else grown


def _wished(rope: Rope) -> dict[str, Any]:
    """Return the rope parameters that are asked for."""
    defaults = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope.type == "llama3" else {}
    given = {name: getattr(rope, name) for name in _OWN_FIELDS[str(rope.type)] if getattr(rope, name) is not None}
    return {"rope_type": rope.type, "factor": rope.factor, **defaults, **given}


def _check_frequencies(text: Any, parameters: dict[str, Any]) -> None:
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    number = int(size * parameters.get("partial_rotary_factor", 1.0)) // 2
    for name in ("short_factor", "long_factor"):
        if len(parameters[name]) != number:
            raise UserError(
                f"{KEY}.{name}: {len(parameters[name])} numbers, and the heads of this model have {number} "
                "frequencies. Give one for each."
            )


def _described(parameters: dict[str, Any]) -> str:
    named = ("rope_type", "factor", "original_max_position_embeddings")
    return ", ".join(f"{name} {parameters[name]}" for name in named if name in parameters)


def check_rope(rope: Rope | None, *, config: Any) -> None:
    """Refuse rotary positions that the base model does not take; builds it without weights.

    Args:
        rope: `model.rope`.
        config: transformers' config of the base model, or `None` where it cannot be read.

    Raises:
        UserError: as `with_rope`, or a model whose code has positions of its own.
    """
    if rope is None or config is None:
        return
    from transformers import AutoModelForCausalLM

    changed = with_rope(config, rope)
    parameters: Any = scalable(changed.get_text_config(decoder=True))
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(changed, trust_remote_code=False)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{KEY}: no model can be made with it: {' '.join(str(error).split())[:400]}") from error
    kinds = [getattr(module, "rope_type", None) for module in model.modules()]
    if not any(parameters["rope_type"] in (kind.values() if isinstance(kind, dict) else [kind]) for kind in kinds):
        raise UserError(f"{KEY}: {type(model).__name__} does not read it; its positions are others. Leave {KEY} out.")
