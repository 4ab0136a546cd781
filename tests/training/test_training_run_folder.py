"""What a finished run leaves behind, and what TensorBoard shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

Config = Callable[..., Path]
Fit = Callable[..., Path]

PROBE = torch.tensor([[1, 5, 9, 30, 41, 7]])


@pytest.fixture
def logged(config: Config, fit: Fit) -> tuple[Path, EventAccumulator]:
    trainer = {"log_every_n_steps": 1, "num_sanity_val_steps": -1}
    run = fit(config("run", trainer=trainer))
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return run, events


def test_the_adapter_loads_in_plain_peft(config: Config, fit: Fit, base: Path) -> None:
    run = fit(config("run"))
    model = AutoModelForCausalLM.from_pretrained(str(base)).eval()
    with torch.no_grad():
        untuned = model(PROBE).logits
        tuned = PeftModel.from_pretrained(model, str(run / "adapter")).eval()(PROBE).logits
    assert (tuned - untuned).abs().max() > 1e-3
    checkpoint = torch.load(sorted(run.glob("checkpoints/*.ckpt"))[-1], weights_only=True)["state_dict"]
    saved = {name.replace(".default", ""): value for name, value in checkpoint.items()}
    from safetensors.torch import load_file

    for name, value in load_file(str(run / "adapter" / "adapter_model.safetensors")).items():
        assert torch.equal(saved["model." + name], value)


def test_a_fully_trained_model_loads_in_plain_transformers(config: Config, fit: Fit, base: Path) -> None:
    run = fit(config("run", model={"adapter": None}))
    assert not (run / "adapter").exists()
    tuned = AutoModelForCausalLM.from_pretrained(str(run / "model"))
    untuned = AutoModelForCausalLM.from_pretrained(str(base))
    assert not torch.equal(tuned(PROBE).logits, untuned(PROBE).logits)
    text = "请重复 item 7."
    ids = [AutoTokenizer.from_pretrained(str(f))(text).input_ids for f in (base, run / "model", run / "tokenizer")]
    assert ids[0] == ids[1] == ids[2]


def test_a_fresh_adapter_changes_no_logit(base: Path) -> None:
    from ift.models.adapters import attach
    from ift.models.loading import load_base_model
    from ift.models.methods import lora

    model = load_base_model("model.base", str(base), "float32").eval()
    with torch.no_grad():
        before = model(PROBE).logits
        after = attach(model, lora(r=4), seed=3, num_steps=None).eval()(PROBE).logits
    assert torch.equal(before, after)


def test_the_manifest_tells_what_went_in(config: Config, fit: Fit, rows_file: Path) -> None:
    import hashlib

    run = fit(config("run"))
    manifest = json.loads((run / "manifest.json").read_text())
    (source,) = manifest["data"]["sources"]
    assert source["sha256"] == hashlib.sha256(rows_file.read_bytes()).hexdigest()
    assert (source["rows"], source["examples"], source["rejected"]) == (40, 40, {})
    assert manifest["data"]["train_examples"] == 32 and manifest["data"]["validation_examples"] == 8
    # LoRA of rank 4 on q, k, v, o, gate, up, down of two layers: 4 * (in + out) each.
    sizes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    assert manifest["parameters"]["trainable"] == 2 * 4 * sum(i + o for i, o in sizes)
    assert manifest["status"] == "finished" and manifest["steps"] == 8
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["sessions"][0]["seconds"] > 0
    assert (run / "rejects.jsonl").read_text() == ""
    assert json.loads((run / "template.json").read_text())["name"] == "alpaca"


def test_the_saved_configuration_repeats_the_run(config: Config, fit: Fit, tmp_path: Path) -> None:
    from comparing import largest_difference

    run = fit(config("run"))
    saved = yaml.safe_load((run / "config.yaml").read_text())
    saved["run_dir"] = str(tmp_path / "again")
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(saved))
    assert largest_difference(run, fit(path)) == 0
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (run, tmp_path / "again")]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]


def test_another_seed_is_another_run_with_another_fingerprint(config: Config, fit: Fit) -> None:
    from comparing import largest_difference

    run, other = fit(config("run")), fit(config("other", seed_everything=1))
    assert largest_difference(run, other) > 0
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (run, other)]
    assert manifests[0]["fingerprint"] != manifests[1]["fingerprint"]


def test_tensorboard_shows_every_promised_curve(logged: tuple[Path, EventAccumulator]) -> None:
    _, events = logged
    tags = set(events.Tags()["scalars"])
    for name in ("loss", "perplexity", "gradient_norm", "learning_rate", "padding_share"):
        assert f"train/{name}" in tags
    assert {"train/supervised_tokens_per_second", "train/tokens_per_second"} <= tags
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    # All of the validation before training, then after each epoch of four steps.
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 4, 8]
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    # One step of warm-up at half the rate (0.03 of 8 steps, rounded up), then a cosine over the other seven.
    assert rates[0] == pytest.approx(0.005) and rates[1] == pytest.approx(0.01) and min(rates) > 0


def test_tensorboard_shows_sample_responses(logged: tuple[Path, EventAccumulator]) -> None:
    _, events = logged
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/0")]
    assert tags
    samples = events.Tensors(tags[0])
    assert [event.step for event in samples] == [0, 4, 8]
    text = samples[0].tensor_proto.string_val[0].decode()
    assert "**prompt**" in text and "### Instruction:" in text and "**reference**" in text


def test_the_logged_loss_is_the_loss_of_the_step(
    logged: tuple[Path, EventAccumulator], base: Path, rows_file: Path
) -> None:
    """The first training loss, computed once more from the first step's examples, one by one."""
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source

    _, events = logged
    data = InstructionDataModule(
        [Source(str(rows_file), "alpaca")], str(base), 256, 8, 512, validation=8, cache_dir=str(rows_file.parent / "c")
    )
    data.load()
    model = AutoModelForCausalLM.from_pretrained(str(base))
    total, count = 0.0, 0
    for batch in next(iter(data.train_dataloader())).micro_batches:
        for ids, labels, (n,) in zip(batch.input_ids, batch.labels, batch.lengths, strict=True):
            supervised = int((labels[1:n] != -100).sum())
            total += float(model(input_ids=ids[None, :n], labels=labels[None, :n]).loss.detach()) * supervised
            count += supervised
    assert events.Scalars("train/loss")[0].value == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("row_layout", ["packed", "grouped"])
