"""Tiny ChatGLM-6B checkpoints in the original's layout, and what they compute, written out in loops."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ift.models.families.chatglm import ChatGLMForCausalLM, native_config

PAD, MASK, GMASK, SOP, EOP = 3, 90, 91, 94, 95
VOCABULARY, WIDTH, HEADS, LAYERS, INNER = 96, 32, 2, 3, 40
HEAD = WIDTH // HEADS
CONFIG: dict[str, Any] = {
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "model_type": "chatglm",
    "position_encoding_2d": True,
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "inner_hidden_size": INNER,
    "num_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_sequence_length": 64,
    "layernorm_epsilon": 1e-5,
    "pad_token_id": PAD,
    "mask_token_id": MASK,
    "gmask_token_id": GMASK,
    "bos_token_id": SOP,
    "eos_token_id": EOP,
    "torch_dtype": "float16",
    "use_cache": True,
}

PROMPT = [10, 11, 12, 13, GMASK, SOP]
TEXT = [*PROMPT, 20, 21, 22, EOP]
SHORT = [31, 32, GMASK, SOP, 41, 42]
INFILLING = [50, MASK, 51, 52, SOP, 53, 54]

Weights = dict[str, torch.Tensor]


def weights(seed: int = 0) -> Weights:
    """Return random weights under the original's names, both tied matrices and the rotary buffers among them."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int, around: float = 0.0, spread: float = 0.25) -> torch.Tensor:
        return (around + spread * torch.randn(*shape, generator=random)).half()

    found = {"transformer.word_embeddings.weight": draw(VOCABULARY, WIDTH, spread=0.4)}
    norms = ["transformer.final_layernorm"]
    for number in range(LAYERS):
        layer = f"transformer.layers.{number}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        # Sub-layers weigh as much as the scaled residual stream, else every token would be followed by itself.
        for name, (rows, columns, spread) in {
            "attention.query_key_value": (3 * WIDTH, WIDTH, 0.5),
            "attention.dense": (WIDTH, WIDTH, 1.5),
            "mlp.dense_h_to_4h": (INNER, WIDTH, 0.25),
            "mlp.dense_4h_to_h": (WIDTH, INNER, 0.75),
        }.items():
            found |= {f"{layer}.{name}.weight": draw(rows, columns, spread=spread), f"{layer}.{name}.bias": draw(rows)}
        found[f"{layer}.attention.rotary_emb.inv_freq"] = torch.full((HEAD // 4,), 7.0).half()  # is never read
    for norm in norms:
        found |= {f"{norm}.weight": draw(WIDTH, around=1.0), f"{norm}.bias": draw(WIDTH)}
    return {**found, "lm_head.weight": found["transformer.word_embeddings.weight"].clone()}


def write_checkpoint(
    folder: Path, tensors: Weights | None = None, *, config: dict[str, Any] | None = None, kind: str = "safetensors"
) -> Path:
    """Write a folder as on the hub.

    Args:
        folder: new.
        tensors: by default those of `weights()`.
        config: changes of `CONFIG`; a value of `None` leaves the key out.
        kind: `safetensors` or `bin`, with `sharded ` before it for two files and an index.
    """
    tensors = weights() if tensors is None else tensors
    folder.mkdir(parents=True)
    settings = {key: value for key, value in (CONFIG | (config or {})).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings))
    ending = kind.removeprefix("sharded ")
    stem = "model" if ending == "safetensors" else "pytorch_model"
    names = sorted(tensors)
    parts = [names[::2], names[1::2]] if kind.startswith("sharded ") else [names]
    files = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}.{ending}" if len(parts) == 1 else f"{stem}-{number:05}-of-{len(parts):05}.{ending}"
        kept = {name: tensors[name].contiguous() for name in part}
        if ending == "safetensors":
            save_file(kept, folder / file, metadata={"format": "pt"})
        else:
            torch.save(kept, folder / file)
        files |= dict.fromkeys(part, file)
    if len(parts) > 1:
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def load(folder: Path, **options: Any) -> Any:
    """Return the model of a folder in evaluation mode; every weight must be found, and no other."""
    config = native_config(json.loads((folder / "config.json").read_text()))
    model, report = ChatGLMForCausalLM.from_pretrained(
        str(folder), config=config, output_loading_info=True, **{"dtype": torch.float32, **options}
    )
    assert not any(report.values()), report
    return model.eval()


