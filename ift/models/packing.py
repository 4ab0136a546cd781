"""Which models keep the examples of a row apart, and so which row layout a run gets.

transformers (5.x) makes the block-diagonal attention mask itself where `position_ids` begin anew within a row, no
attention mask and no cache are given, and the model's code lets it; FlashAttention's variable-length kernel does the
same for a batch of one row. A model that does not understand lets examples see one another without a word, so only
those are packed that were seen to give the logits of each example alone; all others are grouped by length.
"""

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from ift.data.micro_batches import GROUPED, RowLayoutChoice, RowLayoutSetting
from ift.errors import UserError
from ift.models.attention import Attention, has_attention, model_class
from ift.models.encoder_decoder import is_encoder_decoder
from ift.models.loading import read_config
from ift.models.record_attention import NAME, attend_by_example, attend_by_row

# fmt: off
EXACT_FAMILIES = frozenset([
    "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "helium",
    "hunyuan_v1_dense", "ift_baichuan_13b", "internlm3", "llama", "mistral", "mixtral", "nemotron", "olmo", "olmo2",
    "olmo3", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm",
    "starcoder2",
])
# fmt: on
"""Model types (`model_type` of their config) whose packed rows are exact with eager and sdpa attention; a test runs
every one. Bloom, Falcon, MPT, OPT and XGLM take their positions from elsewhere, and state-space models have no mask."""

ATTENTION_WITHOUT_POSITIONS = frozenset({"codegen", "gpt_bigcode", "gpt_neo", "gptj", "persimmon"})
"""Of these, those whose code hands no `position_ids` to the attention function, where FlashAttention looks for them."""

WINDOW_IN_MASK = frozenset({"qwen2_moe"})
"""Of these, those whose code tells the mask alone of a sliding window, and not the attention function."""

WITHOUT_FLASH = frozenset({"ift_baichuan_13b"})
"""Of these, those whose attention FlashAttention cannot compute; transformers refuses the two together."""

# fmt: off
EXACT_ADAPTERS = frozenset([
    "ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "BOTTLENECK", "C3A", "DEFT", "DELORA", "FOURIERFT",
    "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF",
    "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS",
    "UNILORA", "VBLORA", "VERA", "WAVEFT",
])
# fmt: on
"""PEFT's types whose change to a token depends on that token and its attention only. Prompt methods have one set of
virtual tokens per row, and some others mix over the row."""

FLASH = ("flash_attention_2", "flash_attention_3")


def choose_row_layout(
    key: str,
    asked: RowLayoutSetting,
    *,
    base: str,
    adapter: Any,
    attention: Attention | None = None,
    device: str | None = None,
) -> RowLayoutChoice:
    """Return the row layout for a base model, from its config alone.

    Args:
        key: the configuration key of `asked`, for errors.
        asked: `auto` takes the fastest layout that is exact.
        base: folder or hub id of the base model.
        adapter: a `peft.PeftConfig`, or `None`.
        attention: `model.attention`; none for what the config says, or transformers' choice.
        device: type of the device that the model will be on; `None` where attention must be as transformers has it.

    Raises:
        UserError: the asked layout would not be exact.
    """
    config = read_config(base)
    if config is None:  # load_base_model says what is wrong
        return GROUPED
    computed = attention or getattr(config, "_attn_implementation", None) or "sdpa"
    best = row_layout_for(config.model_type, computed, adapter=adapter)
    if is_encoder_decoder(config):
        best = replace(best, reason="an encoder-decoder model reads one prompt per row")
    # Per token, matrices cost 24 x width^2 operations and attention 4 x width x length, at about 2/3 of the speed.
    best = replace(best, square_cost_length=max(1024, 4 * getattr(config, "hidden_size", 2048)))
    fastest = _by_example(best, config, attention=computed) if device == "cpu" else best
    if asked in ("auto", fastest.layout):
        return fastest
    if asked == "grouped":
        return replace(best, layout="grouped", reason=f"asked for; {best.layout} would be exact: {best.reason}")
    if asked == best.layout:
        return best
    if best.layout == "grouped":
        raise UserError(f"{key}: '{asked}' is not exact here: {best.reason}. Set it to auto or grouped.")
    if asked == "packed":
        raise UserError(f"{key}: 'packed' is not exact here: {best.reason}. Set it to auto or flattened.")
    return replace(best, layout="flattened", reason=f"asked for; {best.reason}")


def _by_example(best: RowLayoutChoice, config: Any, *, attention: str) -> RowLayoutChoice:
    """Return the layout for attention that is computed example by example, where a model can have that."""
    made_of, unfit = model_class(config), ATTENTION_WITHOUT_POSITIONS | WINDOW_IN_MASK | WITHOUT_FLASH
    if best.layout != "packed" or attention != "sdpa" or config.model_type in unfit:
        return best
    if made_of is None or not has_attention(made_of, "sdpa"):
        return best
    reason = f"{best.reason}, and on a CPU sdpa is called once per example, so that nothing is padded"
    return replace(best, layout="flattened", by_example=True, reason=reason)


