"""Writes a SentencePiece model as `tokenizer.json`, for transformers to give exactly SentencePiece's ids.

transformers 5 builds its `LlamaTokenizer` from `tokenizer.model` on its own terms, whatever settings stand beside it:

- text that begins with a blank (or with `▁`) loses one: its pre-tokenizer adds the leading `▁` only where none is;
- a unigram model is read as BPE, and without byte pieces unknown characters vanish instead of becoming `<unk>`.

So `tokenizer_config.json` names the general class `PreTrainedTokenizerFast` (transformers 5 calls it
`TokenizersBackend`), which takes `tokenizer.json` as it is, also beside a `config.json` of a Llama model. The file
holds the same pieces as `tokenizer.model`, which lies beside it for programs that read SentencePiece.

BPE ids are equal on every text. Unigram ids are equal except

- where two segmentations are as good as equally likely, mostly in runs of one character: SentencePiece adds up in 32
  bits and `tokenizers` in 64 (12,000 pieces: 2 of 2,099 lines of Wikipedia, stories and classics, 1.1 million
  characters);
- where a text spells out a byte piece (`<0x0A>`) in characters that the model lacks: `tokenizers` takes it for a byte.

Special tokens written out in a text (`</s>`) are text to SentencePiece and special tokens to transformers.
"""

import json
from pathlib import Path
from typing import Literal

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, processors

ModelType = Literal["bpe", "unigram"]
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL_PIECES = (UNK, BOS, EOS, PAD)
"""Ids 0 to 3."""
_BLANK = "▁"


def write_tokenizer(folder: Path, model: bytes, model_type: ModelType) -> None:
    """Write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`.

    Args:
        folder: an existing folder.
        model: a trained SentencePiece model with `SPECIAL_PIECES` as its first pieces.
        model_type: what kind of model it is.
    """
    (folder / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    fast_tokenizer(processor, model_type).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def fast_tokenizer(processor: sentencepiece.SentencePieceProcessor, model_type: ModelType) -> tokenizers.Tokenizer:
    """Return the same tokenizer as a `tokenizers.Tokenizer`, which puts `<s>` before a text unless told not to."""
    tokenizer = tokenizers.Tokenizer(_model(processor, model_type))
    # SentencePiece's add_dummy_prefix: one blank in front, always; a text without characters stays empty in both.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [tokenizers.AddedToken(piece, normalized=False, special=True) for piece in SPECIAL_PIECES]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, processor.bos_id())]
    )
    return tokenizer


def _model(processor: sentencepiece.SentencePieceProcessor, model_type: ModelType) -> models.Model:
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(index) for index in ids]
    learned = {
        pieces[index]: processor.get_score(index)
        for index in ids
        if not (processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index))
    }
    byte_fallback = len(pieces) > len(learned) + len(SPECIAL_PIECES)
    if model_type == "unigram":
        # Special and byte pieces must be in the list, but never be found in a text: they get the worst score.
        never = 10 * min(learned.values())
        scored = [(piece, learned.get(piece, never)) for piece in pieces]
        return models.Unigram(scored, processor.unk_id(), byte_fallback)
    return models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=_merges(learned),
        unk_token=UNK,
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )


def _merges(learned: dict[str, float]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make a piece, best piece first: SentencePiece merges by the result's score."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(learned, key=lambda piece: -learned[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in learned and piece[cut:] in learned
    ]
