"""Attach adapters: fresh ones, trained ones to go on with, and what is checked before any weights are loaded."""

import copy
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftConfig,
    TrainableTokensConfig,
    XLoraConfig,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from ift.errors import UserError
from ift.models.adapter_rules import check_settings, check_start
from ift.models.base_weights import BaseWeights, select
from ift.models.encoder_decoder import auto_class, set_task_type
from ift.models.families.normalized_head import NormalizedHead, settle_heads
from ift.models.initial_adapters import changes_base
from ift.models.loading import read_config
from ift.models.mergeability import read_adapter_config
from ift.models.methods import METHODS, Method
from ift.models.targets import check_tied, fill_targets, peft_type
from ift.models.trained_adapters import adapter_folder, load_adapter
from ift.models.trained_rows import compute_as_the_module, trains_rows, with_trained_rows
from ift.models.vocabulary import Growth, Vocabulary, enlarged_config, growth_of

KEY = "model.adapter"


def attach(model: Any, method: Method, *, seed: int, num_steps: int | None, training: bool = False) -> Any:
    """Make exactly what a method trains trainable.

    Args:
        model: a base model.
        method: a fresh adapter, one to go on with, or weights of the base model.
        seed: for the adapter's initial weights, the same on every rank.
        num_steps: optimizer steps of the whole run, where known.
        training: whether there will be steps.

    Returns:
        The model itself, or a `peft.PeftModel` around it.

    Raises:
        UserError: the method does not fit this model, or needs the number of steps.
    """
    if isinstance(method.config, BaseWeights):
        select(model, method.config)
        _warn_of_rounding(model)
        return model
    if isinstance(method.config, Path):
        return _load_trainable(model, method.config)
    if num_steps is None and training and isinstance(method.config, AdaLoraConfig):
        raise UserError(
            f"{KEY}: AdaLoRA deals out its ranks over all steps, and how many there are is not known with streams. Set "
            "trainer.max_steps."
        )
    config = resolved(method, model, num_steps=num_steps)
    if _adapts_normalized_head(config, model):
        settle_heads(model, trained=True)  # a start may take its values, or lengths (DoRA), from the rows
    wrapped = _wrap(model, config, seed=seed)
    if changes_base(config):
        check_start(wrapped)
    _warn_of_rounding(wrapped)
    return wrapped


def _adapts_normalized_head(config: Any, model: Any) -> bool:
    """Whether an adapter goes on a head that divides its rows (Baichuan2); rows that are trained stay as they are."""
    head = model.get_output_embeddings()
    if type(head) is not NormalizedHead or not getattr(config, "target_modules", None):
        return False
    name = next(name for name, module in model.named_modules() if module is head)
    return not isinstance(config, TrainableTokensConfig) and bool(check_target_module_exists(config, name))


def _warn_of_rounding(model: nn.Module) -> None:
    """Say so where an adapter trains weights in the base model's small dtype; PEFT casts only its own to float32."""
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    rounded = [(name, one) for name, one in trained if one.is_floating_point() and one.dtype != torch.float32]
    if rounded:
        name = rounded[0][0].removeprefix("base_model.model.")
        rank_zero_warn(
            f"model.dtype: {len(rounded)} of the {len(trained)} tensors that {KEY} trains are in "
            f"{str(rounded[0][1].dtype).removeprefix('torch.')}, first '{name}'; small updates of them are rounded "
            "away. Set model.dtype to float32."
        )


def resolved(method: Method, model: nn.Module, *, num_steps: int | None) -> PeftConfig:
    """Return a copy of a method's PEFT configuration with targets and duration set.

    Raises:
        UserError: an `AdaLoraConfig` for another number of steps.
    """
    config = copy.deepcopy(method.peft_config)
    assert config is not None
    check_settings(config)
    set_task_type(KEY, config, model=model, named=method.name in METHODS)
    fill_targets(config, model)
    if isinstance(config, AdaLoraConfig) and num_steps is not None:
        _set_duration(config, method, num_steps)
    return config


def _set_duration(config: AdaLoraConfig, method: Method, num_steps: int) -> None:
    if method.name == "adalora":
        config.total_step = num_steps
        config.tinit, config.tfinal = int(method.warmup_share * num_steps), int(method.final_share * num_steps)
    elif config.total_step != num_steps:
        raise UserError(
            f"{KEY}.total_step: {config.total_step}, and this run has {num_steps} steps. Set it to that, or take "
            "'adalora', which sets it itself."
        )
    if config.tinit >= num_steps - config.tfinal:
        raise UserError(
            f"{KEY}: of {num_steps} steps, AdaLoRA keeps {config.tinit} at the start and {config.tfinal} at the end, "
            "and none is left to deal ranks in. Lower warmup_share and final_share (tinit and tfinal)."
        )


