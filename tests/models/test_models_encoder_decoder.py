"""Encoder-decoder models: what is computed of a row is what transformers computes of its prompt and response."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_decoders import KINDS, make_t5, make_t5_tokenizer
from peft import LoraConfig, TaskType
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from ift.data.encoding import IGNORE_INDEX, Example
from ift.data.micro_batches import GROUPED, collate, cut
from ift.errors import UserError
from ift.inference.generation import Decoding, generate
from ift.inference.likelihood import Scorer
from ift.models.adapters import attach, check_method
from ift.models.base_weights import LayerSampler, SampledLayers, all_layers, decoder_layers
from ift.models.bottleneck import BottleneckConfig
from ift.models.bottleneck_layer import BottleneckLayer
from ift.models.calling import calling_of
from ift.models.certificate import PromptSample, _logits
from ift.models.encoder_decoder import Split, check_encoder_decoder
from ift.models.loading import load_base_model, read_config
from ift.models.methods import METHODS, as_method
from ift.models.support import check_supported
from ift.training.objective import loss_sum

VOCABULARY = 60


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoder_decoders")
    return {kind: make_t5(folder / kind, kind) for kind in KINDS}


def load(base: Path) -> Any:
    return load_base_model("model.base", str(base), "float32").eval()


def pairs(number: int = 9, *, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses of unequal lengths; both end with end-of-text."""
    rng = random.Random(seed)

    def text(most: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(most))] + [1]

    return [(text(14), text(9)) for _ in range(number)]


def example(prompt: list[int], response: list[int]) -> Example:
    ids = torch.tensor(prompt + response).numpy()
    labels = torch.tensor([IGNORE_INDEX] * len(prompt) + response).numpy()
    return Example(ids, labels)


