"""`model.kernels`: Liger's Triton kernels (Hsu et al. 2024, arXiv:2410.10989) in the place of torch's on a CUDA GPU.

Norms, the product in a gated feed-forward block and rotary positions, each in one pass over its input. The head and its
loss stay those of `ift.models.fused_head`, whose sum over a step is exact. A model's own modules are changed, no class:
other models in the process stay as they are, but for rotary positions, a function of their file, which looks where
its input lies. The loaded model is tried once with and without.
"""

import inspect
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from ift.errors import UserError
from ift.models.base_weights import decoder_layers
from ift.models.calling import calling_of

KEY = "model.kernels"
Kernels = Literal["auto", "torch", "liger"]
DEVICE = "cuda"
"""Type of the device that Triton's kernels run on."""
_ROTARY = "apply_rotary_pos_emb"

# fmt: off
KERNEL_FAMILIES = frozenset([
    "deepseek_v2", "deepseek_v3", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "hunyuan_v1_dense",
    "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
])
# fmt: on
"""Model types (`model_type` of their config) whose loss and gradients were seen to be torch's with these kernels; a
test runs every one in Triton's interpreter."""
_WITHOUT_BLOCKS = frozenset({"deepseek_v2", "deepseek_v3", "mixtral", "qwen3_moe"})
"""Of these, those with experts, where Liger would take one kernel for routing and products together."""
_WITHOUT_ROTARY = frozenset({"deepseek_v2", "deepseek_v3", "glm4"})
"""Of these, those that pair the numbers they turn in another way than Liger does."""


@dataclass(frozen=True)
class KernelChoice:
    """Which kernels a session computes with, as its entry in the manifest says."""

    used: Literal["torch", "liger"]
    reason: str
    versions: str = ""
    """Of the packages whose kernels they are; empty for torch's own."""


PLAIN = KernelChoice("torch", "the model is not on its device yet")


def choose_kernels(asked: Kernels, *, config: Any, device: str, compiled: bool, whole: bool) -> KernelChoice:
    """Return which kernels a model is to compute with; loads no weights and does not import Liger.

    Args:
        asked: `model.kernels`; `auto` takes Liger's where they can run.
        config: transformers' config of the base model, or `None` where it cannot be read.
        device: type of the device that the model will be on.
        compiled: `model.compile`.
        whole: whether each rank holds all weights.

    Raises:
        UserError: Liger's are asked for where they cannot be.
    """
    if asked == "torch":
        return KernelChoice("torch", "asked for")
    obstacle = _obstacle(config, device=device, compiled=compiled, whole=whole)
    if obstacle is None:
        return KernelChoice("liger", "installed, and on a GPU" if asked == "auto" else "asked for", _versions())
    reason, repair = obstacle
    if asked == "liger":
        raise UserError(f"{KEY}: liger cannot be here: {reason}. {repair}set it to auto or torch.")
    return KernelChoice("torch", reason)


def _obstacle(config: Any, *, device: str, compiled: bool, whole: bool) -> tuple[str, str] | None:
    """Return why Liger's kernels cannot be used, and the beginning of a sentence on what to do; `None` if they can."""
    if device != DEVICE:
        return f"its kernels run on CUDA GPUs, and the model is to be on '{device}'", "Run it where a GPU is, or "
    missing = [name for name, package in (("liger-kernel", "liger_kernel"), ("triton", "triton")) if not _has(package)]
    if missing:
        return f"{' and '.join(missing)} is not installed", "Install it (pip install 'ift[liger]'), or "
    if compiled:
        return "model.compile is true, and the compiler writes kernels of its own", "Set model.compile to false, or "
    if not whole:
        return "ranks hold parts of the weights, where it was not tried", "Set trainer.strategy to ddp, or "
    model_type = getattr(config, "model_type", None)
    if model_type not in KERNEL_FAMILIES:
        known = ", ".join(sorted(KERNEL_FAMILIES))
        return f"it was not tried on '{model_type}' models, only on {known}", "For this model, "
    return None


def _has(package: str) -> bool:
    return find_spec(package) is not None


def _versions() -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in ("liger-kernel", "triton"))
    except PackageNotFoundError:  # importable all the same: from a folder on the path
        return "unknown"


def use_liger(model: Any) -> None:
    """Let the modules of a model compute with Liger's kernels; `choose_kernels` says where that can be.

    The last layer's feed-forward block stays as it is: it is computed at fewer positions (`ift.models.last_layer`).

    Args:
        model: of transformers, before any adapter is attached: adapters then wrap what they find.
    """
    # It tells of every backend that is not installed; of what it uses, the trial tells more.
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    model_type = model.config.model_type
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]
    blocks = model_type not in _WITHOUT_BLOCKS
    wanted = {"rms_norm": True, "layer_norm": True, "rope": model_type not in _WITHOUT_ROTARY}
    wanted |= {"swiglu": blocks, "geglu": blocks, "cross_entropy": False, "fused_linear_cross_entropy": False}
    code: Any = sys.modules[type(model).__module__]
    before = dict(vars(code))
    apply(model=model, **{name: value for name, value in wanted.items() if name in inspect.signature(apply).parameters})
    rotary, plain = vars(code).get(_ROTARY), before.get(_ROTARY)
    vars(code).update(before)  # Liger also changes what other models are made of
    if rotary is not plain and not hasattr(plain, "ift_plain"):
        setattr(code, _ROTARY, _where_it_runs(rotary, plain))
    for module in _changed(model):
        if hasattr(module, "in_place"):  # a norm's gradient, written over one that a residual may still need
            module.in_place = False
    last = set(decoder_layers(model)[-1].modules())
    for module in list(_changed(model)):
        if module in last and not hasattr(module, "in_place"):
            del module.forward


