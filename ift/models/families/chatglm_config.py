"""ChatGLM-6B (the first, of March 2023): which `config.json` is one, which of them cannot be loaded, and its config.

The parameters keep their names, so that the config is the original's too: its names are the fields, transformers' names
lead to them, and a saved folder is a ChatGLM-6B folder again.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PretrainedConfig

from ift.models.families.family import Family
from ift.models.families.llama_settings import stated_dtype

MODEL_TYPE = "ift_chatglm"
_ORIGINAL_TYPE = "chatglm"

_SPECIAL_IDS: dict[int, dict[str, int]] = {
    150528: {"mask_token_id": 150000, "gmask_token_id": 150001, "bos_token_id": 150004, "eos_token_id": 150005,
             "pad_token_id": 20003},
    130528: {"mask_token_id": 130000, "gmask_token_id": 130001, "bos_token_id": 130004, "eos_token_id": 130005,
             "pad_token_id": 3},
}  # fmt: skip
"""Ids that older checkpoints do not state, by the size of their vocabulary: with 20,000 image tokens, and without."""

_LAYOUT_IDS = ("bos_token_id", "gmask_token_id", "mask_token_id")
"""`<sop>`, `[gMASK]` and `[MASK]`: what positions and the attention mask are made from."""

_SIZES = ("vocab_size", "hidden_size", "inner_hidden_size", "num_layers", "num_attention_heads", "max_sequence_length")


class ChatGLMConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes and special tokens of ChatGLM-6B under the names of the original; the defaults are its released values."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "layer_norm_eps": "layernorm_epsilon",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    inner_hidden_size: int = 16384
    num_layers: int = 28
    num_attention_heads: int = 32
    max_sequence_length: int = 2048
    layernorm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int | None = 130000
    gmask_token_id: int | None = 130001

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return int(self.hidden_size // self.num_attention_heads)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `from_pretrained` makes a config of; PEFT calls that with an original folder."""
        config, others = super().get_config_dict(*args, **kwargs)
        return ({"model_type": MODEL_TYPE, **_settings(config)} if recognises(config) else config), others

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `save_pretrained` writes: the original's fields and names, with which it is recognised again."""
        own = super().to_diff_dict()
        stated = ("eos_token_id", "pad_token_id", "layernorm_epsilon", "use_cache", "tie_word_embeddings")
        written = {
            "architectures": ["ChatGLMModel"],
            "model_type": _ORIGINAL_TYPE,
            "position_encoding_2d": True,
            "transformers_version": own["transformers_version"],
            **{name: getattr(self, name) for name in (*_SIZES, *_LAYOUT_IDS, *stated)},
        }
        kept = {"dtype": "torch_dtype", "quantization_config": "quantization_config"}
        return written | {name: own[key] for key, name in kept.items() if own.get(key) is not None}


def recognises(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of the first ChatGLM-6B; the later ones have the same `model_type`, other fields."""
    return config.get("model_type") == _ORIGINAL_TYPE and bool(
        {"inner_hidden_size", "position_encoding_2d"} & {*config}
    )


def refusals(config: Mapping[str, Any]) -> str | None:
    """Return why a checkpoint that `recognises` took cannot be loaded exactly, or `None`.

    Args:
        config: of `config.json`.
    """
    if config.get("quantization_bit"):
        return (
            f"quantization_bit is {config['quantization_bit']}: its weights are packed in a format of its own. Take "
            "the checkpoint in float16, and model.quantization for 4 or 8 bits."
        )
    if config.get("pre_seq_len"):
        return (
            f"pre_seq_len is {config['pre_seq_len']}: it has a trained prefix of its own (P-tuning v2) inside. Take "
            "the checkpoint without, and model.adapter prefix."
        )
    if not config.get("position_encoding_2d", True):
        return "position_encoding_2d is false; only the released form with two positions per token is known here."
    if config.get("hidden_size", 4096) % (4 * config.get("num_attention_heads", 32)):
        return "hidden_size is no multiple of 4 x num_attention_heads, so its rotary positions have no meaning."
    missing = [name for name in _LAYOUT_IDS if _special_ids(config)[name] is None]
    if missing:
        return (
            f"{', '.join(missing)} not stated, and vocab_size {config.get('vocab_size')} is neither 130528 nor 150528, "
            "whose ids are known. State them in config.json: they are needed for positions and masks."
        )
    return None


def native_config(config: Mapping[str, Any]) -> ChatGLMConfig:
    """Return the config of our model for one that `recognises` took and `refusals` did not refuse.

    Args:
        config: of `config.json`. What it leaves out is as in the original's code, special ids by the vocabulary; its
            embedding and head are one matrix unless it says otherwise, as transformers 4 had it.
    """
    return ChatGLMConfig(**_settings(config))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {"vocab_size": 150528, "layernorm_epsilon": 1e-5, "tie_word_embeddings": True, "use_cache": True}
    kept = {name: config[name] for name in (*_SIZES, *defaults) if name in config}
    quantized = {name: config[name] for name in ("quantization_config",) if config.get(name)}
    return defaults | kept | _special_ids(config) | stated_dtype(config) | quantized


def _special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    by_rule = _SPECIAL_IDS.get(config.get("vocab_size", 150528), {})
    names = (*_LAYOUT_IDS, "eos_token_id", "pad_token_id")
    return {name: config[name] if config.get(name) is not None else by_rule.get(name) for name in names}


def _reader() -> Any:
    from ift.models.families.chatglm import ChatGLMForCausalLM, register

    register()
    return ChatGLMForCausalLM


CHATGLM = Family(
    "chatglm",
    "ChatGLM-6B",
    recognises=recognises,
    native_config=native_config,
    reader=_reader,
    original_config=lambda native: dict(native.to_diff_dict()),
    refusals=lambda config: [reason] if (reason := refusals(config)) is not None else [],
)