def plain_loss(model: Any, prompt: list[int], response: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return summed loss and logits as transformers has them: `labels` to the model, nothing of ours."""
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.int64)}
    output = model(**inputs, labels=torch.tensor([response]))
    return output.loss * len(response), output.logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [30, 1000], ids=["many", "one"])
def test_the_loss_is_that_of_transformers_however_a_step_is_cut(bases: dict[str, Path], kind: str, tokens: int) -> None:
    model = load(bases[kind])
    texts = pairs()
    examples = [example(*pair) for pair in texts]
    lengths = torch.tensor([len(one.input_ids) for one in examples]).numpy()
    groups = cut(lengths, tokens, choice=GROUPED)
    assert (len(groups) == 1) == (tokens == 1000)
    batches = [collate([[examples[position] for position in row] for row in group], 0) for group in groups]
    found = sum(loss_sum(model, batch, calling=calling_of(model)) for batch in batches)
    expected = sum(plain_loss(model, *pair)[0] for pair in texts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.backward()
    gradients = {name: one.grad for name, one in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(expected)
    for name, parameter in model.named_parameters():
        largest = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name] / largest, parameter.grad / largest, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_no_logit(bases: dict[str, Path], kind: str) -> None:
    model = load(bases[kind])
    texts = pairs()
    longest = max(len(prompt) + len(response) for prompt, response in texts) + 5
    ids = torch.randint(3, VOCABULARY, (len(texts), longest))  # padding that would be seen
    keep = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(texts):
        ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        keep[row, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
    found = calling_of(model).logits(model, {"input_ids": ids, "use_cache": False}, keep)
    expected = torch.cat([plain_loss(model, *pair)[1] for pair in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_are_split_behind_their_prompts() -> None:
    rng = random.Random(3)
    for _ in range(100):
        rows, length = rng.randrange(1, 5), rng.randrange(2, 12)
        ids = torch.tensor([[rng.randrange(3, 99) for _ in range(length)] for _ in range(rows)])
        keep = torch.tensor([[rng.random() < 0.3 for _ in range(length)] for _ in range(rows)])
        inputs, kept = Split(start_token_id=0).apply({"input_ids": ids, "use_cache": False}, keep)
        assert inputs["use_cache"] is False
        decoder, mask = inputs["decoder_input_ids"], inputs["attention_mask"].bool()
        assert decoder.shape == kept.shape and inputs["input_ids"].shape == mask.shape
        for row in range(rows):
            places = [place for place in range(length) if keep[row, place]]
            first = places[0] if places else 0
            assert inputs["input_ids"][row][mask[row]].tolist() == ids[row, : first + 1].tolist()
            assert [first + int(place) for place in kept[row].nonzero()] == places
            last = places[-1] - first if places else 0
            assert decoder[row, : last + 1].tolist() == [0, *ids[row, first + 1 : first + 1 + last].tolist()]
        assert mask.any(0).all() and (kept.any(0)[-1] or not keep.any()), "nothing is computed that nobody asks for"


def test_a_row_that_counts_nothing_has_a_finite_loss_with_gradients(bases: dict[str, Path]) -> None:
    """What a rank computes that has no share of a step."""
    model = load(bases["t5"])
    weightless = collate([[example([5, 6, 1], [])], [example([0, 0], [])]], 0)
    loss = loss_sum(model, weightless, calling=calling_of(model))
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad is not None and not one.grad.any() for one in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_head_and_its_scale_are_kept(bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model, stored = load(bases[kind]), load_file(str(bases[kind] / "model.safetensors"))
    assert torch.equal(model.shared.weight, stored["shared.weight"])
    assert torch.equal(model.lm_head.weight, stored.get("lm_head.weight", stored["shared.weight"]))
    assert (kind == "t5") == ("lm_head.weight" not in stored) == (model.lm_head.weight is model.shared.weight)
    assert model.config.tie_word_embeddings == (kind == "t5")
    model.save_pretrained(str(tmp_path))
    assert load_file(str(tmp_path / "model.safetensors")).keys() == stored.keys()
    again = load(tmp_path)
    model.resize_token_embeddings(len(model.shared.weight) + 8, mean_resizing=False)
    assert torch.equal(model.lm_head.weight[:-8], stored.get("lm_head.weight", stored["shared.weight"]))
    model = again
    prompt, response = pairs()[0]
    with torch.no_grad():
        encoded = model.encoder(torch.tensor([prompt])).last_hidden_state
        written = model.decoder(torch.tensor([[0, *response[:-1]]]), encoder_hidden_states=encoded).last_hidden_state
        scale = 32**-0.5 if kind == "t5" else 1.0
        expected = F.linear(written * scale, stored.get("lm_head.weight", stored["shared.weight"]))[0]
        found = plain_loss(model, prompt, response)[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_responses_to_a_padded_batch_are_those_of_each_prompt_written_step_by_step(
    bases: dict[str, Path], kind: str
) -> None:
    model = load(bases[kind])
    prompts = [prompt for prompt, _ in pairs(5)]
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            written = [0]
            for _ in range(6):
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([written])).logits
                written.append(int(logits[0, -1].argmax()))
            expected.append(written[1:])
    decoding = Decoding(max_new_tokens=6)
    found = generate(model, prompts, decoding=decoding, stop_token_ids=[-1], pad_token_id=0)
    assert [one.ids for one in found] == expected and {one.finish_reason for one in found} == {"length"}
    stop = expected[0][2]
    (stopped, *_) = generate(model, prompts[:1], decoding=decoding, stop_token_ids=[stop], pad_token_id=0)
    assert stopped.ids == expected[0][: expected[0].index(stop)] and stopped.finish_reason == "stop"


def test_beams_write_no_worse_than_greedily(bases: dict[str, Path]) -> None:
    model = load(bases["t5_1_1"])
    prompts = [prompt for prompt, _ in pairs(3)]
    scores = []
    for beams in (1, 4):
        decoding = Decoding(max_new_tokens=4, num_beams=beams)
        found = generate(model, prompts, decoding=decoding, stop_token_ids=[-1], pad_token_id=0)
        assert all(len(one.ids) == 4 for one in found)
        (own,) = zip(*Scorer(model, rows_at_once=4).scores(prompts, [[one.ids] for one in found]), strict=True)
        scores.append(sum(own))
    assert scores[1] >= scores[0] - 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_option_scores_are_those_of_a_plain_forward(bases: dict[str, Path], kind: str) -> None:
    model = load(bases[kind])
    prompts = [prompt for prompt, _ in pairs(4)]
    rng = random.Random(5)
    start = [7, 8, 9]
    options = [
        [[rng.randrange(3, VOCABULARY)], start, [*start, 11], [*start[:2], 4, 5], [rng.randrange(3, VOCABULARY)] * 3]
        for _ in prompts
    ]
    scorer = Scorer(model, rows_at_once=3)
    assert not scorer.shares
    for prompt, own, found in zip(prompts, options, scorer.scores(prompts, options), strict=True):
        expected = [-plain_loss(model, prompt, option)[0].item() for option in own]
        assert found == pytest.approx(expected, abs=2e-4)


def test_a_certificate_compares_where_the_response_is_predicted(bases: dict[str, Path]) -> None:
    model = load(bases["mt5"])
    for prompt, response in pairs(3):
        expected = plain_loss(model, prompt, response)[1]
        torch.testing.assert_close(_logits(model, PromptSample(prompt, response)), expected, rtol=1e-4, atol=1e-4)
        (first,) = _logits(model, PromptSample(prompt, []))
        torch.testing.assert_close(first, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "prompt", "p_tuning", "prefix"])
def test_adapters_know_the_kind_of_model(bases: dict[str, Path], name: str, tmp_path: Path) -> None:
    model = load(bases["t5_1_1"])
    prompt, response = pairs()[0]
    before = plain_loss(model, prompt, response)[1]
    wrapped = attach(model, METHODS[name](), seed=0, num_steps=None).eval()
    ids = torch.tensor([prompt + response])
    keep = torch.arange(ids.shape[1])[None] >= len(prompt) - 1
    keep[0, -1] = False
    logits = calling_of(wrapped).logits(wrapped, {"input_ids": ids, "use_cache": False}, keep)
    if name in ("lora", "dora", "ia3"):
        torch.testing.assert_close(logits, before, rtol=1e-5, atol=1e-5)
    else:
        assert not torch.allclose(logits, before, atol=1e-3)
    wrapped.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"


def test_every_trained_token_of_a_prompt_is_read(bases: dict[str, Path]) -> None:
    """PEFT makes as many for the decoder too, which nothing reads."""
    wrapped = attach(load(bases["t5"]), METHODS["prompt"](num_virtual_tokens=5), seed=0, num_steps=None)
    loss = loss_sum(wrapped, collate([[example(*pairs()[0])]], 0), calling=calling_of(wrapped))
    loss.backward()
    (trained,) = (one for one in wrapped.parameters() if one.requires_grad)
    assert trained.shape == (5, 32) and trained.grad.any(1).all()


def test_the_last_layers_are_the_decoders(bases: dict[str, Path]) -> None:
    model = load(bases["mt5"])
    assert decoder_layers(model) == list(model.decoder.block)
    attach(model, METHODS["freeze"](num_layers=1), seed=0, num_steps=None)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained and all(name.startswith("decoder.block.2.") for name in trained)


def test_layers_are_drawn_of_both_stacks(bases: dict[str, Path]) -> None:
    model = load(bases["t5"])
    sampler = LayerSampler(model, SampledLayers(num_layers=2, period=1), seed=0)
    assert {number for step in range(40) for number in sampler.drawn(step)} == set(range(2 + 3))
    assert all_layers(model) == [*model.encoder.block, *model.decoder.block]


@pytest.mark.parametrize(("variant", "sites"), [("houlsby", 2), ("pfeiffer", 1), ("parallel", 1)])
def test_bottlenecks_stand_in_every_layer_of_both_stacks(bases: dict[str, Path], variant: Any, sites: int) -> None:
    model = load(bases["t5_1_1"])
    prompt, response = pairs()[0]
    before = plain_loss(model, prompt, response)[1]
    config = BottleneckConfig(variant=variant, bottleneck_size=4)
    wrapped = attach(model, as_method(config), seed=0, num_steps=None).eval()
    adapters = [name for name, one in wrapped.named_modules() if isinstance(one, BottleneckLayer)]
    assert len(adapters) == sites * (2 + 3) and len({name.split(".block.")[0] for name in adapters}) == 2
    torch.testing.assert_close(plain_loss(wrapped, prompt, response)[1], before, rtol=1e-5, atol=1e-5)


def test_what_these_models_cannot_be_is_refused_before_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    task = as_method(LoraConfig(task_type=TaskType.CAUSAL_LM))
    with pytest.raises(UserError, match=r"model\.adapter\.task_type: .*'t5' is an encoder-decoder.*Leave it out"):
        check_method(task, str(bases["t5"]))
    for kind in KINDS:
        config = read_config(str(bases[kind]))
        with pytest.raises(UserError, match=r"'prefix' does not work with|does not work with 'prefix'"):
            check_supported("model.adapter", METHODS["prefix"](), METHODS["prefix"]().peft_config, config=config,
                            checkpointing=True)  # fmt: skip
        with pytest.raises(UserError, match=r"model\.dtype: float16 is too small.*bfloat16"):
            check_encoder_decoder("model.base", "here", config=config, dtype="float16")
    config.decoder_start_token_id = None
    with pytest.raises(UserError, match=r"model\.base: .*decoder_start_token_id.*it is 0"):
        check_encoder_decoder("model.base", "here", config=config, dtype="float32")
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    bart = AutoConfig.for_model("bart", vocab_size=60, encoder_attention_heads=2, decoder_attention_heads=2, **sizes)
    AutoModelForSeq2SeqLM.from_config(bart).save_pretrained(str(tmp_path))
    make_t5_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"model\.base: .* encoder-decoder model of type 'bart'.*mt5, t5 only"):
        load_base_model("model.base", str(tmp_path), "float32")
