"""Adapters on ChatGLM-6B: PEFT's kinds, virtual tokens in a prompt read both ways, 4-bit weights, merging, the loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_reference import (
    EOP,
    GMASK,
    HEAD,
    HEADS,
    LAYERS,
    PAD,
    PROMPT,
    SHORT,
    SOP,
    TEXT,
    by_rule,
    load,
    reference_logits,
    weights,
    write_checkpoint,
)
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch.nn import functional as F
from transformers import BitsAndBytesConfig

from ift.data.encoding import IGNORE_INDEX
from ift.data.micro_batches import MicroBatch
from ift.errors import UserError
from ift.inference.generation import Decoding, generate
from ift.models.calling import calling_of
from ift.models.merging import merge
from ift.models.quantized_layers import dequantized, prepare_quantized
from ift.models.targets import fill_targets
from ift.training.objective import loss_sum

LIMIT = 5e-5
VIRTUAL = [61, 62, 63]
CAUSAL_LM: dict[str, Any] = {"task_type": "CAUSAL_LM"}
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=4, target_modules="all-linear", **CAUSAL_LM),
    "adalora": lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=9, tinit=1, tfinal=1, **CAUSAL_LM),
    "ia3": lambda: IA3Config(**CAUSAL_LM),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL_LM),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=3, **CAUSAL_LM),
    "p_tuning": lambda: PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, **CAUSAL_LM),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("chatglm") / "base")


def adapted(folder: Path, kind: str) -> Any:
    model, config = load(folder), KINDS[kind]()
    if kind == "adalora":
        config.target_modules = ["query_key_value", "dense_h_to_4h"]
    fill_targets(config, model)
    torch.manual_seed(0)
    return get_peft_model(model, config)


def batch_of(texts: list[list[int]], prompts: list[int] | None = None) -> MicroBatch:
    """Return texts padded on the right, with labels from behind `[gMASK]` on, or from behind so many first tokens."""
    width = max(map(len, texts))
    prompts = [text.index(GMASK) + 1 for text in texts] if prompts is None else prompts
    ids = [text + [PAD] * (width - len(text)) for text in texts]
    labels = [
        [IGNORE_INDEX] * before + text[before:] + [IGNORE_INDEX] * (width - len(text))
        for text, before in zip(texts, prompts, strict=True)
    ]
    return MicroBatch(torch.tensor(ids), torch.tensor(labels), None, tuple((len(text),) for text in texts))


def loss_of(model: Any, batch: MicroBatch) -> torch.Tensor:
    return loss_sum(model, batch, calling=calling_of(model))


def answers(model: Any, prompts: list[list[int]], number: int = 6) -> list[list[int]]:
    found = generate(
        model.eval(), prompts, decoding=Decoding(max_new_tokens=number), stop_token_ids=[999], pad_token_id=PAD
    )
    return [one.ids for one in found]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_and_an_answer_with_every_kind(folder: Path, kind: str) -> None:
    model, batch = adapted(folder, kind).train(), batch_of([TEXT, SHORT])
    loss = loss_of(model, batch)
    loss.backward()
    plain = {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}
    assert plain and all(gradient.isfinite().all() for gradient in plain.values())
    assert any(gradient.abs().max() > 1e-3 for gradient in plain.values())
    alone = sum(loss_of(model, batch_of([text])).item() for text in (TEXT, SHORT))
    assert loss.item() == pytest.approx(alone, rel=1e-5)  # a text's loss does not depend on its neighbours
    if kind != "prefix":  # whose keys do not outlive checkpointing, with any model
        model.zero_grad()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        again = loss_of(model, batch)
        again.backward()
        assert again.item() == pytest.approx(loss.item(), rel=1e-6)
        for name, one in model.named_parameters():
            if one.requires_grad:
                assert torch.allclose(one.grad, plain[name], rtol=1e-4, atol=1e-5), name
        model.gradient_checkpointing_disable()
    together = answers(model, [PROMPT, SHORT[:4]])
    assert together == [answers(model, [prompt])[0] for prompt in (PROMPT, SHORT[:4])]
    if kind in ("lora", "ia3"):  # they begin as nothing
        assert together == answers(load(folder), [PROMPT, SHORT[:4]])


def with_prompt_of(folder: Path, tokens: list[int]) -> Any:
    """Return the model with trained embeddings that are those of real tokens."""
    model = get_peft_model(load(folder), PromptTuningConfig(num_virtual_tokens=len(tokens), **CAUSAL_LM)).eval()
    embeddings = model.get_base_model().get_input_embeddings()(torch.tensor(tokens))
    model.prompt_encoder["default"].embedding.weight.data.copy_(embeddings.detach())
    return model


@pytest.mark.parametrize("lacking", [False, True])
def test_virtual_tokens_are_the_beginning_of_the_prompt(folder: Path, lacking: bool) -> None:
    model = with_prompt_of(folder, VIRTUAL)
    text, prompt, positions = [*VIRTUAL, *TEXT], *by_rule([*VIRTUAL, *TEXT])
    if lacking:  # without <sop> and [gMASK], they are all of it
        text, prompt = [*VIRTUAL, 5, 6, 7, 8], 3
        positions = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]
    expected = reference_logits(weights(), text, prompt=prompt, positions=positions)[3:]
    own = text[3:]
    keep = torch.ones(1, len(own), dtype=torch.bool)
    with torch.no_grad():
        found = calling_of(model).logits(model, {"input_ids": torch.tensor([own]), "use_cache": False}, keep)
    assert (found - expected).abs().max() <= LIMIT
    if not lacking:
        losses = F.cross_entropy(expected[4:-1], torch.tensor(own[5:]), reduction="sum")
        assert loss_of(model, batch_of([own])).item() == pytest.approx(losses.item(), rel=1e-5)


def test_virtual_tokens_are_the_beginning_of_the_prompt_when_answering(folder: Path) -> None:
    prompts = [PROMPT, SHORT[:4]]
    expected = answers(load(folder), [[*VIRTUAL, *prompt] for prompt in prompts])
    assert expected != answers(load(folder), prompts)
    model = with_prompt_of(folder, VIRTUAL)
    assert answers(model, prompts) == expected
    for use_cache in (True, False):
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "use_cache": use_cache}
        ids = torch.tensor([PROMPT])
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        assert found[0, len(PROMPT) :].tolist() == expected[0]


def test_trained_keys_have_no_positions(folder: Path) -> None:
    model = adapted(folder, "prefix").eval()
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, std=0.5)
    kept = model.prompt_encoder["default"].embedding.weight.detach().view(3, 2 * LAYERS, HEADS, HEAD)
    before = [(kept[:, 2 * layer].transpose(0, 1), kept[:, 2 * layer + 1].transpose(0, 1)) for layer in range(LAYERS)]
    expected = reference_logits(weights(), TEXT, before=before)
    assert (expected - reference_logits(weights(), TEXT)).abs().max() > 0.1
    mask = torch.ones(1, len(TEXT), dtype=torch.int64)
    for inputs in ({}, {"attention_mask": mask}):
        with torch.no_grad():
            found = model(input_ids=torch.tensor([TEXT]), use_cache=False, **inputs).logits[0]
        assert (found - expected).abs().max() <= LIMIT
    text = list(PROMPT)
    for _ in range(6):
        text.append(int(reference_logits(weights(), text, before=before)[-1].argmax()))
    assert answers(model, [PROMPT]) == [text[len(PROMPT) :]]


def test_labels_that_the_model_sees_are_refused(folder: Path) -> None:
    model = load(folder)
    loss_of(model, batch_of([TEXT, [5, 6, 7, 8]], [4 + 1, 1]))  # <sop> itself, and text without any prompt
    with pytest.raises(UserError, match="2 of the 7 supervised tokens .* <sop>.*last_output_only"):
        loss_of(model, batch_of([TEXT], [3]))


def test_plain_text_is_learned_from_left_to_right(folder: Path) -> None:
    text = [5, 6, 7, 8, 9]
    positions = [(0, place + 1) for place in range(5)]
    expected = reference_logits(weights(), text, prompt=0, positions=positions)
    losses = F.cross_entropy(expected[:-1], torch.tensor(text[1:]), reduction="sum")
    assert loss_of(load(folder), batch_of([text], [1])).item() == pytest.approx(losses.item(), rel=1e-5)


def test_a_merged_adapter_is_a_folder_of_the_original(folder: Path, tmp_path: Path) -> None:
    model = get_peft_model(load(folder), LoraConfig(r=4, target_modules=["query_key_value", "dense"], **CAUSAL_LM))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([TEXT])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        model.save_pretrained(str(tmp_path / "adapter"))
        reloaded = PeftModel.from_pretrained(load(folder), str(tmp_path / "adapter"))
        assert torch.equal(reloaded.eval()(input_ids=ids).logits, expected)
        merge("RUN", model, "float32").save_pretrained(str(tmp_path / "merged"))
        found = load(tmp_path / "merged")(input_ids=ids).logits
    assert (found - expected).abs().max() <= LIMIT
    assert (found - reference_logits(weights(), TEXT)).abs().max() > 0.1


def quantized(folder: Path) -> Any:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = load(folder, quantization_config=config)
    prepare_quantized(model)
    return model


def test_four_bit_weights_compute_what_they_stand_for_and_carry_lora(folder: Path) -> None:
    model, twin = quantized(folder), dequantized(quantized(folder))
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("query_key_value")}
    assert kinds == {"FourBitLinear"} and model.lm_head.weight is model.transformer.word_embeddings.weight
    assert answers(model, [PROMPT, SHORT[:4]]) == answers(twin, [PROMPT, SHORT[:4]])
    found = []
    for base, checkpointing in ((model, False), (quantized(folder), True), (twin, False)):
        torch.manual_seed(0)
        lora = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", **CAUSAL_LM)).train()
        if checkpointing:
            lora.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loss = loss_of(lora, batch_of([TEXT, SHORT]))
        loss.backward()
        found.append((loss.item(), [one.grad for one in lora.parameters() if one.requires_grad]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for one, other in zip(found[0][1], gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_conversation_ends_where_the_original_ends_it(folder: Path) -> None:
    """Only the labels count, so what stands behind the end of a text changes nothing."""
    model = load(folder)
    assert TEXT[-1] == EOP and TEXT[5] == SOP
    padded = batch_of([TEXT, [*TEXT, 1, 2, 3]], [5, len(TEXT)])
    first = loss_of(model, MicroBatch(padded.input_ids[:1], padded.labels[:1], None, padded.lengths[:1]))
    assert first.item() == pytest.approx(loss_of(model, batch_of([TEXT])).item(), rel=1e-5)
