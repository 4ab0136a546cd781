"""The checks of `ift check`, in order, on a world of tiny things."""

import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from ift.checks.adapter_checks import METHODS, check_adapter, check_export, check_vocabulary
from ift.checks.findings import Findings
from ift.checks.model_checks import check_loss, check_packing
from ift.checks.rank_checks import KilledRun, RankChecks
from ift.checks.run_checks import check_cutting, check_repeatable, check_resuming, check_validation
from ift.checks.text_checks import all_templates, check_labels, check_prompts, check_rows_accounted
from ift.checks.tiny_world import make_world, recipes
from ift.checks.workbench import Recipe, Workbench, World
from ift.commands.trainer import prepare, run_once

ALL_LAYOUTS = ("packed", "flattened", "grouped")


class TrainerCommands:
    """`ift fit` and `ift validate` in this process."""

    def run(self, command: str, arguments: list[str]) -> Any:
        """Run one; returns the result of `validate`."""
        return run_once(command, arguments, tell=False)[1]

    def prepare(self, arguments: list[str]) -> tuple[Any, Any]:
        """Return module and data module of a `fit` that is ready to begin."""
        cli = prepare("fit", arguments, tell=False)
        return cli.model, cli.datamodule


def check(findings: Findings, options: Namespace) -> None:
    """Run all checks that are wanted."""
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)  # one order of summation
    with tempfile.TemporaryDirectory(prefix="ift-check-") as folder:
        root = Path(options.keep).expanduser() if options.keep else Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        world = make_world(root)
        bench = Workbench(world, TrainerCommands())
        lora, *_ = trained = recipes()
        killed, ranks = KilledRun(bench, lora, findings), RankChecks(bench, trained, findings)
        try:
            _check_texts(world, findings)
            killed.wait_and_kill()
            _check_here(bench, trained, findings)
            killed.finish()
            ranks.finish()
        finally:
            killed.close()
            ranks.close()


def _check_texts(world: World, findings: Findings) -> None:
    """Check what needs no model."""
    for name, tokenizer in world.tokenizers.items():
        for template in all_templates():
            given: Any = {"title": f"{template}, {name}", "data": {"template": template}}
            check_labels(world.root, tokenizer, findings, **given)
            check_prompts(world.root, tokenizer, findings, **given)
    check_rows_accounted(world, findings)


def _check_here(bench: Workbench, trained: list[Recipe], findings: Findings) -> None:
    """Check what one process can, on one device."""
    grouped = {"bloom": ("grouped",)}
    check_packing(bench, findings, layouts={name: grouped.get(name, ALL_LAYOUTS) for name in bench.world.families})
    check_loss(bench, findings, {recipe.name: recipe.changes for recipe in trained})
    for recipe in trained:
        check_cutting(bench, recipe, findings, layouts=ALL_LAYOUTS)
        check_repeatable(bench, recipe, findings)
        check_validation(bench, recipe, findings, layouts=ALL_LAYOUTS)
        check_resuming(bench, recipe, findings)
        check_export(bench, recipe, findings)
        if not recipe.whole:
            check_adapter(bench, recipe.name, recipe.changes, findings)
        check_vocabulary(bench, recipe, findings)
    for name, changes in METHODS.items():
        check_adapter(bench, name, changes, findings)
