"""ChatGLM-6B against the original's golden numbers and against loops: logits, loss, gradients, generation, layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_reference import (
    EOP,
    GMASK,
    INFILLING,
    MASK,
    PAD,
    PROMPT,
    SHORT,
    SOP,
    TEXT,
    by_rule,
    greedy,
    load,
    reference_logits,
    weights,
    write_checkpoint,
)
from safetensors.torch import load_file
from tiny import ROOT
from torch.nn import functional as F

from ift.models.families.chatglm import ChatGLMForCausalLM

FIXTURE = ROOT.parent / "shared" / "fixtures" / "architectures" / "chatglm_6b"
published = pytest.mark.skipif(not FIXTURE.is_dir(), reason="the golden numbers are not part of this repository")
LIMIT = 5e-5
ATTENTION = ("eager", "sdpa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("chatglm") / "base")


@pytest.fixture(scope="module", params=ATTENTION)
def model(request: pytest.FixtureRequest, folder: Path) -> Any:
    return load(folder, attn_implementation=request.param)


@torch.no_grad()
def logits(model: Any, ids: list[list[int]], **inputs: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=torch.tensor(ids), **inputs).logits
    return result


def padded(texts: list[list[int]], side: str) -> tuple[list[list[int]], torch.Tensor]:
    width = max(map(len, texts))
    rows, masks = [], []
    for text in texts:
        gap = [0] * (width - len(text))
        rows.append([PAD for _ in gap] + text if side == "left" else text + [PAD for _ in gap])
        masks.append(gap + [1] * len(text) if side == "left" else [1] * len(text) + gap)
    return rows, torch.tensor(masks)


def original_mask(ids: list[int], gap: int) -> torch.Tensor:
    """The original's mask of one text with padding on the left, `(1, length, length)`, true where hidden."""
    length, prompt = len(ids) + gap, by_rule(ids)[0]
    hidden = torch.ones(length, length, dtype=torch.bool)
    for i in range(len(ids)):
        for j in range(len(ids)):
            hidden[gap + i, gap + j] = not (j <= i or j < prompt)
    return hidden[None]


@pytest.mark.parametrize("text", [TEXT, SHORT, INFILLING, [7, MASK, GMASK, SOP, 8], [GMASK, SOP, 5, 6, 7]])
def test_logits_are_those_written_out_in_loops(model: Any, text: list[int]) -> None:
    assert (logits(model, [text])[0] - reference_logits(weights(), text)).abs().max() <= LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit(model: Any, side: str) -> None:
    texts = [TEXT, SHORT, INFILLING]
    rows, mask = padded(texts, side)
    for found, text, real in zip(logits(model, rows, attention_mask=mask), texts, mask.bool(), strict=True):
        assert (found[real] - reference_logits(weights(), text)).abs().max() <= LIMIT
    if side == "right":  # no mask is needed: nothing in a text sees what is behind it
        for found, text in zip(logits(model, rows), texts, strict=True):
            assert (found[: len(text)] - reference_logits(weights(), text)).abs().max() <= LIMIT


def test_the_originals_mask_and_positions_can_be_given(model: Any) -> None:
    rows, mask = padded([TEXT, SHORT], "left")
    hidden = torch.stack([original_mask(text, len(TEXT) - len(text)) for text in (TEXT, SHORT)])
    expected = logits(model, rows, attention_mask=mask)
    positions = torch.zeros(2, 2, len(TEXT), dtype=torch.int64)
    for row, text in enumerate((TEXT, SHORT)):
        positions[row, :, len(TEXT) - len(text) :] = torch.tensor(by_rule(text)[1]).T
    for given in ({}, {"position_ids": positions}):
        found = logits(model, rows, attention_mask=hidden, **given)
        assert (found - expected)[mask.bool()].abs().max() <= LIMIT
    moved = logits(model, rows, attention_mask=hidden, position_ids=positions + torch.arange(len(TEXT)))
    assert (moved - expected)[mask.bool()].abs().max() > 0.1
    with pytest.raises(ValueError, match=r"\(batch, 2, length\)"):
        logits(model, rows, position_ids=torch.arange(len(TEXT))[None])


LACKING = {
    "neither: an answer to nothing": ([5, 6, 7, 8], 0, [(0, 1), (0, 2), (0, 3), (0, 4)]),
    "no <sop>: the prompt ends with the mask token": ([5, 6, GMASK, 8], 3, [(0, 0), (1, 0), (2, 0), (2, 1)]),
    "no [gMASK]: the prompt's last token stands for it": ([5, 6, SOP, 8], 2, [(0, 0), (1, 0), (1, 1), (1, 2)]),
    "<sop> first": ([SOP, 6, 7], 0, [(0, 1), (0, 2), (0, 3)]),
}


