"""The checks of `ift check`, in order, on a world of tiny things."""

import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ift.checks.adapter_checks import METHODS, check_adapter, check_export, check_vocabulary
from ift.checks.config_world import ConfigWorld, data_options, make_config_world
from ift.checks.findings import ARTEFACTS, Findings, Part
from ift.checks.model_checks import check_loss, check_packing, check_rows
from ift.checks.rank_checks import KilledRun, RankChecks
from ift.checks.run_checks import check_cutting, check_repeatable, check_resuming, check_validation
from ift.checks.text_checks import all_templates, check_labels, check_prompts, check_rows_accounted
from ift.checks.tiny_world import make_world, recipes
from ift.checks.workbench import Recipe, Workbench, World, quiet
from ift.commands.check_config import check_own_files, config_of_file, config_of_run
from ift.commands.trainer import prepare, run_once

ALL_LAYOUTS = ("packed", "flattened", "grouped")
_ADAPTERS, _RANKS = frozenset({8}), frozenset({3, 4, 5})


class TrainerCommands:
    """`ift fit` and `ift validate` in this process."""

    def run(self, command: str, arguments: list[str]) -> Any:
        """Run one; returns the result of `validate`."""
        return run_once(command, arguments, tell=False)[1]

    def prepare(self, arguments: list[str]) -> tuple[Any, Any]:
        """Return module and data module of a `fit` that is ready to begin."""
        cli = prepare("fit", arguments, tell=False)
        cli.lock.release()
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
    parts = [*_text_parts(world, findings), *_packing_parts(bench, findings)]
    for number, recipe in enumerate(trained):
        parts += _recipe_parts(bench, recipe, findings, layouts=ALL_LAYOUTS, thorough=number == 0)
    parts += [
        Part(_ADAPTERS, 1.0, partial(check_adapter, bench, name, changes, findings))
        for name, changes in METHODS.items()
    ]
    parts += [Part(frozenset({5}), 6.0, killed.finish), Part(_RANKS, 10.0, ranks.finish)]
    try:
        killed.start()
        ranks.start()
        findings.run([*parts, *_gpu_parts(world, findings, trained)])
    finally:
        killed.close()
        ranks.close()


def _gpu_parts(world: World, findings: Findings, trained: list[Recipe]) -> list[Part]:
    """Return the checks of whole runs on a GPU, where there is one."""
    import torch

    if not torch.cuda.is_available():
        findings.say("no GPU here: everything is checked on the CPU")
        return []
    bench = Workbench(world, TrainerCommands(), accelerator="gpu")
    return [
        part for recipe in trained for part in _run_parts(bench, recipe, findings, layouts=ALL_LAYOUTS, thorough=False)
    ]


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
    parts = [
        Part(frozenset({1, 2}), 0.5, partial(_check_own_texts, root, like, findings)),
        Part(frozenset({10}), 0.5, partial(check_rows_accounted, like.world, findings)),
        *_own_rows_parts(bench, like, findings, layouts=layouts),
        *_recipe_parts(bench, like.recipe, findings, layouts=layouts, thorough=True),
        Part(_RANKS, 10.0, ranks.finish),
        *([Part(frozenset({ARTEFACTS}), 3.0, partial(check_own_files, options.run, findings))] if like_run else []),
    ]
    try:
        ranks.start()
        findings.run(parts)
    finally:
        ranks.close()


def _check_own_texts(root: Path, like: ConfigWorld, findings: Findings) -> None:
    given: Any = {"title": "its template", "data": data_options(like.texts)}
    if like.texts.get("train_on") == "everything":
        findings.omit(1, "its template", "all text is learned, and no response by itself")
    else:
        check_labels(root, like.tokenizer, findings, **given)
    check_prompts(root, like.tokenizer, findings, **given)


def _own_rows_parts(
    bench: Workbench, like: ConfigWorld, findings: Findings, *, layouts: tuple[str, ...]
) -> Iterator[Part]:
    for model_type in like.world.families:
        given: Any = {"title": model_type, "layouts": layouts, "changes": like.recipe.changes}
        yield Part(frozenset({6}), 1.5, partial(check_rows, bench, findings, **given))


def _exact_layouts(bench: Workbench, recipe: Recipe) -> tuple[str, ...]:
    """Return the row layouts that are exact for a model and its method, the fastest first."""
    _, data = bench.open("layouts", recipe.changes, {"data": {"row_layout": "auto"}})
    choice = data.row_layout_choice
    if choice.by_example:  # which needs what packed rows need
        return ("flattened", "packed", "grouped")
    return ALL_LAYOUTS[ALL_LAYOUTS.index(choice.layout) :]


def _text_parts(world: World, findings: Findings) -> Iterator[Part]:
    """Yield the checks that need no model."""

    def check(tokenizer: Path, given: Any) -> None:
        check_labels(world.root, tokenizer, findings, **given)
        check_prompts(world.root, tokenizer, findings, **given)

    for name, tokenizer in world.tokenizers.items():
        for template in all_templates():
            given = {"title": f"{template}, {name}", "data": {"template": template}}
            yield Part(frozenset({1, 2}), 0.2, partial(check, tokenizer, given))
    yield Part(frozenset({10}), 0.3, partial(check_rows_accounted, world, findings))


def _packing_parts(bench: Workbench, findings: Findings) -> Iterator[Part]:
    """Yield the checks of every family's rows; with the first of them, for each kind of attention."""
    grouped = {"bloom": ("grouped",)}
    for number, name in enumerate(bench.world.families):
        for attention in ("sdpa", "eager") if not number else (None,):
            given: Any = {"attention": attention, "layouts": grouped.get(name, ALL_LAYOUTS)}
            yield Part(frozenset({6}), 1.3, partial(check_packing, bench, findings, name, **given))


def _recipe_parts(
    bench: Workbench, recipe: Recipe, findings: Findings, *, layouts: tuple[str, ...], thorough: bool
) -> Iterator[Part]:
    """Yield what one process can check on one device for a method."""
    yield Part(frozenset({7}), 1.0, partial(check_loss, bench, recipe, findings))
    yield from _run_parts(bench, recipe, findings, layouts=layouts, thorough=thorough)
    yield Part(_ADAPTERS, 0.5, partial(check_export, bench, recipe, findings))
    if recipe.whole:
        reason = "there is no adapter: the method trains weights of the base model itself"
        yield Part(_ADAPTERS, 0.0, partial(findings.omit, 8, f"{recipe.name}, fresh, saved, merged", reason))
    else:
        yield Part(_ADAPTERS, 1.0, partial(check_adapter, bench, recipe.name, recipe.changes, findings))
    yield Part(frozenset({9}), 2.5, partial(check_vocabulary, bench, recipe, findings))


def _run_parts(
    bench: Workbench, recipe: Recipe, findings: Findings, *, layouts: tuple[str, ...], thorough: bool
) -> Iterator[Part]:
    """Yield the checks of whole runs."""
    cut, whole = {"thorough": thorough}, {"layouts": layouts}
    seconds = 24.0 if thorough else 13.0
    yield Part(frozenset({3}), seconds, partial(check_cutting, bench, recipe, findings, **whole, **cut))  # type: ignore[arg-type]
    yield Part(frozenset({3}), seconds / 4, partial(check_repeatable, bench, recipe, findings, **cut))
    yield Part(frozenset({4}), 3.0, partial(check_validation, bench, recipe, findings, **whole))
    yield Part(frozenset({5}), seconds / 5, partial(check_resuming, bench, recipe, findings, **cut))
