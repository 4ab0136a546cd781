"""`ift plan`: what a run will take, told before anything is loaded, and true of the run that follows."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

Config = Callable[..., Path]
Ift = Callable[..., Any]
STRATEGIES = {
    "one device",
    "ddp",
    "fsdp",
    *(f"deepspeed_{stage}{offload}" for stage in (1, 2, 3) for offload in ("", "_offload")),
}


@pytest.fixture
def planned(ift: Ift) -> Callable[..., dict[str, Any]]:
    """Plan a config, and return what is for machines."""

    def run(path: Path, *arguments: str) -> dict[str, Any]:
        outcome = ift("plan", "--config", path, "--json", *arguments)
        assert outcome.code == 0, outcome.err
        found: dict[str, Any] = json.loads(outcome.out)
        return found

    return run


def own(report: dict[str, Any]) -> dict[str, Any]:
    (row,) = [row for row in report["rows"] if row["own"]]
    return row


LONGER = (None, "qlora", "ia3", "embeddings", "lisa")


@pytest.mark.parametrize("adapter", ["lora", *(pytest.param(one, marks=pytest.mark.slow) for one in LONGER)])
def test_counts_steps_and_operations_are_those_of_the_run(
    config: Config, ift: Ift, planned: Callable[..., dict[str, Any]], tmp_path: Path, adapter: Any
) -> None:
    path = config("run", model={"adapter": adapter}, data={"row_layout": "grouped"})
    report = planned(path)
    assert ift("fit", "--config", path).code == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    session = manifest["sessions"][-1]
    assert report["parameters"] == manifest["parameters"]["total"]
    assert report["trainable"] == manifest["parameters"]["trainable"]
    course = report["course"]
    assert (course["steps"], course["steps_per_epoch"]) == (manifest["steps"], manifest["data"]["steps_per_epoch"])
    assert course["tokens"] == pytest.approx(session["tokens"])
    assert course["supervised_tokens_per_step"] * course["steps"] == pytest.approx(session["supervised_tokens"])
    assert course["padding_share"] == pytest.approx(session["padding_share"], abs=0.02)  # of the first epoch's order
    assert course["model_flops_per_step"] * course["steps"] == pytest.approx(session["flops"]["model"], rel=1e-6)


def test_nothing_but_the_config_of_the_base_model_is_read(
    config: Config, planned: Callable[..., dict[str, Any]], base_without_weights: Path, tmp_path: Path
) -> None:
    report = planned(config("run", model={"base": str(base_without_weights), "adapter": "lora"}))
    assert report["trainable"] > 0
    assert not (tmp_path / "run").exists()


def test_every_strategy_is_planned_with_and_without_recomputation_and_in_four_bits(
    config: Config, planned: Callable[..., dict[str, Any]]
) -> None:
    report = planned(config("run", model={"adapter": "lora", "gradient_checkpointing": True}), "--devices", "4")
    rows = report["rows"]
    assert own(report)["strategy"] == "one device" and own(report)["checkpointing"]
    for quantized in (None, "nf4"):
        for checkpointing in (False, True):
            found = [row for row in rows if (row["quantized"], row["checkpointing"]) == (quantized, checkpointing)]
            assert {row["strategy"] for row in found} == STRATEGIES
            assert all(row["devices"] == (1 if row["strategy"] == "one device" else 4) for row in found)
    # What a row says to set is what it differs by.
    fsdp = next(row for row in rows if row["strategy"] == "fsdp" and row["quantized"] and not row["checkpointing"])
    assert fsdp["settings"] == {
        "trainer.strategy": "fsdp",
        "trainer.devices": 4,
        "model.gradient_checkpointing": False,
        "model.quantization": {"scheme": "nf4"},
    }


def test_of_a_run_that_trains_all_weights_qlora_is_another_method(
    config: Config, planned: Callable[..., dict[str, Any]]
) -> None:
    report = planned(config("run", model={"adapter": None}))
    methods = {row["method"] for row in report["rows"]}
    assert methods == {"full", "qlora"}
    assert all(row["settings"]["model.adapter"] == "qlora" for row in report["rows"] if row["method"] == "qlora")


def test_what_does_not_fit_is_told_with_the_keys_to_change(config: Config, ift: Ift) -> None:
    path = config("run", model={"adapter": "lora"}, trainer={"accelerator": "auto"})
    fits = ift("plan", "--config", path, "--card", "80GB").out
    assert "It fits" in fits and "one device" in fits and "fsdp x8" in fits
    small = ift("plan", "--config", path, "--card", "0.01").out
    assert "It does not fit" in small and "Nothing that was tried fits" in small


@pytest.mark.slow
def test_a_smaller_budget_is_advised_where_it_is_enough(config: Config, planned: Callable[..., dict[str, Any]]) -> None:
    sizes = {"global_batch_size": 32, "micro_batch_tokens": 4096, "validation": None}
    path = config("run", model={"adapter": "lora"}, data=sizes, trainer={"accelerator": "auto"})
    wide = own(planned(path, "--card", "80"))
    half = own(planned(path, "--card", "80", "--data.micro_batch_tokens", "256"))
    assert half["total_gib"] < 0.5 * wide["total_gib"]
    between = (wide["needed_gib"] + half["needed_gib"]) / 2
    (advice,) = [line for line in planned(path, "--card", f"{between:.5f}")["advice"] if "micro_batch_tokens" in line]
    assert "with the same result" in advice


def test_no_data_are_prepared_where_none_are_wanted(
    config: Config, planned: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    report = planned(config("run", model={"adapter": "lora"}), "--skip_data")
    assert not list((tmp_path / "cache").glob("*/examples.arrow"))
    assert not report["course"]["counted"] and report["course"]["steps"] is None
    assert report["course"]["largest_micro_batch"].startswith("2 x 256")  # of a budget of 512


@pytest.mark.slow
def test_an_enlarged_vocabulary_and_its_rows_are_counted(
    config: Config, planned: Callable[..., dict[str, Any]]
) -> None:
    plain = planned(config("plain", model={"adapter": "lora"}))
    larger = planned(config("larger", model={"adapter": "lora", "vocabulary": {"special_tokens": ["<|a|>", "<|b|>"]}}))
    assert larger["parameters"] > plain["parameters"] and larger["trainable"] > plain["trainable"]


def test_lomo_is_planned_on_one_device_and_holds_no_gradients(
    config: Config, planned: Callable[..., dict[str, Any]]
) -> None:
    lomo = {"class_path": "ift.training.fused_optimizers.Lomo", "init_args": {"lr": 0.01}}
    report = planned(config("run", model={"adapter": None, "optimizer": lomo}))
    assert {row["strategy"] for row in report["rows"]} == {"one device"}
    assert own(report)["gradients_gib"] == 0 and "several devices" in report["skipped"]
    repeated = planned(config("run", model={"adapter": None, "optimizer": lomo}, data={"auto_micro_batch": True}))
    assert "data.auto_micro_batch: Lomo has changed weights" in own(repeated)["refused"]


def test_what_fit_refuses_is_refused_with_its_reason_and_never_advised(
    config: Config, ift: Ift, planned: Callable[..., dict[str, Any]]
) -> None:
    adalora = {"class_path": "peft.AdaLoraConfig", "init_args": {"total_step": 100, "target_modules": ["q_proj"]}}
    path = config("run", model={"adapter": adalora}, trainer={"accelerator": "auto"})
    report = planned(path, "--skip_data", "--card", "0.01")
    refused = {row["strategy"] for row in report["rows"] if row["refused"] is not None}
    assert refused == STRATEGIES - {"one device", "ddp"}
    (fsdp, *_) = [row["refused"] for row in report["rows"] if row["strategy"] == "fsdp"]
    fitted = ift("fit", "--config", path, "--trainer.strategy", "fsdp", "--trainer.accelerator", "cpu")
    assert fitted.code == 2 and fsdp in fitted.err
    # On a card of such a size that some rows fit and the run does not.
    sizes = sorted(row["needed_gib"] for row in report["rows"])
    between = (sizes[0] + own(report)["needed_gib"]) / 2
    table = ift("plan", "--config", path, "--skip_data", "--card", f"{between:.5f}").out
    assert "refused: fsdp: model.adapter: AdaLoraConfig does not work with trainer.strategy fsdp" in table
    *_, advice = table.partition("It does not fit")
    assert " fits (" in advice and "trainer.strategy: fsdp" not in advice and "deepspeed" not in advice


def test_a_run_that_fit_refuses_is_told_to_be(config: Config, planned: Callable[..., dict[str, Any]]) -> None:
    sharded = {"strategy": "fsdp", "devices": 2}
    report = planned(config("run", trainer=sharded, data={"auto_micro_batch": True}), "--skip_data")
    assert own(report)["refused"].startswith("data.auto_micro_batch: under fsdp")
    assert report["advice"][0].startswith("'ift fit' would refuse this run: data.auto_micro_batch")
    assert any("trainer.strategy: ddp" in line and "fits" in line for line in report["advice"])


def test_deepspeed_is_planned_without_it_and_without_gpus(
    config: Config, planned: Callable[..., dict[str, Any]]
) -> None:
    zero = {"strategy": "deepspeed_2", "devices": 4, "accelerator": "auto"}
    there = planned(config("run", trainer=zero), "--skip_data", "--card", "24")
    assert (own(there)["strategy"], own(there)["devices"], own(there)["refused"]) == ("deepspeed_2", 4, None)
    installed = importlib.util.find_spec("deepspeed") is not None
    assert installed or any("DeepSpeed is not installed here" in note for note in there["notes"])
    here = planned(config("run", trainer={**zero, "accelerator": "cpu"}), "--skip_data")
    assert "DeepSpeed needs GPUs" in own(here)["refused"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--crad", "24"], "unknown option '--crad'. Did you mean '--card'?"),
        (["--card", "h100"], "--card: unknown name 'h100'. Did you mean 'h100-80g'?"),
        (["--card", "0"], "--card: 0 is not above 0 GiB"),
        (["--devices", "1"], "--devices: 1 is no number of ranks"),
        (["--trainer.devices", "banana"], "trainer.devices: 'banana' is neither a number"),
        (["--devices", "many"], "--devices: invalid int value"),
        (["--model.bse", "x"], "model.bse"),
        (["--data.micro_batch_tokens", "8"], "data.micro_batch_tokens: 8"),
    ],
)
def test_wrong_options_are_told(config: Config, refused: Callable[..., str], arguments: list[str], told: str) -> None:
    assert told in refused("plan", "--config", config("run"), *arguments)


def test_the_short_name_of_a_precision_means_the_same(config: Config, planned: Callable[..., dict[str, Any]]) -> None:
    short, full = (
        planned(
            config("run", trainer={"precision": name, "accelerator": "gpu", "max_steps": 4}),
            "--skip_data",
            "--card",
            "a100-80g",
        )
        for name in ("bf16", "bf16-mixed")
    )
    assert short == full and short["course"]["seconds"] is not None
    here = planned(config("run", trainer={"precision": "bf16"}), "--skip_data")
    assert "not measured in bfloat16" in here["error"]


def test_help_answers_without_torch() -> None:
    program = "import sys; from ift.cli import main; main(['plan', '--help']); print(*sorted(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--card" in done.stdout
    assert not {"torch", "transformers", "lightning", "peft"} & set(done.stdout.split())
