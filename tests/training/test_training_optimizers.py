"""Optimizers by class path: bitsandbytes' train and resume, and what cannot be built is refused before weights load."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference

from ift.cli import main
from ift.training.optimizers import without_paging

Config = Callable[..., Path]
Fit = Callable[..., Path]

BITSANDBYTES = {
    "AdamW8bit": 3e-3,
    "PagedAdamW8bit": 3e-3,
    "PagedAdamW32bit": 3e-3,
    "Lion8bit": 1e-3,
    "PagedAdEMAMix8bit": 3e-3,
}


def by_name(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": init_args}


def all_states(checkpoint: Path) -> list[torch.Tensor]:
    """Return every tensor of the optimizer's state."""

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, dict):
            return [tensor for one in value.values() for tensor in tensors(one)]
        return [value] if isinstance(value, torch.Tensor) else []

    return tensors(torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["state"])


@pytest.mark.parametrize(("name", "learning_rate"), BITSANDBYTES.items())
def test_bitsandbytes_trains_and_resumes_exactly(config: Config, fit: Fit, name: str, learning_rate: float) -> None:
    settings: dict[str, Any] = {
        # bitsandbytes keeps the state of tensors below 4096 elements in 32 bit, and the embedding is larger.
        "model": {"adapter": None, "optimizer": by_name(f"bitsandbytes.optim.{name}", lr=learning_rate)},
        "trainer": {"max_epochs": 5, "num_sanity_val_steps": -1},
        "checkpoint": {"every_n_train_steps": 7, "save_top_k": -1},
    }
    reference = fit(config("reference", **settings))
    losses = [one["loss"] for one in json.loads((reference / "manifest.json").read_text())["validation"]]
    assert losses[-1] < losses[0] - 0.3, losses
    checkpoint = reference / "checkpoints" / "step-00000007.ckpt"
    kinds = {state.dtype for state in all_states(checkpoint) if state.numel() > 2 * 4096}  # AdEMAMix keeps two in one
    assert kinds == {torch.float32 if "32bit" in name else torch.uint8}
    resumed = fit(config("resumed", **settings), "--ckpt_path", str(checkpoint))
    assert largest_difference(reference, resumed) == 0


def test_paging_is_told_where_there_is_none(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    one_step = {"max_steps": 1}
    paged, ordinary = (by_name(f"bitsandbytes.optim.{name}", lr=0.01) for name in ("PagedAdamW8bit", "AdamW8bit"))
    first = fit(config("paged", model={"optimizer": paged, "adapter": None}, trainer=one_step))
    assert "model.optimizer: PagedAdamW8bit pages nothing on the CPU" in capsys.readouterr().err
    second = fit(config("ordinary", model={"optimizer": ordinary, "adapter": None}, trainer=one_step))
    assert "pages nothing" not in capsys.readouterr().err
    assert largest_difference(first, second) == 0


def test_a_package_that_is_missing_is_named(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "ift.training.galore", raising=False)
    galore = by_name("ift.training.galore.GaLoreAdamW", lr=0.01, rank=4)
    assert main(["fit", "--config", str(config(model={"optimizer": galore}))]) == 2
    message = capsys.readouterr().err
    assert 'pip install "ift[galore]"' in message and "Traceback" not in message


def test_what_pages_on_a_gpu_steps_on_the_cpu() -> None:
    import bitsandbytes

    weight = torch.nn.Parameter(torch.ones(400, 400))  # bitsandbytes pages tensors of 100,000 elements and more
    for paged in (bitsandbytes.optim.PagedAdEMAMix8bit, bitsandbytes.optim.PagedAdamW32bit):
        before = weight.detach().clone()
        optimizer = without_paging(paged([weight], lr=0.01), torch.device("cpu"))
        weight.square().sum().backward()
        optimizer.step()
        assert bool((weight < before).all())
    assert without_paging(paged([weight], lr=0.01), torch.device("cuda")).is_paged


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (by_name("bitsandbytes.optim.AdamW8bits", lr=0.01), "'bitsandbytes.optim' has no 'AdamW8bits'"),
        (by_name("ift.training.fused_optimizers.AdaLoma", lr=0.01), "'ift.training.fused_optimizers' has no 'AdaLoma'"),
        (by_name("bitsandbytes.optim.AdamW8bit", rate=0.01), "unknown key 'model.optimizer.init_args.rate'"),
        (by_name("torch.optim.AdamW", lr=-0.01), "Invalid learning rate: -0.01"),
        (by_name("torch.optim.LBFGS", lr=0.01), "LBFGS doesn't support per-parameter options"),
        (by_name("torch.optim.Muon", lr=0.01), "Muon only supports 2D parameters"),
        (by_name("ift.training.fused_optimizers.Lomo"), "model.optimizer"),
    ],
)
def test_what_cannot_be_built_is_refused_before_weights_load(
    config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path, optimizer: dict[str, Any], told: str
) -> None:
    path = config(model={"optimizer": optimizer})
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert told in message and "model.optimizer" in message and "Traceback" not in message
    assert not path.with_suffix("").exists()
