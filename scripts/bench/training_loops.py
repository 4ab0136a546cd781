"""Hand-written training loops for `training.py`, on tokenized examples: what a careful person writes, and the limit.

padded      a padded batch with its mask, all logits, torch's AdamW as it comes
unpadded    the examples in one row with positions that begin anew, all logits
limit       the same row; attention per example, last layer and head at supervised positions only, head and loss in
            tiles of 512 positions in one reused buffer with the gradient made in the forward pass, fused AdamW, and
            huge pages (THP_MEM_ALLOC_ENABLE=1, set by `training.py`)

None of them shares code with ift. LoRA is a few lines here, so that no library for it is imported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Examples = list[tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[Any, Examples], torch.Tensor]
IGNORED = -100


class Lora(nn.Module):
    """A linear layer with a low-rank change, zero in the beginning."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output."""
        changed: torch.Tensor = self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale
        return changed


def load(folder: Path, method: str) -> Any:
    """Return the model, with LoRA of rank 8 on q and v, or all of it trained."""
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(str(folder / "base"), dtype=torch.float32)
    if method == "lora":
        model.requires_grad_(False)
        for layer in model.model.layers:
            for name in ("q_proj", "v_proj"):
                setattr(layer.self_attn, name, Lora(getattr(layer.self_attn, name), 8, 16))
    return model.train()


def targets_of(labels: torch.Tensor) -> torch.Tensor:
    """Return for each position what comes next; an example's last has nothing."""
    return F.pad(labels[1:], (0, 1), value=IGNORED)


def padded(model: Any, examples: Examples) -> torch.Tensor:
    """Return the mean loss over a padded batch, from all logits."""
    ids = nn.utils.rnn.pad_sequence([one for one, _ in examples], batch_first=True)
    targets = nn.utils.rnn.pad_sequence([targets_of(one) for _, one in examples], True, IGNORED)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one, _ in examples], True)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def in_a_row(examples: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and positions, `(1, length)`, and targets `(length,)`."""
    ids = torch.cat([one for one, _ in examples])
    positions = torch.cat([torch.arange(len(one)) for one, _ in examples])
    return ids[None], positions[None], torch.cat([targets_of(one) for _, one in examples])


def unpadded(model: Any, examples: Examples) -> torch.Tensor:
    """Return the mean loss of the examples in one row, from all logits."""
    ids, positions, targets = in_a_row(examples)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return F.cross_entropy(logits[0], targets, ignore_index=IGNORED)


class TiledLoss(torch.autograd.Function):
    """Sum of the cross-entropy of `hidden @ weight.T`, 512 positions at a time."""

    buffer: torch.Tensor | None = None

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute loss and gradients."""
        if TiledLoss.buffer is None:
            TiledLoss.buffer = torch.empty(512, len(weight))
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        loss = hidden.new_zeros(())
        for start in range(0, len(hidden), 512):
            part, aims = hidden[start : start + 512], targets[start : start + 512]
            logits = torch.mm(part, weight.t(), out=TiledLoss.buffer[: len(part)])
            rows = torch.arange(len(part))
            largest = logits.amax(1)
            wanted = logits[rows, aims] - largest
            torch.softmax(logits, 1, out=logits)
            loss += (-wanted - logits.amax(1).log()).sum()
            logits[rows, aims] -= 1
            torch.mm(logits, weight, out=to_hidden[start : start + 512])
            if to_weight is not None:
                to_weight.addmm_(logits.t(), part)
        ctx.save_for_backward(to_hidden, to_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        """Return the gradients that the forward pass has made."""
        return *(one.mul_(scale) if one is not None else None for one in ctx.saved_tensors), None


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn `(heads, length, width)` by its positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), -1) * sine


def layer_output(layer: Any, x: Any, turns: Any, lengths: list[int], chosen: torch.Tensor | None) -> torch.Tensor:
    """Return what a decoder layer makes of `(length, width)`; where positions are chosen, of those only."""
    query: Any
    attention, normed = layer.self_attn, layer.input_layernorm(x)
    heads = x.shape[1] // attention.head_dim
    key, value = (
        projected(normed).view(-1, heads, attention.head_dim).transpose(0, 1)
        for projected in (attention.k_proj, attention.v_proj)
    )
    key = rotate(key, *turns)
    asked = normed if chosen is None else normed[chosen]
    query = attention.q_proj(asked).view(-1, heads, attention.head_dim).transpose(0, 1)
    query = rotate(query, *(turns if chosen is None else (one[chosen] for one in turns)))
    if chosen is None:
        pieces = zip(*(one[None].split(lengths, dim=2) for one in (query, key, value)), strict=True)
        mixed = [F.scaled_dot_product_attention(q, k, v, is_causal=True)[0] for q, k, v in pieces]
    else:
        mixed, end = [], 0
        numbers = []
        for length in lengths:
            start, end = end, end + length
            numbers.append(chosen[(chosen >= start) & (chosen < end)] - start)
        asking = torch.split(query, [len(one) for one in numbers], 1)
        pieces = zip(asking, torch.split(key, lengths, 1), torch.split(value, lengths, 1), strict=True)
        for own, piece in zip(numbers, pieces, strict=True):
            seen = torch.arange(piece[1].shape[1]) <= own[:, None]
            q, k, v = (one[None] for one in piece)
            mixed.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen)[0])
        x = x[chosen]
    x = x + attention.o_proj(torch.cat(mixed, 1).transpose(0, 1).flatten(1))
    out: torch.Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return out


def limit(model: Any, examples: Examples) -> torch.Tensor:
    """Return the mean loss, computing nothing that it does not depend on."""
    ids, positions, targets = in_a_row(examples)
    lengths = [len(one) for one, _ in examples]
    x = model.model.embed_tokens(ids[0])
    turns = [one[0] for one in model.model.rotary_emb(x[None], positions)]
    chosen = (targets != IGNORED).nonzero().flatten()
    *before, last = model.model.layers
    for layer in before:
        x = layer_output(layer, x, turns, lengths, None)
    x = model.model.norm(layer_output(last, x, turns, lengths, chosen))
    tiled: Any = TiledLoss.apply
    loss: torch.Tensor = tiled(x, model.lm_head.weight, targets[chosen])
    return loss / len(chosen)


def run(name: str, folder: Path, method: str, steps: int, tell: Callable[[float, int], None]) -> None:
    """Train; tells the mean loss and the supervised tokens of every finished step."""
    loss_of: Loss = {"padded": padded, "unpadded": unpadded, "limit": limit}[name]
    model = load(folder, method)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True if name == "limit" else None)
    work = torch.load(folder / "steps.pt", mmap=True)
    for examples in work[:steps]:
        loss = loss_of(model, examples)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        tell(float(loss.detach()), sum(int((targets_of(labels) != IGNORED).sum()) for _, labels in examples))