@pytest.mark.parametrize("case", LACKING)
def test_texts_that_lack_special_tokens(model: Any, case: str) -> None:
    text, prompt, positions = LACKING[case]
    expected = reference_logits(weights(), text, prompt=prompt, positions=positions)
    assert (logits(model, [text])[0] - expected).abs().max() <= LIMIT
    rows, mask = padded([text, TEXT], "left")
    assert (logits(model, rows, attention_mask=mask)[0, -len(text) :] - expected).abs().max() <= LIMIT


def test_a_prompt_has_the_same_states_before_sop_is_written(model: Any) -> None:
    assert (logits(model, [PROMPT[:-1]]) - logits(model, [TEXT])[:, : len(PROMPT) - 1]).abs().max() <= LIMIT
    assert (logits(model, [PROMPT[:-2]]) - logits(model, [TEXT])[:, : len(PROMPT) - 2]).abs().max() > 0.1


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_alone_and_padded(model: Any, use_cache: bool) -> None:
    prompts = [PROMPT, SHORT[:4], INFILLING[:5]]
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": use_cache, "eos_token_id": None}
    expected = [greedy(tuple(prompt), 8) for prompt in prompts]
    assert [model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist() for prompt in prompts] == (
        expected
    )
    rows, mask = padded(prompts, "left")
    together = model.generate(torch.tensor(rows), attention_mask=mask, **options)
    assert together[:, len(PROMPT) :].tolist() == expected
    hidden = torch.stack([original_mask(prompt, len(PROMPT) - len(prompt)) for prompt in prompts])
    as_before = model.generate(torch.tensor(rows), attention_mask=hidden, **options)
    assert torch.equal(as_before, together)


def test_given_positions_must_be_those_of_the_text(model: Any) -> None:
    positions = torch.tensor(by_rule(PROMPT)[1]).T[None]
    options = {"max_new_tokens": 3, "do_sample": False}
    given = model.generate(torch.tensor([PROMPT]), position_ids=positions, **options)
    assert torch.equal(given, model.generate(torch.tensor([PROMPT]), **options))
    with pytest.raises(ValueError, match="leave them out"):
        model.generate(torch.tensor([PROMPT]), position_ids=positions + 1, **options)


