"""The checks of `ift check`, in order, on a world of tiny things."""

import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from ift.checks.findings import Findings
from ift.checks.model_checks import check_loss, check_packing
from ift.checks.run_checks import check_cutting, check_repeatable, check_resuming, check_validation
from ift.checks.tiny_world import make_world, recipes
from ift.checks.workbench import Workbench
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
        for recipe in recipes():
            check_cutting(bench, recipe, findings, layouts=ALL_LAYOUTS)
            check_repeatable(bench, recipe, findings)
            check_validation(bench, recipe, findings, layouts=ALL_LAYOUTS)
            check_resuming(bench, recipe, findings)
        grouped = {"bloom": ("grouped",)}
        check_packing(bench, findings, layouts={name: grouped.get(name, ALL_LAYOUTS) for name in world.families})
        check_loss(bench, findings, {recipe.name: recipe.changes for recipe in recipes()})
