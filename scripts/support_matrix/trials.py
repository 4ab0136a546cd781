"""One method on one family of models, tried: it trains, comes back, merges, and computes the same in every setting."""

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from entries import PHRASE, VOCABULARY, make_model
from peft import XLoraConfig

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import MicroBatch, collate
from ift.errors import UserError
from ift.inference.generation import Decoding, generate
from ift.models.adapters import attach
from ift.models.calling import calling_of
from ift.models.initial_adapters import changes_base, save_adapter, save_initial
from ift.models.loading import load_base_model, read_config
from ift.models.mergeability import check_mergeable
from ift.models.merging import merge
from ift.models.methods import METHODS, Method
from ift.models.quantization import SCHEMES, Quantization
from ift.models.quantized_layers import dequantized
from ift.models.support import COLUMNS, YES
from ift.models.trained_adapters import load_adapter
from ift.training.course import MethodCourse
from ift.training.objective import loss_sum

LENGTHS = (15, 22, 9)
STEPS = 6
NEW_TOKENS = 6
TOLERANCE = 1e-4
"""Largest difference of logits or gradients that is rounding, as a share of the largest one, in float32."""


class TrialError(Exception):
    """What went wrong in a trial."""


def examples() -> list[Example]:
    """Return examples supervised in part, of unequal lengths, each with the phrase that activates aLoRA."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, VOCABULARY, length) for length in LENGTHS]
    for one in ids:
        one[3] = PHRASE
    return [Example(one, np.where(np.arange(len(one)) % 3 == 1, IGNORE_INDEX, one)) for one in ids]


def batch(*, packed: bool) -> MicroBatch:
    """Return the examples in one row, or each in its own."""
    return collate([examples()] if packed else [[one] for one in examples()], 0)


def try_method(make: Callable[[], Method], family: str) -> dict[str, str]:
    """Return for each column `yes`, or why not; `-` where that cannot be asked."""
    found = dict.fromkeys(COLUMNS, "-")
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = Path(place) / "base"
        make_model(family).save_pretrained(str(base))
        trained: list[Any] = []
        found["train"] = _outcome(lambda: trained.append(_train(make(), base, Path(place) / "adapter")))
        if found["train"] != YES:
            return found
        if make().trains_base:
            found |= {"reload": YES, "merge": YES}  # a whole model is saved
        else:
            found["reload"] = _outcome(lambda: _reload(trained[0], base, Path(place) / "adapter"))
            found["merge"] = _outcome(lambda: _merge(trained[0], base, Path(place) / "adapter"))
        found["generate"] = _outcome(lambda: _generate(trained[0]))
        if calling_of(trained[0]).split is None:  # an encoder reads one prompt per row
            found["packed"] = _outcome(lambda: _packed(trained[0]))
        found["checkpointing"] = _outcome(lambda: _checkpointing(trained[0]))
        for scheme in SCHEMES if not make().trains_base else ():
            quantization = Quantization(scheme)
            found[scheme] = _outcome(partial(_quantized, make, base, quantization, Path(place) / scheme))
    return found


def _outcome(trial: Callable[[], object]) -> str:
    try:
        trial()
    except TrialError as error:
        return str(error)
    except UserError as error:
        text = " ".join(str(error).split())
        return (text.partition("cannot be applied to this model: ")[2] or text)[:300]
    except Exception as error:  # whatever PEFT's code raises is the answer to the question
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return YES


def _attached(method: Method, model: Any) -> Any:
    if isinstance(method.config, XLoraConfig):  # it mixes adapters that were trained before
        base, place = Path(model.name_or_path), Path(model.name_or_path).parent
        for name in method.config.adapters if not (place / "first").exists() else ():
            _train(METHODS["lora"](lora_dropout=0.0), base, place / name)
        method.config.adapters = {name: str(place / name) for name in method.config.adapters}
    return attach(model, method, seed=0, num_steps=20)


def _train(method: Method, base: Path, saved: Path) -> Any:
    """Train a few steps, and save; every trained tensor that has an effect must move, and the loss fall."""
    model = _attached(method, load_base_model("base", str(base), "float32"))
    return _trained(model, method, saved)


def _trained(model: Any, method: Method, saved: Path) -> Any:
    if not method.trains_base and changes_base(model.active_peft_config):
        save_initial(model, saved.with_name(saved.name + "_initial"))
    losses = _steps(model, method)
    if not losses[-1] < losses[0] - 1e-3:
        raise TrialError(f"its loss does not fall: {losses[0]:.4f} before, {losses[-1]:.4f} after {STEPS} steps")
    _compare(_logits(model), _together(model), "the logits of an example beside others")
    if not method.trains_base:
        save_adapter(model, saved, initial=saved.with_name(saved.name + "_initial"))
    return model


def _steps(model: Any, method: Method) -> list[float]:
    calling, course = calling_of(model), MethodCourse(model, method, seed=0)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-2, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        losses.append(_evaluated(model, calling))
        model.train()
        torch.manual_seed(step)
        course.before_step(step, optimizer)
        loss = course.loss(batch(packed=False), loss_sum(model, batch(packed=False), calling=calling))
        penalty = course.penalty()
        torch.autograd.backward(loss / 30 if penalty is None else loss / 30 + penalty)
        optimizer.step()
        course.after_update(step)
        optimizer.zero_grad()
    losses.append(_evaluated(model, calling))
    if not all(np.isfinite(losses)):
        raise TrialError("its loss is not finite")
    return losses


@torch.no_grad()
def _evaluated(model: Any, calling: Any) -> float:
    model.eval()
    return float(loss_sum(model, batch(packed=False), calling=calling)) / 30


@torch.no_grad()
def _logits(model: Any) -> list[torch.Tensor]:
    """Return the logits of each example alone."""
    model.eval()
    calling = calling_of(model)
    found = []
    for one in examples():
        ids = torch.from_numpy(one.input_ids)[None]
        inputs = {"input_ids": ids, "use_cache": False}
        found.append(calling.logits(model, inputs, torch.ones_like(ids, dtype=torch.bool)))
    return found


@torch.no_grad()
def _together(model: Any) -> list[torch.Tensor]:
    """Return the logits of each example, beside the others and padded."""
    rows = batch(packed=False)
    inputs = {"input_ids": rows.input_ids, "use_cache": False}
    real = torch.arange(rows.input_ids.shape[1]) < torch.tensor([row[0] for row in rows.lengths])[:, None]
    return list(torch.split(calling_of(model).logits(model, inputs, real), [row[0] for row in rows.lengths]))


def _compare(expected: list[torch.Tensor], found: list[torch.Tensor], what: str) -> None:
    scale = max(float(one.abs().max()) for one in expected)
    gap = max(float((one - other).abs().max()) for one, other in zip(expected, found, strict=True))
    if not gap <= TOLERANCE * scale:
        raise TrialError(f"{what} differ by {gap / scale:.1e} of the largest")


def _reload(model: Any, base: Path, saved: Path) -> None:
    torch.manual_seed(4321)
    again = load_adapter("adapter", load_base_model("base", str(base), "float32"), saved)
    _compare(_logits(model), _logits(again), "the logits of the loaded adapter")


def _merge(model: Any, base: Path, saved: Path) -> None:
    try:
        check_mergeable("RUN", saved, config=read_config(str(base)))
    except UserError as error:
        text = str(error).partition("cannot be merged: ")[2] or str(error)
        raise TrialError(text.partition(" Serve base")[0]) from error
    again = merge("RUN", load_adapter("adapter", load_base_model("base", str(base), "float32"), saved), "float32")
    _compare(_logits(model), _logits(again), "the merged logits")


@torch.no_grad()
def _generate(model: Any) -> None:
    """Greedy responses to a padded batch, with a cache, must be those of each prompt alone without one."""
    model.eval()
    calling = calling_of(model)
    prompts = [one.input_ids.tolist() for one in examples()]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(NEW_TOKENS):
            inputs = {"input_ids": torch.tensor([ids]), "use_cache": False}
            written = calling.logits(model, inputs, torch.arange(len(ids))[None] >= len(prompt) - 1)
            ids.append(int(written[-1].argmax()))
        expected.append(ids[len(prompt) :])
    decoding = Decoding(max_new_tokens=NEW_TOKENS)
    # No token ends a response here: -1 is none.
    found = [one.ids for one in generate(model, prompts, decoding=decoding, stop_token_ids=[-1], pad_token_id=0)]
    if found != expected:
        wrong = sum(one != other for one, other in zip(found, expected, strict=True))
        raise TrialError(f"{wrong} of {len(prompts)} responses in a padded batch are not those of the prompts alone")


@torch.no_grad()
def _packed(model: Any) -> None:
    """Packed rows must give the logits of each example alone."""
    model.eval()
    calling = calling_of(model)
    row = batch(packed=True)
    inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids, "use_cache": False}
    logits = calling.logits(model, inputs, torch.ones_like(row.input_ids, dtype=torch.bool))
    _compare([torch.cat(_logits(model))], [logits], "the logits of packed rows")


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    torch.autograd.backward(loss_sum(model, batch(packed=False), calling=calling_of(model)))
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def _same_gradients(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], what: str) -> None:
    if not expected:
        raise TrialError("nothing has a gradient")
    if expected.keys() != found.keys():
        raise TrialError(f"{what}: other parameters have gradients")
    names = sorted(expected)
    if not any(float(found[name].abs().max()) > 0 for name in names):
        raise TrialError(f"{what} are zero, without an error")
    _compare([expected[name] for name in names], [found[name].float() for name in names], what)


def _checkpointing(model: Any) -> None:
    expected = _gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        _same_gradients(expected, _gradients(model), "the gradients with checkpointing")
    finally:
        model.gradient_checkpointing_disable()


def _quantized(make: Callable[[], Method], base: Path, quantization: Quantization, saved: Path) -> None:
    """Beside quantized weights, gradients must be those beside the values they stand for; and training must work."""

    def load() -> Any:
        return load_base_model("base", str(base), "float32", quantization=quantization)

    model = _attached(make(), load())
    twin = _attached(make(), dequantized(load()))
    for one in (model, twin):
        _shake(one)
    _same_gradients(_gradients(twin), _gradients(model), f"the gradients beside {quantization.scheme} weights")
    del twin
    trained = _trained(_attached(make(), load()), make(), saved)
    torch.manual_seed(4321)
    again = load_adapter("adapter", load(), saved)
    _compare(_logits(trained), _logits(again), "the logits of the loaded adapter")


def _shake(model: Any) -> None:
    """Move trained values a little, so that no gradient is zero because of how an adapter begins."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
