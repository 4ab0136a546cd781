"""Invariants 3 and 4: how a step is cut changes nothing; and the whole run equals a loop written by hand."""

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import largest_difference, trained_weights
from torch.nn import functional as F
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

from ift.cli import main
from ift.data.encoding import Encoder, load_tokenizer
from ift.data.micro_batches import collate
from ift.data.order import Members, Mixture
from ift.data.rows import Source, read_rows
from ift.data.templates import TEMPLATES
from ift.errors import UserError
from ift.models.packing import choose_row_layout

Fit = Callable[..., Path]
Config = Callable[..., Path]

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}


def test_micro_batches_and_workers_change_nothing(config: Config, fit: Fit) -> None:
    reference = fit(config("reference", model={"optimizer": SGD}))
    for name, data in {
        "one_by_one": {"micro_batch_tokens": 256},
        "all_at_once": {"micro_batch_tokens": 100_000},
        "workers": {"num_workers": 2},
        "packed": {"row_layout": "packed", "micro_batch_tokens": 700},
        "flattened": {"row_layout": "flattened"},
        "grouped": {"row_layout": "grouped"},
    }.items():
        other = fit(config(name, model={"optimizer": SGD}, data=data))
        assert largest_difference(reference, other) < 1e-6, name
        assert validation_losses(other) == pytest.approx(validation_losses(reference), abs=1e-6)
        session = json.loads((other / "manifest.json").read_text())["sessions"][0]
        rows = session["row_layout"]
        assert rows["layout"] == data.get("row_layout", "flattened") and rows["reason"]
        assert (session["padding_share"] == 0) == (rows["layout"] == "flattened")


