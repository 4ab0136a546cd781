"""Methods with more to remember than weights: stopped halfway and resumed, a run ends bit for bit the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from safetensors.torch import load_file, save_file
from training.families import make_model
from transformers import AutoTokenizer

from ift.artifacts import RunFolder
from ift.cli import main
from ift.training.checkpoints import AtomicCheckpointIO
from ift.training.module import InstructionModule

Config = Callable[..., Path]
Fit = Callable[..., Path]

STEPS = 12
LORA = {"r": 4, "lora_dropout": 0.2}
METHODS: dict[str, dict[str, Any]] = {
    # Ranks are taken away after the steps 2, 4, 6, 8: before and after the interruption.
    "adalora": {"init_r": 4, "target_r": 2, "interval": 2, "lora_dropout": 0.2},
    "bitfit": {},
    "dora": LORA,
    # Other layers at the steps 5 and 10; the checkpoint is within the draw.
    "lisa": {"num_layers": 1, "period": 5},
    "ln_tuning": {},
    "lora_plus": LORA,
    "p_tuning": {"num_virtual_tokens": 5, "encoder_hidden_size": 8},
    "pissa": {"r": 4, "lora_alpha": 4, "num_iterations": 2, "lora_dropout": 0.2},
    "prefix": {"num_virtual_tokens": 5, "projection_size": 8},
    "sadapter_h": {"bottleneck_size": 6, "dropout": 0.2},
}


@pytest.fixture(scope="module")
def biased(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-NeoX, which has biases everywhere."""
    folder = tmp_path_factory.mktemp("biased")
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    make_model("gpt_neox", vocabulary=len(tokenizer)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def run_config(config: Config, biased: Path) -> Config:
    """Write a run of a method."""

    def write(name: str, method: str, **sections: Any) -> Path:
        model = {
            "base": str(biased),
            "adapter": {"class_path": method, "init_args": METHODS[method]},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
            "schedule": {"kind": "cosine", "warmup": 2},
            **sections.pop("model", {}),
        }
        return config(
            name,
            model=model,
            trainer={"max_epochs": -1, "max_steps": STEPS, "num_sanity_val_steps": 0, **sections.pop("trainer", {})},
            data={"global_batch_size": 5, "validation": None, **sections.pop("data", {})},
            checkpoint={"every_n_train_steps": 3},
            **sections,
        )

    return write


class Interruption(Exception):  # noqa: N818
    """What stops a run here."""


def interrupt(monkeypatch: pytest.MonkeyPatch, path: Path, *, at: int) -> None:
    """Begin or continue a run, and stop it in a step, before its gradient."""
    train = InstructionModule.training_step

    def stopping(module: InstructionModule, step: Any, batch_idx: int) -> Any:
        if step.index == at:
            raise Interruption
        return train(module, step, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(InstructionModule, "training_step", stopping)
        with pytest.raises(Interruption):
            main(["fit", "--config", str(path), "--ckpt_path", "last", "--debug"])


WEIGHTS_ONLY = ("dora", "ln_tuning", "lora_plus", "p_tuning", "sadapter_h")
"""Methods that a checkpoint's weights and optimizer hold all of."""
SOME = [pytest.param(one, marks=[pytest.mark.slow] if one in WEIGHTS_ONLY else []) for one in METHODS]


@pytest.mark.parametrize("method", SOME)
def test_a_run_stopped_twice_ends_bit_for_bit_the_same(
    method: str, run_config: Config, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = fit(run_config("reference", method))
    path = run_config("stopped", method)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for step in (4, 8):
        interrupt(monkeypatch, path, at=step)
        torch.manual_seed(step)  # what is drawn outside of the run must not matter
    torch.set_num_threads(threads)
    run = fit(path, "--ckpt_path", "last")
    assert [one["from_step"] for one in json.loads((run / "manifest.json").read_text())["sessions"]] == [0, 3, 6]
    assert largest_difference(reference, run) == 0
    started = [RunFolder(folder).initial_adapter / "adapter_model.safetensors" for folder in (reference, run)]
    assert [file.exists() for file in started] == [method == "pissa"] * 2
    if method == "pissa":
        one, two = (load_file(str(file)) for file in started)
        assert one and all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


def test_pissa_goes_on_in_a_new_folder(run_config: Config, fit: Fit) -> None:
    """Trap: when the run begins, the checkpoint has replaced what the adapter began with, which the end needs."""
    reference = fit(run_config("reference", "pissa"))
    (checkpoint,) = reference.glob("checkpoints/*.ckpt")
    begun = fit(run_config("elsewhere", "pissa"), "--ckpt_path", str(checkpoint))
    assert largest_difference(reference, begun) == 0


def test_pissa_is_not_resumed_beside_another_residue(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An approximate decomposition comes out otherwise on another device, and the base model with it."""
    path = run_config("run", "pissa")
    interrupt(monkeypatch, path, at=4)
    file = RunFolder(path.with_suffix("")).initial_adapter / "adapter_model.safetensors"
    weights = load_file(str(file))
    signs = {name: -value for name, value in weights.items()}  # which leave the product as it is
    save_file(signs, str(file), metadata={"format": "pt"})
    interrupt(monkeypatch, path, at=5)
    save_file({name: value * 1.001 for name, value in weights.items()}, str(file), metadata={"format": "pt"})
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2
    message = capsys.readouterr().err
    assert "began with other weights" in message and "Traceback" not in message


SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}}


def without_dropout(method: str) -> dict[str, Any]:
    """Dropout draws for each micro-batch, so only without it is a step the same however it is cut."""
    return {name: 0.0 if "dropout" in name else value for name, value in METHODS[method].items()}


@pytest.mark.parametrize("method", SOME)
def test_how_a_step_is_cut_changes_nothing(method: str, run_config: Config, fit: Fit) -> None:
    model = {"adapter": {"class_path": method, "init_args": without_dropout(method)}, "optimizer": SGD}
    trainer = {"max_steps": 6}
    whole, one_by_one = (
        fit(run_config(f"of{tokens}", method, model=model, data={"micro_batch_tokens": tokens}, trainer=trainer))
        for tokens in (100_000, 256)
    )
    assert largest_difference(whole, one_by_one) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora_plus", "adalora", "lisa"])
def test_two_ranks_train_as_one(method: str, run_config: Config, fit: Fit, start: Any) -> None:
    strategy = "ddp_find_unused_parameters_true" if method == "lisa" else "ddp"
    settings = {**without_dropout(method), **({"period": 2} if method == "lisa" else {})}
    model = {"adapter": {"class_path": method, "init_args": settings}, "optimizer": SGD}
    one, path = (run_config(name, method, model=model, trainer={"max_steps": 7}) for name in ("one", "two"))
    process = start("fit", "--config", str(path), "--trainer.devices=2", f"--trainer.strategy={strategy}")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert largest_difference(fit(one), path.with_suffix("")) < 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "auto"])
def test_lisa_is_refused_where_ddp_waits_for_all_gradients(
    strategy: str, run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trap: DDP leaves the gradients of the first step unequal, and fails at the second."""
    path = run_config("run", "lisa")
    assert main(["fit", "--config", str(path), "--trainer.devices=2", f"--trainer.strategy={strategy}"]) == 2
    message = capsys.readouterr().err
    assert "Set trainer.strategy to ddp_find_unused_parameters_true" in message and "Traceback" not in message
    assert not path.with_suffix("").exists()


def test_settings_inside_a_checkpoint_do_not_win(config: Config, fit: Fit, tmp_path: Path) -> None:
    """Trap: Lightning's command line merges a checkpoint's `hyper_parameters` over YAML and flags."""
    trainer = {"max_epochs": -1, "max_steps": 4}
    settings: dict[str, Any] = {"trainer": trainer, "data": {"validation": None}}
    settings["checkpoint"] = {"every_n_train_steps": 2, "save_top_k": -1}
    reference = fit(config("reference", **settings))
    first = torch.load(reference / "checkpoints" / "step-00000002.ckpt", weights_only=True)
    other = tmp_path / "other.ckpt"
    AtomicCheckpointIO().save_checkpoint({**first, "hyper_parameters": {"gradient_clip_norm": 1e-9}}, other)
    assert largest_difference(reference, fit(config("resumed", **settings), "--ckpt_path", str(other))) == 0
