"""Make an adapter part of the weights, matrix by matrix in float32, and write a plain folder of transformers.

Memory holds one copy of the model and, while it is written, one shard.
"""

import sys
import types
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from ift.errors import UserError
from ift.hub import local_folder
from ift.models.enlarging import enlarge
from ift.models.families.normalized_head import NormalizedHead, settle_heads, with_normalized_head
from ift.models.loading import Dtype, check_vocabulary, load_base_model, read_config
from ift.models.mapped_files import release_mapped_weights
from ift.models.quantization import Quantization
from ift.models.stored_weights import SAFETENSORS_DTYPES, safetensors_entries
from ift.models.trained_adapters import MergedAdapter, load_adapter
from ift.models.trained_run import TrainedRun


def files_dtype(base: str) -> Dtype:
    """Return the dtype of most weights in the files of a model; for a hub id, that of its config."""
    sizes: dict[str, int] = {}
    folder = local_folder(base)
    for path in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        for entry in safetensors_entries(path).values():
            if entry["dtype"] in SAFETENSORS_DTYPES:
                start, end = entry["data_offsets"]
                kind = SAFETENSORS_DTYPES[entry["dtype"]]
                sizes[kind] = sizes.get(kind, 0) + end - start
    stated = str(getattr(read_config(base), "dtype", None)).removeprefix("torch.")
    found = max(sizes, key=lambda name: sizes[name]) if sizes else stated
    return found if found in get_args(Dtype) else "float32"  # type: ignore[return-value]


def load_trained(
    key: str, run: TrainedRun, dtype: Dtype, *, quantization: Quantization | None, dequantize: bool = False
) -> Any:
    """Load what a run trained: its base model with the adapter, or its whole model.

    Args:
        key: names the run, for errors.
        run: the run.
        dtype: of the base model's weights.
        quantization: of the base model, or `None` for its own weights.
        dequantize: whether to turn quantized weights into plain ones of the same values.

    Raises:
        UserError: the model cannot be loaded, or does not fit the run's tokenizer or adapter.
    """
    from ift.data.encoding import load_tokenizer

    model = load_base_model(key, run.base, dtype, quantization=quantization, rope=run.rope)
    if dequantize:
        from ift.models.quantized_layers import dequantized

        model = dequantized(model)
    model = enlarge(model, run.growth)
    check_vocabulary(key, model, load_tokenizer(key, str(run.folder.tokenizer)))
    model = merge_adapters(key, model, run.merged_adapters, dtype)
    if run.adapter is not None:
        model = load_adapter(key, model, run.adapter)
    model.requires_grad_(False)
    model.eval()
    return model


def merge_adapters(key: str, model: Any, chain: Sequence[MergedAdapter], dtype: Dtype) -> Any:
    """Merge trained adapters into a base model, one on top of the other.

    Args:
        key: the configuration key, for errors.
        model: a base model, not quantized.
        chain: the first is merged first.
        dtype: of the result.

    Returns:
        The base model with changed weights, in the mode that it was in.

    Raises:
        UserError: one that does not fit, or whose kind cannot be merged.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    training, divides = model.training, type(model.get_output_embeddings()) is NormalizedHead
    for one in chain:
        loaded = load_adapter(key, model, one.folder)
        divides = divides and not isinstance(loaded.get_base_model().get_output_embeddings(), BaseTunerLayer)
        model = merge(key, loaded, dtype)
    if divides:  # nothing was added to rows of length 1: one that is trained on top is the original's again
        with_normalized_head(model)
    return model.train(training)


def merge(key: str, model: Any, dtype: Dtype) -> Any:
    """Make the adapter of a model part of its weights, in place.

    Each matrix is merged in float32 and then rounded to `dtype`. An embedding that is tied to the head, where either
    is adapted, is untied first: their merged weights are two different ones.

    Args:
        key: names the run, for errors.
        model: of `load_trained`; a model without an adapter is only cast.
        dtype: of the result.

    Returns:
        A plain model of transformers, without anything of PEFT.

    Raises:
        UserError: PEFT cannot merge a layer, or the merged weights are not finite.
    """
    from peft import PeftModel

    target = getattr(torch, dtype)
    if isinstance(model, PeftModel):
        _untie(model)
        for module in model.modules():
            _merge_in_float32(module, target)
        try:
            with warnings.catch_warnings():
                # That embeddings are tied is seen to; that they no longer are is written to the config.
                warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings|Input and output embeddings")
                model = model.merge_and_unload(safe_merge=True, progressbar=sys.stderr.isatty())
        except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
            raise UserError(f"{key}: PEFT cannot merge this adapter: {' '.join(str(error).split())[:400]}") from error
    head = model.get_output_embeddings()
    # A class that has such a head keeps the rows, and divides them; another is to hold what they are divided to.
    if type(head) is NormalizedHead and not getattr(model.config, "normalized_head", False):
        _cast(head.parameters(), torch.float32)
        settle_heads(model)
    elif type(head) is nn.Linear and getattr(model.config, "normalized_head", False):
        model.config.normalized_head = False  # an adapted one is plain, and its rows of any length
    _cast(model.parameters(), target)
    return model


def _merge_in_float32(module: nn.Module, target: torch.dtype) -> None:
    """Let the `merge` of one of PEFT's layers compute in float32 and leave weights of the target dtype."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        _cast(module.modules_to_save.parameters(), target)
    if not isinstance(module, BaseTunerLayer):
        return
    merge_as_peft_does = type(module).merge

    def merge_one(layer: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        base = layer.get_base_layer()
        _cast(base.parameters(), torch.float32)
        merge_as_peft_does(layer, safe_merge=safe_merge, adapter_names=adapter_names)
        _cast(layer.get_base_layer().parameters(), target)  # layer normalization is another module now
        release_mapped_weights()

    module.merge = types.MethodType(merge_one, module)


def _cast(tensors: Iterable[torch.Tensor], dtype: torch.dtype) -> None:
    """Cast in place, so that tied weights stay tied."""
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _untie(model: Any) -> None:
    """Give the head a weight of its own where it shares that of an adapted embedding, or is adapted itself."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = model.get_base_model()
    ends = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    adapted = [isinstance(end, BaseTunerLayer) and not isinstance(end, TrainableTokensLayer) for end in ends]
    if None in ends or not any(adapted):
        return
    embedding, head = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    if getattr(head, "weight", None) is not getattr(embedding, "weight", False):
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in {id(one): one for one in (inner.config, inner.config.get_text_config(decoder=True))}.values():
        config.tie_word_embeddings = False


def write_model(model: Any, folder: Path, *, shard_size: str, stop_token_ids: list[int], pad_token_id: int) -> None:
    """Write a plain model with its generation settings: what ends a response, and what pads.

    Args:
        model: of `merge`.
        folder: where to.
        shard_size: largest file of weights (5GB).
        stop_token_ids: any of them ends a response.
        pad_token_id: for padding.
    """
    from transformers import GenerationConfig

    settings = model.generation_config
    ends = {"eos_token_id": stop_token_ids if len(stop_token_ids) > 1 else stop_token_ids[0]}
    settings.update(**ends, pad_token_id=pad_token_id)
    try:
        settings.validate(strict=True)
    except ValueError:  # the base model's own contradict each other, and could not be saved
        model.generation_config = GenerationConfig(
            **ends,
            pad_token_id=pad_token_id,
            bos_token_id=settings.bos_token_id,
            decoder_start_token_id=settings.decoder_start_token_id,
        )
    model.save_pretrained(str(folder), max_shard_size=shard_size)
