"""Every method trains as many parameters as the formulas of its paper say, written out here from the model's sizes.

Counted both before weights are loaded and on the model that is trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ift.errors import UserError
from ift.models.adapters import attach, count_trainable
from ift.models.loading import load_base_model
from ift.models.methods import METHODS
from ift.models.quantization import Quantization

VOCABULARY, LAYERS = 90, 3
R, M, TOKENS, HIDDEN, TRAINED_LAYERS = 5, 7, 6, 11, 2
"""Ranks, sizes of bottlenecks, virtual tokens, hidden units of their networks, layers: what is asked of the methods."""


@dataclass(frozen=True)
class Sizes:
    """Of a family's tiny model; no two that could be mistaken for one another are equal."""

    config: dict[str, Any]
    d_model: int
    d_keys: int
    """Width of all heads of keys, and of values."""
    matrices: list[tuple[int, int]]
    """Of one layer: widths of input and output."""
    has_biases: bool
    num_other_norms: int
    """Beside the two of each layer."""
    scaled: int
    """Numbers by which (IA)3 scales in one layer: keys, values, hidden units of the MLP."""
    num_embeddings: int
    """Matrices of the vocabulary: one where the head is tied to the embedding."""

    @property
    def norm(self) -> int:
        """Weight and, in LayerNorm, bias of one norm."""
        return self.d_model * (2 if self.has_biases else 1)

    @property
    def num_norms(self) -> int:
        return 2 * LAYERS + self.num_other_norms

    @property
    def biases(self) -> int:
        return LAYERS * sum(out for _, out in self.matrices) + self.num_norms * self.d_model

    @property
    def layer(self) -> int:
        linear = sum(width * out + (out if self.has_biases else 0) for width, out in self.matrices)
        return linear + 2 * self.norm

    @property
    def whole(self) -> int:
        embeddings = self.num_embeddings * VOCABULARY * self.d_model
        return LAYERS * self.layer + self.num_other_norms * self.norm + embeddings


