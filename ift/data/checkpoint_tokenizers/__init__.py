"""Tokenizers of checkpoints that brought code of their own, without running it.

Comes in: a folder or hub id in the layout of 2023 (Baichuan, InternLM, ChatGLM, MOSS, or LLaMA with `tokenizer.model`
alone), or one of any family that names code or a class of its own and holds a `tokenizer.json`. Goes out: an ordinary
fast tokenizer of transformers with the ids of the original one. `save_pretrained` writes it as `tokenizer.json`, which
loads anywhere. What is known about a family stands in its own module.
"""

from types import ModuleType
from typing import Any

from ift.data.checkpoint_tokenizers import baichuan, chatglm, chatglm2, internlm, llama, moss, saved
from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.errors import UserError

__all__ = ["load_checkpoint_tokenizer"]

_FAMILIES: tuple[ModuleType, ...] = (chatglm, chatglm2, baichuan, internlm, moss, llama)


def load_checkpoint_tokenizer(key: str, base: str) -> Any | None:
    """Return the tokenizer of a checkpoint that transformers would not load, or not exactly; `None` for all others.

    Args:
        key: the configuration key that named it, for errors.
        base: folder or hub id.

    Raises:
        UserError: a file of the tokenizer is missing or cannot be used.
    """
    files = CheckpointFiles(base)
    family = next((family for family in _FAMILIES if family.recognises(files)), None)
    missing = [name for name in family.NEEDS if files.path(name) is None] if family is not None else []
    if family is None or (missing and files.path("tokenizer.json") is not None):  # the latter saved anew by somebody
        try:
            return saved.build(files) if saved.recognises(files) else None
        except UserError as error:
            raise UserError(f"{key}: the tokenizer of '{base}' {error}") from error
    if missing:
        raise UserError(
            f"{key}: '{base}' is a checkpoint of {family.NAME}, and its tokenizer's file '{missing[0]}' is not there. "
            "Fetch it from where the checkpoint came from."
        )
    try:
        return family.build(files)
    except UserError as error:
        raise UserError(f"{key}: the tokenizer of '{base}' ({family.NAME}): {error}") from error
