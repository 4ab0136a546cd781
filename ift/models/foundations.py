"""What an adapter is trained on top of: merged adapters, and an adapter to go on with, checked before weights load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ift.errors import UserError
from ift.models.mergeability import check_mergeable
from ift.models.quantization import Quantization, is_quantized
from ift.models.rope import Rope
from ift.models.trained_adapters import (
    MergedAdapter,
    adapter_folder,
    check_foundation,
    merged_chain,
    warn_of_other_rope,
    warn_of_other_weights,
)
from ift.models.vocabulary import Growth

KEY = "model.merged_adapters"


def checked_chain(
    folders: Sequence[str], *, base: str, config: Any, growth: Growth | None, rope: Rope | None
) -> list[MergedAdapter]:
    """Return all adapters that are merged into a base model, in order.

    Args:
        folders: `model.merged_adapters`.
        base: folder or hub id of the base model.
        config: its config, with the rows that it gains.
        growth: by which its vocabulary is enlarged.
        rope: `model.rope`.

    Raises:
        UserError: one that is missing, that cannot be merged, or that was trained on something else.
    """
    chain = merged_chain(KEY, folders, base=base, growth=growth)
    for one in chain:
        check_mergeable(KEY, Path(one.folder), config=config)
        warn_of_other_weights(KEY, Path(one.folder), None)
        warn_of_other_rope(KEY, Path(one.folder), rope)
    return chain


def check_gone_on_with(
    folder: Path,
    chain: Sequence[MergedAdapter],
    *,
    base: str,
    growth: Growth | None,
    quantization: Quantization | None,
    rope: Rope | None,
) -> None:
    """Refuse to go on with an adapter on another foundation than its own, and warn of other weights.

    Args:
        folder: `model.adapter`.
        chain: of `checked_chain`.
        base: folder or hub id of the base model.
        growth: by which its vocabulary is enlarged.
        quantization: `model.quantization`.
        rope: `model.rope`.

    Raises:
        UserError: no adapter there, or one of another base model, vocabulary or chain.
    """
    place = adapter_folder("model.adapter", folder)
    check_foundation("model.adapter", place, base=base, merged=chain, growth=growth)
    warn_of_other_weights("model.adapter", place, quantization)
    warn_of_other_rope("model.adapter", place, rope)


def check_merges_into(folders: Sequence[str], *, config: Any, quantization: Quantization | None) -> None:
    """Refuse to merge adapters into quantized weights.

    Raises:
        UserError: with the repair.
    """
    if folders and is_quantized(config, quantization):
        raise UserError(
            f"{KEY}: adapters are not merged into quantized weights, which would round them again. "
            "Write the merged model with 'ift merge' and set model.base to that, or leave model.quantization out."
        )
