"""`model.compile`: the same losses, gradients and names as without it, once for all blocks and lengths."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny import make_llama

from ift.cli import main
from ift.errors import UserError
from ift.inference.generation import Decoding, generate
from ift.models.compiling import check_compilable, compile_blocks, uncompiled
from ift.models.loading import load_base_model
from ift.models.quantization import Quantization
from ift.models.record_attention import attend_by_example

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++")


def gradients(model: Any, ids: torch.Tensor, positions: torch.Tensor | None = None) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    loss = model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(one.grad.clone() for one in model.parameters() if one.grad is not None)]


def check_equal(plain: Any, compiled: Any, ids: torch.Tensor, positions: torch.Tensor | None = None) -> None:
    expected, found = gradients(plain, ids, positions), gradients(compiled, ids, positions)
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_blocks_are_compiled_once_for_all_lengths_and_layers(tmp_path: Path) -> None:
    """With a backend that only captures; what it captures is run by the same kernels."""
    from torch._dynamo.testing import CompileCounter

    folder = make_llama(tmp_path / "llama", 90, num_hidden_layers=3)
    plain, model = (load_base_model("base", str(folder), "float32") for _ in range(2))
    counter = CompileCounter()
    torch._dynamo.reset()
    assert compile_blocks(model, backend=counter) == 3  # type: ignore[arg-type]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not any("_orig_mod" in name for name, _ in model.named_modules())
    for length in (9, 20, 31):
        check_equal(plain, model, torch.arange(2 * length).view(2, length) % 90)
    assert counter.frame_count == 1
    # Responses are written without compiling for every length.
    written = generate(
        model.eval(), [[5, 6, 7]], decoding=Decoding(max_new_tokens=5), stop_token_ids=[2], pad_token_id=0
    )
    with uncompiled(plain):
        assert written == generate(
            plain.eval(), [[5, 6, 7]], decoding=Decoding(max_new_tokens=5), stop_token_ids=[2], pad_token_id=0
        )
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_attention_by_example_is_not_compiled_anew_for_other_examples(tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    folder = make_llama(tmp_path / "llama", 90)
    plain, model = (load_base_model("base", str(folder), "float32") for _ in range(2))
    counter = CompileCounter()
    torch._dynamo.reset()
    attend_by_example(model)
    compile_blocks(model, backend=counter)  # type: ignore[arg-type]
    attend_by_example(plain)  # a second model changes nothing for the first
    seen = []
    for lengths in ((9, 4), (20,), (7, 7, 7), (3, 12, 2, 5)):
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        check_equal(plain, model, torch.arange(positions.numel())[None] % 90, positions)
        seen.append(counter.frame_count)
    assert seen[-1] == seen[1] > 0  # with the second, torch learns that lengths change
    torch._dynamo.reset()


def test_rows_are_laid_out_as_without_compiling(config: Callable[..., Path]) -> None:
    """Dropout draws for the rows as they are."""
    from ift.commands.trainer import prepare

    prepared = prepare("fit", ["--config", str(config(model={"compile": True}))], tell=False)
    choice = prepared.datamodule.row_layout_choice
    assert choice.layout == "flattened" and choice.by_example


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="model.compile: Linear has no blocks that transformers knows. Set it to false"):
        compile_blocks(torch.nn.Linear(2, 2))


def test_missing_compilers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"model.compile: true needs a C\+\+ compiler on a CPU.* 'no-such-compiler'"):
        check_compilable("cpu")
    monkeypatch.setattr("ift.models.compiling.find_spec", lambda name: None)
    with pytest.raises(UserError, match="model.compile: true needs the package triton on a GPU"):
        check_compilable("cuda")


def test_a_run_is_refused_before_weights_load(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("ift.training.base_model.load_base_model", lambda *_, **__: pytest.fail("weights were loaded"))
    assert main(["fit", "--config", str(config("none", model={"compile": True}))]) == 2
    assert "model.compile: true needs a C++ compiler" in capsys.readouterr().err


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("kind", ["full", "lora", "checkpointed", "nf4", "int8"])
def test_compiled_blocks_compute_the_same(kind: str, tmp_path: Path) -> None:
    """Dropout, several examples in a row, one row and many."""
    folder = make_llama(tmp_path / "llama", 90, hidden_size=64)

    def build() -> Any:
        quantization = Quantization(kind) if kind in ("nf4", "int8") else None  # type: ignore[arg-type]
        model = load_base_model("base", str(folder), "float32", quantization=quantization)
        if kind == "full":
            return model
        torch.manual_seed(0)
        lora = peft.LoraConfig(
            r=4,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
            lora_dropout=0.3,
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, lora)
        if kind == "checkpointed":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()

    plain, model = build(), build()
    torch._dynamo.reset()
    compile_blocks(model)
    for rows, length in ((2, 9), (3, 20)):
        ids = torch.arange(rows * length).view(rows, length) % 90
        check_equal(plain, model, ids)
        positions = torch.cat([torch.arange(4), torch.arange(length - 4)]).repeat(rows, 1)
        check_equal(plain, model, ids, positions)