def row_layout_for(model_type: str, attention: str, *, adapter: Any = None) -> RowLayoutChoice:
    """Return the fastest row layout that is exact, and why.

    Args:
        model_type: of the model's config.
        attention: transformers' name of the attention implementation.
        adapter: a `peft.PeftConfig`, or `None`.
    """
    if model_type not in EXACT_FAMILIES:
        return RowLayoutChoice("grouped", f"'{model_type}' models are not known to keep the examples of a row apart")
    if adapter is not None and (reason := obstacle_in(adapter)):
        return RowLayoutChoice("grouped", reason)
    if attention in FLASH and model_type in ATTENTION_WITHOUT_POSITIONS | WITHOUT_FLASH:
        return RowLayoutChoice("grouped", f"{attention} does not learn of positions in '{model_type}' models")
    if attention in FLASH:
        return RowLayoutChoice("flattened", f"{attention} keeps examples apart in a batch of one row only")
    if attention not in ("eager", "sdpa"):
        return RowLayoutChoice("grouped", f"attention '{attention}' is not known to keep the examples of a row apart")
    return RowLayoutChoice("packed", f"'{model_type}' models keep the examples of a row apart by their positions")


def obstacle_in(adapter: Any) -> str:
    """Return why an adapter may treat a token otherwise after other tokens than alone; empty where it does not.

    Args:
        adapter: a `peft.PeftConfig`.
    """
    peft_type = str(getattr(adapter.peft_type, "value", adapter.peft_type))
    if peft_type not in EXACT_ADAPTERS:
        return f"{peft_type} adapters are not known to treat each example of a row as if alone"
    if getattr(adapter, "alora_invocation_tokens", None):
        return "an adapter with alora_invocation_tokens begins once per row, not once per example"
    return ""


def verify_row_layout(key: str, asked: RowLayoutSetting, *, choice: RowLayoutChoice, model: Any) -> RowLayoutChoice:
    """Try on the loaded model what the choice takes for granted; fall back to grouped rows, with a warning.

    Where the choice is to attend example by example, the model does so from then on.

    Raises:
        UserError: the model mixes examples, and the layout was asked for.
    """
    if choice.by_example and model.config._attn_implementation in ("sdpa", NAME):
        attend_by_example(model)
        if not _can_run(model) or keeps_examples_apart(model):
            return choice
        attend_by_row(model)
    if choice.by_example:  # a mask over long rows is expensive
        choice = replace(choice, layout="packed" if asked == "auto" else choice.layout, by_example=False)
    if choice.layout == "grouped" or not _can_run(model) or keeps_examples_apart(model):
        return choice
    reason = "in a trial with the loaded model, an example saw the one before it in its row"
    if asked != "auto":
        raise UserError(f"{key}: '{asked}' is not exact here: {reason}. Set it to auto or grouped.")
    rank_zero_warn(f"{key}: rows are grouped, not {choice.layout}: {reason}.")
    return replace(choice, layout="grouped", reason=reason)


def _can_run(model: Any) -> bool:
    """Whether a model can compute as it is: not one without its weights, nor FlashAttention away from its GPU."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return False  # DeepSpeed has shared the weights out, and does not gather them before training
    devices = {parameter.device.type for parameter in model.parameters()}
    return "meta" not in devices and (model.config._attn_implementation not in FLASH or "cpu" not in devices)


@torch.no_grad()
def keeps_examples_apart(model: Any) -> bool:
    """Whether an example after another in a row has the logits it has alone, up to rounding.

    The measure is what happens to it where the two are one text.
    """
    module = model.get_input_embeddings()
    # Of a matrix with rows of PEFT's own in it, the one below: putting them in takes a pass, where weights are sharded.
    embedding = getattr(module, "original_module", module).weight
    ids = torch.linspace(0, len(embedding) - 1, 20, device=embedding.device).long()[None]
    positions = torch.arange(20, device=ids.device)[None]
    length = 8  # of the second example
    training = model.training
    model.eval()
    try:
        alone, packed, joined = (
            model(input_ids=i, position_ids=p, use_cache=False).logits[0, -length:].float()
            for i, p in (
                (ids[:, -length:], positions[:, :length]),
                (ids, torch.cat([positions[:, :-length], positions[:, :length]], dim=1)),
                (ids, positions),
            )
        )
    finally:
        model.train(training)
    error, leak = ((logits - alone).abs().max() for logits in (packed, joined))
    rounding = 4 * torch.finfo(embedding.dtype).eps * alone.abs().max()
    return bool(error <= torch.maximum(0.02 * leak, rounding))
