"""`ift convert` as it is typed: a folder that trains and answers, adapters of 2023, and mistakes in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import old_checkpoints
import pytest
import torch
import yaml
from converting import own_logits
from old_adapter_files import old_lora, write_adapter
from original_checkpoints import CHECKPOINTS, Sizes, was_executed, write_checkpoint
from tiny import make_rows, write_json
from transformers import AutoTokenizer

from ift.cli import main
from ift.data.encoding import load_tokenizer

Run = Callable[..., tuple[int, str]]
TEXTS = ("Repeat item 3.", "请重复第4项：河流、石头", "a  b\n\nc")


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; return its exit code and all that it said."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["convert", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def source(tmp_path: Path, base: Path) -> Path:
    """A ChatGLM2 with a tokenizer, whose settings name code that lies beside it."""
    rows = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    checkpoint = CHECKPOINTS["chatglm2"](seed=40, sizes=Sizes(vocabulary=rows, positions=512))
    folder = write_checkpoint(checkpoint, tmp_path / "source", files="bin", shards=2)
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_a_folder_is_converted_and_says_so(source: Path, tmp_path: Path, convert: Run) -> None:
    code, said = convert(source, tmp_path / "native", "--shard_size", "20KB")
    assert code == 0, said
    assert "left out: 1 tensors that the model has no place for, first 'transformer.rotary_pos_emb.inv_freq'" in said
    assert "tensors, bit by bit" in said
    assert not was_executed(source)
    native = AutoTokenizer.from_pretrained(str(tmp_path / "native"))
    assert "auto_map" not in (tmp_path / "native" / "tokenizer_config.json").read_text(encoding="utf-8")
    given = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    assert [native(text).input_ids for text in TEXTS] == [given(text).input_ids for text in TEXTS]
    assert (own_logits(tmp_path / "native") - own_logits(source)).abs().max() < 1e-6
    code, said = convert(tmp_path / "native", tmp_path / "back", "--layout", "original")
    assert code == 0, said
    assert (own_logits(tmp_path / "back") - own_logits(source)).abs().max() < 1e-6


def test_the_original_layout_keeps_the_original_tokenizer(source: Path, tmp_path: Path, convert: Run) -> None:
    (source / "tokenizer.model").write_bytes(b"\x00 any file of the original")
    code, said = convert(source, tmp_path / "out", "--layout", "original", "--dtype", "bfloat16")
    assert code == 0, said
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert "auto_map" not in (tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8")


def test_a_converted_folder_is_trained_on_top_of_an_old_adapter(source: Path, tmp_path: Path, convert: Run) -> None:
    """The old adapter goes straight into `model.merged_adapters`, and, converted, into `model.adapter`."""
    assert convert(source, tmp_path / "native")[0] == 0
    checkpoint = CHECKPOINTS["chatglm2"](seed=40, sizes=Sizes(vocabulary=_rows(source), positions=512))
    ends = ["query_key_value", "dense_4h_to_h"]
    old = write_adapter(old_lora(checkpoint, ends, lora_dropout=0.0), tmp_path / "old")
    code, said = convert(old, tmp_path / "adapter", "--base", source)
    assert code == 0, said
    assert "4 modules of the original are 8 native ones" in said
    settings = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 1, "enable_progress_bar": False},
        "data": {
            "sources": [{"path": str(write_json(tmp_path / "rows.json", make_rows(8))), "layout": "alpaca"}],
            "validation": None,
            "max_length": 256,
            "global_batch_size": 4,
            "micro_batch_tokens": 512,
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0}}
    lora = {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "target_modules": "all-linear"}}
    models = {"merged": {"merged_adapters": [str(old)], "adapter": lora}, "again": {"adapter": str(old)}}
    losses = []
    for name, model in models.items():
        run = {"run_dir": str(tmp_path / name), "model": {"base": str(source), "optimizer": optimizer, **model}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**settings, **run}), encoding="utf-8")
        assert main(["fit", "--config", str(tmp_path / f"{name}.yaml")]) == 0
        manifest = json.loads((tmp_path / name / "manifest.json").read_text(encoding="utf-8"))
        losses.append(manifest["last_logged"]["train/loss"])
    assert abs(losses[0] - losses[1]) < 1e-4


def _rows(folder: Path) -> int:
    found: int = json.loads((folder / "config.json").read_text(encoding="utf-8"))["padded_vocab_size"]
    return found


def test_mistakes_are_told_in_one_line(source: Path, tmp_path: Path, convert: Run) -> None:
    out = tmp_path / "out"
    adapter = write_adapter(old_lora(CHECKPOINTS["chatglm2"](), ["dense"]), tmp_path / "old")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}", encoding="utf-8")
    mistakes = {
        (source, source): "nothing is ever overwritten",
        (tmp_path / "nowhere", out): "no folder",
        (source, out, "--layout", "natif"): "native",
        (source, out, "--family", "mosse"): "Did you mean 'moss'",
        (source, out, "--family", "moss", "--layout", "original"): "is of chatglm2",
        (source, out, "--shard_size", "5"): "--shard_size",
        (source, out, "--base", source): "--base: is for adapters",
        (source, out, "--keep"): "unknown name '--keep'",
        (adapter, out): "--base",
        (adapter, out, "--base", source, "--layout", "original"): "--layout: is for base models",
        (adapter, out, "--base", source, "--dtype", "float32"): "--dtype: is for base models",
        (adapter, out, "--base", source, "--no_tokenizer"): "--no_tokenizer: is for base models",
        (adapter, out, "--base", source, "--shard_size", "1GB"): "--shard_size: is for base models",
        (tmp_path / "run", out): "is a run",
        ("nobody/no-such-model", out): "nothing of that name was fetched before",
    }
    for arguments, told in mistakes.items():
        code, said = convert(*arguments)
        assert code == 2, arguments
        assert told in said, said
        assert "Traceback" not in said
        assert not out.exists()


def test_a_folder_without_a_tokenizer_needs_a_word_for_it(tmp_path: Path, convert: Run) -> None:
    folder = write_checkpoint(CHECKPOINTS["baichuan_7b"](), tmp_path / "source")
    for layout in ("native", "original"):
        code, said = convert(folder, tmp_path / layout, "--layout", layout)
        assert code == 2
        assert "--no_tokenizer" in said
        code, said = convert(folder, tmp_path / layout, "--layout", layout, "--no_tokenizer")
        assert code == 0, said


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(base: Path, tmp_path: Path, convert: Run) -> None:
    folder = write_checkpoint(CHECKPOINTS["internlm"](sizes=Sizes(vocabulary=16)), tmp_path / "source")
    AutoTokenizer.from_pretrained(str(base)).save_pretrained(str(folder))
    code, said = convert(folder, tmp_path / "out")
    assert code == 2
    assert "only 16 rows" in said


def test_heads_that_are_divided_are_told(base: Path, tmp_path: Path, convert: Run) -> None:
    checkpoint = CHECKPOINTS["baichuan2_7b"]().in_dtype(torch.bfloat16)
    folder = write_checkpoint(checkpoint, tmp_path / "source")
    code, said = convert(folder, tmp_path / "out", "--no_tokenizer")
    assert code == 0
    assert "the way back is not exact" in said
    assert "rounding of the divided rows to bfloat16" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


TOKENIZERS: dict[str, Callable[..., Path]] = {
    "baichuan_7b": lambda folder: old_checkpoints.write_baichuan(folder, first=True),
    "baichuan2_7b": old_checkpoints.write_baichuan,
    "baichuan_13b": old_checkpoints.write_baichuan,
    "internlm": old_checkpoints.write_internlm,
    "chatglm2": old_checkpoints.write_chatglm2,
    "chatglm": old_checkpoints.write_chatglm,
    "moss": old_checkpoints.write_moss,
}
"""What writes each family's own tokenizer files."""


