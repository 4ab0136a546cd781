"""A base model that does not fit into memory: what is said, and that it is no traceback."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import output, run_child
from tiny import make_llama
from transformers import AutoTokenizer

from ift.cli import main
from ift.models import loading

Config = Callable[..., Path]


@pytest.fixture
def large(base: Path, tmp_path: Path) -> Path:
    """A Llama of 128 MiB."""
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    folder = make_llama(tmp_path / "large", len(tokenizer), hidden_size=512, intermediate_size=9600)
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("spare", [32, 224], ids=["safetensors", "torch"])
def test_a_limit_of_the_system_is_told(config: Config, large: Path, spare: int) -> None:
    def patch() -> None:
        read = loading._read

        def limited(*arguments: Any, **options: Any) -> Any:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (spare << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            return read(*arguments, **options)

        loading._read = limited

    path = config("run", model={"base": str(large), "dtype": "bfloat16", "adapter": None})
    assert run_child(path, patch=patch) == 2, output(path)
    said = output(path)
    assert f"error: model.base: memory ran out while '{large}' was loaded (" in said
    assert "Traceback" not in said
    assert "Hold it in 4 bits beside an adapter (model.quantization, or model.adapter qlora)" in said


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "CUDA out of memory. Tried to"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
@pytest.mark.parametrize("place", ["_read", "attach"])
def test_every_kind_of_lack_is_told(
    error: Exception,
    kind: str,
    place: str,
    config: Config,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(*arguments: Any, **options: Any) -> Any:
        raise error

    owner = "ift.models.loading._read" if place == "_read" else "ift.training.module.attach"
    monkeypatch.setattr(owner, failing)
    path = config("run")
    assert main(["fit", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"model.base: memory ran out while '{base}' was loaded (" in said and kind in said
    number = sum(one.numel() for one in loading_parameters(base))
    assert f"its {number:,} weights take 0.00 GiB in float32, of the " in said
    for key in ("model.dtype to bfloat16", "model.quantization", "trainer.strategy fsdp", "'ift plan'"):
        assert key in said
    assert not path.with_suffix("").exists()


def loading_parameters(base: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return list(load_file(str(base / "model.safetensors")).values())


def test_other_errors_while_loading_stay_what_they_are(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("ift.training.module.attach", failing)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        main(["fit", "--config", str(config("run"))])
