"""LOMO is SGD and AdaLomo is the paper's formula, though each weight is updated in the backward pass."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from tiny import make_llama
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ift.cli import main
from ift.models.packing import choose_row_layout
from ift.training.fused_optimizers import AdaLomo, FusedOptimizer, Lomo

Config = Callable[..., Path]
Fit = Callable[..., Path]

LOMO = {"class_path": "ift.training.fused_optimizers.Lomo", "init_args": {"lr": 0.5}}
ADALOMO = {"class_path": "ift.training.fused_optimizers.AdaLomo", "init_args": {"lr": 0.05, "weight_decay": 0.1}}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
LORA_WITH_DROPOUT = {
    "class_path": "peft.LoraConfig",
    "init_args": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.2},
}
TWENTY_STEPS = {"trainer": {"max_epochs": 5}, "data": {"row_layout": "grouped"}}  # 32 examples, 8 a step


@pytest.fixture
def whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ordinary optimizers take a step at once too, so that sums are taken in the same order."""

    def chosen(*arguments: Any, **options: Any) -> Any:
        return replace(choose_row_layout(*arguments, **options), whole_step=True)

    monkeypatch.setattr("ift.commands.trainer.choose_row_layout", chosen)


@pytest.fixture
def tied(base: Path, tmp_path: Path) -> Path:
    """A tiny Llama whose head is its embedding."""
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    folder = make_llama(tmp_path / "tied", len(tokenizer), tie_word_embeddings=True)
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("clip", [None, 0.1], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("model", [{"adapter": None}, {"adapter": LORA_WITH_DROPOUT}], ids=["full", "lora"])
def test_lomo_is_sgd_bit_for_bit(
    config: Config, fit: Fit, whole_steps: None, clip: float | None, model: dict[str, Any]
) -> None:
    sgd, lomo = (
        fit(config(name, **TWENTY_STEPS, model={**model, "optimizer": optimizer, "gradient_clip_norm": clip}))
        for name, optimizer in (("sgd", SGD), ("lomo", LOMO))
    )
    assert largest_difference(sgd, lomo) == 0
    logged = [json.loads((run / "manifest.json").read_text())["last_logged"] for run in (sgd, lomo)]
    for name in ("step", "train/loss", "train/gradient_norm", "train/learning_rate"):
        assert logged[0][name] == logged[1][name], name
    assert clip is None or logged[1]["train/gradient_norm"] > clip, "nothing was clipped"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"gradient_checkpointing": True}},
        {"data": {"row_layout": "packed"}},
        {"data": {"row_layout": "flattened", "num_workers": 1}},
        # In bfloat16 torch rounds the learning rate and clipped gradients too, and LOMO neither; 0.5 is exact.
        {"model": {"dtype": "bfloat16", "gradient_clip_norm": None, "schedule": {"kind": "constant", "warmup": 0}}},
    ],
    ids=["checkpointing", "packed", "flattened", "bfloat16"],
)
def test_lomo_is_sgd_whatever_else_is_set(
    config: Config, fit: Fit, tied: Path, whole_steps: None, changes: dict[str, Any]
) -> None:
    sgd, lomo = (
        fit(
            config(
                name,
                data={**changes.get("data", {})},
                model={"base": str(tied), "adapter": None, "optimizer": optimizer, **changes.get("model", {})},
            )
        )
        for name, optimizer in (("sgd", SGD), ("lomo", LOMO))
    )
    assert largest_difference(sgd, lomo) == 0


def test_lomo_is_sgd_that_sums_up_micro_batches(config: Config, fit: Fit) -> None:
    sgd, lomo = (
        fit(config(name, model={"adapter": None, "optimizer": optimizer}, data={"micro_batch_tokens": 256}))
        for name, optimizer in (("sgd", SGD), ("lomo", LOMO))
    )
    assert largest_difference(sgd, lomo) < 1e-6


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lomo_decays_weights_as_sgd_does(decay: float) -> None:
    for fused, ordinary in zip(
        trained(lambda groups: Lomo(groups, lr=0.2, weight_decay=decay), fused=True),
        trained(lambda groups: torch.optim.SGD(groups, lr=0.2, weight_decay=decay), fused=False),
        strict=True,
    ):
        torch.testing.assert_close(fused, ordinary, atol=1e-6, rtol=1e-6)


