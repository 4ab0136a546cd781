"""How long a text a model reads, and where its rotary positions depend on what else is read with it.

Comes in: transformers' config of a base model, and the model itself. Rotary positions are scaled by `ift.models.rope`,
or by the config that a checkpoint brings.
"""

import math
from functools import partial
from typing import Any


def scalable(text: Any) -> dict[str, Any] | None:
    """Return the rope parameters of the layers that see the whole text, or `None` where there are none.

    Args:
        text: transformers' config of a text model; changes to what is returned change it.
    """
    parameters = getattr(text, "rope_parameters", None)
    if not parameters or getattr(text, "alibi", False):
        return None
    by_layers = text.nested_rope_parameter_keys(parameters)
    # Layers with a sliding window never see farther than that.
    found = parameters.get("full_attention") if by_layers else parameters
    return found if isinstance(found, dict) else None


def positions_of(config: Any) -> int | None:
    """Return the longest text that a model reads, in tokens, or `None` where its config states none.

    Args:
        config: transformers' config, of `with_rope`.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    parameters = scalable(config.get_text_config(decoder=True)) or {}
    if limit is None or parameters.get("rope_type") != "dynamic":
        return limit
    return math.floor(limit * max(1.0, float(parameters.get("factor") or 1)))


def steady_length(config: Any) -> int | None:
    """Return up to which length the positions of a text do not depend on the other texts of its batch.

    Frequencies of dynamic scaling follow from the longest text of a batch, and so does whether longrope takes its
    short or its long factors.

    Args:
        config: transformers' config, of `with_rope`, or `None` where it cannot be read.

    Returns:
        Tokens; `None` where that is so for any length.
    """
    if config is None:
        return None
    text = config.get_text_config(decoder=True)
    parameters = scalable(text) or {}
    if parameters.get("rope_type") == "dynamic":
        return int(text.max_position_embeddings)
    if parameters.get("rope_type") == "longrope" and parameters["short_factor"] != parameters["long_factor"]:
        return int(parameters["original_max_position_embeddings"])
    return None


def forget_lengths(model: Any) -> None:
    """Let dynamic scaling follow from the texts at hand only, not from the longest one ever seen, in place.

    transformers keeps the frequencies of the longest text until a text shorter than the original positions comes, so
    that a text between the two is read otherwise after a longer one than alone.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        # Layers of several kinds (Gemma 3) have one each, in one module.
        kinds = {f"{layers}_": one for layers, one in kind.items()} if isinstance(kind, dict) else {"": kind}
        for prefix, one in kinds.items():
            if one == "dynamic":
                module.register_forward_pre_hook(partial(_begin_anew, prefix=prefix))


def _begin_anew(module: Any, _: Any, *, prefix: str) -> None:
    longest, frequencies = f"{prefix}max_seq_len_cached", f"{prefix}inv_freq"
    if getattr(module, longest, module.original_max_seq_len) != module.original_max_seq_len:
        device = getattr(module, frequencies).device
        setattr(module, frequencies, getattr(module, f"{prefix}original_inv_freq").to(device))
        setattr(module, longest, module.original_max_seq_len)
