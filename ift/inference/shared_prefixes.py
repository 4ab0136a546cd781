"""Beginnings that texts share: where they are, the keys and values kept of them, and which models let one keep them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel

from ift.models.calling import calling_of
from ift.models.packing import obstacle_in


@dataclass(frozen=True)
class Row:
    """A text to run, and what is wanted of it."""

    ids: list[int]
    wanted: tuple[tuple[int, int, int], ...] = ()
    """Position, the token that the logits there are asked about, and the number of the option that it belongs to."""

    @cached_property
    def places(self) -> list[int]:
        """The positions, in order, each once."""
        return sorted({place for place, _, _ in self.wanted})


class Past:
    """Keys and values of the first tokens of some texts, of every layer.

    Args:
        cache: of transformers; none for no tokens.
    """

    def __init__(self, cache: Any = None) -> None:
        self._cache = cache

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self._cache.get_seq_length() if self._cache is not None else 0

    def cache(self) -> Any:
        """Return it as a model takes it."""
        if self._cache is None:
            from transformers import DynamicCache

            # Without the config every layer keeps all; layers with a window see no more of it for that.
            self._cache = DynamicCache()
        return self._cache

    def repeated(self, rows: int) -> "Past":
        """Return a past of one text for several; nothing is copied before a model appends to it."""
        return self._changed(lambda states: states.expand(rows, -1, -1, -1)) if self.length else Past()

    def selected(self, rows: list[int], *, length: int) -> "Past":
        """Return the first tokens of some texts, in that order."""
        return self._changed(lambda states: states[:, :, :length][torch.tensor(rows, device=states.device)])

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Past":
        from transformers import DynamicCache

        return Past(DynamicCache([(change(layer.keys), change(layer.values)) for layer in self._cache.layers]))


def common_length(one: list[int], two: list[int]) -> int:
    """Return the number of ids that two texts begin with alike."""
    shorter = min(len(one), len(two))
    if one[:shorter] == two[:shorter]:
        return shorter
    low, high = 0, shorter  # alike up to low, not up to high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == two[low:middle] else (low, middle)
    return low


def group_by_prefix(texts: Sequence[list[int]], *, least_saved: int) -> list[tuple[list[int], int]]:
    """Return groups of texts, as their numbers, with the number of first ids to run once for each group.

    The groups are those with which few tokens are run; a text in none that saves enough is in the last one, which has
    no shared ids. Every text is longer than the shared ids of its group.

    Args:
        texts: token ids.
        least_saved: shared ids are run apart only where this saves more tokens.
    """

    def saved(between: list[int]) -> int:
        """Return the tokens saved in a group, from what neighbours share; a forward's own cost is taken off."""
        return max(0, min(between) * len(between) - least_saved) if between else 0

    order = sorted(range(len(texts)), key=lambda number: texts[number])
    shared = [common_length(texts[one], texts[two]) for one, two in pairwise(order)]
    groups: list[tuple[list[int], int]] = []
    rest: list[int] = []
    pending = [(0, len(order))]
    while pending:
        start, end = pending.pop()
        between = shared[start : end - 1]
        if not between:
            rest += order[start:end]
            continue
        least = min(between)
        cut = start + 1 + between.index(least)
        if saved(shared[start : cut - 1]) + saved(shared[cut : end - 1]) > saved(between):
            pending += [(cut, end), (start, cut)]
            continue
        # Texts are sorted, so a first one that is the beginning of all others is the shortest.
        length = min(least, len(texts[order[start]]) - 1)
        if length * len(between) > least_saved:
            groups.append((order[start:end], length))
        else:
            rest += order[start:end]
    return groups + ([(rest, 0)] if rest else [])


Trial = Callable[[Sequence[list[int]], Sequence[Sequence[list[int]]]], tuple[list[float], ...]]
"""From prompts and options to their scores with shared beginnings, and without."""


def can_share(model: Any, trial: Trial) -> bool:
    """Whether a model gives the same scores, up to rounding, where shared beginnings are run once.

    Args:
        model: a causal language model of transformers, wrapped by PEFT or not.
        trial: scores options with it in both ways; what a short trial cannot show is known beforehand.
    """
    if calling_of(model).reads_prompts or _depends_on_length(model.config):
        return False
    if isinstance(model, PeftModel) and any(obstacle_in(config) for config in model.peft_config.values()):
        return False
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, vocabulary - 1, 60).long().tolist()
    prompts = [ids[:40], [*ids[:36], *ids[50:]], ids[20:]]
    options = [[ids[5:6], ids[9:13], [*ids[9:12], ids[3]], ids[30:33]], [ids[:1], ids[7:9]], [ids[:4], ids[4:6]]]
    try:
        shared, whole = (torch.tensor(scores) for scores in trial(prompts, options))
    except Exception:  # models refuse a cache in many ways, and none of them matters
        return False
    # 0.001 in float32, 0.26 in bfloat16; a wrong position or mask changes scores by far more.
    tolerance = 3 * torch.finfo(model.dtype).eps ** 0.5
    return bool(torch.isfinite(shared).all() and torch.allclose(shared, whole, rtol=tolerance, atol=tolerance))


def _depends_on_length(config: Any) -> bool:
    """Whether what a model makes of the first tokens may depend on how many follow."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(one.get("rope_type") for one in rope.values() if isinstance(one, dict))}
    layers = set(getattr(text, "layer_types", None) or ())
    return (
        bool(kinds & {"dynamic", "longrope"})
        or bool(layers - {"full_attention", "sliding_attention"})
        or bool(getattr(text, "is_encoder_decoder", False))
    )