def test_packed_rows_train_as_grouped_ones(config: Config, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_made: list[int] = []

    def counted(rows: Any, pad_token_id: int) -> Any:
        rows_made.extend(len(row) for row in rows)
        return collate(rows, pad_token_id)

    def long_rows_are_cheap(*arguments: Any, **options: Any) -> Any:
        return replace(choose_row_layout(*arguments, **options), square_cost_length=10**9)

    monkeypatch.setattr("ift.data.steps.collate", counted)
    # In so small a model attention is most of the work, and rows of several examples would hardly pay.
    monkeypatch.setattr("ift.commands.trainer.choose_row_layout", long_rows_are_cheap)
    runs, several = [], []
    for row_layout in ("packed", "flattened", "grouped"):
        data = {"row_layout": row_layout, "micro_batch_tokens": 700}
        runs.append(fit(config(row_layout, model={"optimizer": SGD}, data=data)))
        several.append(sum(size > 1 for size in rows_made) / len(rows_made))
        rows_made.clear()
    assert several[0] > 0.2 and several[1] > 0.9 and several[2] == 0, several
    assert largest_difference(runs[0], runs[2]) < 1e-6 and largest_difference(runs[1], runs[2]) < 1e-6


def test_a_model_that_mixes_rows_is_grouped(config: Config, fit: Fit, base: Path, tmp_path: Path) -> None:
    bloom = tmp_path / "bloom"
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(str(bloom))
    tokenizer.save_pretrained(str(bloom))
    model = {"base": str(bloom), "optimizer": SGD, "adapter": None}
    one, other = (fit(config(f"bloom{n}", model=model, data={"micro_batch_tokens": n})) for n in (256, 2000))
    assert largest_difference(one, other) < 1e-6
    for run in (one, other):
        chosen = json.loads((run / "manifest.json").read_text())["sessions"][0]["row_layout"]
        assert chosen["layout"] == "grouped" and "'bloom' models" in chosen["reason"]
    path = config("packed", model=model, data={"row_layout": "packed"})
    with pytest.raises(UserError, match=r"data\.row_layout: 'packed' is not exact here: 'bloom' models"):
        main(["fit", "--config", str(path), "--debug"])


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_two_ranks_train_as_one(config: Config, fit: Fit, start: Any, adapter: bool) -> None:
    # The one groups its rows and the two pack theirs.
    # 32 training examples in steps of 5: the last step of an epoch has 2 examples, one per rank.
    model = {"optimizer": SGD} if adapter else {"optimizer": SGD, "adapter": None}
    one = fit(config("one", model=model, data={"global_batch_size": 5, "row_layout": "grouped"}))
    path = config("two", model=model, data={"global_batch_size": 5})
    process: subprocess.Popen[str] = start("fit", "--config", str(path), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    two = path.with_suffix("")
    assert json.loads((two / "manifest.json").read_text())["sessions"][0]["world_size"] == 2
    assert largest_difference(one, two) < 1e-6
    assert validation_losses(two) == pytest.approx(validation_losses(one), abs=1e-6)


def test_a_rank_without_a_share_changes_nothing(config: Config, fit: Fit, start: Any) -> None:
    # Steps of 31 over 32 examples: the last step has a single example, so one of two ranks has none.
    one = fit(config("one", model={"optimizer": SGD}, data={"global_batch_size": 31}))
    path = config("two", model={"optimizer": SGD}, data={"global_batch_size": 31, "validation": 8})
    process: subprocess.Popen[str] = start("fit", "--config", str(path), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert largest_difference(one, path.with_suffix("")) < 1e-6


def test_the_validation_loss_does_not_depend_on_batches(config: Config, fit: Fit) -> None:
    losses = []
    for number, size in enumerate((2, 8, 16)):
        # One step of training before the only validation, at a learning rate of zero, in all three.
        still = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
        trainer = {"max_steps": 1, "max_epochs": 1, "val_check_interval": 1}
        run = fit(
            config(f"size{number}", model={"optimizer": still}, trainer=trainer, data={"global_batch_size": size})
        )
        losses.append(validation_losses(run)[-1])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


def test_gradient_checkpointing_changes_nothing(config: Config, fit: Fit) -> None:
    reference = fit(config("reference", model={"optimizer": SGD}))
    other = fit(config("checkpointed", model={"optimizer": SGD, "gradient_checkpointing": True}))
    assert largest_difference(reference, other) < 1e-6


def test_a_run_is_the_loop_of_the_papers(config: Config, fit: Fit, base: Path, rows_file: Path) -> None:
    """A hand-written loop (padded whole batch, full logits, AdamW, warm-up and cosine, clipping) ends the same."""
    model = {"adapter": None, "gradient_clip_norm": 0.5, "schedule": {"kind": "cosine", "warmup": 3}}
    model["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "eps": 0.001}}
    run = fit(config("ours", model=model, data={"validation": None, "micro_batch_tokens": 300}))
    expected = hand_written(base, rows_file, epochs=2)
    found = trained_weights(run)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)


def hand_written(base: Path, rows_file: Path, *, epochs: int) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer("base", str(base))
    source = Source(str(rows_file), "alpaca")
    rows = [alpaca_ids(tokenizer, row.value) for row in read_rows(source)]
    model = AutoModelForCausalLM.from_pretrained(str(base)).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, eps=0.001)
    steps = [
        order[start : start + 8]
        for order in (Mixture((Members(0, 40),), (40,), 0).at(np.arange(40), epoch=e) for e in range(epochs))
        for start in range(0, 40, 8)
    ]
    for number, indices in enumerate(steps):
        share = (number + 1) / 4 if number < 3 else (1 + math.cos(math.pi * (number - 3) / (len(steps) - 3))) / 2
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * share
        batch = [rows[int(i)] for i in indices]
        length = max(len(ids) for ids, _ in batch)
        input_ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in batch])
        labels = torch.tensor([[-100] * n + ids[n:] + [-100] * (length - len(ids)) for ids, n in batch])
        logits = model(input_ids=input_ids, attention_mask=mask).logits[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach() for name, value in model.named_parameters()}


def alpaca_ids(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], int]:
    """Stanford Alpaca's prompt, written out here once more; returns ids and the number of prompt tokens."""
    paired = ", paired with an input that provides further context" if row["input"] else ""
    task = f"Below is an instruction that describes a task{paired}. Write a response that appropriately completes"
    middle = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
    text = f"{task} the request.\n\n### Instruction:\n{row['instruction']}{middle}\n\n### Response:"
    prompt = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    response = tokenizer(row["output"], add_special_tokens=False).input_ids
    return [*prompt, *response, tokenizer.eos_token_id], len(prompt)


def test_the_reference_uses_the_same_prompt(base: Path, rows_file: Path) -> None:
    from ift.data.layouts import alpaca

    tokenizer = load_tokenizer("base", str(base))
    encoder = Encoder(tokenizer, TEMPLATES["alpaca"])
    for row in read_rows(Source(str(rows_file), "alpaca")):
        (example,) = encoder.encode([encoder.template.render(alpaca(row.value))])
        assert example.input_ids.tolist() == alpaca_ids(tokenizer, row.value)[0]


def validation_losses(run: Path) -> list[float]:
    return [result["loss"] for result in json.loads((run / "manifest.json").read_text())["validation"]]
