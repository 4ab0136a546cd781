"""Tokenizers of the 2023 checkpoints, read without their code, against what that code would do."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import old_checkpoints as old
import pytest
from sentencepiece_training import TEXTS, processor, random_texts, train
from tiny import ROOT
from transformers import AutoTokenizer

from ift.data.checkpoint_tokenizers import load_checkpoint_tokenizer
from ift.data.encoding import Encoder, load_tokenizer
from ift.data.templates import TEMPLATES
from ift.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """One layout, and what its own code does."""

    write: Callable[[Path], Path]
    original: Callable[[Path], Any]
    """Has `encode`; where two cuts may be equally likely, also `accepts`."""
    begins: bool = False
    """Whether the original puts begin-of-text before a text."""
    tokens: tuple[str | None, ...] = ("<s>", "</s>", "<unk>", "<unk>")
    """Begin, end, unknown, padding."""


def sentencepiece_of(folder: Path) -> Any:
    return processor((folder / "tokenizer.model").read_bytes())


GLM = ("<sop>", "<eop>", "<unk>", "<pad>")
CHECKPOINTS = {
    "ChatGLM-6B": Checkpoint(old.write_chatglm, old.OriginalChatGLM, tokens=GLM),
    "ChatGLM-6B, blanks collapsed": Checkpoint(
        lambda f: old.write_chatglm(f, extra_blanks=True), old.OriginalChatGLM, tokens=GLM
    ),
    "ChatGLM-6B, first release": Checkpoint(
        lambda f: old.write_chatglm(f, images=50), lambda f: old.OriginalChatGLM(f, images=50), tokens=GLM
    ),
    "ChatGLM-6B, first file": Checkpoint(
        lambda f: old.write_chatglm(f, images=50, complete=False),
        lambda f: old.OriginalChatGLM(f, images=50),
        tokens=GLM,
    ),
    "ChatGLM2-6B": Checkpoint(old.write_chatglm2, sentencepiece_of),
    "ChatGLM3-6B": Checkpoint(lambda f: old.write_chatglm2(f, number=3), sentencepiece_of),
    "Baichuan-7B": Checkpoint(lambda f: old.write_baichuan(f, first=True), sentencepiece_of, begins=True),
    "Baichuan2": Checkpoint(lambda f: old.write_baichuan(f, add_bos_token=False), sentencepiece_of),
    "InternLM": Checkpoint(old.write_internlm, sentencepiece_of, begins=True, tokens=("<s>", "</s>", "<unk>", "</s>")),
    "MOSS": Checkpoint(
        old.write_moss,
        old.OriginalMoss,
        tokens=("<|endoftext|>", "<eom>", "<|endoftext|>", None),
    ),
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path, Any]:
    checkpoint = CHECKPOINTS[request.param]
    folder = checkpoint.write(tmp_path_factory.mktemp("checkpoint") / "base")
    return checkpoint, folder, load_tokenizer("model.base", str(folder))


def test_ids_are_those_of_the_original_and_its_code_never_ran(loaded: tuple[Checkpoint, Path, Any]) -> None:
    checkpoint, folder, tokenizer = loaded
    original = checkpoint.original(folder)
    encoder = Encoder(tokenizer, TEMPLATES["plain"])
    for text in [*TEXTS, *random_texts(200), "a" + " " * 85 + "b", " " * 80, "\n\n\t\t"]:
        ids = encoder.response_ids(text)
        assert original.accepts(ids, text) if hasattr(original, "accepts") else ids == original.encode(text), text
    assert not (folder / old.CANARY).exists()


def test_special_tokens_and_settings(loaded: tuple[Checkpoint, Path, Any]) -> None:
    checkpoint, folder, tokenizer = loaded
    found = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert found == checkpoint.tokens
    assert tokenizer.is_fast and not tokenizer.chat_template
    plain = checkpoint.original(folder).encode("hello")
    assert tokenizer("hello").input_ids == ([tokenizer.bos_token_id] if checkpoint.begins else []) + plain
    assert Encoder(tokenizer, TEMPLATES["plain"]).begin_token_id == (1 if checkpoint.begins else None)


def test_what_is_saved_loads_anywhere_with_the_same_ids(loaded: tuple[Checkpoint, Path, Any], tmp_path: Path) -> None:
    """As in the folder of a run, alone or beside the original `config.json`."""
    _, folder, tokenizer = loaded
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    shutil.copytree(tmp_path / "saved", tmp_path / "beside")
    shutil.copy(folder / "config.json", tmp_path / "beside")
    for place in ("saved", "beside"):
        again = load_tokenizer("model.base", str(tmp_path / place))
        texts = [*TEXTS, *random_texts(20)]
        assert again(texts).input_ids == tokenizer(texts).input_ids
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert len(again) == len(tokenizer)
        for text in texts:
            ids = tokenizer(text).input_ids
            assert again.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)
    plain = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert plain("hello world").input_ids == tokenizer("hello world").input_ids
    assert not (folder / old.CANARY).exists()


def test_a_text_comes_back(loaded: tuple[Checkpoint, Path, Any]) -> None:
    _, _, tokenizer = loaded
    encoder = Encoder(tokenizer, TEMPLATES["plain"])
    for text in ["Alice was late!\n\tdef f(x):\n        return x", "白日依山尽，黄河入海流。", "a  b", "x\n\n\ny"]:
        if tokenizer.eos_token == "<eop>":
            text = text.replace("，", ",")  # its normalisation writes full-width punctuation in half width
        assert encoder.decode(encoder.response_ids(text)) == text


def test_chatglm_decodes_as_the_original(tmp_path: Path) -> None:
    folder = old.write_chatglm(tmp_path / "base", images=50)
    original, tokenizer = old.OriginalChatGLM(folder, images=50), load_tokenizer("model.base", str(folder))
    for text in [*TEXTS, *random_texts(200)]:
        ids = original.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == original.decode(ids), text
    assert tokenizer.convert_ids_to_tokens([0, 49, 50]) == ["<image_0>", "<image_49>", "<unk>"]


def test_special_tokens_of_chatglm_stand_where_they_should(tmp_path: Path) -> None:
    size = processor(train()).get_piece_size()
    two = load_tokenizer("base", str(old.write_chatglm2(tmp_path / "two")))
    three = load_tokenizer("base", str(old.write_chatglm2(tmp_path / "three", number=3)))
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    assert three.convert_tokens_to_ids(names) == list(range(size, size + 9))
    assert two.convert_tokens_to_ids(names[:5]) == list(range(size, size + 5))
    assert (len(two), len(three)) == (size + 5, size + 9)


def test_a_folder_above_does_not_make_a_chatglm2_a_chatglm3(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("base", str(old.write_chatglm2(tmp_path / "chatglm3-study" / "chatglm2-6b")))
    assert "<|user|>" not in tokenizer.get_vocab()


@pytest.mark.parametrize("sign", ["code", "added tokens"])
def test_chatglm3_is_known_without_its_name(sign: str, tmp_path: Path) -> None:
    folder = old.write_chatglm2(tmp_path / "base")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    size = processor(train()).get_piece_size()
    if sign == "code":
        with (folder / "tokenization_chatglm.py").open("a") as file:
            file.write('ROLES = ["<|observation|>"]\n')
    else:
        settings["added_tokens_decoder"] = {str(size + 8): {"content": "<|observation|>"}}
    old.write_json(path, settings)
    assert load_tokenizer("base", str(folder)).convert_tokens_to_ids("<|observation|>") == size + 8


def test_moss_ends_where_its_file_says(tmp_path: Path) -> None:
    base = load_tokenizer("base", str(old.write_moss(tmp_path / "base", sft=False)))
    assert base.eos_token == "<|endoftext|>"
    assert Encoder(base, TEMPLATES["moss"]).stop_token_ids == sorted(
        base.convert_tokens_to_ids(["<|endoftext|>", "<eom>"])
    )
    assert Encoder(base, TEMPLATES["moss"]).missing_tokens() == {}


def test_no_class_named_is_told_by_the_config(tmp_path: Path) -> None:
    folder = old.write_internlm(tmp_path / "base")
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer("base", str(folder))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    assert tokenizer("a").input_ids[0] == 1


@pytest.mark.parametrize(
    ("write", "name", "family"),
    [
        (old.write_chatglm, "ice_text.model", "ChatGLM-6B"),
        (old.write_chatglm2, "tokenizer.model", "ChatGLM2 or ChatGLM3"),
        (old.write_baichuan, "tokenizer.model", "Baichuan"),
        (old.write_internlm, "tokenizer.model", "InternLM"),
        (old.write_moss, "merges.txt", "MOSS"),
    ],
)
def test_a_missing_file_is_named(write: Callable[[Path], Path], name: str, family: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "base")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"model.base: .* a checkpoint of {family}, .*'{name}' is not there"):
        load_tokenizer("model.base", str(folder))
    assert not (folder / old.CANARY).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "begins with 'ver",
        ),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json: cannot be read"),
        (lambda f: (f / "tokenizer_config.json").write_text("[1]"), "must be a JSON object; found list"),
        (lambda f: old.write_json(f / "added_tokens.json", {"<new>": 9}), "'<new>' has the id 9, but"),
        (lambda f: old.write_json(f / "added_tokens.json", {"a": 9}), "the vocabulary has it at"),
        (lambda f: settings(f, eos_token="<end>"), "eos_token: '<end>' is not in the vocabulary"),
    ],
)
def test_files_that_do_not_fit_are_refused(change: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    folder = old.write_internlm(tmp_path / "base")
    change(folder)
    with pytest.raises(UserError, match=message):
        load_tokenizer("model.base", str(folder))


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    old.write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def test_settings_that_no_release_has_are_refused(tmp_path: Path) -> None:
    folder = old.write_chatglm(tmp_path / "base")
    settings(folder, do_lower_case=True)
    with pytest.raises(UserError, match="do_lower_case: true"):
        load_tokenizer("model.base", str(folder))
    folder = old.write_moss(tmp_path / "moss")
    (folder / "merges.txt").write_text("#version: 0.2\nĠzz qq\n", encoding="utf-8")
    with pytest.raises(UserError, match="do not fit together"):
        load_tokenizer("model.base", str(folder))


def test_added_tokens_follow_the_vocabulary(tmp_path: Path) -> None:
    folder = old.write_internlm(tmp_path / "base")
    size = processor((folder / "tokenizer.model").read_bytes()).get_piece_size()
    old.write_json(folder / "added_tokens.json", {"<one>": size, "<two>": size + 1})
    tokenizer = load_tokenizer("model.base", str(folder))
    assert tokenizer.convert_tokens_to_ids(["<one>", "<two>"]) == [size, size + 1]


@pytest.mark.parametrize("empty", [False, True])
def test_llama_with_its_model_alone(empty: bool, tmp_path: Path) -> None:
    """Blanks are kept, unlike with transformers' own class; some files of 2023 name empty special tokens."""
    model = train()
    (tmp_path / "tokenizer.model").write_bytes(model)
    names = {"bos_token": "", "eos_token": "", "unk_token": ""} if empty else {}
    old.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **names})
    tokenizer = load_tokenizer("model.base", str(tmp_path))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", None)
    for text in TEXTS:
        if "</s>" not in text:  # a special token in a text is one to transformers, unless the encoder asks
            assert tokenizer(text).input_ids == [1, *processor(model).encode(text)]


