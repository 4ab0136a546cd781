"""Which rows of embedding and head a run trains beside its adapter, and the layer that trains some rows only.

In: a method, `model.vocabulary` and what the base model gains by it. Out: the same method, told to train those rows:
new ones by PEFT's `trainable_token_indices`, all of them by its `modules_to_save`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LNTuningConfig, TrainableTokensConfig
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import nn
from torch.func import functional_call

from ift.data.enlarged_tokenizer import KEY
from ift.errors import UserError
from ift.models.base_weights import AllWeights, BaseWeights, Embeddings, SampledLayers
from ift.models.encoder_decoder import is_encoder_decoder
from ift.models.methods import Method
from ift.models.vocabulary import Growth, Vocabulary


class TrainedRowsLayer(TrainableTokensLayer):  # type: ignore[misc]
    """Rows of a matrix that are trained, the module around it computing as it does without.

    PEFT's own layer (0.21) multiplies by the matrix and no more, so that the bias of a head is lost (CodeGen, MOSS,
    Phi), and what a head of another class does besides.
    """

    def forward_adapters(self, x: torch.Tensor, active_adapters: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute with the trained rows in place."""
        if self.disable_adapters or not active_adapters or self.merged:
            result: torch.Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return result
        self._check_overlapping_tokens(active_adapters)
        weight = self.get_merged_weights(active_adapters)
        computed: torch.Tensor = functional_call(self.base_layer, {"weight": weight}, (x, *args), kwargs)
        return computed


def compute_as_the_module(model: nn.Module) -> None:
    """Let layers of which some rows are trained compute all that their module does."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TrainedRowsLayer


@dataclass(frozen=True)
class Ends:
    """Names of a model's embedding and head."""

    embedding: str
    head: str | None
    """`None` where there is none."""
    tied: bool
    """Whether the two are one matrix."""

    @property
    def names(self) -> list[str]:
        """Both."""
        return [self.embedding, *([self.head] if self.head is not None else [])]


def ends_of(model: Any) -> Ends:
    """Return where embedding and head of a model are, with or without its weights."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    return Ends(names[embedding], names.get(head), tied=head is not None and head.weight is embedding.weight)


def with_trained_rows(method: Method, vocabulary: Vocabulary, growth: Growth | None, *, model: Any) -> Method:
    """Return a method that trains what `model.vocabulary` says beside what it trains anyway.

    Args:
        method: under `model.adapter`; an adapter to go on with trains the rows that it holds.
        vocabulary: `model.vocabulary`.
        growth: of the base model.
        model: the base model, with or without its weights.

    Raises:
        UserError: rows that the method cannot train.
    """
    if isinstance(method.config, Path):
        return method
    changed = copy.copy(method)
    new = growth.new if growth is not None else []
    if isinstance(method.config, BaseWeights):
        changed.config = _of_base_weights(method, method.config, vocabulary)
    else:
        changed.config = _of_adapter(method, vocabulary, new, model=model)
    return changed


def _of_base_weights(method: Method, weights: BaseWeights, vocabulary: Vocabulary) -> BaseWeights:
    if isinstance(weights, AllWeights | SampledLayers | Embeddings):
        if vocabulary.train in ("new", "none"):
            raise UserError(
                f"{KEY}.train: '{vocabulary.train}', and {method.name} trains all rows of the embedding. Leave it out, "
                "or take lora."
            )
        return weights
    if vocabulary.train == "new":
        raise UserError(
            f"{KEY}.train: 'new', and {method.name} trains whole weights of the base model, not single rows. Set it to "
            "all (embedding and head are trained, too) or none, or take lora."
        )
    return Embeddings(beside=weights) if vocabulary.train == "all" else weights


def _of_adapter(method: Method, vocabulary: Vocabulary, new: Sequence[int], *, model: Any) -> Any:
    config, ends = copy.deepcopy(method.peft_config), ends_of(model)
    if own := _own_rows(config, ends):
        if vocabulary.train is not None:
            raise UserError(
                f"{KEY}.train: '{vocabulary.train}', and model.adapter.{own} already says what of embedding and head "
                "is trained. Leave one of the two out."
            )
        return config
    if is_encoder_decoder(model.config):
        if vocabulary.train in ("new", "all"):
            raise UserError(
                f"{KEY}.train: '{vocabulary.train}', and encoder and decoder of '{model.config.model_type}' models "
                "read the embedding by modules of their own, of which PEFT trains one. Train them in a run before "
                "with 'embeddings', or set it to none."
            )
        return config
    if vocabulary.train == "all":
        _train_all(config, method, ends)
    elif vocabulary.train != "none" and new:
        _train_new(config, method, new, ends=ends, asked=vocabulary.train == "new")
    return config


def trains_rows(method: Method, *, model: Any) -> bool:
    """Return whether a method, with what `with_trained_rows` has made of it, trains rows of embedding or head."""
    if isinstance(method.config, Path):
        return True  # as the adapter has it
    if isinstance(method.config, BaseWeights):
        return isinstance(method.config, AllWeights | SampledLayers | Embeddings)
    return _own_rows(method.config, ends_of(model)) is not None


def _own_rows(config: Any, ends: Ends) -> str | None:
    """Return the setting by which an adapter's configuration itself trains rows of embedding or head, if any."""
    if getattr(config, "trainable_token_indices", None) is not None:
        return "trainable_token_indices"
    if getattr(config, "token_indices", None):
        return "token_indices"
    for setting in ("modules_to_save", "target_modules"):
        named = getattr(config, setting, None) or []
        if not isinstance(named, str) and any(f".{name}".endswith(f".{one}") for name in ends.names for one in named):
            return setting
    return None


def _train_new(config: Any, method: Method, new: Sequence[int], *, ends: Ends, asked: bool) -> None:
    names = [ends.embedding] if ends.tied else ends.names
    if isinstance(config, TrainableTokensConfig):
        config.token_indices, config.target_modules = list(new), names
    elif hasattr(config, "trainable_token_indices"):
        config.trainable_token_indices = {name: list(new) for name in names}
    elif asked:
        raise UserError(
            f"{KEY}.train: 'new', and {method.name} cannot train single rows beside itself. Take lora or one of its "
            "kind, train them in a run before with 'embeddings', or set it to none."
        )


def _train_all(config: Any, method: Method, ends: Ends) -> None:
    # PEFT (0.21) leaves such copies of modules out when it merges trained norms.
    if not hasattr(config, "modules_to_save") or config.is_prompt_learning or isinstance(config, LNTuningConfig):
        raise UserError(
            f"{KEY}.train: 'all', and {method.name} cannot train whole matrices beside itself. Take lora, or set it to "
            "none."
        )
    config.modules_to_save = [*(config.modules_to_save or []), *ends.names]
    if ends.tied and hasattr(config, "ensure_weight_tying"):
        config.ensure_weight_tying = True
