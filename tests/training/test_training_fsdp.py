"""`trainer.strategy: fsdp`: two ranks that hold half of each weight train as one process does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import largest_difference
from encoder_decoders import make_t5
from rank_runs import run_on_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import make_llama, make_rows
from transformers import AutoTokenizer
from vocabularies import larger_tokenizer

from ift.cli import main

Fit = Callable[..., Path]
Config = Callable[..., Path]

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
SLOW = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}
FSDP = ["--trainer.devices=2", "--trainer.strategy=fsdp"]
FULL = {"optimizer": SGD, "adapter": None}


def method(name: str, **settings: Any) -> dict[str, Any]:
    return {"optimizer": SLOW, "adapter": {"class_path": name, "init_args": settings}}


@pytest.fixture
def tied(tmp_path: Path, base: Path) -> str:
    """A Llama whose head is its embedding."""
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    folder = make_llama(tmp_path / "tied", len(tokenizer), tie_word_embeddings=True)
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def validation_losses(run: Path) -> list[float]:
    return [result["loss"] for result in json.loads((run / "manifest.json").read_text())["validation"]]


def samples(run: Path) -> list[str]:
    """Return the last sample text in TensorBoard's log."""
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    return [log.Tensors("samples/0/text_summary")[-1].tensor_proto.string_val[0].decode()]


def check_pairs(cases: dict[str, dict[str, Any]], config: Config, fit: Fit, tmp_path: Path) -> list[tuple[Path, Path]]:
    """Run each case on two ranks and on one, and return the folders of both."""
    pairs = [(config(f"{name}1", **case), config(f"{name}2", **case)) for name, case in cases.items()]
    commands = [["fit", "--config", str(two), *FSDP] for _, two in pairs]
    outcomes = run_on_ranks(tmp_path / "ranks", commands, timeout=120 * len(commands))
    found = []
    for (one, two), outcome in zip(pairs, outcomes, strict=True):
        assert not outcome, outcome
        alone, both = fit(one), two.with_suffix("")
        assert json.loads((both / "manifest.json").read_text())["sessions"][0]["world_size"] == 2
        assert largest_difference(alone, both) < 1e-6, two.stem
        assert validation_losses(both) == pytest.approx(validation_losses(alone), abs=1e-6)
        found.append((alone, both))
    return found


def test_two_ranks_train_as_one(config: Config, fit: Fit, tied: str, tmp_path: Path) -> None:
    uneven = {"global_batch_size": 5}  # the last step of an epoch has two examples
    cases: dict[str, dict[str, Any]] = {
        "lora": {"model": {"optimizer": SGD}, "data": uneven},
        # The last step of an epoch has a single example, so one of two ranks has none.
        "full": {"model": {**FULL, "base": tied}, "data": {"global_batch_size": 31, "micro_batch_tokens": 256}},
        "checkpointed": {
            "model": {**FULL, "optimizer": SLOW, "gradient_checkpointing": True, "gradient_clip_norm": None},
            "data": {"row_layout": "flattened"},
            "samples": {"num_samples": 0},
        },
    }
    for alone, both in check_pairs(cases, config, fit, tmp_path)[:2]:
        assert samples(alone) == samples(both)


@pytest.mark.slow
def test_two_ranks_train_every_kind_of_method_as_one(
    config: Config, fit: Fit, base: Path, tied: str, tmp_path: Path
) -> None:
    larger = str(larger_tokenizer(base, tmp_path / "larger", 12))
    lora = method("lora", r=4, lora_dropout=0.0)
    stream = {"path": str(tmp_path / "stream.jsonl"), "layout": "alpaca", "stream": True}
    rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in make_rows(40))
    (tmp_path / "stream.jsonl").write_text(rows + "\n", encoding="utf-8")
    cases: dict[str, dict[str, Any]] = {
        "new_rows": {"model": {**lora, "vocabulary": {"tokenizer": larger, "train": "new"}}},
        "new_rows_tied": {"model": {**lora, "base": tied, "vocabulary": {"tokenizer": larger, "train": "new"}}},
        "all_rows": {"model": {**lora, "vocabulary": {"tokenizer": larger, "train": "all"}}},
        "all_rows_tied": {"model": {**lora, "base": tied, "vocabulary": {"tokenizer": larger, "train": "all"}}},
        "pissa": {"model": method("pissa", r=4, lora_alpha=4)},
        "dora": {"model": method("dora", r=4, lora_dropout=0.0)},
        "lora_plus": {"model": method("lora_plus", r=4, lora_dropout=0.0)},
        "prefix": {"model": method("prefix", num_virtual_tokens=4, projection_size=8)},
        "prompt": {"model": method("prompt", num_virtual_tokens=4)},
        "freeze": {"model": method("freeze", num_layers=1)},
        "embeddings": {"model": method("embeddings")},
        "sadapter_h": {"model": method("sadapter_h", bottleneck_size=8)},
        "qlora": {"model": method("qlora", r=4, lora_dropout=0.0)},
        "int8": {"model": {**lora, "quantization": {"scheme": "int8"}}},
        "t5": {"model": {"base": str(make_t5(tmp_path / "t5", "t5_1_1", dropout_rate=0.0)), "optimizer": SLOW}},
        "t5_full": {"model": {"base": str(make_t5(tmp_path / "t5f", dropout_rate=0.0)), **FULL, "optimizer": SLOW}},
        "stream": {
            "model": {"optimizer": SLOW},
            "trainer": {"max_steps": 4, "max_epochs": -1, "val_check_interval": 4, "check_val_every_n_epoch": None},
            "data": {
                "sources": [stream, {"path": str(tmp_path / "rows.json"), "layout": "alpaca"}],
                "mixing": "examples",
            },
        },
    }
    check_pairs(cases, config, fit, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"adapter": "lisa"}},
            "once what is trained. Set trainer.strategy to ddp_find_unused_parameters_true",
        ),
        ({"model": {"adapter": "adalora"}}, "it weighs ranks by whole gradients"),
        (
            {"model": {"adapter": {"class_path": "peft.VBLoRAConfig", "init_args": {"vector_length": 8}}}},
            "share one tensor",
        ),
        (
            {"model": {"adapter": "dora", "quantization": {"scheme": "int8"}}},
            "model.quantization: with trainer.strategy fsdp, dora reads",
        ),
        (
            {"model": {"adapter": {"class_path": "peft.OSFConfig", "init_args": {"effective_rank": 8}}}},
            "the gradient of",
        ),
        ({"model": {"compile": True}}, "model.compile: true"),
        ({"model": {"optimizer": {"class_path": "torch.optim.Adafactor", "init_args": {"lr": 0.1}}}}, "Adafactor"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_weights_load(
    changes: dict[str, Any], message: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("run", **changes)
    assert main(["fit", "--config", str(path), *FSDP]) == 2
    said = capsys.readouterr().err
    assert message in said and "Set trainer.strategy to ddp" in said.replace("set", "Set") and "Traceback" not in said
    assert not path.with_suffix("").exists() and "Loading weights" not in said


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy"])
def test_lightnings_own_sharding_strategies_are_refused(
    name: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = {"class_path": f"lightning.pytorch.strategies.{name}"}
    path = config("run", trainer={"accelerator": "cpu", "devices": 2, "max_epochs": 1, "strategy": strategy})
    assert main(["fit", "--config", str(path)]) == 2
    assert f"trainer.strategy: {name} is not possible" in capsys.readouterr().err