def _where_it_runs(rotary: Any, plain: Any) -> Any:
    """Return rotary positions by Liger's kernel where it can run, and as they were elsewhere."""

    @wraps(plain)
    def apply(query: Any, key: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        chosen = rotary if query.device.type == DEVICE else plain
        return chosen(query, key, cos, sin, unsqueeze_dim=unsqueeze_dim)

    apply.ift_plain = plain  # type: ignore[attr-defined]
    return apply


def _changed(model: Any) -> Iterator[Any]:
    """Yield the modules of a model that compute with Liger's kernels."""
    for module in model.modules():
        function = getattr(vars(module).get("forward"), "__func__", None)
        if function is not None and function.__module__.startswith("liger_kernel."):
            yield module


def verify_kernels(asked: Kernels, choice: KernelChoice, model: Any) -> KernelChoice:
    """Try on the loaded model whether Liger's kernels give torch's loss and gradients; else undo them, with a warning.

    Args:
        asked: `model.kernels`.
        choice: of `choose_kernels`.
        model: with its adapters.

    Raises:
        UserError: they do not, and were asked for.
    """
    if choice.used == "torch":
        return choice
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices == {DEVICE}:
        ours = _trial(model)
        rotary, forwards = _undo(model)
        difference = _difference(ours, _trial(model))
        if difference is None:
            _redo(model, rotary, forwards)
            return choice
    else:
        _undo(model)
        difference = f"some weights are on '{min(devices - {DEVICE})}'"
    if asked == "liger":
        raise UserError(f"{KEY}: liger cannot be here: in a trial with the loaded model, {difference}. Set it to auto.")
    rank_zero_warn(f"{KEY}: torch's kernels are used, not Liger's: in a trial with the loaded model, {difference}.")
    return KernelChoice("torch", f"in a trial with the loaded model, {difference}")


def _undo(model: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """Let a model compute as transformers has it; return what that replaced."""
    forwards = [(module, module.forward) for module in _changed(model)]
    for module, _ in forwards:
        del module.forward
    code = _code_of(model)
    rotary = vars(code).get(_ROTARY)
    _set_rotary(code, getattr(rotary, "ift_plain", rotary))
    return rotary, forwards


def _redo(model: Any, rotary: Any, forwards: list[tuple[Any, Any]]) -> None:
    _set_rotary(_code_of(model), rotary)
    for module, forward in forwards:
        module.forward = forward


def _set_rotary(code: Any, function: Any) -> None:
    if function is not None:  # DeepSeek V2 has one of another name
        setattr(code, _ROTARY, function)


def _code_of(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return sys.modules[type(base).__module__]


def _trial(model: Any) -> list[torch.Tensor]:
    """Return the loss of a text, and its gradients by the embedded text and by what is trained of one dimension."""
    module = model.get_input_embeddings()
    embedding = getattr(module, "original_module", module).weight
    ids = torch.linspace(0, len(embedding) - 1, 20, device=embedding.device).long()[None]
    keep = torch.arange(20, device=ids.device)[None] % 3 > 0
    embedded: list[torch.Tensor] = []

    def watch(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    training, handle = model.training, module.register_forward_hook(watch)
    model.eval()
    try:
        inputs = {"input_ids": ids, "use_cache": False}
        with torch.enable_grad():
            loss = calling_of(model).loss_sum(model, inputs, keep, targets=ids.flip(1)[keep])
            scales = [one for one in model.parameters() if one.requires_grad and one.ndim == 1]
            gradients = torch.autograd.grad(loss, [*embedded, *scales], allow_unused=True)
    finally:
        handle.remove()
        model.train(training)
    return [loss.detach(), *(one for one in gradients if one is not None)]


def _difference(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> str | None:
    """Return how two trials differ by more than rounding, or `None`."""
    if len(ours) != len(plain):
        return f"{len(plain)} gradients are there with torch's, and {len(ours)} with Liger's"
    eps = torch.finfo(plain[1].dtype).eps
    # Rounding of many layers adds up; a wrong function differs by much more than either.
    for name, one, other in zip(["loss", *["gradient"] * (len(plain) - 1)], ours, plain, strict=True):
        limit = max(1e-5, 4 * eps) if name == "loss" else eps**0.5
        apart = float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30))
        if not apart <= limit:
            return f"the {name} was {apart:.1e} of its size from torch's, more than rounding ({limit:.1e})"
    return None
