"""Invariants 3 to 5 on whole tiny runs: how a step is cut, what validation counts, and where a run resumes."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ift.checks.findings import SMALLEST, Findings, largest_of
from ift.checks.model_checks import validation_loss
from ift.checks.tiny_world import ADAMW, SGD, STEADY_ADAMW
from ift.checks.workbench import Changes, Recipe, Workbench, manifest_of, run_gap

ROUNDING = 1e-6
"""Largest difference of a final weight or a loss after two epochs, where float32 sums up in another order. One rounding
is 6e-8 of a value; a wrong weight of a single token is four powers of ten above that."""
GPU_ROUNDING = 1e-5
"""The same on a GPU, whose kernels depend on the shape."""
RESUMED_ON_GPU = 1e-5
"""A GPU's sums may run in another order each time; bit for bit is promised on the CPU."""


def unavailable(recipe: Recipe) -> str | None:
    """Return why a recipe cannot run here, or `None`."""
    if recipe.quantized and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return None


def rounding(bench: Workbench) -> float:
    """Return the allowance for sums in another order."""
    return ROUNDING if bench.accelerator == "cpu" else GPU_ROUNDING


def named(bench: Workbench, recipe: Recipe, case: str) -> str:
    """Return the name of a case, for people."""
    return f"{recipe.name}, {case}" + ("" if bench.accelerator == "cpu" else f", {bench.accelerator}")


def ways_of_cutting(bench: Workbench, *, all_of_them: bool = True) -> dict[str, Changes]:
    """Return ways of cutting a step that change no result, by name."""
    longest = bench.world.longest
    ways: dict[str, dict[str, Any]] = {
        "few tokens at a time": {"micro_batch_tokens": longest},
        "packed rows": {"row_layout": "packed", "micro_batch_tokens": 4 * longest},
        "packed rows, all at once": {"row_layout": "packed"},
        "flattened rows": {"row_layout": "flattened", "micro_batch_tokens": 2 * longest},
        "one flattened row": {"row_layout": "flattened"},
        "2 workers": {"num_workers": 2, "micro_batch_tokens": 2 * longest},
    }
    rare = () if all_of_them else ("packed rows, all at once", "flattened rows")
    return {name: {"data": data} for name, data in ways.items() if name not in rare}


def check_cutting(
    bench: Workbench, recipe: Recipe, findings: Findings, *, layouts: tuple[str, ...], thorough: bool = True
) -> None:
    """Invariant 3 in one process.

    Args:
        bench: runs it.
        recipe: what is trained.
        findings: gain the cases.
        layouts: row layouts that are exact for the model.
        thorough: whether to try every way of cutting.
    """
    if 3 not in findings.wanted:
        return
    if reason := unavailable(recipe):
        findings.omit(3, recipe.name, reason)
        return
    with findings.guarded(3, named(bench, recipe, "reference")):
        reference = bench.fit(f"{recipe.name}-reference", recipe.changes)
        for way, changes in ways_of_cutting(bench, all_of_them=thorough).items():
            layout = changes["data"].get("row_layout", "grouped")
            if layout not in layouts:
                findings.omit(3, named(bench, recipe, way), f"no {layout} rows for this model and method")
                continue
            name = f"{recipe.name}-{way.replace(' ', '_').replace(',', '')}"
            _compare(bench, recipe, findings, reference, (way, name, (changes,)))
        cut: Changes = ways_of_cutting(bench)["few tokens at a time"]
        again: Changes = {"model": {"gradient_checkpointing": True}}
        _compare(bench, recipe, findings, reference, ("gradient checkpointing", f"{recipe.name}-again", (again, cut)))
        _check_against_itself(bench, recipe, findings)


def _compare(
    bench: Workbench, recipe: Recipe, findings: Findings, reference: Path, case: tuple[str, str, tuple[Changes, ...]]
) -> None:
    title, name, changes = case
    findings.measure(
        3,
        named(bench, recipe, title),
        lambda: run_gap(reference, bench.fit(name, recipe.changes, *changes)),
        quantity="weights and losses",
        allowed=rounding(bench),
    )