def _wrap(model: Any, config: PeftConfig, *, seed: int) -> Any:
    torch.manual_seed(seed)
    name = type(config).__name__
    if isinstance(config, XLoraConfig):
        model.config.use_cache = False  # it mixes its adapters anew for each token, and refuses models that cache
    try:
        wrapped = get_peft_model(model, config)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        re.error,
    ) as error:
        reason = " ".join(str(error).split())[:400]
        if "ParamWrapper" in reason and "lora_dropout" in reason:  # experts, which all-linear takes with it
            reason += f" Set {KEY}.init_args.lora_dropout to 0, or target_modules to names of linear layers (q_proj)."
        raise UserError(f"{KEY}: {name} cannot be applied to this model: {reason}") from error
    check_tied(wrapped)
    compute_as_the_module(wrapped)
    return wrapped


def _load_trainable(model: Any, folder: Path) -> Any:
    """Wrap a model with a trained adapter to go on with; one that cannot be trained any more stays frozen."""
    place = adapter_folder(KEY, folder)
    config: Any = read_adapter_config(KEY, place)
    if not config.is_prompt_learning:
        loaded = load_adapter(KEY, model, folder, trainable=True)
        check_tied(loaded)
        return loaded
    if not can_go_on(config):
        return load_adapter(KEY, model, folder)
    config.inference_mode = False
    wrapped = _wrap(model, config, seed=0)
    set_peft_model_state_dict(wrapped, load_peft_weights(str(place), device="cpu"))
    return wrapped


def can_go_on(config: Any) -> bool:
    """Return whether a saved adapter of this PEFT configuration can be trained further."""
    if not config.is_prompt_learning:
        return True
    # PEFT keeps what the virtual tokens became, not the network that wrote them.
    return peft_type(config) in ("PROMPT_TUNING", "PREFIX_TUNING") and not getattr(config, "prefix_projection", False)


def check_can_go_on(method: Method) -> None:
    """Refuse to go on with an adapter whose trained parts were not saved.

    Raises:
        UserError: with the repair.
    """
    if isinstance(method.config, Path) and not can_go_on(peft_config_of(method)):
        raise UserError(
            f"{KEY}: '{method.config}' cannot be trained further: PEFT keeps what its virtual tokens became, not what "
            "wrote them. Begin a new one, or go on with that run itself (--ckpt_path last)."
        )


def empty_model(base: str, growth: Growth | None = None) -> Any | None:
    """Return a base model without weights (on the meta device), or `None` where its config cannot be read."""
    config = enlarged_config(read_config(base), growth)
    if config is None:
        return None
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, RuntimeError):  # load_base_model says what is wrong
        return None


def with_vocabulary(
    method: Method, vocabulary: Vocabulary | None, *, base: str, seed: int
) -> tuple[Method, Growth | None, str | None]:
    """Find out what `model.vocabulary` adds to a base model, without its weights, and what of it is to be trained.

    Args:
        method: under `model.adapter`.
        vocabulary: `model.vocabulary`.
        base: folder or hub id of the base model.
        seed: of random rows.

    Returns:
        The method, told which rows to train; what the base model gains; and what to tell of it.

    Raises:
        UserError: tokenizers that do not fit each other, or rows that the method cannot train.
    """
    growth = growth_of(vocabulary, base, seed=seed)
    model = empty_model(base, growth) if vocabulary is not None else None
    if vocabulary is None or model is None:
        return method, growth, None
    method = with_trained_rows(method, vocabulary, growth, model=model)
    if growth is None:
        return method, None, "model.vocabulary: the base model has all of its tokens already, and no row is added"
    return method, growth, growth.note() + ("" if trains_rows(method, model=model) else "; no row is trained")


def check_method(method: Method, base: str, growth: Growth | None = None) -> int | None:
    """Try a method on the model without its weights, so that mistakes are told before any are loaded.

    Args:
        method: the method.
        base: folder or hub id of the base model.
        growth: by which the base model is enlarged.

    Returns:
        Number of trainable parameters; `None` where only the loaded model can tell.

    Raises:
        UserError: the method does not fit the model.
    """
    if isinstance(method.config, Path):
        return None
    model = empty_model(base, growth)
    return count_trainable(method, model) if model is not None else None


