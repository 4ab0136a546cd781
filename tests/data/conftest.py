import json
import shutil
from pathlib import Path

import pytest
from byte_level import make_byte_level
from conversations import NASTY
from tiny import make_rows


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with ChatML as its chat template."""
    texts = [*NASTY, *(f"{row['instruction']}\n{row['output']}" for row in make_rows(60))]
    return make_byte_level(tmp_path_factory.mktemp("byte_level"), texts)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """The SentencePiece model as transformers' LlamaTokenizer reads it, and saved by it."""
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(tokenizer_folder / "tokenizer.model", folder)
    about = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"add_bos_token": True}), encoding="utf-8")
    LlamaTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    return folder


@pytest.fixture(params=["sentencepiece", "llama", "byte_level"])
def any_tokenizer_folder(request: pytest.FixtureRequest) -> Path:
    """Each of the three tokenizers."""
    name = {"sentencepiece": "tokenizer_folder", "llama": "llama_folder", "byte_level": "byte_level_folder"}
    folder: Path = request.getfixturevalue(name[request.param])
    return folder
