"""Where bottleneck adapters sit in each family of models.

A sequential adapter follows the last matrix of a sub-layer, so it comes before dropout and before the sum with the
residual stream; where a family has a norm behind the sub-layer (Gemma-2, Gemma-3, GLM-4, OLMo-2), before that norm too.
A parallel adapter spans the MLP: it reads what the MLP reads, behind the norm, and is added to what the MLP gives.
Where attention and MLP stand side by side (GPT-J, CodeGen, Phi, Cohere, many GPT-NeoX and Falcon models), each adapter
stays within its own branch. In Bloom and MPT, the MLP module adds the residual stream itself, which changes no sum.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ift.errors import UserError

Variant = Literal["houlsby", "pfeiffer", "parallel"]


@dataclass(frozen=True)
class Sites:
    """Names of modules within a decoder layer."""

    attention_output: str
    """What gives the attention's result."""
    mlp_output: str
    """What gives the MLP's result; of a mixture of experts, whose matrices are no modules, all of it."""
    mlp: str | None
    """The MLP; `None` where the model's code has no module for it."""

    def of(self, variant: Variant) -> list[str] | None:
        """Return the modules that a variant adapts, or `None` where the family has none."""
        if variant == "parallel":
            return None if self.mlp is None else [self.mlp]
        return [self.attention_output, self.mlp_output] if variant == "houlsby" else [self.mlp_output]


_LLAMA = Sites("self_attn.o_proj", "mlp.down_proj", "mlp")
_BLOOM = Sites("self_attention.dense", "mlp.dense_4h_to_h", "mlp")
_GPT2 = Sites("attn.c_proj", "mlp.c_proj", "mlp")
_GPTJ = Sites("attn.out_proj", "mlp.fc_out", "mlp")
_EXPERTS = Sites("self_attn.o_proj", "mlp", "mlp")
_OPT = Sites("self_attn.out_proj", "fc2", None)

# fmt: off
_LIKE_LLAMA = (
    "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "granite", "helium",
    "hunyuan_v1_dense", "ift_baichuan_13b", "llama", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "phi3", "qwen2",
    "qwen3", "seed_oss", "smollm3", "stablelm",
)
# fmt: on
"""Checkpoints of other names in Llama's layout are `llama`."""

SITES: dict[str, Sites] = {
    **dict.fromkeys(_LIKE_LLAMA, _LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), _EXPERTS),
    **dict.fromkeys(("bloom", "falcon"), _BLOOM),
    **dict.fromkeys(("codegen", "gptj"), _GPTJ),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2),
    **dict.fromkeys(("opt", "xglm"), _OPT),
    "ift_chatglm": Sites("attention.dense", "mlp.dense_4h_to_h", "mlp"),
    "gpt_neo": Sites("attn.attention.out_proj", "mlp.c_proj", "mlp"),
    "gpt_neox": Sites("attention.dense", "mlp.dense_4h_to_h", "mlp"),
    "mpt": Sites("attn.out_proj", "ffn.down_proj", "ffn"),
    "persimmon": Sites("self_attn.dense", "mlp.dense_4h_to_h", "mlp"),
    "phi": Sites("self_attn.dense", "mlp.fc2", "mlp"),
    "starcoder2": Sites("self_attn.o_proj", "mlp.c_proj", "mlp"),
}
"""Model types (`model_type` of their config) to their sites; a test runs every one."""

ENCODER_DECODER_SITES = dict.fromkeys(("mt5", "t5"), Sites("SelfAttention.o", "DenseReluDense.wo", "DenseReluDense"))
"""The same of encoder-decoder models, in the layers of both stacks; none is behind the decoder's attention to the
encoder, as Houlsby has two places per layer."""


def default_targets(variant: Variant, model: Any, *, model_type: str) -> list[str]:
    """Return the names of the modules that a variant adapts in a model.

    Args:
        variant: of the adapter.
        model: for the names in errors.
        model_type: of the model's config.

    Raises:
        UserError: the family or its MLP is not known; lists what could be named instead.
    """
    sites = SITES.get(model_type) or ENCODER_DECODER_SITES.get(model_type)
    found = sites.of(variant) if sites else None
    if found is not None:
        return found
    names = ", ".join(_names_in_a_layer(model)) or ", ".join(name for name, _ in model.named_children())
    what = (
        "the module of the MLP" if variant == "parallel" else "the modules that give the attention's and MLP's result"
    )
    if sites:
        raise UserError(
            f"variant: '{variant}' has no place in '{model_type}' models, whose MLP is no module of its own. Take "
            f"'houlsby' or 'pfeiffer', or name other modules in target_modules. A layer has: {names}."
        )
    raise UserError(
        f"target_modules: no places for adapters are known in '{model_type}' models. Name {what}. A layer has: "
        f"{names}. Known families: {', '.join(sorted(SITES | ENCODER_DECODER_SITES))}."
    )


def _names_in_a_layer(model: Any) -> list[str]:
    """Return the names of the modules within the first of the numbered layers."""
    parts = [name.partition(".0.") for name, _ in model.named_modules()]
    return [inner for _, _, inner in parts if inner]
