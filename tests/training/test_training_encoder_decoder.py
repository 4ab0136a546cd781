"""Encoder-decoder models through `ift fit`, `merge` and `predict`, compared with loops around transformers' own."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import largest_difference, trained_weights
from encoder_decoders import make_t5
from tiny import make_rows, write_json
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ift.cli import main
from ift.data.datamodule import InstructionDataModule
from ift.data.order import Members, Mixture
from ift.data.rows import Source
from ift.inference.prompts import PromptDataModule
from ift.models.merging import load_trained
from ift.models.trained_run import open_trained

Config = Callable[..., Path]
Fit = Callable[..., Path]

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02}}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flan-T5's kind, without dropout; transformers' own `generate` wants as many layers in both stacks."""
    return make_t5(tmp_path_factory.mktemp("t5") / "flan", "t5_1_1", dropout_rate=0.0, num_decoder_layers=2)


def losses(run: Path) -> list[float]:
    return [result["loss"] for result in json.loads((run / "manifest.json").read_text())["validation"]]


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_a_run_is_a_loop_around_transformers_own_loss(config: Config, fit: Fit, tmp_path: Path, kind: str) -> None:
    base = make_t5(tmp_path / "base", kind, dropout_rate=0.0)
    model = {"base": str(base), "adapter": None, "optimizer": SGD, "schedule": {"kind": "constant", "warmup": 0}}
    data = {"validation": None, "template": "plain", "micro_batch_tokens": 300}
    run = fit(config("ours", model={**model, "gradient_clip_norm": 0.5}, data=data))
    expected, found = loop(base), trained_weights(run)
    for name, value in expected.items():
        torch.testing.assert_close(found.get(name, found["shared.weight"]), value, atol=2e-5, rtol=1e-4, msg=name)


def loop(base: Path) -> dict[str, torch.Tensor]:
    """Train two epochs on padded whole steps with `labels`; prompts and responses end as the tokenizer ends texts."""
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    model = AutoModelForSeq2SeqLM.from_pretrained(str(base)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    rows = make_rows(40)
    texts = [(f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]) + "\n" for row in rows]
    for epoch in range(2):
        order = Mixture((Members(0, 40),), (40,), 0).at(np.arange(40), epoch=epoch)
        for start in range(0, 40, 8):
            chosen = [int(number) for number in order[start : start + 8]]
            prompts = tokenizer([texts[number] for number in chosen], padding=True, return_tensors="pt")
            labels = tokenizer([rows[number]["output"] for number in chosen], padding=True, return_tensors="pt")
            # The mean over all labels of the step.
            model(**prompts, labels=labels.input_ids.where(labels.attention_mask == 1, -100)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach() for name, value in model.named_parameters()}


def test_neither_cut_nor_checkpointing_changes_a_run(config: Config, fit: Fit, t5: Path) -> None:
    """Nor does the cut change the validation loss."""
    model = {"base": str(t5), "optimizer": SGD}
    at_once = fit(config("at_once", model=model, data={"micro_batch_tokens": 100_000}))
    checkpointed = {**model, "gradient_checkpointing": True}
    one_by_one = fit(config("one_by_one", model=checkpointed, data={"micro_batch_tokens": 256}))
    assert largest_difference(at_once, one_by_one) < 1e-6
    assert losses(one_by_one) == pytest.approx(losses(at_once), abs=1e-6)
    layout = json.loads((at_once / "manifest.json").read_text())["sessions"][0]["row_layout"]
    assert layout["layout"] == "grouped" and "one prompt per row" in layout["reason"]