def _check_against_itself(bench: Workbench, recipe: Recipe, findings: Findings) -> None:
    """Settings that change the result, each cut in two ways: no clipping, and AdamW."""
    cut = ways_of_cutting(bench)["few tokens at a time"]
    variants: dict[str, Changes] = {
        "without clipping": {"model": {"gradient_clip_norm": None, "optimizer": {**SGD, "init_args": {"lr": 0.05}}}},
        "AdamW": {"model": {"optimizer": STEADY_ADAMW}},
    }
    for title, changes in variants.items():
        name = f"{recipe.name}-{title.replace(' ', '_')}"
        with findings.guarded(3, named(bench, recipe, title)):
            reference = bench.fit(name, recipe.changes, changes, {"trainer": {"max_epochs": 1}})
            case = (title, f"{name}-cut", (changes, {"trainer": {"max_epochs": 1}}, cut))
            _compare(bench, recipe, findings, reference, case)


def check_repeatable(bench: Workbench, recipe: Recipe, findings: Findings, *, thorough: bool = True) -> None:
    """Invariant 3 with dropout: what does not change the micro-batches changes nothing at all.

    Args:
        bench: runs it.
        recipe: what is trained.
        findings: gain the cases.
        thorough: whether to try several things.
    """
    if 3 not in findings.wanted or unavailable(recipe):
        return
    with findings.guarded(3, named(bench, recipe, "dropout")):
        dropout = with_dropout(recipe)
        reference = bench.fit(f"{recipe.name}-dropout", recipe.changes, dropout)
        variants: dict[str, Changes] = {
            "2 workers": {"data": {"num_workers": 2}},
            "gradient checkpointing": {"model": {"gradient_checkpointing": True}},
        }
        for title, changes in list(variants.items())[0 if thorough else 1 :]:
            name = f"{recipe.name}-dropout-{title.replace(' ', '_')}"
            _compare(bench, recipe, findings, reference, (f"dropout, {title}", name, (dropout, changes)))


def with_dropout(recipe: Recipe) -> Changes:
    """Return what gives a recipe dropout and another optimizer, and a checkpoint every two steps."""
    adapter = recipe.changes.get("model", {}).get("adapter")
    changes: dict[str, Any] = {"model": {"optimizer": recipe.resumed_with or ADAMW}}
    changes["checkpoint"] = {"every_n_train_steps": 2, "save_top_k": -1}
    if isinstance(adapter, Mapping) and "lora_dropout" in adapter.get("init_args", {}):
        arguments = {**adapter["init_args"], "lora_dropout": 0.2}
        changes["model"]["adapter"] = {**adapter, "init_args": arguments}
    return changes


def check_resuming(bench: Workbench, recipe: Recipe, findings: Findings, *, thorough: bool = True) -> None:
    """Invariant 5 in one process: from checkpoints within an epoch, at its end, and with workers that were ahead.

    Args:
        bench: runs it.
        recipe: what is trained.
        findings: gain the cases.
        thorough: whether to resume from all of these.
    """
    if 5 not in findings.wanted:
        return
    if reason := unavailable(recipe):
        findings.omit(5, recipe.name, reason)
        return
    with findings.guarded(5, named(bench, recipe, "reference")):
        changes = with_dropout(recipe)
        reference = bench.fit(f"{recipe.name}-dropout", recipe.changes, changes)
        cases: dict[str, tuple[int, Changes]] = {
            "within the first epoch": (2, {}),
            "the end of an epoch": (4, {}),
            "the third epoch, 2 workers": (10, {"data": {"num_workers": 2}}),
        }
        for title, (step, more) in list(cases.items())[0 if thorough else 1 :]:
            checkpoint = reference / "checkpoints" / f"step-{step:08d}.ckpt"
            name = f"{recipe.name}-resumed-{step}"
            findings.measure(
                5,
                named(bench, recipe, f"from {title}"),
                lambda name=name, start=("--ckpt_path", str(checkpoint)), more=more: resumed_gap(  # type: ignore[misc]
                    reference, bench.fit(name, recipe.changes, changes, more, arguments=start)
                ),
                quantity="weights and losses",
                allowed=0.0 if bench.accelerator == "cpu" else RESUMED_ON_GPU,
            )


