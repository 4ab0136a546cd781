"""Invariants 6 and 7 on tiny models: packed examples against each alone, the engine's loss against the plain one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ift.checks.findings import Findings, largest_of
from ift.checks.tiny_world import lora
from ift.checks.workbench import Changes, Recipe, Workbench
from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import MicroBatch, RowLayoutChoice, collate, fill_rows

RELATIVE_ROUNDING = 1e-5
"""Largest difference of a logit or gradient as a share of the largest one, where float32 sums up in another order; a
rounding is 6e-8, and some hundred numbers are summed up."""


def example_losses(model: Any, example: Example) -> torch.Tensor:
    """Return the cross-entropy of each supervised token of an example alone, by full logits; float32 `(tokens,)`."""
    device = next(model.parameters()).device
    ids, labels = (torch.from_numpy(one)[None].to(device) for one in (example.input_ids, example.labels))
    logits = logits_of(model, ids, labels)
    return F.cross_entropy(logits.float(), labels[:, 1:].reshape(-1)[labels[0, 1:] != IGNORE_INDEX], reduction="none")


@torch.no_grad()
def validation_loss(model: Any, data: Any) -> tuple[float, int]:
    """Return the loss of the validation examples and their supervised tokens, each example alone, with all logits."""
    model.eval()
    examples = [data._validation_store[int(index)] for index in data._validation_indices]
    losses = torch.cat([example_losses(model, example).double() for example in examples])
    return float(losses.mean()), len(losses)


def logits_of(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits `(supervised tokens, vocabulary)` of one text, by the plainest call there is."""
    config = model.config
    keep = labels[0, 1:] != IGNORE_INDEX
    if getattr(config, "is_encoder_decoder", False):
        begin = int(keep.nonzero()[0]) + 1
        start = torch.full((1, 1), config.decoder_start_token_id, device=ids.device)
        decoder = torch.cat([start, ids[:, begin:-1]], dim=1)
        found: torch.Tensor = model(input_ids=ids[:, :begin], decoder_input_ids=decoder, use_cache=False).logits[0]
        return found[keep[begin - 1 :]]
    whole: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return whole[whole.shape[0] - ids.shape[1] :][:-1][keep]  # after the virtual tokens of a prompt method


def training_batches(data: Any, number: int) -> list[list[MicroBatch]]:
    """Return the micro-batches of the first steps."""
    steps = data._training_steps(0, 1)
    return [list(steps[index].micro_batches) for index in range(number)]


def examples_of(batch: MicroBatch) -> Iterator[tuple[int, int, int]]:
    """Yield row, begin and end of each example of a micro-batch."""
    for row, lengths in enumerate(batch.lengths):
        end = 0
        for length in lengths:
            begin, end = end, end + length
            yield row, begin, end