def test_llama_keeps_what_else_its_files_say(tmp_path: Path) -> None:
    """Added tokens, roles in another file, and the chat template; as Chinese-Alpaca and Vicuna have them."""
    size = processor(model := train()).get_piece_size()
    (tmp_path / "tokenizer.model").write_bytes(model)
    about = {"tokenizer_class": "LlamaTokenizer", "chat_template": "{{ messages }}", "model_max_length": 2048}
    old.write_json(tmp_path / "tokenizer_config.json", about | {"additional_special_tokens": ["<|user|>"]})
    old.write_json(tmp_path / "added_tokens.json", {"[PAD]": size, "<|user|>": size + 1})
    old.write_json(tmp_path / "special_tokens_map.json", {"pad_token": "[PAD]", "bos_token": {"content": "<s>"}})
    tokenizer = load_checkpoint_tokenizer("model.base", str(tmp_path))
    assert tokenizer is not None
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("[PAD]", size, size + 2)
    assert tokenizer("<|user|>", add_special_tokens=False).input_ids == [size + 1]
    assert (tokenizer.chat_template, tokenizer.model_max_length) == ("{{ messages }}", 2048)
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    again = load_tokenizer("model.base", str(tmp_path / "saved"))
    assert (again.chat_template, again.pad_token_id, len(again)) == ("{{ messages }}", size, size + 2)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
    assert load_tokenizer("model.base", str(tmp_path)).chat_template == "{{ bos_token }}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<|user|>": 5}),
        ("added_tokens.json", {"<|user|>": 5000}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<|user|>"]}),
        ("special_tokens_map.json", {"pad_token": "[PAD]"}),
    ],
)
def test_llama_with_tokens_that_transformers_places_is_left_to_it(name: str, content: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train())
    old.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    assert load_checkpoint_tokenizer("model.base", str(tmp_path)) is not None
    old.write_json(tmp_path / name, content)
    assert load_checkpoint_tokenizer("model.base", str(tmp_path)) is None


