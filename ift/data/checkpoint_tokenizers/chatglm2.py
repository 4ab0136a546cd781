"""ChatGLM2-6B and ChatGLM3-6B: `tokenizer.model`, a BPE model of SentencePiece, and special tokens after its pieces.

The class in the checkpoints (`tokenization_chatglm.py`) begins every text with `[gMASK]` and `sop`; here the templates
write them (`chatglm2`, `chatglm3`), and the tokenizer adds nothing.
"""

from pathlib import Path
from typing import Any

from ift.data.checkpoint_tokenizers.fast import as_fast
from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.data.sentencepiece_models import fast_tokenizer

NAME = "ChatGLM2 or ChatGLM3"
NEEDS = ("tokenizer.model",)
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""Of ChatGLM3."""


def recognises(files: CheckpointFiles) -> bool:
    """Whether a checkpoint is of this family; ChatGLM-6B, of the same names, is asked first."""
    return files.are_of(("chatglmtokenizer",), ("chatglm",))


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer."""
    path = files.path("tokenizer.model")
    assert path is not None
    last = (*SPECIAL, *ROLES) if _has_roles(files) else SPECIAL
    # The class of the checkpoints has these four fixed, whatever stands in the files.
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return as_fast(fast_tokenizer(path, last=last), files, tokens)


def _has_roles(files: CheckpointFiles) -> bool:
    """Whether the checkpoint is ChatGLM3: only its name, or its own code, tells the two apart. The code is not run."""
    # Of a path, what is above the folder tells nothing of the folder.
    names = f"{Path(files.base).name} {files.config.get('_name_or_path')} {files.settings.get('name_or_path')}"
    if "chatglm3" in names.lower() or ROLES[-1] in files.added_tokens().values():
        return True
    code = files.path("tokenization_chatglm.py")
    return code is not None and ROLES[-1] in code.read_text(encoding="utf-8", errors="replace")
