"""Attention example by example: on CPUs, one call per example of a row, in the place of a mask over the whole row.

With a mask that keeps the examples of a row apart, all pairs of the row's positions are computed, whose number grows
with the square of the row; the pairs within each example are few. On GPUs, FlashAttention's variable-length kernel does
the same.

The name below is one of transformers' attention implementations. Where it is called with a mask (generation, padding on
the left) or with cached keys, it is sdpa, and so is the mask that it is given.
"""

from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ift_sdpa_by_example"


def attend_by_example(model: Any) -> None:
    """Let a model with sdpa compute attention example by example, where positions begin anew within a row.

    Args:
        model: of transformers, wrapped by PEFT or not; its attention must be given `position_ids`.
    """
    if NAME not in AttentionInterface().valid_keys():  # which may be in use already, and outside of graphs
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)


def attend_by_row(model: Any) -> None:
    """Undo `attend_by_example`."""
    model.set_attn_implementation("sdpa")


def attend_outside_graphs() -> None:
    """Let torch.compile leave out attention example by example, and compile what is before and after it.

    How many examples a row has, and how long each is, would be compiled anew with nearly every micro-batch.
    """
    disable: Any = torch.compiler.disable
    AttentionInterface.register(NAME, disable(_attention))
    AttentionMaskInterface.register(NAME, _mask)


def attention_name(config: Any) -> str:
    """Return how a model computes attention, in transformers' own words."""
    name = str(config._attn_implementation)
    return "sdpa" if name == NAME else name


def _mask(*, q_length: int, kv_length: int, q_offset: Any = 0, attention_mask: Any = None, **options: Any) -> Any:
    """Return no mask where all is told by positions; what transformers calls for sdpa elsewhere."""
    if attention_mask is None and q_length == kv_length and int(q_offset) == 0 and not options.get("use_vmap"):
        return None
    return sdpa_mask(
        q_length=q_length, kv_length=kv_length, q_offset=q_offset, attention_mask=attention_mask, **options
    )


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> Any:
    """Return attention `(rows, length, heads, width)`, as transformers' own functions do.

    Args:
        module: the attention layer.
        query: `(rows, heads, length, width)`; keys and values may have fewer heads.
        key: likewise.
        value: likewise.
        attention_mask: of sdpa; where it is given, it says all.
        position_ids: `(rows, length)` or `(1, length)`; an example begins where they do not go on by 1.
        sliding_window: how many positions each sees, its own among them.
        options: of sdpa.
    """
    if attention_mask is not None or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = [lengths_in(row) for row in position_ids] if position_ids is not None else []
    if all(len(row) == 1 for row in rows):
        mask = _window(query.shape[2], sliding_window, query.device)
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    outputs = []
    # Split, whose gradient is put together at once; that of a slice is as large as the whole.
    for lengths, *row in zip(rows, *(tensor.split(1) for tensor in (query, key, value)), strict=True):
        examples = zip(*(tensor.split(lengths, dim=2) for tensor in row), strict=True)
        attended = [
            sdpa_attention_forward(module, *example, _window(length, sliding_window, query.device), **options)[0]
            for length, example in zip(lengths, examples, strict=True)
        ]
        outputs.append(torch.cat(attended, dim=1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0], None


def lengths_in(positions: torch.Tensor) -> list[int]:
    """Return the lengths of the examples in a row, from positions `(length,)` that begin anew with each."""
    begins = (positions[1:] - positions[:-1] != 1).nonzero().flatten() + 1
    return [end - start for start, end in pairwise([0, *begins.tolist(), len(positions)])]


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which positions of one example see which, where not all see all before them: bool `(1, 1, …, …)`."""
    if sliding_window is None or length <= sliding_window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((distance >= 0) & (distance < sliding_window))[None, None]
