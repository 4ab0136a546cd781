"""What optimizers keep, predicted from small weights, against what they really keep of large ones."""

from functools import partial
from typing import Any

import pytest
import torch

from ift.training.fused_optimizers import AdaLomo, Lomo
from ift.training.optimizer_memory import optimizer_memory
from ift.training.parameter_groups import parameter_groups

SHAPES = [(1100, 640), (640, 1100), (900, 900), (3000, 700), (8, 2000), (2000, 8), (500,), (2, 300, 200)]
OPTIMIZERS: dict[str, Any] = {
    "AdamW": partial(torch.optim.AdamW, lr=1e-3),
    "SGD": partial(torch.optim.SGD, lr=1e-3),
    "SGD with momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "Adafactor": partial(torch.optim.Adafactor, lr=1e-3),
    "Lomo": partial(Lomo, lr=1e-3),
    "AdaLomo": partial(AdaLomo, lr=1e-3),
}


def kept(build: Any, shapes: list[Any], dtype: torch.dtype) -> int:
    weights = [(str(number), torch.nn.Parameter(torch.ones(shape, dtype=dtype))) for number, shape in enumerate(shapes)]
    optimizer = build(parameter_groups(weights))
    for _, weight in weights:
        weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    found = 0
    for state in optimizer.state.values():
        for value in state.values():
            values = vars(value).values() if hasattr(value, "__dict__") and not torch.is_tensor(value) else [value]
            found += sum(one.numel() * one.element_size() for one in values if torch.is_tensor(one) and one.ndim)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_of_large_weights_is_found_on_small_ones(name: str, dtype: torch.dtype) -> None:
    found = optimizer_memory(
        OPTIMIZERS[name], [torch.empty(shape, dtype=dtype, device="meta") for shape in SHAPES], on_gpu=False
    )
    assert found.state == pytest.approx(kept(OPTIMIZERS[name], SHAPES, dtype), rel=0.001, abs=64)


def test_moments_in_eight_bits_and_in_a_subspace() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    pytest.importorskip("pytorch_optimizer")
    from ift.training.galore import GaLoreAdamW

    for build in (partial(bitsandbytes.optim.AdamW8bit, lr=1e-3), partial(GaLoreAdamW, lr=1e-3, rank=16)):
        shapes = [(1100, 640), (640, 1100), (8, 2000), (500,)]
        found = optimizer_memory(build, [torch.empty(shape, device="meta") for shape in shapes], on_gpu=False)
        assert found.state == pytest.approx(kept(build, shapes, torch.float32), rel=0.02)


class Basis:
    """What an optimizer may keep beside tensors: an object that holds some, and names what it belongs to."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.rows, self.owner = torch.zeros(len(weight), 7), {"basis": self}


class InABasis(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["basis"] = Basis(weight)
        return super().step(closure)


def test_objects_of_any_class_are_looked_into() -> None:
    weights = [torch.empty(40, 30, device="meta")]
    assert optimizer_memory(partial(InABasis, lr=1e-3), weights, on_gpu=False).state == 4 * 40 * 7


def test_a_float32_copy_has_float32_moments() -> None:
    weights = [torch.empty(300, 400, dtype=torch.bfloat16, device="meta")]
    own = optimizer_memory(OPTIMIZERS["AdamW"], weights, on_gpu=False)
    copied = optimizer_memory(OPTIMIZERS["AdamW"], weights, on_gpu=False, dtype=torch.float32)
    assert copied.state == 2 * own.state == 8 * 300 * 400


def test_an_update_takes_more_where_weights_are_updated_together() -> None:
    weights = [torch.empty(300, 400, device="meta")] * 3
    together = optimizer_memory(partial(torch.optim.Adam, lr=1e-3), weights, on_gpu=True)
    one_by_one = optimizer_memory(partial(torch.optim.Adam, lr=1e-3), weights, on_gpu=False)
    fused = optimizer_memory(OPTIMIZERS["AdamW"], weights, on_gpu=True)  # as the engine has it
    assert together.temporary == 3 * one_by_one.temporary > 0 == fused.temporary
