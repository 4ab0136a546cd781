"""ChatGLM-6B: `ice_text.model`, a unigram model of SentencePiece, with newlines, tabs and runs of blanks as pieces.

The class in the checkpoints (`tokenization_chatglm.py`) writes a newline as `<n>`, a tab as `<|tab|>` and runs of 2 to
80 blanks as `<|blank_2|>` to `<|blank_80|>` before SentencePiece reads a text, and the reverse after decoding. Here
those are steps of the normaliser and the decoder. In the first release (150,528 ids) the ids 0 to 19,999 are image
tokens. The class puts `[gMASK]` and `<sop>` behind every text; here the templates write them (`chatglm`,
`alpaca_chatglm`).
"""

from typing import Any

from tokenizers import decoders, normalizers

from ift.data.checkpoint_tokenizers.fast import as_fast
from ift.data.checkpoint_tokenizers.files import CheckpointFiles
from ift.data.sentencepiece_models import fast_tokenizer, read_model
from ift.errors import UserError

NAME = "ChatGLM-6B"
NEEDS = ("ice_text.model",)
_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
_IMAGE_TOKENS = 20000
_MAX_BLANKS = 80
_WRITTEN = {"\n": "<n>", "\t": "<|tab|>"} | {" " * count: f"<|blank_{count}|>" for count in range(_MAX_BLANKS, 1, -1)}
"""Text to its piece, the longest run of blanks first."""
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6


def recognises(files: CheckpointFiles) -> bool:
    """Whether a checkpoint is of this family; ChatGLM2 has other fields and files, and the same names."""
    if not files.are_of(("chatglmtokenizer",), ("chatglm",)):
        return False
    first = {"position_encoding_2d", "inner_hidden_size"} & files.config.keys()
    return bool(first) or files.path("ice_text.model") is not None


def build(files: CheckpointFiles) -> Any:
    """Return the fast tokenizer."""
    for name in ("do_lower_case", "remove_space"):
        if files.settings.get(name):
            raise UserError(f"tokenizer_config.json says '{name}: true', which no released checkpoint does.")
    path = files.path("ice_text.model")
    assert path is not None
    count = int(files.settings.get("num_image_tokens", _IMAGE_TOKENS))
    backend = fast_tokenizer(_completed(read_model(path)), first=[f"<image_{index}>" for index in range(count)])
    before = [normalizers.Replace(text, piece) for text, piece in _WRITTEN.items()]
    backend.normalizer = normalizers.Sequence([*before, backend.normalizer])
    after = [decoders.Replace(piece, text) for text, piece in _WRITTEN.items()]
    backend.decoder = decoders.Sequence([backend.decoder, *after])
    # The first release calls the token that ends a response "eop_token", and something else "eos_token".
    end = files.token("eop_token", None) or files.token("eos_token", "<eop>")
    tokens = files.tokens(bos_token="<sop>", unk_token="<unk>", pad_token="<pad>")
    return as_fast(backend, files, tokens | {"eos_token": end})


def _completed(message: Any) -> bytes:
    """Return the model with the pieces that the code of the first release adds to its file."""
    if not any(piece.piece == "<sop>" for piece in message.pieces):
        added = [(piece, _CONTROL) for piece in _SPECIAL]
        blanks = [f"<|blank_{count}|>" for count in range(2, _MAX_BLANKS + 1)]
        added += [(piece, _USER_DEFINED) for piece in ("<|tab|>", *blanks)]
        added += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
        for text, kind in added:
            piece = message.pieces.add()
            piece.piece, piece.score, piece.type = text, 0.0, kind
        message.trainer_spec.byte_fallback = True
    content: bytes = message.SerializeToString()
    return content