class ByTheFormulas(torch.optim.Optimizer):
    """AdaLomo as the papers write it, with all gradients at hand.

    The moment is factorised as in algorithm 1 of AdaLomo with Adafactor's decay, v = r c / sum(r), written here with
    the sums over rows and columns; the update is divided by max(1, RMS) and multiplied with max(1e-3, RMS of weights).
    """

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.moments: dict[torch.Tensor, list[torch.Tensor]] = {}
        self.number = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.number += 1
        beta = 1 - self.number**-0.8
        for group in self.param_groups:
            for weight in group["params"]:
                w, g = weight.double(), weight.grad.double()
                squares = g**2 + 1e-30
                parts = [squares.sum(1), squares.sum(0)] if g.ndim == 2 else [squares]
                old = self.moments.get(weight, [torch.zeros_like(part) for part in parts])
                self.moments[weight] = [beta * o + (1 - beta) * part for o, part in zip(old, parts, strict=True)]
                moment = self.moments[weight]
                v = torch.outer(*moment) / moment[0].sum() if g.ndim == 2 else moment[0]
                u = g / v.sqrt()
                u = u / max(1.0, math.sqrt(float((u**2).mean())))
                rate = group["lr"] * max(1e-3, math.sqrt(float((w**2).mean())))
                weight.copy_(w - rate * group["weight_decay"] * w - rate * u)


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes, **heads)).train()


def trained(make: Callable[[Any], Any], *, fused: bool, steps: int = 20, clip: float = 0.5) -> Iterator[torch.Tensor]:
    """Train a small model, and yield its weights."""
    model = small_model()
    optimizer = make(no_decay_groups(model))
    for number in range(steps):
        ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(number))
        for group in optimizer.param_groups:
            group["lr"] *= 0.97

        def backward(ids: torch.Tensor = ids) -> torch.Tensor:
            loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
            loss.backward()
            return loss.detach()

        if fused:
            optimizer.fused_backward(backward, model.parameters(), clip_norm=clip)
            assert all(parameter.grad is None for parameter in model.parameters())
        else:
            backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    yield from (parameter.detach() for parameter in model.parameters())


def no_decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def test_adalomo_is_the_papers_formula() -> None:
    for fused, formula in zip(
        trained(lambda groups: AdaLomo(groups, lr=0.02, weight_decay=0.1), fused=True),
        trained(lambda groups: ByTheFormulas(groups, lr=0.02, weight_decay=0.1), fused=False),
        strict=True,
    ):
        torch.testing.assert_close(fused, formula, atol=1e-6, rtol=1e-5)


def test_adalomo_is_torchs_adafactor_at_small_learning_rates() -> None:
    # torch's learning rate is at most 1 / sqrt(step), here never reached; it decays by lr, not by lr times the size.
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.0}
    for fused, adafactor in zip(
        trained(lambda groups: AdaLomo(groups, **settings), fused=True),
        trained(lambda groups: torch.optim.Adafactor(groups, **settings, eps=(1e-30, 1e-3)), fused=False),
        strict=True,
    ):
        torch.testing.assert_close(fused, adafactor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda groups: Lomo(groups, lr=0.2), lambda groups: AdaLomo(groups, lr=0.02)])
def test_ordinary_use_ends_the_same(make: Callable[[Any], Any]) -> None:
    for fused, ordinary in zip(trained(make, fused=True), trained(make, fused=False), strict=True):
        torch.testing.assert_close(fused, ordinary, atol=0, rtol=0)


def test_gradients_are_freed_while_the_backward_pass_runs() -> None:
    model = small_model()
    optimizer = Lomo(model.parameters(), lr=0.1)
    held: list[int] = []
    for parameter in model.parameters():  # called after the optimizer's hook of the same weight
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(p.grad is not None for p in model.parameters()))
        )

    def backward() -> torch.Tensor:
        ids = torch.arange(24).view(2, 12)
        loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss

    optimizer.fused_backward(backward, model.parameters(), clip_norm=None)
    # A tied weight has one gradient, complete when the embedding's part is there too: one call per weight.
    assert held == [0] * len(list(model.parameters()))
    held.clear()
    backward()
    assert held == list(range(1, len(held) + 1)), "the test does not see gradients that are held"


