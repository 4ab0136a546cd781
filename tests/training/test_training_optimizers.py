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
from ift.training.engines import Engine
from ift.training.optimizers import with_fused_update, without_paging

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


def updated(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
    """Return a weight after three updates, the second of them without a gradient."""
    for scale in (1.0, 0.0, -2.0):
        weight.grad = torch.linspace(-1, 1, weight.numel()).view_as(weight) * scale
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"weight_decay": 0.3, "betas": (0.5, 0.9)}])
def test_adamw_updates_in_one_pass_and_to_the_same(options: dict[str, Any]) -> None:
    start = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    one, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    fused = with_fused_update(torch.optim.AdamW([one], lr=0.1, **options))
    assert [group["fused"] for group in fused.param_groups] == [True]
    found, expected = updated(fused, one), updated(torch.optim.AdamW([other], lr=0.1, foreach=False, **options), other)
    assert float((expected - start).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Odd(torch.nn.Parameter):
    """A tensor of another kind, as strategies that shard have them."""


@pytest.mark.parametrize(
    ("kind", "options", "parameter"),
    [
        (torch.optim.AdamW, {"fused": False}, torch.nn.Parameter),
        (torch.optim.AdamW, {"foreach": True}, torch.nn.Parameter),
        (torch.optim.AdamW, {"foreach": False}, torch.nn.Parameter),
        (torch.optim.AdamW, {"differentiable": True}, torch.nn.Parameter),
        (torch.optim.AdamW, {}, Odd),
        (torch.optim.Adam, {}, torch.nn.Parameter),
        (torch.optim.SGD, {}, torch.nn.Parameter),
    ],
)
def test_what_was_asked_for_is_kept(kind: Any, options: dict[str, Any], parameter: Any) -> None:
    optimizer = kind([parameter(torch.ones(3, 2))], lr=0.1, **options)
    before = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
    after = with_fused_update(optimizer)
    assert after is optimizer
    assert before == [{name: group[name] for name in group if name != "params"} for group in after.param_groups]


def test_a_run_that_was_begun_otherwise_goes_on_so() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    begun = torch.optim.AdamW([weight], lr=0.1)
    updated(begun, weight)
    resumed = with_fused_update(torch.optim.AdamW([weight], lr=0.1))
    resumed.load_state_dict(begun.state_dict())
    assert not resumed.param_groups[0]["fused"]


@pytest.mark.parametrize("limit", [0.5, 1.0, 100.0, float("inf")])
@pytest.mark.parametrize("largest", [0.0, 0.01, 3.0, float("inf"), float("nan")])
def test_clipping_is_that_of_torch(limit: float, largest: float) -> None:
    weights = [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]
    others = [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]
    for number, (one, other) in enumerate(zip(weights, others, strict=True)):
        if number < 2:  # one has no gradient
            one.grad, other.grad = (torch.linspace(-1, 1, 4).mul(number + 1) for _ in range(2))
            one.grad[0] = other.grad[0] = largest
    norm, expected = Engine(None).clip(weights, limit), torch.nn.utils.clip_grad_norm_(others, limit)
    assert torch.equal(norm, expected) or bool(norm.isnan() & expected.isnan())
    for one, other in zip(weights, others, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)
