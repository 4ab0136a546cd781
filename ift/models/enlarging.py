"""Give embedding and head of a loaded base model the rows of a larger vocabulary.

In: a model as loaded, and `Growth`. Out: the same model, with old rows as they were, bit for bit. New rows are computed
on the CPU from the old ones, in the same order and precision everywhere: a trained adapter finds the same model again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ift.data.enlarged_tokenizer import KEY
from ift.errors import UserError
from ift.models.deferred import values_of
from ift.models.vocabulary import Growth, configs_of
from ift.seeds import mixed_seed

_ROWS_AT_ONCE = 4096


def enlarge(model: Any, growth: Growth | None) -> Any:
    """Enlarge a base model in place, before an adapter is attached or merged.

    Args:
        model: a model of transformers, quantized or not; embedding and head are not quantized.
        growth: `None` leaves the model as it is.

    Returns:
        The model.

    Raises:
        UserError: embedding or head are not what the config says, or are quantized.
    """
    if growth is None:
        return model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    _check(embedding, growth, name="embedding")
    tied = head is not None and head.weight is embedding.weight
    _replace(model, embedding.weight, growth, draw=0)
    if head is not None and not tied:
        _check(head, growth, name="head")
        _replace(model, head.weight, growth, draw=1)
    if head is not None and getattr(head, "bias", None) is not None:
        _replace(model, head.bias, growth, draw=2)
    _set_sizes(model, growth)
    return model


def _check(module: nn.Module, growth: Growth, *, name: str) -> None:
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or not weight.is_floating_point():
        raise UserError(
            f"{KEY}: the {name} ({type(module).__name__}) holds no plain matrix, to which rows could be added. Take a "
            "base model whose embedding and head are not quantized."
        )
    if weight.shape[0] != growth.rows_before:
        raise UserError(
            f"{KEY}: the {name} has {weight.shape[0]} rows, and the model's config states {growth.rows_before}."
        )


def _replace(model: nn.Module, old: Any, growth: Growth, *, draw: int) -> None:
    """Put an enlarged parameter in the place of one, in every module that shares it."""
    new = torch.empty(growth.rows, *old.shape[1:], dtype=old.dtype, device=old.device)
    with torch.no_grad():
        rows = values_of(old)
        new[: growth.rows_before] = rows
        for ids, values in _values(rows, growth, draw=draw):
            new[torch.tensor(ids, device=old.device)] = values.to(device=old.device, dtype=old.dtype)
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    for module in list(model.modules()):
        for name, one in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if one is old:
                setattr(module, name, parameter)
                _set_size(module, growth)


def _values(old: torch.Tensor, growth: Growth, *, draw: int) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
    """Yield ids with the rows that they begin as, float64, `(ids, ...)`."""
    known, new = growth.known, growth.new
    mean = _total(old, known, power=1) / len(known)
    unused = sorted(set(range(growth.rows_before, growth.rows)) - growth.pieces.keys())
    for start in range(0, len(unused), _ROWS_AT_ONCE):
        ids = unused[start : start + _ROWS_AT_ONCE]
        yield ids, mean.expand(len(ids), *mean.shape)
    if growth.initialization == "random":
        yield from _drawn(old, growth, mean=mean, draw=draw)
        return
    for start in range(0, len(new), _ROWS_AT_ONCE):
        ids = new[start : start + _ROWS_AT_ONCE]
        yield ids, _means(old, [growth.pieces[index] for index in ids], default=mean)


def _drawn(
    old: torch.Tensor, growth: Growth, *, mean: torch.Tensor, draw: int
) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
    """Yield rows with mean and standard deviation of the known ones, column by column."""
    deviation = (_total(old, growth.known, power=2, less=mean) / len(growth.known)).sqrt()
    generator = torch.Generator().manual_seed(mixed_seed(growth.seed, draw))
    for start in range(0, len(growth.new), _ROWS_AT_ONCE):
        ids = growth.new[start : start + _ROWS_AT_ONCE]
        noise = torch.randn((len(ids), *mean.shape), generator=generator, dtype=torch.float64, device="cpu")
        yield ids, mean + deviation * noise


def _total(old: torch.Tensor, ids: Sequence[int], *, power: int, less: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Return the sum over rows of each column's difference from something, to a power; float64 on the CPU."""
    total = torch.zeros(old.shape[1:], dtype=torch.float64, device="cpu")
    for rows in _parts(old, ids):
        total += ((rows - less) ** power).sum(0)
    return total


def _parts(old: torch.Tensor, ids: Sequence[int]) -> Iterator[torch.Tensor]:
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        chosen = torch.tensor(ids[start : start + _ROWS_AT_ONCE], device=old.device)
        yield old[chosen].to("cpu", torch.float64)


def _means(old: torch.Tensor, pieces: Sequence[tuple[int, ...]], *, default: torch.Tensor) -> torch.Tensor:
    """Return the mean of the rows of each list of pieces; the default where a list is empty."""
    needed = sorted({piece for own in pieces for piece in own})
    table = old[torch.tensor(needed, dtype=torch.long, device=old.device)].to("cpu", torch.float64)
    place = {piece: number for number, piece in enumerate(needed)}
    means = [table[[place[piece] for piece in own]].mean(0) if own else default for own in pieces]
    return torch.stack(means)


def _set_size(module: Any, growth: Growth) -> None:
    for name in ("num_embeddings", "out_features"):
        if getattr(module, name, None) == growth.rows_before:
            setattr(module, name, growth.rows)


def _set_sizes(model: Any, growth: Growth) -> None:
    """Let config and model state the new number of rows."""
    for config in configs_of(model.config):
        config.vocab_size = growth.rows
    for module in model.modules():
        if vars(module).get("vocab_size") == growth.rows_before:
            module.vocab_size = growth.rows
