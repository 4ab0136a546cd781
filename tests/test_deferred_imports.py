"""Packages that are only wanted at hand are imported at their first use, and then nothing differs."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from ift.deferred_imports import DeferredModule


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "ift_test_slow_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import part\nVALUE = part.VALUE\n__version__ = '3'\n")
    (folder / "part.py").write_text("VALUE = 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder.name
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


@pytest.mark.parametrize("use", ["VALUE", "__version__", "part"])
def test_the_first_use_imports_the_module(package: str, use: str) -> None:
    placeholder = sys.modules[package] = DeferredModule(package, given=1)
    assert importlib.import_module(package) is placeholder and placeholder.given == 1
    assert find_spec(package) is not None and not hasattr(placeholder, "__wrapped__")
    assert f"{package}.part" not in sys.modules
    found = getattr(placeholder, use)
    real = sys.modules[package]
    assert real is not placeholder and found is getattr(real, use)
    assert placeholder.VALUE == 5 and not hasattr(placeholder, "given")
    with pytest.raises(AttributeError):
        _ = placeholder.missing


def test_importing_a_part_imports_the_module(package: str) -> None:
    sys.modules[package] = DeferredModule(package)
    part = importlib.import_module(f"{package}.part")
    assert part.VALUE == 5 and sys.modules[package].VALUE == 5


PROGRAM = """
import sys
from ift.cli import _imported
_imported("ift.commands.trainer")
assert "peft" in sys.modules and not {"bitsandbytes.nn", "torch._inductor.compile_fx"} & set(sys.modules)
import peft.helpers, torch, torchmetrics
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
assert is_bnb_available() and is_bnb_4bit_available() and "bitsandbytes.nn" not in sys.modules
layer = peft.helpers.bnb.nn.Linear4bit(8, 8)
import bitsandbytes as bnb
assert isinstance(layer, bnb.nn.Linear4bit) and bnb.nn is sys.modules["bitsandbytes.nn"]
from peft import LoraConfig, get_peft_model
model = torch.nn.Sequential(torch.nn.Linear(8, 8), layer)
wrapped = get_peft_model(model, LoraConfig(target_modules=["0", "1"]))
assert type(wrapped.base_model.model[0]).__module__ == "peft.tuners.lora.layer"
if "scipy" in sys.modules:
    import scipy.signal
    from scipy.signal import lfilter
    assert "scipy.signal._signaltools" in sys.modules
"""


def test_a_command_starts_without_them_and_finds_them() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


COLLECTING = """
import gc, sys
from ift.cli import _imported
from ift.deferred_imports import deferred
_imported("ift.commands.trainer")
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen > 100_000
_imported("ift.commands.trainer")
assert gc.get_freeze_count() <= frozen
gc.disable()
with deferred():
    pass
assert not gc.isenabled()
"""


def test_garbage_is_collected_again_afterwards() -> None:
    subprocess.run([sys.executable, "-c", COLLECTING], check=True, timeout=200)


def test_only_the_configs_of_one_family_are_imported() -> None:
    program = """
import sys
from transformers import LlamaConfig
from ift.models.attention import model_class
assert model_class(LlamaConfig()).__name__ == "LlamaForCausalLM"
assert "transformers.models.falcon.configuration_falcon" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)