def test_beam_search_is_the_same_with_and_without_a_cache_and_together(model: Any) -> None:
    prompts = [PROMPT, SHORT[:4]]
    rows, mask = padded(prompts, "left")
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    cached, plain = (
        model.generate(torch.tensor(rows), attention_mask=mask, use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert torch.equal(cached.sequences, plain.sequences)
    for prompt, found, score in zip(prompts, cached.sequences[:, len(PROMPT) :], cached.sequences_scores, strict=True):
        likelihoods = reference_logits(weights(), [*prompt, *found.tolist()])[len(prompt) - 1 : -1].log_softmax(-1)
        assert abs(likelihoods[range(6), found].mean() - score) <= LIMIT
        alone = model.generate(torch.tensor([prompt]), **options)
        assert torch.equal(alone.sequences[0, len(prompt) :], found)


def test_a_cache_goes_on_behind_the_prompt_and_says_so_where_it_cannot(model: Any) -> None:
    whole = logits(model, [TEXT])[0]
    with torch.no_grad():
        past = model(input_ids=torch.tensor([TEXT[:7]]), use_cache=True).past_key_values
        rest = model(input_ids=torch.tensor([TEXT[7:]]), past_key_values=past, use_cache=True).logits[0]
        assert (rest - whole[7:]).abs().max() <= LIMIT
        past.crop(-2)
        with pytest.raises(ValueError, match="8 tokens, and 10"):
            model(input_ids=torch.tensor([TEXT[8:]]), past_key_values=past)
        embeddings = model.get_input_embeddings()(torch.tensor([TEXT]))
        with pytest.raises(ValueError, match="layout_ids"):
            model(inputs_embeds=embeddings)
        found = model(inputs_embeds=embeddings, layout_ids=torch.tensor([TEXT])).logits[0]
    assert (found - whole).abs().max() <= LIMIT


def test_logits_to_keep(model: Any) -> None:
    whole = logits(model, [TEXT, TEXT[::-1]])
    chosen = torch.zeros(2, len(TEXT), dtype=torch.bool)
    chosen[0, 3] = chosen[1, 5:] = True
    for keep, expected in (
        (2, whole[:, -2:]),
        (torch.tensor([1, 4]), whole[:, [1, 4]]),
        (chosen, whole[chosen]),
    ):
        assert (logits(model, [TEXT, TEXT[::-1]], logits_to_keep=keep) - expected).abs().max() <= LIMIT


def gradients(model: Any, labels: list[int]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=torch.tensor([TEXT]), labels=torch.tensor([labels]), use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_loss_and_gradients_with_and_without_checkpointing(folder: Path) -> None:
    labels = [-100] * 5 + TEXT[5:]
    model = load(folder)
    expected = F.cross_entropy(reference_logits(weights(), TEXT)[4:-1], torch.tensor(TEXT[5:]))
    found = model(input_ids=torch.tensor([TEXT]), labels=torch.tensor([labels])).loss
    assert abs(found.item() - expected.item()) <= 1e-5
    model.train()
    plain = gradients(model, labels)
    assert len(plain) == len(weights()) - 3 - 1  # without rotary buffers, and the tied pair once
    runs = []
    model.transformer.layers[0].attention.register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients(model, labels).items():
        assert torch.allclose(gradient, plain[name], rtol=1e-5, atol=1e-6), name
    assert len(runs) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_off_by_a_few_roundings(folder: Path, dtype: torch.dtype) -> None:
    expected = reference_logits(weights(), TEXT)
    found = logits(load(folder, dtype=dtype), [TEXT])[0]
    assert found.dtype == dtype
    assert (found.float() - expected).abs().mean() <= 6 * torch.finfo(dtype).eps * expected.std()


def test_a_larger_vocabulary_keeps_old_logits_and_one_matrix(folder: Path) -> None:
    model = load(folder)
    before = logits(model, [TEXT])
    model.resize_token_embeddings(120, mean_resizing=False)
    assert model.config.vocab_size == 120 and model.lm_head.weight is model.transformer.word_embeddings.weight
    assert (logits(model, [TEXT])[..., : before.shape[-1]] - before).abs().max() <= LIMIT


# Against what the original's own code computed.


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "golden.safetensors")


@pytest.mark.real_data
@published
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", ["full", "right", "left", "mask"])
def test_golden_logits(golden: dict[str, torch.Tensor], attention: str, case: str) -> None:
    model = load(FIXTURE, attn_implementation=attention)
    parts = ("input_ids", "attention_mask", "position_ids", "logits")
    ids, hidden, positions, expected = (golden[f"{case}.{part}"] for part in parts)
    real = ids != PAD if case in ("left", "right") else torch.ones_like(ids, dtype=torch.bool)
    given: list[dict[str, Any]] = [
        {"attention_mask": real.long()},
        {"attention_mask": hidden},
        {"attention_mask": hidden, "position_ids": positions},
    ]
    for inputs in given if case == "left" else [{}, *given]:
        with torch.no_grad():
            found = model(input_ids=ids, **inputs).logits
        assert (found - expected)[real].abs().max() <= LIMIT, inputs.keys()


@pytest.mark.real_data
@published
def test_golden_hidden_states(golden: dict[str, torch.Tensor]) -> None:
    model = load(FIXTURE)
    with torch.no_grad():
        found = model(input_ids=golden["full.input_ids"], output_hidden_states=True).hidden_states
    assert len(found) == 4
    for number, states in enumerate(found):
        expected = golden[f"full.hidden_states.{number}"]
        assert torch.allclose(states, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.real_data
@published
@pytest.mark.parametrize("attention", ATTENTION)
def test_golden_loss_and_gradient_norms(golden: dict[str, torch.Tensor], attention: str) -> None:
    model: ChatGLMForCausalLM = load(FIXTURE, attn_implementation=attention)
    loss = model(input_ids=golden["loss.input_ids"], labels=golden["loss.labels"]).loss
    assert abs(loss.item() - golden["loss.value"].item()) <= 1e-5
    loss.backward()
    norms = json.loads((FIXTURE / "grad_norms.json").read_text())
    assert {name for name, _ in model.named_parameters()} == norms.keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=1e-4), name


@pytest.mark.real_data
@published
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("attention", ATTENTION)
def test_golden_greedy_tokens(golden: dict[str, torch.Tensor], attention: str, use_cache: bool) -> None:
    model = load(FIXTURE, attn_implementation=attention)
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": use_cache, "eos_token_id": EOP + 1000}
    assert torch.equal(model.generate(golden["gen.input_ids"], **options), golden["gen.sequences"])
    ids, hidden = golden["gen_left.input_ids"], golden["gen_left.attention_mask"]
    given = {"attention_mask": hidden, "position_ids": golden["gen_left.position_ids"]}
    for inputs in ({"attention_mask": (ids != PAD).long()}, given):
        assert torch.equal(model.generate(ids, **inputs, **options), golden["gen_left.sequences"])
