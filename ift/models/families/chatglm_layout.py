"""Prompt and positions of ChatGLM-6B, found from token ids: what is read in both directions, and where a token stands.

The prompt is what stands before the first `<sop>`; its tokens see one another. From `<sop>` on, each token sees what is
before it. A token has two positions. The first counts through the prompt and then stays at the place of the first
`[gMASK]` (else of the first `[MASK]`); the second is 0 in the prompt and counts 1, 2, 3, ... from `<sop>` on. Padding
counts nowhere.

Of texts that lack these tokens, of which the original can make nothing, this is made:

- No `<sop>`, but a mask token: the prompt ends with that, as if `<sop>` came next. So a prompt has the same states
  before `<sop>` is written as after.
- Neither (plain text, another model's template): there is no prompt, and the text is one that answers an empty prompt:
  first positions 0, second ones 1, 2, 3, ..., every token sees what is before it. So it can be learned from.
- `<sop>` without a mask token: the last token of the prompt stands for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

_NO_TOKEN = -1


@dataclass(frozen=True)
class LayoutIds:
    """The tokens that a layout is found by."""

    sop: int
    gmask: int
    mask: int


@dataclass(frozen=True)
class Layout:
    """How some texts of one length are laid out."""

    positions: torch.Tensor
    """int64, `(batch, 2, length)`; 0 on padding before the text, the last token's on padding behind it."""
    in_prompt: torch.Tensor
    """bool, `(batch, length)`: what is read in both directions."""


def layout_of(
    input_ids: torch.Tensor, real: torch.Tensor | None, *, special: LayoutIds, num_virtual: int = 0
) -> Layout:
    """Return the layout of some texts.

    Args:
        input_ids: int64, `(batch, length)`.
        real: bool, `(batch, num_virtual + length)`, false on padding; none where all counts.
        special: tokens to look for.
        num_virtual: trained tokens before each text, which are the beginning of its prompt and have no ids.
    """
    ids = F.pad(input_ids, (num_virtual, 0), value=_NO_TOKEN)
    real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
    (sop, has_sop), (mask, has_mask) = _first(ids, real, special.sop), _first(ids, real, special.mask)
    gmask, has_gmask = _first(ids, real, special.gmask)
    mask, has_mask = torch.where(has_gmask, gmask, mask), has_gmask | has_mask
    without_sop = torch.where(has_mask, mask + 1, torch.full_like(mask, num_virtual))
    start = torch.where(has_sop, sop, without_sop)
    in_prompt = real & (torch.arange(ids.shape[1], device=ids.device) < start)
    order = real.long().cumsum(-1)
    num_prompt = in_prompt.sum(-1, keepdim=True)
    held = torch.where(has_mask, order.gather(-1, mask), num_prompt).sub(1).clamp(min=0)
    first = torch.where(order <= num_prompt, order - 1, held).clamp(min=0)
    second = (order - num_prompt).clamp(min=0)
    return Layout(torch.stack((first, second), dim=1), in_prompt)


def _first(ids: torch.Tensor, real: torch.Tensor, token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where a token stands first, int64 `(batch, 1)`, and whether it does, bool `(batch, 1)`."""
    hits = (ids == token) & real
    return hits.int().argmax(-1, keepdim=True), hits.any(-1, keepdim=True)


def settled_length(ids: Sequence[int], special: LayoutIds) -> int:
    """Return the number of first ids behind which neither prompt nor positions of the text before change any more.

    Args:
        ids: of a whole text without padding.
        special: tokens to look for.

    Returns:
        Of a prompt with its answer, the length of the prompt with `<sop>`; 0 where there is no prompt.
    """
    masks = [token for token in (special.gmask, special.mask) if token in ids][:1]
    found = [ids.index(token) + 1 for token in (*masks, *([special.sop] if special.sop in ids else []))]
    return max(found, default=0)
