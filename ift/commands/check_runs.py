"""The checks of `ift check`, in order, on a world of tiny things."""

import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from ift.checks.adapter_checks import METHODS, check_adapter, check_export, check_vocabulary
from ift.checks.config_world import data_options, make_config_world
from ift.checks.findings import Findings
from ift.checks.model_checks import check_loss, check_packing, check_rows
from ift.checks.rank_checks import KilledRun, RankChecks
from ift.checks.run_checks import check_cutting, check_repeatable, check_resuming, check_validation
from ift.checks.text_checks import all_templates, check_labels, check_prompts, check_rows_accounted
from ift.checks.tiny_world import make_world, recipes
from ift.checks.workbench import Recipe, Workbench, World, quiet
from ift.commands.check_config import check_own_files, config_of_file, config_of_run
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
        if options.run is None and options.config is None:
            _check_machine(root, findings)
        else:
            _check_like(root, options, findings)


def _check_machine(root: Path, findings: Findings) -> None:
    """Check with models of our own, for every method."""
    world = make_world(root)
    bench, trained = Workbench(world, TrainerCommands()), recipes()
    killed, ranks = KilledRun(bench, trained[0], findings), RankChecks(bench, trained, findings)
    try:
        _check_texts(world, findings)
        grouped = {"bloom": ("grouped",)}
        check_packing(bench, findings, layouts={name: grouped.get(name, ALL_LAYOUTS) for name in world.families})
        for number, recipe in enumerate(trained):
            _check_recipe(bench, recipe, findings, layouts=ALL_LAYOUTS, thorough=number == 0)
        for name, changes in METHODS.items():
            check_adapter(bench, name, changes, findings)
        killed.finish()
        ranks.finish()
    finally:
        killed.close()
        ranks.close()
    _check_gpu(world, findings, trained)


def _check_gpu(world: World, findings: Findings, trained: list[Recipe]) -> None:
    """Check whole runs on a GPU, where there is one."""
    import torch

    if not torch.cuda.is_available():
        findings.say("no GPU here: everything is checked on the CPU")
        return
    bench = Workbench(world, TrainerCommands(), accelerator="gpu")
    for recipe in trained:
        check_cutting(bench, recipe, findings, layouts=ALL_LAYOUTS, thorough=False)
        check_validation(bench, recipe, findings, layouts=ALL_LAYOUTS)
        check_resuming(bench, recipe, findings)


def _check_like(root: Path, options: Namespace, findings: Findings) -> None:
    """Check with a small model like that of a run or configuration, and the run's own files."""
    like_run = options.run is not None
    config = config_of_run(options.run) if like_run else config_of_file(options.config)
    with quiet():
        like = make_config_world(root, config)
    for note in like.notes:
        findings.say(f"not as in the configuration: {note}")
    bench = Workbench(like.world, TrainerCommands())
    layouts = _exact_layouts(bench, like.recipe)
    ranks = RankChecks(bench, [like.recipe], findings, strategies=(like.strategy,), layouts=layouts)
    try:
        if like.texts.get("train_on") == "everything":
            findings.omit(1, like.recipe.name, "all text is learned, and no response by itself")
        else:
            check_labels(root, like.tokenizer, findings, title="its template", data=data_options(like.texts))
        check_prompts(root, like.tokenizer, findings, title="its template", data=data_options(like.texts))
        check_rows_accounted(like.world, findings)
        ((model_type, _),) = like.world.families.items()
        check_rows(bench, findings, title=model_type, layouts=layouts, changes=like.recipe.changes)
        _check_recipe(bench, like.recipe, findings, layouts=layouts, thorough=True)
        ranks.finish()
        if like_run:
            with quiet():
                check_own_files(options.run, findings)
    finally:
        ranks.close()


def _exact_layouts(bench: Workbench, recipe: Recipe) -> tuple[str, ...]:
    """Return the row layouts that are exact for a model and its method, the fastest first."""
    _, data = bench.open("layouts", recipe.changes, {"data": {"row_layout": "auto"}})
    fastest = data.row_layout_choice.layout
    return ALL_LAYOUTS[ALL_LAYOUTS.index(fastest) :]


def _check_texts(world: World, findings: Findings) -> None:
    """Check what needs no model."""
    for name, tokenizer in world.tokenizers.items():
        for template in all_templates():
            given: Any = {"title": f"{template}, {name}", "data": {"template": template}}
            check_labels(world.root, tokenizer, findings, **given)
            check_prompts(world.root, tokenizer, findings, **given)
    check_rows_accounted(world, findings)


def _check_recipe(
    bench: Workbench, recipe: Recipe, findings: Findings, *, layouts: tuple[str, ...], thorough: bool
) -> None:
    """Check what one process can, on one device, for a method."""
    check_loss(bench, findings, {recipe.name: recipe.changes})
    check_cutting(bench, recipe, findings, layouts=layouts, thorough=thorough)
    check_repeatable(bench, recipe, findings, thorough=thorough)
    check_validation(bench, recipe, findings, layouts=layouts)
    check_resuming(bench, recipe, findings, thorough=thorough)
    check_export(bench, recipe, findings)
    if not recipe.whole:
        check_adapter(bench, recipe.name, recipe.changes, findings)
    check_vocabulary(bench, recipe, findings)
