"""`model.kernels`: when Liger's are taken, what they change in a model, and that a wrong one is found out.

What is computed here is a stand-in's; the kernels themselves are in `test_training_liger.py`.
"""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comparing import largest_difference
from families import make_model
from peft import LoraConfig, get_peft_model
from tiny import ROOT
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from ift.checks.config_world import small_model
from ift.cli import main
from ift.errors import UserError
from ift.models import kernels
from ift.models.calling import calling_of, with_fused_head
from ift.models.kernels import KernelChoice, choose_kernels, use_liger, verify_kernels

GOOD: dict[str, Any] = {"config": LlamaConfig(), "device": "cuda", "compiled": False, "whole": True}
OWN_CODE = SimpleNamespace(model_type="ift_chatglm")
LIGER = KernelChoice("liger", "asked for")


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, which is on the CPU what Liger is on a GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "stand_ins"))
    for name in [one for one in sys.modules if one.partition(".")[0] == "liger_kernel"]:  # the real one, perhaps
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(kernels, "DEVICE", "cpu")
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    module = [importlib.import_module(name) for name in names][-1]
    yield module
    for name in names:
        del sys.modules[name]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has", lambda package: True)


def test_auto_takes_liger_on_a_gpu_where_it_is_installed(installed: None) -> None:
    assert choose_kernels("auto", **GOOD).used == "liger"
    assert choose_kernels("liger", **GOOD).used == "liger"
    assert choose_kernels("torch", **GOOD) == KernelChoice("torch", "asked for")


@pytest.mark.parametrize(
    ("changed", "reason", "repair"),
    [
        ({"device": "cpu"}, "its kernels run on CUDA GPUs, and the model is to be on 'cpu'", "Run it where a GPU is"),
        ({"compiled": True}, "model.compile is true", "Set model.compile to false"),
        ({"whole": False}, "ranks hold parts of the weights", "Set trainer.strategy to ddp"),
        ({"config": None}, "not tried on 'None' models", "set it to auto or torch"),
        ({"config": OWN_CODE}, "not tried on 'ift_chatglm' models, only on deep", "set it to auto or torch"),
    ],
    ids=["device", "compiled", "parts", "no config", "own code"],
)  # fmt: skip
def test_what_stands_against_liger_is_told(installed: None, changed: dict[str, Any], reason: str, repair: str) -> None:
    choice = choose_kernels("auto", **{**GOOD, **changed})
    assert choice.used == "torch" and reason in choice.reason and not choice.versions
    with pytest.raises(UserError, match=f"model.kernels: liger cannot be here: .*{reason}.*{repair}"):
        choose_kernels("liger", **{**GOOD, **changed})


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has", lambda package: package == "triton")
    assert choose_kernels("auto", **GOOD).reason == "liger-kernel is not installed"
    monkeypatch.setattr(kernels, "_has", lambda package: False)
    with pytest.raises(
        UserError, match=r"liger-kernel and triton is not installed. Install .*pip install 'ift\[liger\]'"
    ):
        choose_kernels("liger", **GOOD)


def adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def test_only_the_models_own_modules_change(liger: Any) -> None:
    plain = {name: getattr(modeling_llama, name) for name in ("LlamaRMSNorm", "LlamaMLP")}
    other, model = make_model("llama"), make_model("llama")
    use_liger(model)
    assert all(getattr(modeling_llama, name) is one for name, one in plain.items())
    changed = [name for name, module in model.named_modules() if module in set(kernels._changed(model))]
    # All norms, and of two layers the feed-forward block of the first: the last one's is computed at fewer positions.
    assert len(changed) == 6 and [name for name in changed if name.endswith("mlp")] == ["model.layers.0.mlp"]
    assert not list(kernels._changed(other))
    assert not any(module.in_place for module in kernels._changed(model) if hasattr(module, "in_place"))


def test_rotary_positions_look_where_they_are(liger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    use_liger(model)
    ids = torch.arange(9)[None]
    on_device = model(input_ids=ids).logits
    assert liger.CALLS["rotary"] == 2
    monkeypatch.setattr(kernels, "DEVICE", "cuda")
    torch.testing.assert_close(model(input_ids=ids).logits, on_device)
    assert liger.CALLS["rotary"] == 2


@pytest.mark.parametrize("method", [adapted, lambda model: model], ids=["lora", "full"])
def test_kernels_that_compute_the_same_stay(liger: Any, method: Any) -> None:
    model = make_model("llama")
    use_liger(model)
    model = method(model)
    assert verify_kernels("auto", LIGER, model) is LIGER
    liger.CALLS.clear()
    calling = with_fused_head(calling_of(model), model)
    assert calling.head is not None and calling.block is not None  # what ift does itself is not in the way
    assert all(liger.CALLS[name] for name in ("norm", "block", "rotary"))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_kernels_that_compute_something_else_are_undone(liger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = modeling_llama.apply_rotary_pos_emb
    expected = make_model("llama")(input_ids=torch.arange(9)[None]).logits
    monkeypatch.setattr(liger, "FACTOR", 1.01)
    model = make_model("llama")
    use_liger(model)
    with pytest.warns(UserWarning, match="model.kernels: torch's kernels are used, not Liger's: in a trial"):
        choice = verify_kernels("auto", LIGER, model)
    assert choice.used == "torch" and "of its size from torch's, more than rounding" in choice.reason
    assert not list(kernels._changed(model)) and modeling_llama.apply_rotary_pos_emb is rotary
    assert torch.equal(model(input_ids=torch.arange(9)[None]).logits, expected)
    use_liger(model)
    with pytest.raises(UserError, match="model.kernels: liger cannot be here: in a trial .* Set it to auto."):
        verify_kernels("liger", LIGER, model)


def test_weights_that_are_elsewhere_are_not_computed_with(liger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    use_liger(model)
    monkeypatch.setattr(kernels, "DEVICE", "cuda")
    with pytest.warns(UserWarning, match="some weights are on 'cpu'"):
        assert verify_kernels("auto", LIGER, model).used == "torch"
    assert not list(kernels._changed(model))


def test_a_run_trains_the_same_and_says_what_computed_it(
    liger: Any, installed: None, config: Callable[..., Path], fit: Callable[..., Path]
) -> None:
    trained = {"model": {"gradient_checkpointing": True}, "trainer": {"max_steps": 4}}
    runs = {}
    for asked in ("torch", "auto"):
        trained["model"]["kernels"] = asked
        runs[asked] = fit(config(asked, **trained))
        assert bool(liger.CALLS) == (asked == "auto")
    assert largest_difference(runs["torch"], runs["auto"]) < 1e-6
    plain, session = (json.loads((run / "manifest.json").read_text())["sessions"][0] for run in runs.values())
    assert plain["kernels"] == {"used": "torch", "reason": "asked for", "versions": ""}
    assert session["kernels"] == {"used": "liger", "reason": "installed, and on a GPU", "versions": "unknown"}
    assert plain["environment"]["kernels"] == "torch" and session["environment"]["kernels"] == "unknown"


def test_liger_without_a_gpu_ends_before_weights_load(
    config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("run", model={"kernels": "liger"})
    assert main(["fit", "--config", str(path)]) == 2
    assert "model.kernels: liger cannot be here: its kernels run on CUDA GPUs" in capsys.readouterr().err
    assert not path.with_suffix("").exists()


def test_checks_on_this_machine_leave_them_out() -> None:
    notes: list[str] = []
    assert small_model({"kernels": "liger"}, notes) == {} and notes == ["model.kernels is left out"]
    assert small_model({"kernels": "auto"}, notes) == {} and len(notes) == 1
