"""`ift merge` on tiny runs: the folder stands alone, the certificate tells the truth, nothing half-done is left."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import make_rows, write_json

import ift.models.export as export
from ift.cli import main

LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}
Merge = Callable[..., tuple[int, str]]


def train(folder: Path, base: Path, *, validation: int | None = 8, **model: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "run_dir": str(folder / "run"),
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "enable_progress_bar": False},
        "model": {
            "base": str(base),
            "adapter": LORA,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
            **model,
        },
        "data": {
            "sources": [
                {"path": str(write_json(folder / "rows.json", make_rows(40))), "layout": "alpaca"},
            ],
            "validation": validation,
            "max_length": 256,
            "global_batch_size": 8,
            "micro_batch_tokens": 1024,
            "cache_dir": str(folder / "cache"),
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config", str(folder / "run.yaml")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("merging")


@pytest.fixture(scope="module")
def own_base(base: Path, folder: Path) -> Path:
    """A copy that may be damaged, with a licence."""
    copied = shutil.copytree(base, folder / "tiny-llama")
    (copied / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n", encoding="utf-8")
    return copied


@pytest.fixture(scope="module")
def lora_run(own_base: Path, folder: Path) -> Path:
    return train(folder / "lora", own_base)


@pytest.fixture(scope="module")
def quantized_run(own_base: Path, folder: Path) -> Path:
    return train(folder / "nf4", own_base, validation=None, quantization={"scheme": "nf4"})


@pytest.fixture(scope="module")
def merged(lora_run: Path, folder: Path) -> Path:
    """The LoRA run merged in float32, into several shards."""
    output = folder / "merged"
    assert main(["merge", str(lora_run), "--output", str(output), "--shard_size", "50KB"]) == 0
    return output


@pytest.fixture
def merge(capsys: pytest.CaptureFixture[str]) -> Merge:
    """Run `ift merge` here; returns the exit code and what was said."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["merge", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def refused(result: tuple[int, str]) -> str:
    code, said = result
    assert code == 2 and "Traceback" not in said, said
    return said[said.index("error: ") :]


def certificate(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "certificate.json").read_text(encoding="utf-8"))
    return found