def by_rule(ids: Sequence[int]) -> tuple[int, list[tuple[int, int]]]:
    """Return the length of the prompt of a whole text and the two positions of every token, as the original counts."""
    prompt = ids.index(SOP)
    mask = ids.index(GMASK) if GMASK in ids else ids.index(MASK)
    return prompt, [(place, 0) if place < prompt else (mask, place - prompt + 1) for place in range(len(ids))]


Before = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Trained keys and values before a text: of each layer, `(heads, tokens, head size)` each."""


def reference_logits(
    tensors: Weights,
    ids: Sequence[int],
    *,
    prompt: int | None = None,
    positions: Sequence[tuple[int, int]] | None = None,
    before: Before | None = None,
) -> torch.Tensor:
    """Return the logits of one text, float32, `(length, vocabulary)`, computed in float64 from section to section."""
    w = {name: value.double() for name, value in tensors.items()}
    if prompt is None or positions is None:
        prompt, positions = by_rule(ids)
    states = w["transformer.word_embeddings.weight"][list(ids)]
    scale = math.sqrt(2 * 28)
    for number in range(LAYERS):
        layer = f"transformer.layers.{number}"
        states = _norm(w, f"{layer}.input_layernorm", states)
        mixed = _mixed(w, f"{layer}.attention", states, prompt, positions, before[number] if before else None)
        states = _norm(w, f"{layer}.post_attention_layernorm", scale * states + mixed)
        inner = _linear(w, f"{layer}.mlp.dense_h_to_4h", states)
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        states = scale * states + _linear(w, f"{layer}.mlp.dense_4h_to_h", inner)
    return (_norm(w, "transformer.final_layernorm", states) @ w["lm_head.weight"].T).float()


def _linear(w: Weights, name: str, states: torch.Tensor) -> torch.Tensor:
    return states @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: Weights, name: str, states: torch.Tensor) -> torch.Tensor:
    centred = states - states.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _rotated(vector: torch.Tensor, position: tuple[int, int]) -> torch.Tensor:
    half, pairs = HEAD // 2, HEAD // 4
    turned = vector.clone()
    for channel in range(2):
        for pair in range(pairs):
            angle = position[channel] * float(np.float16(10000 ** (-2 * pair / half)))
            one, two = channel * half + pair, channel * half + pair + pairs
            turned[one] = vector[one] * math.cos(angle) - vector[two] * math.sin(angle)
            turned[two] = vector[two] * math.cos(angle) + vector[one] * math.sin(angle)
    return turned


def _mixed(
    w: Weights,
    name: str,
    states: torch.Tensor,
    prompt: int,
    positions: Sequence[tuple[int, int]],
    before: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    fused = _linear(w, f"{name}.query_key_value", states)
    heads = []
    for head in range(HEADS):
        own = fused[:, 3 * HEAD * head : 3 * HEAD * (head + 1)]
        queries = [_rotated(one[:HEAD], place) for one, place in zip(own, positions, strict=True)]
        keys = [_rotated(one[HEAD : 2 * HEAD], place) for one, place in zip(own, positions, strict=True)]
        values = [one[2 * HEAD :] for one in own]
        first_keys = list(before[0][head].double()) if before else []
        first_values = list(before[1][head].double()) if before else []
        results = []
        for i, query in enumerate(queries):
            seen = [j for j in range(len(keys)) if j <= i or (i < prompt and j < prompt)]
            its_keys = torch.stack([*first_keys, *(keys[j] for j in seen)])
            its_values = torch.stack([*first_values, *(values[j] for j in seen)])
            results.append((its_keys @ query / math.sqrt(HEAD)).softmax(0) @ its_values)
        heads.append(torch.stack(results))
    return _linear(w, f"{name}.dense", torch.cat(heads, dim=-1))


@cache
def greedy(ids: tuple[int, ...], number: int) -> list[int]:
    """Return the next tokens with the weights of `weights()`, each the likeliest."""
    text, tensors = list(ids), weights()
    for _ in range(number):
        text.append(int(reference_logits(tensors, text)[-1].argmax()))
    return text[len(ids) :]
