"""Any family: a `tokenizer.json` beside settings that name code of the checkpoint's own, or a class that is only there.

The code is not executed; the file holds all that the fast tokenizer of such a class would be made from.
"""

from typing import Any

from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.errors import UserError


def recognises(files: CheckpointFiles) -> bool:
    """Whether transformers would look for a class that it does not have."""
    named = files.settings.get("tokenizer_class")
    if named and _is_known(named):
        return False
    if files.path("tokenizer.json") is None:
        return bool(named) and _names_code(files)
    other = files.config.get("tokenizer_class")
    return bool(named) or _names_code(files) or bool(other and not _is_known(other))


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer.

    Raises:
        UserError: there is no `tokenizer.json`, or it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    if files.path("tokenizer.json") is None:
        raise UserError(
            "needs code of its own (auto_map), which ift never executes, and there is no tokenizer.json. Save it as "
            "a fast tokenizer where you trust that code, and put tokenizer.json there."
        )
    try:
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(files.place)
    except Exception as error:  # the Rust side raises the bare class
        raise UserError(f"cannot be read from its tokenizer.json ({' '.join(str(error).split())[:300]}).") from error
    tokenizer.init_kwargs.pop("auto_map", None)  # else written into every folder that it is saved to
    return tokenizer


def _names_code(files: CheckpointFiles) -> bool:
    mapped = files.config.get("auto_map")
    return bool(files.settings.get("auto_map") or (isinstance(mapped, dict) and mapped.get("AutoTokenizer")))


def _is_known(name: str) -> bool:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return tokenizer_class_from_name(name) is not None
