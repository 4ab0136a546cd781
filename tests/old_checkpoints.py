"""Checkpoints of 2023 as they lie on disk, small, with code of their own that must never run; and what it would do.

The `Original…` classes say in plain Python, around SentencePiece, what each tokenizer's own class does with a text.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from sentencepiece_training import LINES, equally_likely, processor, train

CANARY = "canary.txt"
CHATGLM_SPECIAL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
RESERVED = [f"<reserved_{number}>" for number in (102, 103, 106, 107)]


def write_checkpoint(folder: Path, name: str, *, tokenizer: dict[str, Any], config: dict[str, Any]) -> Path:
    """Write config files that point to code, and that code, which leaves a file behind when it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    code = f"from pathlib import Path\nPath({str(folder / CANARY)!r}).write_text('run')\n"
    for kind in ("tokenization", "modeling", "configuration"):
        (folder / f"{kind}_{name}.py").write_text(code + f"class {tokenizer['tokenizer_class']}:\n    pass\n")
    maps = {"AutoTokenizer": [f"tokenization_{name}.{tokenizer['tokenizer_class']}", None]}
    models = {"AutoConfig": f"configuration_{name}.Config", "AutoModelForCausalLM": f"modeling_{name}.Model"}
    write_json(folder / "tokenizer_config.json", tokenizer | {"auto_map": maps})
    write_json(folder / "config.json", config | {"auto_map": models})
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_chatglm(folder: Path, *, images: int = 0, extra_blanks: bool = False, complete: bool = True) -> Path:
    """ChatGLM-6B: with `images` as in the first release, whose very first file lacks the special pieces."""
    settings: dict[str, Any] = {"tokenizer_class": "ChatGLMTokenizer", "bos_token": "<sop>", "pad_token": "<pad>"}
    settings |= {"unk_token": "<unk>", "remove_space": False, "do_lower_case": False, "num_image_tokens": images}
    settings |= {"eos_token": "<eop>"} if complete else {"eos_token": "</s>", "eop_token": "<eop>"}
    config = {"model_type": "chatglm", "position_encoding_2d": True, "inner_hidden_size": 64}
    write_checkpoint(folder, "chatglm", tokenizer=settings, config=config)
    model = train(
        model_type="unigram",
        normalization_rule_name="nfkc",
        byte_fallback=False,
        pad_id=3,
        user_defined_symbols=["<n>"],
        remove_extra_whitespaces=extra_blanks,
    )
    (folder / "ice_text.model").write_bytes(with_blank_pieces(model) if complete else model)
    return folder