def test_another_file_of_that_name_is_left_to_transformers(tmp_path: Path) -> None:
    """Llama 3's `tokenizer.model` is no SentencePiece model."""
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    old.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    assert load_checkpoint_tokenizer("model.base", str(tmp_path)) is None


def test_recognition_needs_no_torch(tmp_path: Path) -> None:
    folder = old.write_internlm(tmp_path / "base")
    program = f"""
import sys
from ift.data.checkpoint_tokenizers import internlm
from ift.data.checkpoint_tokenizers.files import CheckpointFiles
assert internlm.recognises(CheckpointFiles({str(folder)!r}))
assert not {{"torch", "transformers"}} & {{name.split('.')[0] for name in sys.modules}}
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_a_hub_id_is_read_from_the_cache(tmp_path: Path) -> None:
    """Files of a hub id are found as transformers finds them; here without network, in its cache."""
    place = tmp_path / "hub" / "models--owner--name"
    folder = old.write_internlm(place / "snapshots" / "0123")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")
    program = """
from ift.data.checkpoint_tokenizers import load_checkpoint_tokenizer
print(*load_checkpoint_tokenizer("model.base", "owner/name")("hello").input_ids)
print(load_checkpoint_tokenizer("model.base", "owner/other"))
"""
    settings = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    expected = [1, *processor((folder / "tokenizer.model").read_bytes()).encode("hello")]
    assert result.stdout.splitlines() == [" ".join(map(str, expected)), "None"]
    assert not (folder / old.CANARY).exists()
