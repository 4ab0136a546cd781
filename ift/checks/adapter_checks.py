"""Invariants 8 and 9: what an adapter is when fresh, loaded and merged, and what becomes of a larger vocabulary."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ift.checks.findings import Findings
from ift.checks.model_checks import RELATIVE_ROUNDING, disturb, logits_of, validation_loss
from ift.checks.run_checks import named, rounding, unavailable
from ift.checks.workbench import Changes, Recipe, Workbench, manifest_of, quiet
from ift.errors import UserError
from ift.models.certificate import FLOAT32_TOLERANCE
from ift.models.initial_adapters import changes_base, save_adapter, save_initial
from ift.models.loading import load_base_model
from ift.models.mergeability import check_mergeable
from ift.models.merging import load_trained, merge
from ift.models.targets import peft_type
from ift.models.trained_adapters import load_adapter
from ift.models.trained_run import open_trained

# fmt: off
BEGINS_UNCHANGED = frozenset([
    "ADALORA", "ADAPTION_PROMPT", "BOFT", "BOTTLENECK", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS",
    "OFT", "TRAINABLE_TOKENS", "VERA",
])
# fmt: on
"""PEFT's types that promise to change nothing at first, with the settings that they have by default."""
_START = ("init_weights", "init_lora_weights")
"""Settings by which a fresh adapter can be made to change the model; true, or a name such as pissa, changes nothing."""
METHODS: Mapping[str, Changes] = {
    name: {"model": {"adapter": adapter}}
    for name, adapter in {
        "dora": {"class_path": "dora", "init_args": {"r": 4, "lora_dropout": 0.0}},
        "pissa": {"class_path": "pissa", "init_args": {"r": 4}},
        "ia3": "ia3",
        "ln_tuning": "ln_tuning",
        "sadapter_h": {"class_path": "sadapter_h", "init_args": {"bottleneck_size": 4}},
        "p_adapter": {"class_path": "p_adapter", "init_args": {"bottleneck_size": 4}},
    }.items()
}
"""Tried beside the recipes of the runs."""


