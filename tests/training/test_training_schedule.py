"""Learning-rate schedules."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup
from transformers.optimization import get_constant_schedule_with_warmup

from ift.errors import UserError
from ift.training.schedule import Schedule, learning_rate_share

REFERENCES = {
    "cosine": lambda o: get_cosine_schedule_with_warmup(o, 10, 100),
    "linear": lambda o: get_linear_schedule_with_warmup(o, 10, 100),
    "constant": lambda o: get_constant_schedule_with_warmup(o, 10),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_after_the_warm_up_the_shape_is_that_of_transformers(kind: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = REFERENCES[kind](optimizer)
    schedule = Schedule(kind=kind, warmup=10)  # type: ignore[arg-type]
    for step in range(100):
        expected = reference.get_last_lr()[0]
        if step >= 10:
            assert learning_rate_share(step, 100, schedule) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        reference.step()


def test_every_step_learns() -> None:
    for kind in ("cosine", "linear", "constant"):
        shares = [learning_rate_share(s, 50, Schedule(kind=kind, warmup=0.1)) for s in range(50)]
        assert min(shares) > 0 and max(shares) == 1.0
        assert shares[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_the_decay_ends_at_the_final_share() -> None:
    schedule = Schedule(kind="linear", warmup=0, final_share=0.1)
    assert learning_rate_share(100, 100, schedule) == pytest.approx(0.1)
    assert learning_rate_share(50, 100, schedule) == pytest.approx(0.55)


@pytest.mark.parametrize("settings", [{"warmup": -1}, {"warmup": 1.5}, {"final_share": 2.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"model\.schedule\.{next(iter(settings))}: .* (Write it as|Give a number) "):
        Schedule(**settings)  # type: ignore[arg-type]