def test_a_run_cut_short_resumes_bit_for_bit(config: Config, fit: Fit, t5: Path) -> None:
    lora = {"class_path": "lora", "init_args": {"r": 4, "lora_dropout": 0.2}}
    sections: dict[str, Any] = {
        "model": {"base": str(t5), "adapter": lora},
        "data": {"global_batch_size": 5},
        "checkpoint": {"every_n_train_steps": 5, "save_top_k": -1},
    }
    reference = fit(config("reference", **sections))
    path = config("resumed", **sections)
    begun = path.with_suffix("")
    shutil.copytree(reference, begun, ignore=shutil.ignore_patterns("adapter", "tensorboard"))
    for checkpoint in begun.glob("checkpoints/*.ckpt"):
        if checkpoint.stem != "step-00000005":
            checkpoint.unlink()
    manifest = json.loads((begun / "manifest.json").read_text())
    (begun / "manifest.json").write_text(json.dumps({**manifest, "status": "running", "config_sha256": None}))
    (begun / "config.yaml").write_text((begun / "config.yaml").read_text().replace(str(reference), str(begun)))
    assert largest_difference(reference, fit(path, "--ckpt_path", "last")) == 0
    sessions = json.loads((begun / "manifest.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 5]


@pytest.mark.slow
def test_two_ranks_train_as_one(config: Config, fit: Fit, start: Any, t5: Path) -> None:
    # Steps of 31 over 32 examples: in the last step of an epoch, one of two ranks has nothing.
    sections: dict[str, Any] = {"model": {"base": str(t5), "optimizer": SGD}, "data": {"global_batch_size": 31}}
    one = fit(config("one", **sections))
    path = config("two", **sections)
    process: subprocess.Popen[str] = start("fit", "--config", str(path), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert largest_difference(one, path.with_suffix("")) < 1e-6
    assert losses(path.with_suffix("")) == pytest.approx(losses(one), abs=1e-6)


def chats(folder: Path) -> Path:
    rows = []
    for number, row in enumerate(make_rows(20)):
        turn = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        rows.append({"messages": turn * (1 + number % 3)})
    return write_json(folder / "chats.json", rows)


def data_module(rows: Path, base: Path, folder: Path, **settings: Any) -> InstructionDataModule:
    sizes: dict[str, Any] = {"max_length": 256, "global_batch_size": 4, "micro_batch_tokens": 512}
    sizes |= {"layout": "messages", **settings}
    source = Source(str(rows), sizes.pop("layout"))
    return InstructionDataModule([source], base=str(base), cache_dir=str(folder / "cache"), **sizes)


@pytest.mark.parametrize("template", ["alpaca", "plain", "chatml", "baichuan2_chat", "chatglm2"])
def test_the_last_response_is_learned_and_all_before_it_read(t5: Path, tmp_path: Path, template: str) -> None:
    rows = chats(tmp_path)
    data = data_module(rows, t5, tmp_path, template=template)
    data.load()
    prompts = PromptDataModule(str(rows), base=str(t5), template=template)
    prompts.load()
    conversations = [row["messages"] for row in json.loads(rows.read_text(encoding="utf-8"))]
    for number, (conversation, prompt) in enumerate(zip(conversations, prompts.prompts, strict=True)):
        example = data.store[number]
        supervised = example.labels != -100
        first = int(supervised.argmax())
        assert supervised[first:].all() and example.labels[first:].tolist() == example.input_ids[first:].tolist()
        assert data.tokenizer.decode(example.input_ids[first:], skip_special_tokens=True) == conversation[-1]["content"]
        assert example.input_ids[:first].tolist() == prompt.ids and prompt.ids[-1] == data.tokenizer.eos_token_id
    earlier = sum(len(conversation) // 2 - 1 for conversation in conversations)
    assert data.store.counts[0].left_out_texts == earlier > 0
    assert any(f"{earlier} texts before the last responses are not learned" in note for note in data.notes())


def test_what_the_tokenizer_cannot_say_is_counted_and_told(t5: Path, tmp_path: Path) -> None:
    rows = write_json(
        tmp_path / "rows.json", [{"instruction": "龘 river", "output": f"stone\n龘{n}"} for n in range(8)]
    )
    data = data_module(rows, t5, tmp_path, layout="alpaca", template="plain")
    data.load()
    notes = "\n".join(data.notes())
    assert data.store.counts[0].unknown_tokens == 16
    assert "16 of" in notes and "keeps no line breaks" in notes


def test_what_is_lost_of_a_stream_is_told_of_its_first_rows(t5: Path, tmp_path: Path) -> None:
    turns = [("human", "龘 river"), ("gpt", "stone"), ("human", "boat"), ("gpt", "lamp")]
    rows = [{"conversations": [{"from": who, "value": text} for who, text in turns]} for _ in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    source = Source(str(path), "sharegpt", stream=True)
    data = InstructionDataModule([source], str(t5), 256, 4, 512, template="vicuna", cache_dir=str(tmp_path / "cache"))
    data.load()
    notes = "\n".join(data.notes())
    unknown = data.streams[0].tried.unknown_tokens
    assert unknown >= 8 and f"rows.jsonl, its first 8 rows: {unknown} of" in notes
    assert "first 8 rows: 8 texts before the last" in notes


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["fit", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "Loading weights" not in said
    return said[said.index("error: ") :]


def test_data_without_a_request_are_refused(
    config: Config, t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_json(tmp_path / "text.json", [{"text": f"river stone {number}"} for number in range(20)])
    model = {"base": str(t5)}
    said = refused(config("text", model=model, data={"sources": [{"path": str(text), "layout": "text"}]}), capsys)
    assert "20 x an encoder-decoder model reads a request, and the row has none" in said
    said = refused(config("everything", model=model, data={"train_on": "everything"}), capsys)
    assert "data.train_on: 'everything' counts requests too" in said and "Set it to last_output" in said
    said = refused(config("chat", model=model, data={"template": "tokenizer"}), capsys)
    assert "data.template: 'tokenizer' writes request and response as one text" in said


@pytest.mark.parametrize("over_long", ["cut_start", "cut_end"])
def test_a_cut_leaves_the_encoder_something_to_read(t5: Path, tmp_path: Path, over_long: str) -> None:
    rows = write_json(
        tmp_path / "rows.json", [{"instruction": "river " * 9, "output": "lamp " * n + "stone"} for n in (1, 8, 30)]
    )
    data = data_module(rows, t5, tmp_path, layout="alpaca", template="plain", over_long=over_long, max_length=20,
                       max_rejected=1.0, global_batch_size=1)  # fmt: skip
    data.load()
    for number in range(len(data.store)):
        example = data.store[number]
        first = int((example.labels != -100).argmax())
        assert first > 0 and example.input_ids[first - 1] == 1 and len(example.input_ids) <= 20
    rejected = data.store.counts[0].rejected
    assert len(data.store) == (2 if over_long == "cut_start" else 3), rejected
    if over_long == "cut_start":
        assert rejected == {"longer than data.max_length; cut_start leaves nothing of the request": 1}


def test_a_run_is_predicted_with_ranked_merged_and_loaded_without_us(
    config: Config, fit: Fit, t5: Path, tmp_path: Path
) -> None:
    """Answers of `ift predict` are transformers' own of the merged folder, its ranking that of plain forwards."""
    run = fit(config("run", model={"base": str(t5), "optimizer": SGD}, data={"template": "plain"}))
    prompts = [{"id": str(n), "messages": [{"role": "user", "content": "river " * n + "stone"}]} for n in range(4)]
    ranked = [{**prompt, "id": f"r{prompt['id']}", "options": ["lamp", "river stone", "cloud"]} for prompt in prompts]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in prompts + ranked), encoding="utf-8")
    cpu = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    options = ["--data.path", str(file), "--model.decoding.max_new_tokens=5", *cpu]
    merged = tmp_path / "merged"
    assert main(["merge", str(run), "--output", str(merged)]) == 0
    # A run of a version that did not know some field of templates yet is predicted with all the same.
    template = json.loads((run / "template.json").read_text(encoding="utf-8"))
    assert template.pop("single_turn_user") == "" and template["prompt_end"] == "{end}"
    (run / "template.json").write_text(json.dumps(template), encoding="utf-8")
    outputs = []
    for name, arguments in {"run": ["--run", str(run)], "merged": ["--model.base", str(merged)]}.items():
        output = tmp_path / f"answers_{name}"
        own = [] if name == "run" else ["--data.template", "plain"]
        assert main(["predict", *arguments, *own, *options, "--output_dir", str(output)]) == 0
        outputs.append([json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()])
    model = AutoModelForSeq2SeqLM.from_pretrained(str(merged)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(merged))
    trained = load_trained("RUN", open_trained("RUN", str(run)), "float32", quantization=None)
    for one, other, prompt in zip(*outputs, prompts + ranked, strict=True):
        text = prompt["messages"][0]["content"]
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert one["prompt"] == other["prompt"] == tokenizer.decode(ids[0])
        if not one["options"]:
            answer = model.generate(ids, max_new_tokens=5, do_sample=False)[0]
            assert one["response"] == other["response"] == tokenizer.decode(answer, skip_special_tokens=True)
            continue
        for option, *scores in zip(one["options"], one["option_scores"], other["option_scores"], strict=True):
            labels = tokenizer(option, return_tensors="pt", add_special_tokens=False).input_ids
            with torch.no_grad():
                means = [float(each(input_ids=ids, labels=labels).loss) for each in (trained, model)]
            assert scores == pytest.approx([-mean * labels.numel() for mean in means], abs=1e-3)
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSeq2SeqLM" in card and "pipeline_tag: text2text-generation" in card
