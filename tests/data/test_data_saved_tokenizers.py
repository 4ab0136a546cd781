"""`tokenizer.json` beside settings that name code: the file is read as it is, and the code never executed."""

import json
from pathlib import Path
from typing import Any

import pytest
from byte_level import SPECIAL, make_byte_level
from original_checkpoints import CHECKPOINTS, plant_code, was_executed, write_checkpoint
from tokenizers import Tokenizer

from ift.data.encoding import load_tokenizer
from ift.errors import UserError

CLASSES = {
    "baichuan_7b": "BaiChuanTokenizer",
    "baichuan2_7b": "BaichuanTokenizer",
    "internlm": "InternLMTokenizer",
    "chatglm": "ChatGLMTokenizer",
    "chatglm2": "ChatGLMTokenizer",
    "moss": "MossTokenizer",
}
TEXT = "Name three rivers: 长江, Rhine\n\n"
STATED = ("nothing", "class", "code", "class and code", "code in config.json")


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("family", CLASSES)
def test_tokenizer_json_is_read_whatever_code_stands_beside_it(family: str, stated: str, tmp_path: Path) -> None:
    checkpoint, name = CHECKPOINTS[family](), CLASSES[family]
    code = {"AutoTokenizer": [f"tokenization_{checkpoint.module}.{name}", None]}
    both = {**checkpoint.config["auto_map"], **code}
    folder = write_checkpoint(
        checkpoint, tmp_path / "base", changes={"auto_map": both} if stated == "code in config.json" else {}
    )
    given = Tokenizer.from_file(str(make_byte_level(folder, [TEXT]) / "tokenizer.json"))
    settings: dict[str, Any] = {"eos_token": SPECIAL[0], "pad_token": SPECIAL[0]}
    settings |= {"tokenizer_class": name} if "class" in stated else {}
    settings |= {"auto_map": code} if stated.endswith("code") else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer("model.base", str(folder))
    assert tokenizer(TEXT)["input_ids"] == given.encode(TEXT).ids
    assert tokenizer.eos_token == SPECIAL[0]
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8")
    assert not was_executed(folder)


def test_a_tokenizer_of_nothing_but_code_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    code = {"AutoTokenizer": ["tokenization_canary.Canary", None]}
    settings = {"tokenizer_class": "Canary", "auto_map": code}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    plant_code(tmp_path, "canary")
    with pytest.raises(UserError, match=r"which ift never executes, and there is no tokenizer\.json"):
        load_tokenizer("model.base", str(tmp_path))
    assert not was_executed(tmp_path)
