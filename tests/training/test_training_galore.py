"""GaLore through pytorch-optimizer: the paper's update, and runs that resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference

pytest.importorskip("pytorch_optimizer", reason="GaLore needs pytorch-optimizer, which is optional")

from ift.training.galore import GaLoreAdamW

Config = Callable[..., Path]
Fit = Callable[..., Path]


def by_hand(weight: torch.Tensor, gradients: list[torch.Tensor], *, lr: float, rank: int, gap: int) -> torch.Tensor:
    """Algorithm 2 of the paper on a matrix that is taller than wide: Adam on G Q', and the update times Q."""
    mean, square = (torch.zeros(len(weight), rank, dtype=torch.float64) for _ in range(2))
    weight = weight.double()
    for number, gradient in enumerate(gradients, 1):
        if number == 1 or number % gap == 0:
            # In float32, as the signs of singular vectors are arbitrary and the moments go on in the new ones.
            q = torch.linalg.svd(gradient, full_matrices=False).Vh[:rank].double()
        low = gradient.double() @ q.T
        mean, square = 0.9 * mean + 0.1 * low, 0.999 * square + 0.001 * low**2
        rate = lr * (1 - 0.999**number) ** 0.5 / (1 - 0.9**number)
        weight = weight - rate * 0.25 * (mean / (square.sqrt() + 1e-6)) @ q
    return weight


def test_the_update_is_the_papers() -> None:
    torch.manual_seed(0)
    start = torch.randn(12, 7)
    gradients = [torch.randn(12, 7) for _ in range(8)]
    weight = torch.nn.Parameter(start.clone())
    optimizer = GaLoreAdamW([{"params": [weight]}], lr=0.01, rank=3, update_proj_gap=4)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    expected = by_hand(start, gradients, lr=0.01, rank=3, gap=4)
    torch.testing.assert_close(weight.detach(), expected.float(), atol=1e-5, rtol=1e-5)
    assert optimizer.state[weight]["exp_avg"].shape == (12, 3)


def test_small_matrices_and_vectors_are_left_to_adamw() -> None:
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((9, 8), (9, 4), (9,))]
    optimizer = GaLoreAdamW(weights, lr=0.01, rank=4)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert [("projector" in optimizer.state[weight]) for weight in weights] == [True, False, False]


def test_a_run_learns_and_resumes_exactly(config: Config, fit: Fit) -> None:
    optimizer = {"class_path": "ift.training.galore.GaLoreAdamW"}
    optimizer["init_args"] = {"lr": 0.01, "rank": 4, "update_proj_gap": 5}  # type: ignore[assignment]
    settings: dict[str, Any] = {
        "model": {"adapter": None, "optimizer": optimizer},
        "trainer": {"max_epochs": 5, "num_sanity_val_steps": -1},
        "checkpoint": {"every_n_train_steps": 7, "save_top_k": -1},
    }
    reference = fit(config("reference", **settings))
    losses = [one["loss"] for one in json.loads((reference / "manifest.json").read_text())["validation"]]
    assert losses[-1] < losses[0] - 0.3, losses
    checkpoint = reference / "checkpoints" / "step-00000007.ckpt"  # two steps before the next subspace
    resumed = fit(config("resumed", **settings), "--ckpt_path", str(checkpoint))
    assert largest_difference(reference, resumed) == 0
