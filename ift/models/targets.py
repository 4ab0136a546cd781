"""Which modules an adapter goes on where the user names none, and adapters that would be wrong on a model."""

from collections.abc import Iterable
from typing import Any

from peft import BeftConfig, IA3Config, LNTuningConfig, PeftConfig, PromptLearningConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from ift.errors import UserError
from ift.models.encoder_decoder import fill_prompts, is_encoder_decoder

_KEY_AND_VALUE_LAYERS = ("k_proj", "v_proj")
_FUSED_ATTENTION = ("query_key_value", "qkv_proj", "Wqkv", "c_attn", "W_pack", "wqkv")
_SECOND_OF_MLP = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "mlp.c_proj", "w2")
_T5_ATTENTION = ("SelfAttention.k", "SelfAttention.v", "EncDecAttention.k", "EncDecAttention.v")
_T5_MLP = ("DenseReluDense.wo",)
OWN_TARGETS = frozenset(
    {"ADAPTION_PROMPT", "BEFT", "BOTTLENECK", "SHADOW", "TRAINABLE_TOKENS", "XLORA", "IA3", "LN_TUNING"}
)
"""PEFT's types that are not made for every linear layer, or that find their places themselves."""


def fill_targets(config: PeftConfig, model: nn.Module) -> None:
    """Set `target_modules` of a configuration that names none.

    Every linear layer but the head, where the method is one for linear layers; every norm for tuning norms; keys,
    values and the MLP's second matrix for (IA)3, as in its paper. Others are left to PEFT.

    Args:
        config: changed in place.
        model: with or without its weights.

    Raises:
        UserError: (IA)3 on a model whose modules have unknown names.
    """
    if isinstance(config, PromptLearningConfig):
        _fill_heads(config, model)
        if is_encoder_decoder(model.config):
            fill_prompts(config, model.config)
        return
    if getattr(config, "target_modules", "none") is not None:
        return
    names = [name for name, _ in model.named_modules()]
    if isinstance(config, LNTuningConfig):
        norms = [name for name in names if _is_norm(name, model)]
        if not norms:
            raise UserError(
                f"model.adapter: the norms of {type(model).__name__} have no weights to train. Take ia3: as few "
                "parameters."
            )
        config.target_modules = sorted({name.rpartition(".")[2] for name in norms})
    elif isinstance(config, IA3Config):
        _fill_ia3(config, names)
    elif isinstance(config, BeftConfig):  # the values' bias, as in its paper
        config.target_modules = _ending_with(("v_proj",), names) or _ending_with(_FUSED_ATTENTION, names) or None
    elif peft_type(config) not in OWN_TARGETS:
        config.target_modules = "all-linear"


def peft_type(config: PeftConfig) -> str:
    """Return the name of PEFT's type."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def _is_norm(name: str, model: nn.Module) -> bool:
    module = model.get_submodule(name)
    return "Norm" in type(module).__name__ and next(module.parameters(recurse=False), None) is not None


_HEAD_NAMES = {"num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"}


def _fill_heads(config: PromptLearningConfig, model: Any) -> None:
    """Tell PEFT how many heads keys have, where it does not know how the model's config names them."""
    sizes = model.config
    if not _HEAD_NAMES & sizes.to_dict().keys():  # PEFT looks for these, not for what they stand for
        config.num_attention_heads = config.num_attention_heads or getattr(sizes, "num_attention_heads", None)
    if sizes.model_type == "falcon" and peft_type(config) in ("PREFIX_TUNING", "CARTRIDGE"):
        one = sizes.multi_query and not sizes.new_decoder_architecture
        heads = 1 if one else sizes.num_kv_heads
        config.num_attention_heads = config.num_attention_heads or heads
        config.token_dim = config.token_dim or heads * (sizes.hidden_size // sizes.num_attention_heads)


def _fill_ia3(config: IA3Config, names: Iterable[str]) -> None:
    attention = _ending_with(_KEY_AND_VALUE_LAYERS, names) or _ending_with(_FUSED_ATTENTION, names)
    attention = attention or _ending_with(_T5_ATTENTION, names)
    mlp = _ending_with(_SECOND_OF_MLP, names) or _ending_with(_T5_MLP, names)
    if not attention or not mlp:
        raise UserError(
            "model.adapter: which modules of this model hold keys, values and the MLP's second matrix is not known. "
            "Name them: target_modules (all of them) and feedforward_modules (the MLP's)."
        )
    config.target_modules, config.feedforward_modules = [*attention, *mlp], mlp


def _ending_with(endings: Iterable[str], names: Iterable[str]) -> list[str]:
    return [ending for ending in endings if any(f".{name}".endswith(f".{ending}") for name in names)]


def check_tied(model: Any) -> None:
    """Refuse an adapter on a matrix that embedding and head share, and one that parts the two against its settings.

    PEFT would adapt one of the two only, and a merge would change both. Of some families (Bloom, GPT-2) it trains a
    copy of the embedding where `modules_to_save` names that alone, whatever `ensure_weight_tying` says.

    Args:
        model: a `PeftModel`.

    Raises:
        UserError: with the repair.
    """
    if peft_type(model.active_peft_config) == "TRAINABLE_TOKENS":
        return  # made for shared matrices
    base = model.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if not getattr(base.config, "tie_word_embeddings", False):
        return
    saved = [isinstance(end, ModulesToSaveWrapper) for end in ends]
    if getattr(model.active_peft_config, "ensure_weight_tying", False) and saved[0] != saved[1]:
        raise UserError(
            "model.adapter.ensure_weight_tying: true, and only one of embedding and head would be trained, apart from "
            "the other. Name both modules in modules_to_save; a trained adapter, whose file forgets the head, goes "
            "into model.merged_adapters."
        )
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        raise UserError(
            "model.adapter.target_modules: this model's embedding and head are one matrix, and an adapter on either "
            "would be wrong once merged. Leave them out; to train new tokens, name their ids in "
            "trainable_token_indices, or both modules in modules_to_save with ensure_weight_tying true."
        )
