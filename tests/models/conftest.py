from pathlib import Path

import pytest
import torch
from quantized_twins import families
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models with weights and biases that matter, of families with linear layers of either kind."""
    root = tmp_path_factory.mktemp("families")
    for name, config in families():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(str(root / name))
    return {name: root / name for name, _ in families()}
