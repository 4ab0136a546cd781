"""Invariants 6 and 7: examples in a group do not see one another, and output-only logits change nothing."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import collate
from ift.models.calling import Calling, calling_of
from ift.training.objective import loss_sum, shifted_targets

SMALL = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, intermediate_size=48, num_key_value_heads=2, head_dim=8)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=90, hidden_size=32, n_layer=2, n_head=4)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=48)),
}


def make_examples(lengths: tuple[int, ...] = (5, 11, 17, 3)) -> list[Example]:
    generator = np.random.default_rng(0)
    examples = []
    for length in lengths:
        ids = generator.integers(1, 90, length)
        labels = ids.copy()
        labels[: length // 2] = IGNORE_INDEX
        examples.append(Example(ids, labels))
    return examples


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]()


def test_grouped_examples_have_the_logits_of_each_alone(model: torch.nn.Module) -> None:
    examples = make_examples()
    batch = collate([[example] for example in examples], 0)
    together = model(input_ids=batch.input_ids, use_cache=False).logits
    for row, example in enumerate(examples):
        alone = model(input_ids=torch.from_numpy(example.input_ids)[None]).logits[0]
        torch.testing.assert_close(together[row, : len(example.input_ids)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep_only", [True, False])
def test_the_loss_and_its_gradient_are_those_of_transformers(model: torch.nn.Module, keep_only: bool) -> None:
    assert calling_of(model).keep_only
    examples = make_examples()
    batch = collate([[example] for example in examples], 0)
    ours = loss_sum(model, batch, calling=Calling(keep_only))
    ours.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    # The reference takes each example alone, with transformers' own shift and mean.
    reference = torch.zeros(())
    for example in examples:
        ids, labels = torch.from_numpy(example.input_ids)[None], torch.from_numpy(example.labels)[None]
        reference = reference + model(input_ids=ids, labels=labels).loss * example.num_supervised
    reference.backward()
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_an_example_that_counts_nothing_has_no_loss_and_a_zero_gradient(model: torch.nn.Module) -> None:
    example = make_examples((7,))[0]
    batch = collate([[Example(example.input_ids, np.full_like(example.labels, IGNORE_INDEX))]], 0)
    loss = loss_sum(model, batch, calling=Calling(True))
    loss.backward()
    assert float(loss) == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_targets_are_the_next_labels() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 4, 5], [7, IGNORE_INDEX, 9]])
    expected = torch.tensor([[4, 5, IGNORE_INDEX], [IGNORE_INDEX, 9, IGNORE_INDEX]])
    assert torch.equal(shifted_targets(labels), expected)


def test_a_model_without_logits_to_keep_gets_the_same_loss(base: object) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(base))
    batch = collate([[example] for example in make_examples()], 0)
    with torch.no_grad():
        one, two = (float(loss_sum(model, batch, calling=Calling(keep))) for keep in (True, False))
    assert one == pytest.approx(two, abs=1e-4)
