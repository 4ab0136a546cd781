"""Baichuan-7B, Baichuan-13B (2023) and Baichuan2-7B, Baichuan2-13B (Yang et al. 2023, arXiv 2309.10305).

All four are Llama with queries, keys and values in one matrix, `W_pack`. The 13B models have ALiBi in place of the
rotation (`baichuan_alibi`), those of the second generation a normalised head (`normalized_head`). All four call
themselves `baichuan`; which one a checkpoint is follows from other keys of its `config.json`.
"""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from ift.models.families.family import Config, Family
from ift.models.families.llama_settings import llama_settings, only_silu, original_llama_settings
from ift.models.families.naming import Naming, Renamed

_SECOND_GENERATION_VOCABULARY, _FIRST_GENERATION_VOCABULARY = 125_696, 64_000


def _architecture(config: Config) -> str:
    """Return the name of the original class; the two generations write it differently (`BaiChuan`, `Baichuan`)."""
    mapped = config.get("auto_map")
    named = [*(config.get("architectures") or []), *map(str, mapped.values() if isinstance(mapped, dict) else ())]
    found = {one.rpartition(".")[2] for one in named}
    for ending in ("ForCausalLM", "Model", "Config"):
        if generations := {"BaiChuan", "Baichuan"} & {one.removesuffix(ending) for one in found}:
            return f"{generations.pop()}ForCausalLM" if len(generations) == 1 else ""
    return ""


def _is_first_7b(config: Config) -> bool:
    return bool(config.get("model_type") == "baichuan") and _architecture(config) == "BaiChuanForCausalLM"


def _has_later_class(config: Config) -> bool:
    return bool(config.get("model_type") == "baichuan") and _architecture(config) == "BaichuanForCausalLM"


def _is_second_7b(config: Config) -> bool:
    return _has_later_class(config) and "max_position_embeddings" in config


def _is_13b(config: Config) -> bool:
    stated = {"max_position_embeddings", "model_max_length"} & config.keys()
    return _has_later_class(config) and stated == {"model_max_length"}


def is_second_generation(config: Config) -> bool:
    """Return whether the `config.json` of a 13B model is of Baichuan2.

    No key says that the head is normalised. The vocabulary tells the two apart; where it is neither of the two (a
    resized one), what only Baichuan2 states does.
    """
    size = config.get("vocab_size")
    if size in (_FIRST_GENERATION_VOCABULARY, _SECOND_GENERATION_VOCABULARY):
        return bool(size == _SECOND_GENERATION_VOCABULARY)
    name = f"{config.get('_name_or_path', '')} {config.get('auto_map', '')}".lower()
    return "baichuan2" in name or bool({"z_loss_weight", "tokenizer_class"} & config.keys())


def _doubts(config: Config) -> Iterable[str]:
    size = config.get("vocab_size")
    if "ift_family" not in config and size not in (_FIRST_GENERATION_VOCABULARY, _SECOND_GENERATION_VOCABULARY):
        one, other = ("2", "") if is_second_generation(config) else ("", "2")
        yield (
            f"vocab_size {size} is that of no released 13B model; taken for a Baichuan{one}-13B. If it is a "
            f'Baichuan{other}-13B, write "ift_family": "baichuan{other}_13b" into its config.json.'
        )


def _rotating_config(config: Config) -> Any:
    from transformers import LlamaConfig

    # Where a user states the family, the length may stand under its other name.
    length = config.get("max_position_embeddings", config.get("model_max_length", 4096))
    settings = llama_settings(config) | {"max_position_embeddings": length}
    return LlamaConfig(**settings, attention_bias=False, mlp_bias=False)


def _alibi_config(config: Config, *, normalized_head: bool) -> Any:
    from ift.models.families.baichuan_alibi import BaichuanAlibiConfig

    length = config.get("model_max_length", config.get("max_position_embeddings", 4096))
    settings = llama_settings(config) | {"max_position_embeddings": length}
    return BaichuanAlibiConfig(**settings, attention_bias=False, mlp_bias=False, normalized_head=normalized_head)


def _refusals(config: Config) -> Iterable[str]:
    yield from only_silu(config)
    if config.get("rope_scaling"):
        yield f"rope_scaling {config['rope_scaling']}, which the original code does not know"
    if config.get("z_loss_weight"):
        yield f"z_loss_weight {config['z_loss_weight']}, a second term of the loss that is not made here"
    if config.get("tie_word_embeddings"):
        yield "tie_word_embeddings true, and its head is a matrix of its own"


def _original_first(native: Any) -> dict[str, Any]:
    return {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan", **original_llama_settings(native)}


def _original_second(native: Any) -> dict[str, Any]:
    settings = {**original_llama_settings(native), "model_max_length": native.max_position_embeddings}
    return {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", **settings}


NAMING = Naming(
    modules=(Renamed("self_attn.W_pack", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),),
)
"""`W_pack` `(3 x width, width)` is queries, keys and values, in this order."""


@cache
def _rotating_reader() -> Any:
    from transformers import LlamaForCausalLM

    from ift.models.families.reading import reading_class

    return reading_class(
        LlamaForCausalLM,
        "BaichuanReaderForCausalLM",
        conversions=NAMING.conversions(),
        ignored=(r"rotary_emb\.inv_freq$",),
    )


def _alibi_reader() -> Any:
    from ift.models.families.baichuan_alibi import registered

    return registered()


def _native() -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM


BAICHUAN_7B = Family(
    "baichuan_7b",
    "Baichuan-7B",
    recognises=_is_first_7b,
    native_config=_rotating_config,
    reader=_rotating_reader,
    original_config=_original_first,
    naming=NAMING,
    native=_native,
    refusals=_refusals,
)
BAICHUAN2_7B = Family(
    "baichuan2_7b",
    "Baichuan2-7B",
    recognises=_is_second_7b,
    native_config=_rotating_config,
    reader=_rotating_reader,
    original_config=_original_second,
    naming=NAMING,
    native=_native,
    refusals=_refusals,
    normalized_head=True,
)
BAICHUAN_13B = Family(
    "baichuan_13b",
    "Baichuan-13B",
    recognises=lambda config: _is_13b(config) and not is_second_generation(config),
    native_config=partial(_alibi_config, normalized_head=False),
    reader=_alibi_reader,
    original_config=lambda native: dict(native.original()),
    naming=NAMING,
    refusals=_refusals,
    doubts=_doubts,
)
BAICHUAN2_13B = Family(
    "baichuan2_13b",
    "Baichuan2-13B",
    recognises=lambda config: _is_13b(config) and is_second_generation(config),
    native_config=partial(_alibi_config, normalized_head=True),
    reader=_alibi_reader,
    original_config=lambda native: dict(native.original()),
    naming=NAMING,
    refusals=_refusals,
    doubts=_doubts,
    normalized_head=True,
)