def alone(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder where neither ift nor peft can be imported."""
    blocked = "import sys\nsys.modules['ift'] = sys.modules['peft'] = None\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, "-c", blocked + program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def card_program(output: Path) -> str:
    (program,) = re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(program)


def test_the_folder_is_whole_and_sharded(merged: Path, lora_run: Path) -> None:
    names = {path.name for path in merged.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md", "certificate.json"} <= names
    assert "model.safetensors.index.json" in names and "model.safetensors" not in names
    assert not any("adapter" in name for name in names)
    assert (merged / "template.json").read_bytes() == (lora_run / "template.json").read_bytes()
    index = json.loads((merged / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert len(set(index["weight_map"].values())) >= 3
    assert not any("lora" in name or "base_layer" in name for name in index["weight_map"])
    assert not list(merged.parent.glob(".merged*"))


def test_it_answers_as_the_run_does_without_ift_and_peft(merged: Path, own_base: Path, lora_run: Path) -> None:
    """The program of the model card, run elsewhere, against base model and adapter here."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ift.artifacts import RunFolder
    from ift.commands.merge_prompts import encoder_of
    from ift.data.conversation import Conversation, Message

    program = card_program(merged) + "\nprint(ids)\nprint(answer.tolist())"
    result = alone(program, merged)
    assert result.returncode == 0, result.stderr
    *_, ids, answer = result.stdout.strip().splitlines()
    encoder = encoder_of(RunFolder(lora_run), "alpaca", {})
    expected_ids = encoder.prompt_ids(Conversation((Message("user", "Say hello."),)))
    assert json.loads(ids) == expected_ids
    model: Any = AutoModelForCausalLM.from_pretrained(str(own_base))
    model = PeftModel.from_pretrained(model, str(lora_run / "adapter"))
    output = model.generate(
        input_ids=torch.tensor([expected_ids]),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=encoder.stop_token_ids,
        pad_token_id=encoder.pad_token_id,
    )
    assert json.loads(answer) == output[0, len(expected_ids) :].tolist()
    assert AutoTokenizer.from_pretrained(str(merged)).chat_template


def test_the_certificate_is_bound_to_float32_rounding(merged: Path) -> None:
    found = certificate(merged)
    (comparison,) = found["comparisons"]
    assert found["passed"] and found["num_prompts"] == 8 and "validation" in found["prompts"]
    assert comparison["relative_gap"] <= found["float32_tolerance"] == 1e-4
    assert comparison["num_tokens"] > 20 and comparison["changed_tokens"] == 0


def test_the_model_card(merged: Path) -> None:
    text = (merged / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "text-generation"
    assert header["license"] == "apache-2.0" and "base_model" not in header  # a folder is no id of the hub
    assert certificate(merged)["comparisons"][0]["reference"] in text
    for said in ("tiny-llama", "rows.json", "Trained on 32 examples, 8 held out", "validation loss", "AdamW"):
        assert said in text
    assert str(merged.parent) not in text, "a place on the machine of the training"


def test_a_smaller_dtype_is_measured_in_both(lora_run: Path, tmp_path: Path, merge: Merge) -> None:
    code, said = merge(lora_run, "--output", tmp_path / "out", "--dtype", "bfloat16")
    assert code == 0, said
    weights = load_file(str(tmp_path / "out" / "model.safetensors"))
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    merge_alone, in_dtype, yardstick, files = certificate(tmp_path / "out")["comparisons"]
    assert [one["dtype"] for one in (merge_alone, in_dtype, yardstick)] == ["float32", "bfloat16", "bfloat16"]
    assert 0 < merge_alone["max_logit_gap"] < 2 * yardstick["max_logit_gap"]
    assert yardstick["candidate"] == "base + adapter"
    assert files["reference"].startswith("merged weights") and files["max_logit_gap"] == 0


def test_all_three_references_of_a_quantized_base(quantized_run: Path, tmp_path: Path, merge: Merge) -> None:
    code, said = merge(quantized_run, "--output", tmp_path / "dequantized")
    assert code == 0 and "nearest to what was trained: the merge into dequantized weights" in said
    arithmetic, deployed, other = certificate(tmp_path / "dequantized")["comparisons"]
    assert arithmetic["relative_gap"] < 1e-4 and deployed["relative_gap"] < 1e-4
    assert deployed["reference"].startswith("nf4") and deployed["candidate"] == "written model"
    assert "original" in other["candidate"] and other["relative_gap"] > 1e-3
    assert merge(quantized_run, "--output", tmp_path / "original", "--base", "original", "--accept_drift")[0] == 0
    arithmetic, deployed, _ = certificate(tmp_path / "original")["comparisons"]
    assert arithmetic["relative_gap"] < 1e-4
    assert deployed["max_logit_gap"] == pytest.approx(other["max_logit_gap"], rel=1e-3)


def test_a_run_of_all_weights_is_exported(own_base: Path, tmp_path: Path, merge: Merge) -> None:
    run = train(tmp_path / "full", own_base, adapter=None)
    code, said = merge(run, "--output", tmp_path / "out")
    assert code == 0, said
    one, other = (load_file(str(path / "model.safetensors")) for path in (run / "model", tmp_path / "out"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    (comparison,) = certificate(tmp_path / "out")["comparisons"]
    assert comparison["max_logit_gap"] == 0
    assert alone(card_program(tmp_path / "out"), tmp_path / "out").returncode == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_merge_is_found_and_not_kept(
    lora_run: Path, tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """One tensor of the written folder is off by a hundredth of its size."""
    write = export.write_model

    def write_wrongly(model: Any, folder: Path, **options: Any) -> None:
        write(model, folder, **options)
        weights = load_file(str(folder / "model.safetensors"))
        name = "model.layers.1.mlp.down_proj.weight"
        weights[name] = weights[name] * 1.01
        save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})

    monkeypatch.setattr(export, "write_model", write_wrongly)
    message = refused(merge(lora_run, "--output", tmp_path / "out", "--dtype", dtype))
    assert "written model differs from" in message and "--accept_drift" in message
    assert not list(tmp_path.iterdir())
    code, said = merge(lora_run, "--output", tmp_path / "out", "--dtype", dtype, "--accept_drift")
    assert code == 0, said
    assert not certificate(tmp_path / "out")["passed"]
    assert "Beyond its limit, and accepted" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_killed_merge_leaves_no_folder(lora_run: Path, tmp_path: Path, merge: Merge) -> None:
    program = f"""
import os, ift.models.export as export
from ift.cli import main
write = export.write_model
def write_and_die(*arguments, **options):
    write(*arguments, **options)
    os._exit(9)
export.write_model = write_and_die
main(["merge", {str(lora_run)!r}, "--output", {str(tmp_path / "out")!r}])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 9, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    assert merge(lora_run, "--output", tmp_path / "out")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_prompts_of_a_file(lora_run: Path, tmp_path: Path, merge: Merge) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Repeat: river"}], "reference": "river stone"},
        {"messages": [{"role": "user", "content": "Repeat: lamp"}]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert merge(lora_run, "--output", tmp_path / "out", "--prompts", path)[0] == 0
    found = certificate(tmp_path / "out")
    assert found["num_prompts"] == 2 and found["prompts"] == "the file prompts.jsonl"


def test_prompts_that_no_chat_template_gives_are_told_piece_by_piece(
    lora_run: Path, tmp_path: Path, merge: Merge
) -> None:
    """A template whose special tokens the tokenizer lacks: transformers would tokenize them with their neighbours."""
    from ift.artifacts import RunFolder, write_json
    from ift.commands.merge_prompts import encoder_of
    from ift.data.conversation import Conversation, Message
    from ift.data.templates import TEMPLATES

    run = damaged(lora_run, tmp_path)
    write_json(run / "template.json", TEMPLATES["qwen"].describe())
    code, said = merge(run, "--output", tmp_path / "out")
    assert code == 0, said
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    program = card_program(tmp_path / "out")
    assert "apply_chat_template" not in program
    result = alone(program + "\nprint(ids)", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    expected = encoder_of(RunFolder(run), "qwen", {}).prompt_ids(Conversation((Message("user", "Say hello."),)))
    assert json.loads(result.stdout.splitlines()[-1]) == expected


def test_licences_of_catalogued_data_are_in_the_card(merged: Path, lora_run: Path) -> None:
    from ift.data.catalogue import find_collection
    from ift.data.chat_template_export import PromptFormat
    from ift.models.certificate import Certificate, Comparison
    from ift.models.model_card import CardFacts, model_card
    from ift.models.trained_run import open_trained

    comparison = Comparison("a", "b", "float32", 4, 0.0, 1.0, 0.0, 0.0, changed_tokens=0)
    facts = CardFacts(
        title="t",
        base_name="owner/name",
        config={"data": {"sources": [{"path": "alpaca"}, {"path": "own.jsonl"}]}},
        dtype="float32",
        certificate=Certificate(1, "p", (comparison,), "float32", strict=0, deployed=0, yardstick=None, max_changed=0),
        prompt=PromptFormat("x", compared=1, differing=0, pieces=()),
        written="w",
    )
    text = model_card(open_trained("RUN", str(lora_run)), facts)
    header, alpaca = yaml.safe_load(text.split("---\n")[1]), find_collection("x", "alpaca")
    assert header["datasets"] == [alpaca.hub] and header["language"] == ["en"]
    assert header["base_model"] == "owner/name" and header["base_model_relation"] == "finetune"
    (row,) = [line for line in text.splitlines() if alpaca.title in line]
    assert alpaca.licence in row and "OpenAI" in row
    assert "| own.jsonl | not counted | not known | not known |" in text


def test_every_option_is_explained() -> None:
    from ift.commands.merge import DTYPES, parser
    from ift.models.loading import Dtype

    assert all(action.help for action in parser()._actions)
    assert get_args(Dtype) == DTYPES


def damaged(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard")))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_another_adapter_is_refused(lora_run: Path, tmp_path: Path, merge: Merge) -> None:
    run = damaged(lora_run, tmp_path)
    flip(run / "adapter" / "adapter_model.safetensors")
    assert "adapter_model.safetensors' has changed" in refused(merge(run, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(lora_run: Path, own_base: Path, tmp_path: Path, merge: Merge) -> None:
    kept = (own_base / "model.safetensors").read_bytes()
    flip(own_base / "model.safetensors")
    try:
        message = refused(merge(lora_run, "--output", tmp_path / "out"))
    finally:
        (own_base / "model.safetensors").write_bytes(kept)
    assert "is not the one that" in message and str(own_base) in message


def test_unfinished_and_foreign_folders_are_refused(lora_run: Path, tmp_path: Path, merge: Merge) -> None:
    run = damaged(lora_run, tmp_path)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}), encoding="utf-8")
    assert "is not finished" in refused(merge(run, "--output", tmp_path / "out"))
    assert "is an adapter and no run folder" in refused(merge(run / "adapter", "--output", tmp_path / "out"))
    assert "holds no manifest.json" in refused(merge(tmp_path, "--output", tmp_path / "out"))


def test_without_the_data_prompts_must_be_named(lora_run: Path, tmp_path: Path, merge: Merge) -> None:
    run = damaged(lora_run, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["sources"][0]["path"] = str(tmp_path / "gone.json")
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    message = refused(merge(run, "--output", tmp_path / "out"))
    assert message.startswith("error: --prompts: required") and "gone.json" in message


def test_wrong_options_are_refused_before_anything_is_read(lora_run: Path, tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "there").mkdir()
    for arguments, expected in (
        (("--output", tmp_path / "there"), "exists"),
        (("--output", tmp_path / "out", "--shard_size", "5"), "--shard_size: '5' is no size"),
        (("--output", tmp_path / "out", "--num_prompts", "0"), "less than 1"),
        (("--output", tmp_path / "out", "--max_changed", "2"), "no share"),
        (("--output", tmp_path / "out", "--base", "original"), "not trained on a quantized"),
        (("--output", tmp_path / "out", "--dtyp", "float32"), "Did you mean '--dtype'"),
    ):
        assert expected in refused(merge(lora_run, *arguments))
