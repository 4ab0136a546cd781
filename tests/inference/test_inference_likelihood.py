"""Option likelihood: what texts share is run once, and every score is that of its text alone."""

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from training.families import VOCABULARY, make_model

from ift.inference.likelihood import Scorer, option_scores
from ift.inference.shared_prefixes import common_length, group_by_prefix
from ift.models.adapters import attach
from ift.models.loading import load_base_model
from ift.models.methods import METHODS, as_method
from ift.models.quantization import Quantization

# Windows of 7 tokens (mistral, gemma2), positions from ALiBi (bloom, mpt), learned ones (gpt2, opt), rotary ones.
FAMILIES = (
    "llama", "qwen3", "mistral", "gemma2", "gpt_neox", "bloom", "falcon", "gpt2", "opt", "mpt", "qwen2", "gpt_neo",
)  # fmt: skip


def questions(seed: int = 0) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Questions of two subjects, mixed, each with its examples; options of one and of several tokens."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    subjects = [text(40), text(25), []]
    prompts, options = [], []
    for number in range(11):
        prompts.append(subjects[number % 3] + text(rng.randrange(3, 20)))
        start = text(3)
        many = [text(1), start + text(2), start, start + text(5), text(1), start[:1] + text(4)]
        options.append([text(1) for _ in range(4)] if number % 4 == 1 else many[: 1 + number % 6])
    prompts.append(list(prompts[0]))  # the same question twice
    options.append([[5], [5], [6, 7]])
    return prompts, options


def alone(model: Any, prompt: list[int], option: list[int]) -> float:
    """Return the score from all logits of one text, without cache and padding, in float64."""
    task = {"task_ids": torch.tensor([0])} if "POLY" in str(getattr(model, "active_peft_config", "")) else {}
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + option]), use_cache=False, **task).logits[0]
    likelihood = torch.log_softmax(logits.double(), dim=-1)[-len(option) - 1 : -1]
    return sum(float(likelihood[place, token]) for place, token in enumerate(option))


def check(model: Any, *, rows_at_once: int = 4, tolerance: float = 1e-4) -> None:
    prompts, options = questions()
    # However little it saves, so that all that can be shared is.
    found = Scorer(model, rows_at_once=rows_at_once, least_saved=0).scores(prompts, options)
    for prompt, own, scores in zip(prompts, options, found, strict=True):
        assert scores == pytest.approx([alone(model, prompt, option) for option in own], abs=tolerance)


class Counted:
    """A model that counts the tokens that it is given."""

    def __init__(self, model: Any) -> None:
        self.tokens, self.forwards = 0, 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        self.tokens += named["input_ids"].numel()
        self.forwards += 1


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_each_text_alone(family: str) -> None:
    model = make_model(family)
    assert Scorer(model, rows_at_once=4).shares
    check(model)


def test_a_prompt_that_is_the_beginning_of_another_is_asked_about_all_the_same() -> None:
    model = make_model("llama")
    start = list(range(3, 43))
    prompts, options = [start, [*start, 50, 51]], [[[40], [41, 42], [41, 43]], [[44, 45], [46]]]
    found = Scorer(model, rows_at_once=4, shares=True, least_saved=0).scores(prompts, options)
    for prompt, own, scores in zip(prompts, options, found, strict=True):
        assert scores == pytest.approx([alone(model, prompt, option) for option in own], abs=1e-4)


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_the_number_of_rows_changes_no_score(rows_at_once: int) -> None:
    check(make_model("llama"), rows_at_once=rows_at_once)