def resumed_gap(reference: Path, resumed: Path) -> float:
    """Return the largest difference between a run and one that began at one of its checkpoints."""
    first = manifest_of(resumed)["sessions"][0]["from_step"]
    if first <= 0:
        return float("inf")  # it began anew
    return run_gap_from(reference, resumed, first)


def run_gap_from(reference: Path, resumed: Path, step: int) -> float:
    """Return the largest difference of final weights, and of losses after a step."""
    from ift.artifacts import RunFolder
    from ift.checks.loss_curves import recorded_losses
    from ift.checks.weight_difference import compare_weights

    weights = compare_weights(RunFolder(reference), RunFolder(resumed))
    expected, found = (recorded_losses(RunFolder(run)) for run in (reference, resumed))
    later = {number: loss for number, loss in expected.items() if number > step}
    if weights.only_one or weights.missing or later.keys() != found.keys():
        return float("inf")
    largest = largest_of([weights.largest, *(abs(later[number] - found[number]) for number in later)])
    return largest or (0.0 if weights.same else SMALLEST)


def check_validation(bench: Workbench, recipe: Recipe, findings: Findings, *, layouts: tuple[str, ...]) -> None:
    """Invariant 4 in one process: against each example alone, with all logits in float64 sums.

    Args:
        bench: runs it.
        recipe: what is trained.
        findings: gain the cases.
        layouts: row layouts that are exact for the model.
    """
    if 4 not in findings.wanted:
        return
    if reason := unavailable(recipe):
        findings.omit(4, recipe.name, reason)
        return
    with findings.guarded(4, named(bench, recipe, "reference")):
        reference = bench.fit(f"{recipe.name}-reference", recipe.changes)
        checkpoint = max((reference / "checkpoints").glob("*.ckpt"))
        expected = plain_validation(bench, recipe, checkpoint)
        sizes = {"grouped": (1, 16), "packed": (3, 16), "flattened": (2,)}
        for size, layout in ((size, kind) for kind in layouts for size in sizes[kind]):
            data = {"global_batch_size": size, "row_layout": layout, "micro_batch_tokens": 3 * bench.world.longest}
            name = f"{recipe.name}-validation-{size}-{layout}"
            findings.measure(
                4,
                named(bench, recipe, f"{size} at a time, {layout}"),
                lambda name=name, data=data: validation_gap(  # type: ignore[misc]
                    bench.validate(name, recipe.changes, {"data": data}, arguments=("--ckpt_path", str(checkpoint))),
                    expected,
                ),
                quantity="loss",
                allowed=rounding(bench),
            )


def validation_gap(result: Any, expected: tuple[float, int]) -> float:
    """Return how far a validation result is from loss and number of tokens; infinite where the number differs."""
    loss, tokens = expected
    return abs(result.loss - loss) if result.supervised_tokens == tokens else float("inf")


def plain_validation(bench: Workbench, recipe: Recipe, checkpoint: Path | None) -> tuple[float, int]:
    """Return validation loss and supervised tokens, each example on its own through transformers' plain forward.

    Args:
        bench: opens the model.
        recipe: what is trained.
        checkpoint: whose weights are taken; none for those before the first step.
    """
    module, data = bench.open(f"{recipe.name}-plain-validation", recipe.changes)
    if checkpoint is not None:
        module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"], strict=False)
    return validation_loss(module.model, data)
