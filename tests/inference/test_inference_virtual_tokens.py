"""Prompt methods answer as they were trained: virtual tokens directly before the text, also in batches of unequal
prompts. PEFT puts a batch's padding between the two."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from predicting import Predicting, fit, run_settings
from tiny import make_rows, write_json
from training.families import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ift.inference.generation import Decoding, generate
from ift.inference.likelihood import option_scores
from ift.models.adapters import attach
from ift.models.methods import METHODS, as_method

METHODS_OF_PROMPTS: dict[str, dict[str, Any]] = {
    "prompt": {"num_virtual_tokens": 6},
    "p_tuning": {"num_virtual_tokens": 6, "encoder_hidden_size": 16},
    "prefix": {"num_virtual_tokens": 6},
}
PROMPTS = [[5, 9, 11], [7, 3, 8, 20, 31, 44, 2, 9, 14, 60, 61], [80, 70, 60, 50, 40], [6, 10, 12]]
OPTIONS = [[[4, 5], [6]], [[4, 5, 9, 9, 1]], [[7], [8, 8]], [[5, 6, 7], [1]]]
ARGUMENTS: dict[str, Any] = {"decoding": Decoding(max_new_tokens=8), "stop_token_ids": [2], "pad_token_id": 0}


@pytest.fixture(scope="module")
def attentive(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose answers depend on the whole prompt and on where it stands."""
    folder = tmp_path_factory.mktemp("attentive")
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    make_model("llama", vocabulary=len(tokenizer)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("method", METHODS_OF_PROMPTS)
def test_the_batch_size_changes_no_answer(method: str, attentive: Path, predict: Predicting, tmp_path: Path) -> None:
    """Through the commands, greedy and ranked; the prompts of a batch are of many lengths."""
    adapter = {"class_path": method, "init_args": METHODS_OF_PROMPTS[method]}
    rows = write_json(tmp_path / "rows.json", make_rows(8))
    run = fit(tmp_path / "run", run_settings(tmp_path / "run", attentive, rows, adapter=adapter))
    ours = Predicting(predict.capture, [f"--run={run}", *predict.arguments[1:]])
    together = ours.lines(tmp_path / "together", "--data.batch_size=30")
    for one, two in zip(together, ours.lines(tmp_path / "alone", "--data.batch_size=1"), strict=True):
        assert one.pop("option_scores") == pytest.approx(two.pop("option_scores"), abs=1e-5)
        assert one == two
    assert len({one["response"] for one in together}) > 5


def adapted(family: str, config: Any) -> Any:
    """Return a model with virtual tokens that matter."""
    base = make_model(family)
    base.generation_config.eos_token_id = None
    model = attach(base, as_method(config), seed=1, num_steps=None)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def by_hand(model: Any, prompt: list[int]) -> list[int]:
    """Greedy search by the forward that training uses, over one prompt, without a cache and without a mask."""
    ids = list(prompt)
    task = {"task_ids": torch.tensor([0])} if "MULTITASK" in str(model.active_peft_config.peft_type) else {}
    for _ in range(8):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False, **task).logits[0, -1].argmax())
        if token == 2:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "bloom"])
@pytest.mark.parametrize("method", METHODS_OF_PROMPTS)
def test_answers_are_those_of_the_training_forward(method: str, family: str) -> None:
    """Positions that are rotary, learned and ALiBi's, and windows that are shorter than the prompts."""
    model = adapted(family, METHODS[method](**METHODS_OF_PROMPTS[method]))
    expected = [by_hand(model, prompt) for prompt in PROMPTS]
    assert [answer.ids for answer in generate(model, PROMPTS, **ARGUMENTS)] == expected
    assert len({tuple(one) for one in expected}) > 1
    scores = option_scores(model, PROMPTS, OPTIONS)
    for own, prompt, options in zip(scores, PROMPTS, OPTIONS, strict=True):
        assert own == pytest.approx(option_scores(model, [prompt], [options])[0], abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        peft.MultitaskPromptTuningConfig(num_virtual_tokens=6, num_tasks=1, task_type="CAUSAL_LM"),
        peft.CartridgeConfig(num_virtual_tokens=6, task_type="CAUSAL_LM"),
        peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_other_virtual_tokens_answer_so_too(config: Any) -> None:
    """Trap: PEFT's multitask prompts generate nothing without the number of a task."""
    model = adapted("llama", config)
    found = [answer.ids for answer in generate(model, PROMPTS, **ARGUMENTS)]
    assert found == [by_hand(model, prompt) for prompt in PROMPTS]


def test_virtual_tokens_count_toward_the_models_positions(predict: Predicting, base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(base))
    attach(model, METHODS["prompt"](num_virtual_tokens=480), seed=0, num_steps=None).save_pretrained(
        str(tmp_path / "a")
    )
    arguments = [f"--model.base={base}", f"--model.adapter={tmp_path / 'a'}", *predict.arguments[1:]]
    message = Predicting(predict.capture, arguments).refused(tmp_path / "out")
    assert "480 of them virtual" in message and "the model's 512 positions" in message