@pytest.mark.parametrize("family", TOKENIZERS)
def test_tokenizers_of_2023_come_along(family: str, tmp_path: Path, convert: Run) -> None:
    """A native folder's loads anywhere and gives the same ids; the original's own files stay as they are."""
    folder = TOKENIZERS[family](tmp_path / "source")
    checkpoint = CHECKPOINTS[family](sizes=Sizes(hidden=48, heads=4, vocabulary=_enough(folder)))
    write_checkpoint(checkpoint, folder)
    given = load_tokenizer("SRC", str(folder))
    layout = "original" if family in ("baichuan_13b", "chatglm") else "native"
    code, said = convert(folder, tmp_path / "out", "--layout", layout)
    assert code == 0, said
    plain = layout == "native"
    found = AutoTokenizer.from_pretrained(str(tmp_path / "out")) if plain else load_tokenizer("", str(tmp_path / "out"))
    texts = (*TEXTS, "。".join(TEXTS), "\t \n<n>", "你好 world 123")
    assert [found(text).input_ids for text in texts] == [given(text).input_ids for text in texts]
    assert (found.eos_token_id, found.pad_token_id) == (given.eos_token_id, given.pad_token_id)
    assert not was_executed(folder)
    assert not (folder / old_checkpoints.CANARY).exists()


def _enough(folder: Path) -> int:
    tokenizer = load_tokenizer("SRC", str(folder))
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
