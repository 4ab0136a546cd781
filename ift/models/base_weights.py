"""Methods that train weights of the base model itself: all, the last layers, biases, embeddings, or layers drawn anew.

In: a loaded model. Out: which of its parameters require gradients. What they train is saved as a whole model.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ift.errors import UserError
from ift.models.encoder_decoder import is_encoder_decoder
from ift.seeds import mixed_seed


@dataclass(frozen=True)
class AllWeights:
    """Every parameter."""


@dataclass(frozen=True)
class LastLayers:
    """The last decoder layers; embeddings, head, final norm, an encoder and all layers before stay as they are."""

    num_layers: int


@dataclass(frozen=True)
class Biases:
    """Parameters named `bias`, and no other (Ben Zaken et al. 2022, BitFit, arXiv 2106.10199)."""


@dataclass(frozen=True)
class SampledLayers:
    """A few layers, of encoder and decoder alike, drawn anew every few steps, and all that is outside of the layers.

    That is embeddings, final norm and head (Pan et al. 2024, LISA, arXiv 2403.17919, and its authors' code).
    """

    num_layers: int
    """Drawn at a time."""
    period: int
    """Steps between two draws."""


@dataclass(frozen=True)
class Embeddings:
    """The input embedding, and the output head; of models that share one matrix, that."""

    head: bool = True
    """Whether the head is trained, where it has weights of its own."""
    beside: LastLayers | Biases | None = None
    """What else is trained."""


BaseWeights = AllWeights | LastLayers | Biases | SampledLayers | Embeddings


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the decoder layers of a language model, first to last.

    Raises:
        UserError: no list of modules has as many as the config says.
    """
    config: Any = getattr(model, "config", None)
    if is_encoder_decoder(config):
        return _layers(model.get_decoder(), config.num_decoder_layers)
    return _layers(model, getattr(config, "num_hidden_layers", None))


def all_layers(model: Any) -> list[nn.Module]:
    """Return the layers of an encoder, if there is one, and then the decoder's.

    Raises:
        UserError: as `decoder_layers`.
    """
    config: Any = getattr(model, "config", None)
    encoder = _layers(model.get_encoder(), config.num_hidden_layers) if is_encoder_decoder(config) else []
    return encoder + decoder_layers(model)


def _layers(stack: nn.Module, number: int | None) -> list[nn.Module]:
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise UserError(f"model.adapter: no {number} decoder layers were found in {type(stack).__name__}.")


def select(model: nn.Module, weights: BaseWeights) -> None:
    """Let exactly the named weights require gradients; of sampled layers, all that may ever be drawn.

    Raises:
        UserError: the model has no such weights, or fewer layers than asked for.
    """
    chosen = {id(parameter) for parameter in _chosen(model, weights)}
    if not chosen:
        raise UserError(
            f"model.adapter: {type(model).__name__} has no biases to train. Use ln_tuning or ia3: as few parameters."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def _chosen(model: nn.Module, weights: BaseWeights) -> Iterable[nn.Parameter]:
    if isinstance(weights, Biases):
        return [one for name, one in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if isinstance(weights, AllWeights):
        return model.parameters()
    if isinstance(weights, Embeddings):
        return [*_ends(model, weights), *(_chosen(model, weights.beside) if weights.beside is not None else ())]
    layers = decoder_layers(model) if isinstance(weights, LastLayers) else all_layers(model)
    if not 1 <= weights.num_layers <= len(layers):
        raise UserError(
            f"model.adapter.num_layers: {weights.num_layers} is not between 1 and the model's {len(layers)} layers."
        )
    if isinstance(weights, LastLayers):
        return [parameter for layer in layers[-weights.num_layers :] for parameter in layer.parameters()]
    if weights.period < 1:
        raise UserError(f"model.adapter.period: {weights.period} is less than 1 step.")
    return model.parameters()


def _ends(model: Any, weights: Embeddings) -> Iterable[nn.Parameter]:
    head = model.get_output_embeddings() if weights.head else None
    return [*model.get_input_embeddings().parameters(), *(head.parameters() if head is not None else ())]


class LayerSampler:
    """Draws the layers of `SampledLayers`, the same for a step on every rank and after every interruption.

    Args:
        model: whose layers are drawn.
        weights: how many and how often.
        seed: of the draws.
    """

    def __init__(self, model: nn.Module, weights: SampledLayers, *, seed: int) -> None:
        self._layers = all_layers(model)
        self._weights, self._seed = weights, seed

    def drawn(self, step: int) -> list[int]:
        """Return the numbers of the layers that are trained at a step, ascending."""
        draw = random.Random(mixed_seed(self._seed, step // self._weights.period))
        return sorted(draw.sample(range(len(self._layers)), self._weights.num_layers))

    def apply(self, step: int, optimizer: Any) -> None:
        """Let only the layers of a step require gradients, and forget the optimizer's state of the others.

        Args:
            step: number of the optimizer step, from 0.
            optimizer: a torch optimizer over all weights that may be drawn.
        """
        drawn = set(self.drawn(step))
        for number, layer in enumerate(self._layers):
            for parameter in layer.parameters():
                parameter.requires_grad_(number in drawn)
                if number not in drawn:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)