# Four heads of width 12 and two of them for keys and values; the width of the model is none of its heads.
LLAMA = Sizes(
    config={
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "tie_word_embeddings": False,
    },
    d_model=40,
    d_keys=24,
    # queries, keys, values, output; gate, up, down
    matrices=[(40, 48), (40, 24), (40, 24), (48, 40), (40, 56), (40, 56), (56, 40)],
    has_biases=False,
    num_other_norms=1,  # behind the last layer
    scaled=24 + 24 + 56,
    num_embeddings=2,
)
GPT_NEOX = Sizes(
    config={
        "model_type": "gpt_neox",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 52,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "tie_word_embeddings": False,
    },
    d_model=32,
    d_keys=32,
    # queries, keys and values in one; output; the two of the MLP
    matrices=[(32, 96), (32, 32), (32, 52), (52, 32)],
    has_biases=True,
    num_other_norms=1,
    scaled=96 + 52,  # queries lie in one matrix with keys and values
    num_embeddings=2,
)
BLOOM = Sizes(
    config={"model_type": "bloom", "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    d_model=32,
    d_keys=32,
    matrices=[(32, 96), (32, 32), (32, 128), (128, 32)],
    has_biases=True,
    num_other_norms=2,  # behind the embedding, too
    scaled=96 + 128,
    num_embeddings=1,
)
FAMILIES = {"llama": LLAMA, "gpt_neox": GPT_NEOX, "bloom": BLOOM}


def low_rank(sizes: Sizes) -> int:
    """B (d_out x r) and A (r x d_in) beside each matrix (Hu et al. 2022, section 4.1)."""
    return LAYERS * sum(R * (width + out) for width, out in sizes.matrices)


def bottlenecks(sizes: Sizes, *, per_layer: int) -> int:
    """2 m d + d + m each (Houlsby et al. 2019, section 2.1)."""
    return LAYERS * per_layer * (2 * M * sizes.d_model + sizes.d_model + M)


RANK, TOKEN, SIZE = {"r": R}, {"num_virtual_tokens": TOKENS}, {"bottleneck_size": M}
FORMULAS: dict[str, tuple[str, dict[str, Any], Callable[[Sizes], int]]] = {
    "lora": ("lora", RANK, low_rank),
    "qlora": ("qlora", RANK, low_rank),
    "rslora": ("rslora", RANK, low_rank),
    "lora_plus": ("lora_plus", RANK, low_rank),
    "pissa": ("pissa", RANK, low_rank),
    # A magnitude for each column of the weight, which are its outputs here (Liu et al. 2024, section 4.1).
    "dora": ("dora", RANK, lambda s: low_rank(s) + LAYERS * sum(out for _, out in s.matrices)),
    # P (d_out x r), Q (r x d_in) and r singular values (Zhang et al. 2023, equation 3).
    "adalora": ("adalora", {"init_r": R, "target_r": 3}, lambda s: low_rank(s) + LAYERS * R * len(s.matrices)),
    # A key and a value of each virtual token in each layer (Li and Liang 2021, section 4.2).
    "prefix": ("prefix", TOKEN, lambda s: TOKENS * LAYERS * 2 * s.d_keys),
    # A smaller matrix and a perceptron that makes all keys and values of it (section 4.3).
    "prefix, projected": (
        "prefix",
        {**TOKEN, "projection_size": HIDDEN},
        lambda s: (
            TOKENS * s.d_keys + s.d_keys * HIDDEN + HIDDEN + HIDDEN * LAYERS * 2 * s.d_keys + LAYERS * 2 * s.d_keys
        ),
    ),
    # Embeddings and a perceptron of three layers with biases.
    "p_tuning": (
        "p_tuning",
        {**TOKEN, "encoder_hidden_size": HIDDEN},
        lambda s: (
            TOKENS * s.d_model
            + (s.d_model * HIDDEN + HIDDEN)
            + (HIDDEN * HIDDEN + HIDDEN)
            + (HIDDEN * s.d_model + s.d_model)
        ),
    ),
    # e p: the width times the length of the prompt (Lester et al. 2021, section 2).
    "prompt": ("prompt", TOKEN, lambda s: TOKENS * s.d_model),
    # L (d_k + d_v + d_ff) for a decoder (Liu et al. 2022, section 3.3).
    "ia3": ("ia3", {}, lambda s: LAYERS * s.scaled),
    "ln_tuning": ("ln_tuning", {}, lambda s: s.num_norms * s.norm),
    "sadapter_h": ("sadapter_h", SIZE, lambda s: bottlenecks(s, per_layer=2)),
    "sadapter_p": ("sadapter_p", SIZE, lambda s: bottlenecks(s, per_layer=1)),
    "p_adapter": ("p_adapter", SIZE, lambda s: bottlenecks(s, per_layer=1)),
    "bitfit": ("bitfit", {}, lambda s: s.biases),
    "full": ("full", {}, lambda s: s.whole),
    "freeze": ("freeze", {"num_layers": TRAINED_LAYERS}, lambda s: TRAINED_LAYERS * s.layer),
    "embeddings": ("embeddings", {}, lambda s: s.num_embeddings * VOCABULARY * s.d_model),
    "embeddings without the head": ("embeddings", {"head": False}, lambda s: VOCABULARY * s.d_model),
    # Of all that may ever be drawn; at a time it is num_layers of the layers, and what is outside of them.
    "lisa": ("lisa", {"num_layers": TRAINED_LAYERS}, lambda s: s.whole),
}


def config_of(sizes: Sizes) -> Any:
    settings = dict(sizes.config)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def trainable(model: Any) -> int:
    return sum(one.numel() for name, one in model.named_parameters() if one.requires_grad and "ranknum" not in name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMULAS)
def test_the_number_of_trained_parameters_is_the_papers(name: str, family: str) -> None:
    sizes = FAMILIES[family]
    method, settings, formula = FORMULAS[name]
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config_of(sizes))
    model = AutoModelForCausalLM.from_config(config_of(sizes))
    if method == "bitfit" and not sizes.has_biases:
        for one in (empty, model):
            with pytest.raises(UserError, match="has no biases to train"):
                count_trainable(METHODS[method](**settings), one)
        return
    expected = formula(sizes)
    assert count_trainable(METHODS[method](**settings), empty) == expected
    assert trainable(attach(model, METHODS[method](**settings), seed=0, num_steps=100)) == expected


def test_every_method_has_a_formula() -> None:
    assert {method for method, _, _ in FORMULAS.values()} == set(METHODS)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_weights_change_no_number(family: str, tmp_path: Path) -> None:
    """Trap: 4-bit weights are packed in pairs, and what is not quantized still requires gradients when loaded."""
    sizes = FAMILIES[family]
    AutoModelForCausalLM.from_config(config_of(sizes)).save_pretrained(str(tmp_path))
    model = load_base_model("model.base", str(tmp_path), "float32", quantization=Quantization("nf4"))
    assert trainable(attach(model, METHODS["qlora"](**RANK), seed=0, num_steps=None)) == low_rank(sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_lisa_trains_its_layers_and_what_is_outside_of_them(family: str) -> None:
    """The largest number of parameters at a time (Pan et al. 2024, algorithm 1)."""
    from ift.models.base_weights import LayerSampler

    sizes, method = FAMILIES[family], METHODS["lisa"](num_layers=TRAINED_LAYERS, period=1)
    model: Any = attach(AutoModelForCausalLM.from_config(config_of(sizes)), method, seed=0, num_steps=None)
    sampler = LayerSampler(model, method.config, seed=0)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(3):
        sampler.apply(step, optimizer)
        assert trainable(model) == sizes.whole - (LAYERS - TRAINED_LAYERS) * sizes.layer