def with_blank_pieces(model: bytes) -> bytes:
    """Return a model of ChatGLM-6B with the pieces that the first release's code adds, and the later file has."""
    message = sentencepiece_model_pb2.ModelProto()
    message.ParseFromString(model)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    added = [(piece, kinds.CONTROL) for piece in CHATGLM_SPECIAL]
    added += [(piece, kinds.USER_DEFINED) for piece in ("<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81)))]
    added += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    for text, kind in added:
        message.pieces.add(piece=text, score=0.0, type=kind)
    message.trainer_spec.byte_fallback = True
    content: bytes = message.SerializeToString()
    return content


class OriginalChatGLM:
    """`tokenization_chatglm.py` of ChatGLM-6B, without the tokens that it puts behind a text."""

    def __init__(self, folder: Path, *, images: int = 0) -> None:
        model = (folder / "ice_text.model").read_bytes()
        self.processor = processor(model if b"<dBLOCK>" in model else with_blank_pieces(model))
        self.images = images

    def encode(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for count in range(80, 1, -1):
            text = text.replace(" " * count, f"<|blank_{count}|>")
        return [token + self.images for token in self.processor.encode(text)]

    def accepts(self, ids: Sequence[int], text: str) -> bool:
        """Whether these are the text's ids, or others that are equally likely."""
        plain, expected = ([token - self.images for token in found] for found in (ids, self.encode(text)))
        return plain == expected or equally_likely(self.processor, plain, expected)

    def decode(self, ids: Sequence[int]) -> str:
        text = str(self.processor.decode([token - self.images for token in ids if token >= self.images]))
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for count in range(2, 81):
            text = text.replace(f"<|blank_{count}|>", " " * count)
        return text


def write_chatglm2(folder: Path, *, number: int = 2) -> Path:
    """ChatGLM2-6B or ChatGLM3-6B."""
    settings = {"tokenizer_class": "ChatGLMTokenizer", "name_or_path": f"THUDM/chatglm{number}-6b"}
    config = {"model_type": "chatglm", "padded_vocab_size": 1024, "multi_query_attention": True, "pad_token_id": 0}
    write_checkpoint(folder, "chatglm", tokenizer=settings, config=config)
    (folder / "tokenizer.model").write_bytes(train())
    return folder


def write_baichuan(folder: Path, *, add_bos_token: bool | None = None, first: bool = False) -> Path:
    """Baichuan-7B (`first`), which adds begin-of-text by its class's default, or one that says so in its file."""
    settings: dict[str, Any] = {"tokenizer_class": "BaiChuanTokenizer" if first else "BaichuanTokenizer"}
    settings |= {role: special(token) for role, token in [("bos_token", "<s>"), ("eos_token", "</s>")]}
    settings |= {"unk_token": special("<unk>"), "pad_token": None if first else special("<unk>")}
    settings |= {"model_max_length": 4096} | ({} if add_bos_token is None else {"add_bos_token": add_bos_token})
    config = {"model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "pad_token_id": 0}
    write_checkpoint(folder, "baichuan", tokenizer=settings, config=config)
    model = train(add_dummy_prefix=False, user_defined_symbols=RESERVED)
    (folder / "tokenizer.model").write_bytes(model)
    return folder


def special(token: str) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": True, "single_word": False}


def write_internlm(folder: Path) -> Path:
    """InternLM-chat-7B; its newline is a piece of its own."""
    settings = {"tokenizer_class": "InternLMTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings |= {"pad_token": "</s>", "model_max_length": 1e30}
    write_checkpoint(folder, "internlm", tokenizer=settings, config={"model_type": "internlm", "pad_token_id": 2})
    model = train(add_dummy_prefix=False, user_defined_symbols=["<eoh>", "<eoa>", "\n"])
    (folder / "tokenizer.model").write_bytes(model)
    return folder


def write_moss(folder: Path, *, sft: bool = True) -> Path:
    """MOSS: trained here as GPT-2's tokenizer is, then written as its three files."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    settings = {"tokenizer_class": "MossTokenizer", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings |= {"eos_token": "<eom>" if sft else "<|endoftext|>", "add_prefix_space": False}
    write_checkpoint(folder, "moss", tokenizer=settings, config={"model_type": "moss"})
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(LINES, trainer)
    backend.model.save(str(folder))
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    assert merges.startswith("#version")
    size = backend.get_vocab_size()
    added = ["<|endoftext|>", "<eoh>", "<eot>", "<eoc>", "<eor>", "<eom>"]
    write_json(folder / "added_tokens.json", {token: size + index for index, token in enumerate(added)})
    return folder


class OriginalMoss:
    """`tokenization_moss.py`: GPT-2's words, their bytes as characters, merges from the best to the worst."""

    def __init__(self, folder: Path) -> None:
        self.ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
        self.ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in plain]
        self.letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + k) for k, byte in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        import regex

        words = regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text)
        return [self.ids[part] for word in words for part in self._parts(word)]

    def _parts(self, word: str) -> list[str]:
        parts = [self.letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, place = [], 0
            while place < len(parts):
                both = tuple(parts[place : place + 2]) == best
                merged.append("".join(parts[place : place + 2]) if both else parts[place])
                place += 2 if both else 1
            parts = merged
        return parts