def test_the_padding_share_is_that_of_all_steps(
    config: Config, fit: Fit, base: Path, rows_file: Path, row_layout: Any
) -> None:
    from ift.data.datamodule import InstructionDataModule
    from ift.data.rows import Source
    from ift.models.packing import choose_row_layout

    data = {"validation": None, "row_layout": row_layout}
    run = fit(config("run", data=data, trainer={"log_every_n_steps": 3}))
    module = InstructionDataModule(
        [Source(str(rows_file), "alpaca")], str(base), 256, 8, 512, cache_dir=str(rows_file.parent / "c"), **data
    )
    module.row_layout_choice = choose_row_layout("data.row_layout", row_layout, base=str(base), adapter=None)
    module.load()
    steps = []
    for epoch in range(2):
        module.position.next_step = epoch * module.num_steps_per_epoch
        steps += list(module.train_dataloader())
    padded, tokens = sum(step.num_padded for step in steps), sum(step.num_tokens for step in steps)
    assert padded > 0
    session = json.loads((run / "manifest.json").read_text())["sessions"][0]
    assert session["padding_share"] == pytest.approx(padded / (padded + tokens), abs=1e-6)


def test_no_progress_is_lost_on_a_run_without_validation(config: Config, fit: Fit) -> None:
    run = fit(config("run", data={"validation": None}))
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    assert manifest["validation"] == [] and manifest["steps"] == 10
