"""What ift saves, PEFT alone loads: a process that never imports ift computes the same logits."""

import subprocess
import sys
from pathlib import Path

import torch
from tiny import ROOT
from transformers import AutoModelForCausalLM

from ift.models.adapters import attach
from ift.models.initial_adapters import changes_base, save_adapter, save_initial
from ift.models.methods import METHODS

sys.path.insert(0, str(ROOT / "scripts" / "support_matrix"))

from entries import SMALL, make_model

IDS = torch.arange(3, 40)[None]
LOADING = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM

torch.manual_seed(77)
root = Path(sys.argv[1])
ids = torch.arange(3, 40)[None]
for folder in sorted(root.glob("*_adapter")):
    base = AutoModelForCausalLM.from_pretrained(str(root / "base"), dtype=torch.float32)
    with torch.no_grad():
        logits = PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=ids).logits
    torch.save(logits, root / f"{folder.name}.pt")
assert not any(name == "ift" or name.startswith("ift.") for name in sys.modules)
"""


def test_a_process_without_ift_loads_every_adapter(tmp_path: Path) -> None:
    make_model("qwen3").save_pretrained(str(tmp_path / "base"))
    expected: dict[str, torch.Tensor] = {}
    for name, method in METHODS.items():
        made = method(**SMALL.get(name, {}))
        if made.trains_base or "adapter" in name:  # those are PEFT's after one import; test_models_bottleneck_peft.py
            continue
        base = AutoModelForCausalLM.from_pretrained(str(tmp_path / "base"), dtype=torch.float32)
        model = attach(base, made, seed=0, num_steps=20)
        if changes_base(model.active_peft_config):
            save_initial(model, tmp_path / f"{name}_initial")
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data.add_(torch.randn(parameter.shape) * 0.05)
        folder = tmp_path / f"{name}_adapter"
        save_adapter(model, folder, initial=tmp_path / f"{name}_initial")
        with torch.no_grad():
            expected[folder.name] = model.eval()(input_ids=IDS).logits
    assert len(expected) == 12
    subprocess.run([sys.executable, "-c", LOADING, str(tmp_path)], check=True, cwd=tmp_path, timeout=300)
    for name, logits in expected.items():
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert torch.allclose(found, logits, atol=1e-5 * float(logits.abs().max())), name
