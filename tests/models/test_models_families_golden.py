"""The 2023 checkpoints against what their original code computes, tensor by tensor.

Each folder is a tiny random model in the original layout; `golden.safetensors` holds what the original modelling code
(transformers 4.30.2, float32) makes of it: logits, a loss, greedy tokens; `grad_norms.json` a gradient norm for every
original parameter.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import ROOT

from ift.models.families.normalized_head import settle_heads
from ift.models.loading import load_base_model

FIXTURES = ROOT.parent / "shared" / "fixtures" / "architectures"
NAMES = ("baichuan_7b", "baichuan2_7b", "baichuan_13b", "chatglm2_6b", "internlm_7b", "moss")
LOGIT_LIMIT, LOSS_LIMIT, GRADIENT_LIMIT = 5e-5, 1e-5, 1e-4

pytestmark = pytest.mark.real_data


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(str(FIXTURES / name / "golden.safetensors"))


def load(name: str, *, attention: str | None = None) -> Any:
    model = load_base_model("model.base", str(FIXTURES / name), "float32")
    if attention is not None and getattr(model, "_supports_sdpa", False):
        model.set_attn_implementation(attention)
    return model.eval()


@torch.no_grad()
def logits(model: Any, values: dict[str, torch.Tensor], case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return computed and golden logits at positions that are no padding."""
    inputs = {
        key: values[f"{case}.{key}"]
        for key in ("input_ids", "attention_mask", "position_ids")
        if f"{case}.{key}" in values
    }
    keep = values[f"{case}.attention_mask"].bool()
    return model(**inputs).logits[keep], values[f"{case}.logits"][keep]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["full", "right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_originals(name: str, case: str, attention: str) -> None:
    model, values = load(name, attention=attention), golden(name)
    found, expected = logits(model, values, case)
    assert (found - expected).abs().max() < LOGIT_LIMIT
    settle_heads(model, trained=True)
    found, expected = logits(model, values, case)
    assert (found - expected).abs().max() < LOGIT_LIMIT
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_norms_are_the_originals(name: str) -> None:
    """A fused matrix was split: the squares of its parts' norms add up."""
    model, values = load(name).train(), golden(name)
    inputs = {key: values[f"loss.{key}"] for key in ("input_ids", "attention_mask", "labels")}
    loss = model(**inputs).loss
    assert abs(loss.item() - values["loss.value"].item()) < LOSS_LIMIT
    loss.backward()
    norms: dict[str, float] = json.loads((FIXTURES / name / "grad_norms.json").read_text())
    total = sum(float(one.grad.double().pow(2).sum()) for one in model.parameters())
    assert total == pytest.approx(sum(norm**2 for norm in norms.values()), rel=2 * GRADIENT_LIMIT)
    found = sorted(float(one.grad.double().norm()) for one in model.parameters())
    kept = [norm for key, norm in norms.items() if not any(word in key for word in ("W_pack", "query_key_value"))]
    for norm in kept:
        assert min(abs(norm - one) for one in found) < GRADIENT_LIMIT * norm


def test_the_gradient_of_a_trained_normalised_head_is_the_originals() -> None:
    model, values = load("baichuan2_7b").train(), golden("baichuan2_7b")
    model(**{key: values[f"loss.{key}"] for key in ("input_ids", "attention_mask", "labels")}).loss.backward()
    assert (model.lm_head.weight.grad - values["grad.lm_head.weight"]).abs().max() < 1e-5


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", ["gen", "gen_left"])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_the_originals(name: str, case: str, use_cache: bool) -> None:
    model, values = load(name), golden(name)
    ids, expected = values[f"{case}.input_ids"], values[f"{case}.sequences"]
    mask = values.get(f"{case}.attention_mask", torch.ones_like(ids))
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=expected.shape[1] - ids.shape[1],
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(found, expected)


def test_every_fixture_is_compared() -> None:
    folders = {path.name for path in Path(FIXTURES).iterdir() if path.is_dir()}
    assert folders - set(NAMES) <= {"chatglm_6b"}  # compared in test_models_chatglm