def test_a_second_backward_pass_in_a_fused_step_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = Lomo([weight], lr=0.1)

    def twice() -> torch.Tensor:
        (weight.sum()).backward()
        (weight.sum()).backward()
        return weight.sum()

    with pytest.raises(RuntimeError, match="takes one backward pass"):
        optimizer.fused_backward(twice, [weight], clip_norm=None)
    assert optimizer._pass is None


def test_weights_without_a_gradient_stay() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))
    for optimizer in (Lomo([used, unused], lr=0.1, weight_decay=0.5), AdaLomo([used, unused], lr=0.1)):
        _, norm = optimizer.fused_backward(lambda: summed(used), [used, unused], clip_norm=None)
        assert norm.item() == pytest.approx(math.sqrt(3)) and bool((unused == 1).all())


def summed(weight: torch.Tensor) -> torch.Tensor:
    weight.sum().backward()
    return weight.detach()


def test_state_in_float32_survives_beside_bfloat16_weights() -> None:
    def make() -> tuple[nn.Parameter, AdaLomo]:
        weight = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4).bfloat16())
        return weight, AdaLomo([weight], lr=0.1)

    def step(weight: nn.Parameter, optimizer: FusedOptimizer, number: int) -> None:
        def backward() -> torch.Tensor:
            (weight * (weight + number)).float().sum().backward()
            return weight.detach()

        optimizer.fused_backward(backward, [weight], clip_norm=1.0)

    weight, optimizer = make()
    step(weight, optimizer, 1)
    other, resumed = make()
    other.data.copy_(weight.data)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state[other]["exp_avg_sq_row"].dtype == torch.float32
    for number in range(2, 6):
        step(weight, optimizer, number)
        step(other, resumed, number)
    assert torch.equal(weight, other)
    for name, value in optimizer.state[weight].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.state[other][name])), name


@pytest.mark.parametrize("optimizer", [LOMO, ADALOMO], ids=["lomo", "adalomo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_bit_for_bit_the_same(
    config: Config, fit: Fit, optimizer: dict[str, Any], dtype: str
) -> None:
    settings: dict[str, Any] = {"model": {"adapter": None, "optimizer": optimizer, "dtype": dtype}}
    settings |= {"checkpoint": {"every_n_train_steps": 3, "save_top_k": -1}, "data": {"global_batch_size": 5}}
    reference = fit(config("reference", **settings))
    checkpoint = reference / "checkpoints" / "step-00000009.ckpt"
    resumed = fit(config("resumed", **settings), "--ckpt_path", str(checkpoint))
    assert largest_difference(reference, resumed) == 0


@pytest.mark.parametrize("clip", [None, 1.0])
def test_numbers_that_left_the_numbers_stop_the_run(
    config: Config, capsys: pytest.CaptureFixture[str], clip: float | None
) -> None:
    exploding = {"class_path": "ift.training.fused_optimizers.Lomo", "init_args": {"lr": 1.0e30}}
    path = config(model={"optimizer": exploding, "adapter": None, "gradient_clip_norm": clip})
    assert main(["fit", "--config", str(path)]) == 2
    assert "not a number" in capsys.readouterr().err
    assert not (path.with_suffix("") / "model").exists()


def test_what_follows_from_fusing_is_said(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(config(model={"optimizer": LOMO, "adapter": None}, trainer={"max_steps": 1}))
    told = capsys.readouterr().err
    assert "Lomo updates in the backward pass, so the 8 examples of a step" in told
    assert "model.gradient_clip_norm: 1.0 takes each step of Lomo twice" in told


@pytest.mark.parametrize("trainer", [{"devices": 2}, {"strategy": "ddp"}])
def test_several_processes_are_refused(
    config: Config, capsys: pytest.CaptureFixture[str], trainer: dict[str, Any]
) -> None:
    path = config(model={"optimizer": LOMO, "adapter": None}, trainer=trainer)
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "model.optimizer: Lomo updates weights before" in message and "trainer.devices" in message
    assert not path.with_suffix("").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"lr": -1.0}, "must not be below 0"), ({"decay_rate": 0.8}, "decay_rate 0.8 below")],
)
def test_settings_that_cannot_be_are_refused_before_weights_load(
    config: Config, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    optimizer = {**ADALOMO, "init_args": {"lr": 0.1, **changes}}
    path = config(model={"optimizer": optimizer})
    assert main(["fit", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "model.optimizer" in message and told in message and "Traceback" not in message
