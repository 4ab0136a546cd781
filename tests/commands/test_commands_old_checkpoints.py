"""`ift fit`, `ift predict` and `ift merge` on folders of 2023 as they were published; nothing of their code runs."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from old_checkpoints import (
    CANARY,
    write_baichuan,
    write_chatglm,
    write_chatglm2,
    write_internlm,
    write_moss,
)
from original_checkpoints import CHECKPOINTS, Sizes, was_executed, write_checkpoint
from safetensors.torch import load_file
from tiny import make_rows, write_json

from ift.cli import main
from ift.data.encoding import load_tokenizer
from ift.models.families import FAMILIES
from ift.models.loading import load_base_model

WIDE = {"hidden": 64, "mlp": 96, "positions": 1024}


@dataclass(frozen=True)
class Published:
    """A family's folder, and how it is talked to."""

    write_tokenizer: Callable[[Path], Path]
    template: str
    sizes: dict[str, int] = field(default_factory=dict)


PUBLISHED = {
    "baichuan_7b": Published(lambda folder: write_baichuan(folder, first=True), "alpaca"),
    "baichuan2_7b": Published(lambda folder: write_baichuan(folder, add_bos_token=False), "baichuan2_chat"),
    "baichuan_13b": Published(lambda folder: write_baichuan(folder, add_bos_token=False), "baichuan_chat"),
    "baichuan2_13b": Published(lambda folder: write_baichuan(folder, add_bos_token=False), "baichuan2_chat"),
    "chatglm": Published(write_chatglm, "chatglm"),
    "chatglm2": Published(write_chatglm2, "chatglm2"),
    "internlm": Published(write_internlm, "internlm_chat"),
    "moss": Published(write_moss, "moss"),
}


def publish(name: str, folder: Path) -> Path:
    """Write a folder as on the hub, tokenizer and weights of one size."""
    PUBLISHED[name].write_tokenizer(folder)
    write_checkpoint(CHECKPOINTS[name](), folder)  # for its config.json, by which the tokenizer is known
    tokenizer = load_tokenizer("model.base", str(folder))
    sizes = Sizes(vocabulary=len(tokenizer) + 3, **WIDE, **PUBLISHED[name].sizes)
    special = {"gmask_token_id": "[gMASK]", "mask_token_id": "[MASK]", "bos_token_id": "<sop>", "eos_token_id": "<eop>"}
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in special.items()}
    return write_checkpoint(CHECKPOINTS[name](sizes=sizes), folder, changes=ids if name == "chatglm" else None)


def settings(folder: Path, base: Path, template: str, **model: Any) -> Path:
    values = {
        "run_dir": str(folder / "run"),
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False},
        "model": {
            "base": str(base),
            "adapter": {"class_path": "lora", "init_args": {"r": 4}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            **model,
        },
        "data": {
            "sources": [{"path": str(write_json(folder / "rows.json", make_rows(24))), "layout": "alpaca"}],
            "template": template,
            "validation": 4,
            "max_length": 1000,
            "global_batch_size": 8,
            "micro_batch_tokens": 2048,
            "cache_dir": str(folder / "cache"),
        },
        "samples": {"num_samples": 1, "max_new_tokens": 4},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def fit(path: Path) -> Path:
    assert main(["fit", "--config", str(path), "--debug"]) == 0
    return path.parent / "run"


def test_every_family_is_published_here() -> None:
    assert {family.name for family in FAMILIES} == set(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_folder_is_trained_answers_and_is_merged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = publish(name, tmp_path / "base")
    run = fit(settings(tmp_path, base, PUBLISHED[name].template))
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    moved = load_file(str(run / "adapter" / "adapter_model.safetensors"))
    assert any(float(one.abs().max()) > 0 for key, one in moved.items() if "lora_B" in key)
    merged = tmp_path / "merged"
    assert main(["merge", str(run), "--output", str(merged), "--debug"]) == 0  # whose certificate compares logits
    prompt = {"id": "1", "messages": [{"role": "user", "content": "Repeat item 3: river stone"}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt) + "\n", encoding="utf-8")
    answers = []
    for number, source in enumerate((["--run", str(run)], ["--model.base", str(merged)])):
        output = tmp_path / f"answers{number}"
        template = [] if number == 0 else ["--data.template", PUBLISHED[name].template]
        arguments = [f"--data.path={tmp_path / 'prompts.jsonl'}", "--output_dir", str(output), *template]
        arguments += ["--model.decoding.max_new_tokens=6", "--trainer.accelerator=cpu", "--debug"]
        assert main(["predict", *source, *arguments]) == 0
        (line,) = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        answers.append(json.loads(line))
    assert answers[0]["response"] == answers[1]["response"]
    assert answers[0]["prompt"] == answers[1]["prompt"]
    monkeypatch.chdir(merged)
    (program,) = re.findall(r"```python\n(.*?)```", (merged / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert ("load_base_model" in program) == (name in ("baichuan_13b", "baichuan2_13b", "chatglm"))
    exec(program, found := {})
    assert len(found["answer"]) > 0
    assert not was_executed(base) and not (base / CANARY).exists()


LIKE_OTHERS = ("baichuan2_7b", "baichuan_13b", "baichuan_7b", "internlm")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_OTHERS)) for name in sorted(PUBLISHED)]
)
def test_quantized_weights_and_checkpointing_train_as_they_do_elsewhere(name: str, tmp_path: Path) -> None:
    base = publish(name, tmp_path / "base")
    runs = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        folder.mkdir()
        method = {"adapter": {"class_path": "qlora", "init_args": {"r": 4, "lora_dropout": 0.0}}}
        method |= {"gradient_checkpointing": checkpointing}
        runs.append(fit(settings(folder, base, PUBLISHED[name].template, **method)))
    one, two = (load_file(str(run / "adapter" / "adapter_model.safetensors")) for run in runs)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


@pytest.mark.parametrize("name", ["baichuan2_7b", "chatglm"])
def test_all_weights_are_trained_and_read_back(name: str, tmp_path: Path) -> None:
    """Of Baichuan2, whose head divides its rows while it is trained; of ChatGLM-6B, whose head is its embedding."""
    base = publish(name, tmp_path / "base")
    run = fit(settings(tmp_path, base, PUBLISHED[name].template, adapter=None))
    before = load_base_model("model.base", str(base), "float32")
    after = load_base_model("model.base", str(run / "model"), "float32")
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        moved = (before.eval()(input_ids=ids).logits - after.eval()(input_ids=ids).logits).abs().max()
    assert moved > 1e-3
    head, embedding = after.get_output_embeddings().weight, after.get_input_embeddings().weight
    if name == "chatglm":
        assert head is embedding
    else:
        torch.testing.assert_close(head.norm(dim=1), torch.ones(len(head)))