def peft_config_of(method: Method) -> PeftConfig | None:
    """Return the PEFT configuration of a method's adapter, fresh or trained; `None` where the base model is trained."""
    if isinstance(method.config, Path):
        return cast(PeftConfig, read_adapter_config(KEY, adapter_folder(KEY, method.config)))
    return method.peft_config


def num_virtual_tokens(method: Method) -> int:
    """Return how many positions a method's adapter takes before the text."""
    config: Any = peft_config_of(method)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def count_trainable(method: Method, model: Any) -> int | None:
    """Return how many parameters a method would train on a model without weights, which may be used again.

    Returns:
        `None` where PEFT needs the weights to tell.

    Raises:
        UserError: the method does not fit the model.
    """
    attached = attach_empty(method, model)
    return num_trainable(attached) if attached is not None else None


def num_trainable(model: nn.Module) -> int:
    """Return how many parameters a model with its method attached trains."""
    # PEFT's count of ranks in AdaLoRA is a parameter that is never trained, but only frozen with its data.
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad and ".ranknum." not in name]
    return sum(int(parameter.numel()) for _, parameter in trained)


def attach_empty(method: Method, model: Any) -> Any | None:
    """Attach a method to a model without weights; an adapter goes on a copy of it.

    Returns:
        The model with the method; `None` where PEFT needs the weights.

    Raises:
        UserError: the method does not fit the model.
    """
    if isinstance(method.config, BaseWeights):
        select(model, method.config)
    elif isinstance(method.config, PeftConfig):
        config: Any = resolved(method, model, num_steps=None)
        principal = changes_base(config)
        if isinstance(config, LoraConfig):
            config.init_lora_weights = True  # the others compute with weights, which are not there
        elif peft_type(config) == "SHIRA":
            config.mask_fn = None  # it would look for the places of as many weights as there are anyway
        model = _wrap_empty(model, config)
        if principal and model is not None:
            _check_rank(config, model)
            check_start(model)
    return model


def _wrap_empty(model: Any, config: PeftConfig) -> Any | None:
    # A new adapter without data costs nothing, whatever its size; a few types compute while they are attached.
    for device in (torch.device("meta"), nullcontext()):
        try:
            with warnings.catch_warnings(), device:
                warnings.simplefilter("ignore")  # they are given again with the real model
                return _wrap(copy.deepcopy(model), copy.deepcopy(config), seed=0)
        except UserError as error:
            if "meta" not in str(error).lower():  # torch's word for tensors without data
                raise
    return None


def _check_rank(config: Any, model: nn.Module) -> None:
    """Refuse to begin with more principal components than a matrix has."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and config.r > (most := min(module.in_features, module.out_features)):
            place = name.removeprefix("base_model.model.")
            raise UserError(
                f"{KEY}.r: {config.r}, and '{place}' has only {most} components to begin with. Set r to {most} or less."
            )


class RankBudget:
    """AdaLoRA beside the loss: its penalty, and the course of its ranks, which a checkpoint must hold.

    Args:
        model: a `PeftModel` with a fresh AdaLoRA adapter.
    """

    def __init__(self, model: Any) -> None:
        self._tuner = model.base_model
        self._config: AdaLoraConfig = model.active_peft_config
        self._factors = [
            (parameter, "lora_A" in name)
            for name, parameter in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]

    def penalty(self) -> torch.Tensor:
        """Return how far the singular vectors are from orthogonal, weighted (equation 4, mean over matrices).

        PEFT adds it only to a loss that the model computes itself.
        """
        gaps = []
        for factor, is_left in self._factors:
            gram = factor @ factor.T if is_left else factor.T @ factor
            gaps.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
        return torch.stack(gaps).mean() * float(self._config.orth_reg_weight)

    def after_update(self, step: int) -> None:
        """Weigh the ranks and take some away; call it after the optimizer's step, while gradients are there.

        Args:
            step: number of the step, from 0.
        """
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on besides the weights."""
        allocator = self._tuner.rankallocator
        kept = {name: dict(getattr(allocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {**kept, "rank_pattern": self._config.rank_pattern}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        device = next(parameter for parameter, _ in self._factors).device
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            values = {key: value.to(device) for key, value in state[name].items()}
            setattr(self._tuner.rankallocator, name, values)
        self._config.rank_pattern = state["rank_pattern"]