class Probe:
    """Logits of a model on some examples, each alone.

    Args:
        data: data module of a run.
        number: of examples.
    """

    def __init__(self, data: Any, number: int = 6) -> None:
        self._examples = [data.store[index] for index in range(min(number, len(data.store)))]

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        """Return the logits at supervised positions, float32 `(positions, vocabulary)`, in evaluation mode."""
        training = model.training
        model.eval()
        device = next(model.parameters()).device
        found = []
        for example in self._examples:
            ids, labels = (torch.from_numpy(one)[None].to(device) for one in (example.input_ids, example.labels))
            found.append(logits_of(model, ids, labels).float().cpu())
        model.train(training)
        return torch.cat(found)


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest number; not a number where any is none."""
    if one.shape != two.shape:
        return float("inf")
    return float((one - two).abs().max() / one.abs().max())


def check_adapter(bench: Workbench, name: str, changes: Changes, findings: Findings) -> None:
    """Invariant 8 for one method.

    Args:
        bench: opens the models.
        name: of the method.
        changes: to the settings of the world.
        findings: gain the cases.
    """
    if 8 not in findings.wanted:
        return
    with findings.guarded(8, name):
        module, data = bench.open(f"adapter-{name}", changes)
        if module.method.trains_base:
            return
        probe, config = Probe(data), module.model.active_peft_config
        if reason := _changes_at_first(config):
            findings.omit(8, f"{name}, fresh", reason)
        else:
            before = probe.logits(_base(module))
            measured = partial(relative, before, probe.logits(module.model))
            findings.measure(8, f"{name}, fresh", measured, quantity="of the largest logit", allowed=RELATIVE_ROUNDING)
        _check_saved(module, probe, findings, name=name, folder=bench.folder(f"adapter-{name}-saved"))


def _changes_at_first(config: Any) -> str | None:
    if config.is_prompt_learning or peft_type(config) not in BEGINS_UNCHANGED:
        return "this method does not promise to begin unchanged"
    starts = [getattr(config, name, True) for name in _START] + [getattr(config, "init", "identity") == "identity"]
    return None if all(starts) else "it is told to begin otherwise"


def _base(module: Any) -> Any:
    """Return the base model of a run, as its adapter is put on it."""
    from ift.models.enlarging import enlarge

    with quiet():
        options = {"quantization": module.quantization, "attention": module.attention, "rope": module.rope}
        return enlarge(load_base_model("model.base", module.base, module.dtype_name, **options), module.growth)


def _check_saved(module: Any, probe: Probe, findings: Findings, *, name: str, folder: Path) -> None:
    config = module.model.active_peft_config
    initial = folder / "initial"
    with quiet():
        if changes_base(config):
            save_initial(module.model, initial)
        disturb(module.model)
        trained = probe.logits(module.model)
        save_adapter(module.model, folder / "saved", initial=initial)
    # What takes its start out of the weights is saved as the difference of two adapters, which is rounded.
    allowed = RELATIVE_ROUNDING if changes_base(config) else 0.0

    def loaded() -> Any:
        with quiet():
            return load_adapter("adapter", _base(module), folder / "saved")

    findings.measure(
        8,
        f"{name}, saved and loaded",
        lambda: relative(trained, probe.logits(loaded())),
        quantity="of the largest logit",
        allowed=allowed,
    )
    try:
        check_mergeable("adapter", folder / "saved", config=loaded().get_base_model().config)
    except UserError as error:
        findings.omit(8, f"{name}, merged", str(error).split("cannot be merged: ")[-1].split(". ")[0])
        return
    findings.measure(
        8,
        f"{name}, merged",
        lambda: relative(trained, probe.logits(_merged(module, folder))),
        quantity="of the largest logit",
        allowed=FLOAT32_TOLERANCE,
    )


def _merged(module: Any, folder: Path) -> Any:
    """Return a merged model as it is read from a plain folder."""
    from ift.models.quantized_layers import dequantized

    with quiet():
        base = _base(module)
        if module.quantization is not None:
            base = dequantized(base)
        merge("adapter", load_adapter("adapter", base, folder / "saved"), "float32").save_pretrained(
            str(folder / "merged")
        )
        return load_base_model("merged", str(folder / "merged"), "float32")


def check_export(bench: Workbench, recipe: Recipe, findings: Findings) -> None:
    """Invariant 8 for a whole run: what it left behind has the loss of its last validation.

    Args:
        bench: runs it.
        recipe: what is trained.
        findings: gain the case.
    """
    if 8 not in findings.wanted or unavailable(recipe):
        return

    def compute() -> float:
        run = bench.fit(f"{recipe.name}-reference", recipe.changes)
        _, data = bench.open(f"{recipe.name}-export", recipe.changes)
        expected = manifest_of(run)["validation"][-1]["loss"]
        return abs(validation_loss(trained_model(run), data)[0] - float(expected))

    title = named(bench, recipe, "run folder")
    findings.measure(8, title, compute, quantity="validation loss", allowed=rounding(bench))


def trained_model(run: Path, *, dequantize: bool = False) -> Any:
    """Return the model that a finished run left behind."""
    with quiet():
        opened = open_trained("run", str(run))
        return load_trained("run", opened, "float32", quantization=opened.quantization, dequantize=dequantize)


NEW_TOKENS = ["<|check_begin|>", "<|check_end|>"]


def check_vocabulary(bench: Workbench, recipe: Recipe, findings: Findings) -> None:
    """Invariant 9: a run with new tokens, its folder, and its merged model.

    Args:
        bench: runs it.
        recipe: what is trained beside the new rows.
        findings: gain the cases.
    """
    if 9 not in findings.wanted or unavailable(recipe):
        return
    template = {
        "name": "check",
        "user": f"{{{NEW_TOKENS[0]}}}{{text}}{{{NEW_TOKENS[1]}}}",
        "response": f"{{text}}{{{NEW_TOKENS[1]}}}",
    }
    changes: Changes = {
        "model": {"vocabulary": {"special_tokens": NEW_TOKENS}, "dtype": "float32"},
        "data": {"template": template, "max_length": 2 * bench.world.longest},
    }
    with findings.guarded(9, recipe.name):
        run = bench.fit(f"{recipe.name}-vocabulary", recipe.changes, changes)
        module, data = bench.open(f"{recipe.name}-vocabulary-again", recipe.changes, changes)
        merged = merge("run", trained_model(run, dequantize=recipe.quantized), "float32")
        folder = bench.folder(f"{recipe.name}-vocabulary-merged")
        with quiet():
            merged.save_pretrained(str(folder))
            reloaded = load_base_model("merged", str(folder), "float32")
        _measure_rows(recipe, findings, module, reloaded)
        expected = manifest_of(run)["validation"][-1]["loss"]
        findings.measure(
            9,
            f"{recipe.name}, run folder",
            lambda: abs(validation_loss(trained_model(run), data)[0] - expected),
            quantity="validation loss",
            allowed=rounding(bench),
        )
        findings.measure(
            9,
            f"{recipe.name}, merged",
            lambda: abs(validation_loss(reloaded, data)[0] - expected),
            quantity="validation loss",
            allowed=FLOAT32_TOLERANCE,
        )
        findings.measure(9, f"{recipe.name}, tokenizer", partial(_tokens_lost, run, data), quantity="ids", allowed=0)


def _measure_rows(recipe: Recipe, findings: Findings, module: Any, merged: Any) -> None:
    growth = module.growth
    known = list(growth.known)  # padding has rows, too, which new tokens may take
    with quiet():
        base = load_base_model("model.base", module.base, "float32")
        from ift.models.enlarging import enlarge

        begun = enlarge(load_base_model("model.base", module.base, "float32"), growth)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, start, end = (getattr(model, name)().weight.detach() for model in (base, begun, merged))
        place = f"{recipe.name}, {name.removeprefix('get_').replace('_', ' ')}"
        if not recipe.whole:
            findings.measure(
                9,
                f"{place}, old rows",
                lambda old=old, end=end: float((end[known] - old[known]).abs().max()),  # type: ignore[misc]
                quantity="weights",
                allowed=0.0,
            )
        findings.measure(
            9,
            f"{place}, new rows untrained",
            lambda start=start, end=end: int((start[growth.new] == end[growth.new]).all(dim=1).sum()),  # type: ignore[misc]
            quantity="rows",
            allowed=0,
        )


def _tokens_lost(run: Path, data: Any) -> int:
    """Return how many new tokens the saved tokenizer does not have under the id of training."""
    from ift.data.encoding import load_tokenizer

    saved = load_tokenizer("run", str(run / "tokenizer"))
    return sum(
        saved.convert_tokens_to_ids(token) != data.tokenizer.convert_tokens_to_ids(token)
        or saved(token, add_special_tokens=False).input_ids != [data.tokenizer.convert_tokens_to_ids(token)]
        for token in NEW_TOKENS
    )
