"""The three stages of Chinese-LLaMA, chained by run folders, on tiny models; and the experiment as a whole."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import CHINESE, ROOT, WORDS, make_rows, write_json
from vocabularies import larger_tokenizer

from ift.cli import main

CONFIGS = ROOT / "configs" / "chinese_llama"
STAGES = {"stage1": "stage1_embeddings.yaml", "stage2": "stage2_lora.yaml", "instruction": "instruction.yaml"}
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NUM_NEW = 40
SMALL: dict[str, Any] = {
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.precision": "32-true",
    "trainer.enable_progress_bar": False,
    "trainer.val_check_interval": 1.0,
    "trainer.num_sanity_val_steps": -1,
    "model.optimizer.init_args.lr": 0.01,
    "data.max_length": 128,
    "data.global_batch_size": 8,
    "data.micro_batch_tokens": 512,
}


def texts(number: int, *, start: int) -> list[dict[str, str]]:
    """Return texts in which each word follows from the two before it."""
    return [
        {"text": "，".join(CHINESE[(i * k + k * k) % 10] for k in range(3 + i % 30))}
        for i in range(start, start + number)
    ]


def fit(stage: str, root: Path, **keys: Any) -> None:
    settings = {"run_dir": root / stage, "data.cache_dir": root / "cache", **SMALL, **keys}
    given = [
        part
        for key, value in settings.items()
        for part in (f"--{key}", json.dumps(value) if isinstance(value, list | bool) else str(value))
    ]
    assert main(["fit", "--config", str(CONFIGS / STAGES[stage]), *given]) == 0


@pytest.fixture(scope="module")
def chain(base: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of the three stages, each made from its own YAML with other sizes, data and places."""
    root = tmp_path_factory.mktemp("chinese_llama")
    larger_tokenizer(tokenizer_folder, root / "tokenizer", NUM_NEW)
    text = [{"path": str(write_json(root / "text.json", texts(120, start=0))), "layout": "text"}]
    held_out = [{"path": str(write_json(root / "held_out.json", texts(20, start=500))), "layout": "text"}]
    rows = [{"path": str(write_json(root / "rows.json", make_rows(40))), "layout": "alpaca"}]
    plain: dict[str, Any] = {"data.sources": text, "data.validation": held_out}
    fit("stage1", root, **plain, **{"model.base": base, "model.vocabulary.tokenizer": root / "tokenizer"})
    fit("stage2", root, **plain, **{"model.base": root / "stage1" / "model"})
    places = {"model.base": root / "stage1" / "model", "model.merged_adapters": [str(root / "stage2")]}
    fit("instruction", root, **places, **{"data.sources": rows, "data.validation": rows, "data.max_length": 256})
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(str(file)).items()}


def test_each_stage_begins_where_the_one_before_ended(chain: Path) -> None:
    losses = {}
    for stage in STAGES:
        manifest = json.loads((chain / stage / "manifest.json").read_text(encoding="utf-8"))
        losses[stage] = [one["loss"] for one in manifest["validation"]]
        assert losses[stage][-1] < losses[stage][0]
    assert losses["stage2"][0] == pytest.approx(losses["stage1"][-1], abs=1e-6), "a fresh LoRA changes nothing"


def test_stage_1_trains_nothing_but_embedding_and_head(chain: Path, base: Path) -> None:
    before, after = weights(base), weights(chain / "stage1" / "model")
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - ends)
    for name in ends:
        assert len(after[name]) == len(before[name]) + NUM_NEW
        assert not torch.equal(before[name], after[name][: len(before[name])])


@pytest.mark.parametrize("stage", ["stage2", "instruction"])
def test_lora_is_on_attention_and_mlp_beside_embedding_and_head(chain: Path, stage: str) -> None:
    adapter = load_file(str(chain / stage / "adapter" / "adapter_model.safetensors"))
    matrices = {name.split(".")[-3] for name in adapter if "lora_" in name}
    assert matrices == set(MATRICES)
    assert sum("lora_" not in name for name in adapter) == 2
    assert all(any(end in name for end in ("embed_tokens", "lm_head")) for name in adapter if "lora_" not in name)


def test_one_plain_model_comes_of_all_stages(chain: Path, base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ift.models.merging import load_trained
    from ift.models.trained_run import open_trained

    target = chain / "merged"
    assert main(["merge", str(chain / "instruction"), "--output", str(target)]) == 0
    assert main(["merge", str(chain / "stage2"), "--output", str(chain / "merged_stage2")]) == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(str(target))
    larger: Any = AutoTokenizer.from_pretrained(str(chain / "tokenizer"))
    assert tokenizer.get_vocab() == larger.get_vocab()
    merged: Any = AutoModelForCausalLM.from_pretrained(str(target))
    ids = tokenizer("河流，石头，灯光", return_tensors="pt").input_ids
    assert (ids >= len(AutoTokenizer.from_pretrained(str(base)))).any(), "a new token is among them"
    run = load_trained("--run", open_trained("--run", str(chain / "instruction")), "float32", quantization=None)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, run(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_experiment_runs_from_texts_to_a_table(tokenizer_folder: Path, tmp_path: Path) -> None:
    """With invented texts, a vocabulary of 420 pieces in LLaMA's place, and steps that take no time."""
    (tmp_path / "chinese").mkdir()
    lines = [row["text"] for row in texts(300, start=0)]
    (tmp_path / "chinese" / "text.txt").write_text("\n".join(dict.fromkeys(lines)), encoding="utf-8")
    english = "\n".join(" ".join(WORDS[(i * k) % 10] for k in range(40)) for i in range(40))
    (tmp_path / "english.txt").write_text(english, encoding="utf-8")
    inputs = ["--chinese", str(tmp_path / "chinese"), "--english", str(tmp_path / "english.txt")]
    inputs += ["--base-tokenizer", str(tokenizer_folder / "tokenizer.model"), "--output", str(tmp_path / "run")]
    sizes = ["--vocab-size", "290", "--flops", "4e9", "--base-flops", "2e9", "--width", "32", "--layers", "1"]
    sizes += ["--block", "256", "--instruction-steps", "4"]
    command = [sys.executable, str(ROOT / "scripts" / "chinese_llama" / "experiment.py"), *inputs, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found = json.loads((tmp_path / "run" / "outcome.json").read_text(encoding="utf-8"))
    base, original, first, merged = found["arms"]
    assert original["num_rows"] == base["num_rows"] < first["num_rows"] == merged["num_rows"]
    assert merged["score"]["tokens"] < original["score"]["tokens"] == base["score"]["tokens"]
    assert len({arm["score"]["characters"] for arm in found["arms"]}) == 1
    assert original["score"]["bits_per_character"] < base["score"]["bits_per_character"]
    assert merged["score"]["bits_per_character"] < first["score"]["bits_per_character"]
    for arm in found["arms"]:
        score = arm["score"]
        bits = score["loss_per_token"] * score["tokens"] / score["characters"] / math.log(2)
        assert bits == pytest.approx(score["bits_per_character"], rel=1e-6)
    assert found["instruction"]["after"] < found["instruction"]["before"]
    assert done.stdout.rstrip().endswith((tmp_path / "run" / "outcome.md").read_text(encoding="utf-8").rstrip())