ADAPTERS: dict[str, tuple[Any, bool]] = {
    "lora": (peft.LoraConfig(r=4, target_modules="all-linear"), True),
    "ia3": (peft.IA3Config(target_modules="all-linear", feedforward_modules=[]), True),
    "prefix": (METHODS["prefix"](num_virtual_tokens=6), False),
    "prompt": (METHODS["prompt"](num_virtual_tokens=6), False),
    "adaption_prompt": (peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"), True),
    "poly": (peft.PolyConfig(r=2, n_tasks=1, target_modules=["q_proj"]), False),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_before_the_text_and_over_all_of_it_run_it_in_full(name: str) -> None:
    config, shares = ADAPTERS[name]
    model = attach(make_model("llama"), as_method(config), seed=1, num_steps=None)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    assert Scorer(model.eval(), rows_at_once=4).shares == shares
    check(model)


@pytest.mark.parametrize("family", ["mamba", "jamba", "rwkv"])
def test_models_with_other_states_run_every_text_in_full(family: str) -> None:
    model = make_model(family)
    assert not Scorer(model, rows_at_once=4).shares
    check(model)


def test_models_whose_rotations_depend_on_the_length_run_every_text_in_full() -> None:
    model = make_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not Scorer(model, rows_at_once=4).shares


def test_a_model_that_fails_the_trial_runs_every_text_in_full() -> None:
    """One that counts positions anew behind a cache would be wrong without a word."""
    model = make_model("llama")
    forward = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: forward(x, position_ids % 30)
    assert Scorer(model, rows_at_once=4).shares  # wrong, but alike in both ways
    model.model.rotary_emb.forward = lambda x, position_ids: forward(x, position_ids - position_ids[:, :1])
    assert not Scorer(model, rows_at_once=4).shares


def test_options_of_one_token_take_one_forward_per_question() -> None:
    model = make_model("llama")
    scorer = Scorer(model, rows_at_once=8, shares=True)
    counted = Counted(model)
    scorer.scores([[5, 6, 7], [8, 9]], [[[1], [2], [3], [4]], [[1], [2]]])
    assert (counted.forwards, counted.tokens) == (1, 6)


def test_examples_before_a_question_are_run_once() -> None:
    model = make_model("llama")
    scorer = Scorer(model, rows_at_once=8, shares=True)
    counted = Counted(model)
    examples = [list(range(3, 80)), list(range(79, 10, -1))]
    prompts = [examples[number % 2] + [number + 3] * 4 for number in range(10)]
    scorer.scores(prompts, [[[1], [2]]] * 10)
    assert (counted.forwards, counted.tokens) == (4, 77 + 69 + 10 * 4)


def test_a_question_is_run_once_for_all_its_options() -> None:
    model = make_model("llama")
    scorer = Scorer(model, rows_at_once=8, shares=True)
    counted = Counted(model)
    scorer.scores([list(range(3, 60))], [[[1, 2, 3, 4], [2, 3, 4, 5], [7, 7, 7, 7]]])
    assert (counted.forwards, counted.tokens) == (2, 57 + 3 * 3)


def test_a_beginning_that_saves_little_is_run_with_each_question() -> None:
    model = make_model("llama")
    counted = Counted(model)
    scores = option_scores(model, [[5] * 20 + [6], [5] * 20 + [7]], [[[1], [2]]] * 2)
    scorer = Scorer(model, rows_at_once=8, shares=True)
    counted.forwards = 0
    assert scorer.scores([[5] * 20 + [6], [5] * 20 + [7]], [[[1], [2]]] * 2) == scores
    assert counted.forwards == 1


def test_groups_share_what_they_say() -> None:
    rng = random.Random(1)
    for _ in range(200):
        starts = [[rng.randrange(3) for _ in range(rng.randrange(60))] for _ in range(3)]
        texts = [rng.choice(starts) + [rng.randrange(3) for _ in range(rng.randrange(1, 9))] for _ in range(12)]
        groups = group_by_prefix(texts, least_saved=rng.randrange(40))
        assert sorted(number for group, _ in groups for number in group) == list(range(12))
        for group, length in groups:
            assert all(texts[number][:length] == texts[group[0]][:length] for number in group)
            assert all(len(texts[number]) > length for number in group)


def test_common_length() -> None:
    rng = random.Random(2)
    for _ in range(300):
        one, two = ([rng.randrange(2) for _ in range(rng.randrange(9))] for _ in range(2))
        expected = next((k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
        assert common_length(one, two) == expected


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_quantized_weights(scheme: str, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(str(tmp_path))
    model = load_base_model("model.base", str(tmp_path), "float32", quantization=Quantization(scheme)).eval()
    assert Scorer(model, rows_at_once=4).shares
    check(model)


def test_rounded_weights_pass_the_trial_too() -> None:
    """Scores in bfloat16 differ by its rounding, and by no more than those of padded batches do."""
    model = make_model("llama").bfloat16()
    assert Scorer(model, rows_at_once=4).shares
    prompts, options = questions()
    shared = Scorer(model, rows_at_once=4, least_saved=0).scores(prompts, options)
    whole = Scorer(model, rows_at_once=4, shares=False).scores(prompts, options)
    differences = [abs(a - b) for one, two in zip(shared, whole, strict=True) for a, b in zip(one, two, strict=True)]
    assert max(differences) < 1 < sum(abs(score) for own in whole for score in own) / len(differences)