def disturb(model: Any) -> None:
    """Give the trainable weights of an adapter values that matter; a fresh one mostly changes nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
                parameter.add_(0.05 * noise)


def check_packing(
    bench: Workbench, findings: Findings, model_type: str, *, attention: str | None, layouts: tuple[str, ...]
) -> None:
    """Invariant 6, on a family of the world with LoRA.

    Args:
        bench: opens the model.
        findings: gain the cases.
        model_type: of the family.
        attention: `model.attention`.
        layouts: the row layouts that are exact for it.
    """
    title = model_type + (f", {attention}" if attention else "")
    model: Changes = {"base": str(bench.world.families[model_type]), "attention": attention, "adapter": lora()}
    check_rows(bench, findings, title=title, layouts=layouts, changes={"model": model})


def check_rows(bench: Workbench, findings: Findings, *, title: str, layouts: tuple[str, ...], changes: Changes) -> None:
    """Measure one model's cases of invariant 6.

    Args:
        bench: opens the model.
        findings: gain the cases.
        title: of the model.
        layouts: of the rows.
        changes: to the settings of the world.
    """
    if 6 not in findings.wanted:
        return
    with findings.guarded(6, title):
        module, data = bench.open(f"rows-{title}".replace(" ", "_").replace(",", ""), changes)
        disturb(module.model)
        module.model.eval()
        for layout in layouts:
            findings.measure(
                6,
                f"{title}, {layout} rows",
                lambda layout=layout: layout_gap(module, data, layout, 4 * bench.world.longest),  # type: ignore[misc]
                quantity="of the largest logit",
                allowed=RELATIVE_ROUNDING,
            )


def layout_gap(module: Any, data: Any, layout: Any, micro_batch_tokens: int) -> float:
    """Return the largest relative difference of a logit in rows of a layout from that of the example alone."""
    # A long row costs the square of it in so small a model; here rows of several examples are wanted.
    data.row_layout_choice = RowLayoutChoice(layout, "to be checked", square_cost_length=1 << 30)
    data.micro_batch_tokens = micro_batch_tokens
    batches = [batch for step in training_batches(data, 4) for batch in step]
    if layout != "grouped" and not _several(batches):  # they are so alike that next to nothing would be gained
        batches = [packed_batch(data, micro_batch_tokens)]
    if (layout == "grouped") == bool(_several(batches)):
        return float("inf")  # that is another layout
    return largest_of(row_gap(module, batch) for batch in batches)


def _several(batches: list[MicroBatch]) -> int:
    """Return the number of rows that hold several examples."""
    return sum(len(lengths) > 1 for batch in batches for lengths in batch.lengths)


def packed_batch(data: Any, capacity: int) -> MicroBatch:
    """Return a micro-batch of the first examples in rows of several, whatever that gains."""
    examples = [data.store[index] for index in range(min(12, len(data.store)))]
    lengths = np.array([len(example.input_ids) for example in examples])
    return collate([[examples[number] for number in row] for row in fill_rows(lengths, capacity)], 0)


@torch.no_grad()
def row_gap(module: Any, batch: MicroBatch) -> float:
    """Return the largest difference of a logit in a micro-batch from that of the example alone, relative."""
    from ift.models.calling import calling_of

    model, calling = module.model, calling_of(module.model)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    keep = F.pad(batch.labels, (0, 1), value=IGNORE_INDEX)[:, 1:] != IGNORE_INDEX
    together = calling.logits(model, inputs, keep)
    place = torch.full(keep.shape, -1)
    place[keep] = torch.arange(int(keep.sum()))
    gap = largest = 0.0
    for row, begin, end in examples_of(batch):
        ids, labels = batch.input_ids[row : row + 1, begin:end], batch.labels[row : row + 1, begin:end]
        own = place[row, begin:end]
        if not bool((own >= 0).any()):
            continue
        alone = logits_of(model, ids, labels)
        differences = (together[own[own >= 0]] - alone).abs()
        gap = largest_of([gap, float(differences.max())])
        largest = max(largest, float(alone.abs().max()))
    return gap / largest


def check_loss(bench: Workbench, recipe: Recipe, findings: Findings) -> None:
    """Invariant 7: the gradient of a step, against a loop over its examples with full logits.

    Args:
        bench: opens the model.
        recipe: what is trained.
        findings: gain the case.
    """
    findings.measure(
        7,
        recipe.name,
        lambda: gradient_gap(bench, recipe.name, recipe.changes),
        quantity="of the largest gradient, or loss",
        allowed=RELATIVE_ROUNDING,
    )


def gradient_gap(bench: Workbench, title: str, changes: Changes) -> float:
    """Return the largest relative difference of the engine's loss and gradient from the plain ones."""
    name = f"loss-{title}".replace(" ", "_").replace(",", "")
    module, data = bench.open(name, changes, {"data": {"micro_batch_tokens": 3 * bench.world.longest}})
    disturb(module.model)
    for part in module.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    trained = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    gaps = []
    for index in (0, 1):
        step = data._training_steps(0, 1)[index]
        ours = engine_gradient(module, step, trained)
        plain = plain_gradient(module, step, trained)
        gaps.append(abs(ours[0] - plain[0]) / abs(plain[0]))
        largest = max(float(one.abs().max()) for one in plain[1])
        gaps += [float((one - two).abs().max()) / largest for one, two in zip(ours[1], plain[1], strict=True)]
    return largest_of(gaps)


def engine_gradient(module: Any, step: Any, trained: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradient of a step as training computes them on one device."""
    from ift.training.engines import Engine
    from ift.training.gradient import StepGradient

    class OneDevice(Engine):
        """Has no trainer."""

        scale = 1.0

        def exchange(self, *, last: bool) -> Any:
            return torch.enable_grad()

        def backward(self, loss: torch.Tensor) -> None:
            loss.backward()  # type: ignore[no-untyped-call]

    module.model.zero_grad()
    gradient = StepGradient(module.model, module.calling, module._course, OneDevice(module), seed=module.seed, rank=0)
    total = float(gradient(step)) / step.num_supervised
    return total, [_gradient(parameter) for parameter in trained]


def plain_gradient(module: Any, step: Any, trained: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradient of a step by a loop over its examples, with full logits."""
    model = module.model
    model.zero_grad()
    total = 0.0
    for batch in step.micro_batches:
        for row, begin, end in examples_of(batch):
            ids, labels = (one[row, begin:end].numpy() for one in (batch.input_ids, batch.labels))
            loss = example_losses(model, Example(ids, labels)).sum()
            (loss / step.num_supervised).backward()
            total += float(loss.detach().double())
    penalty = module._course.penalty()  # of some methods, once a step
    if penalty is not None:
        penalty.backward()
    return total / step.num_supervised, [_gradient(parameter) for parameter in trained]


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter)
