"""How far a merged model is from the model that was trained, on real prompts: measured, judged, kept.

Comes in: pairs of models, one loaded at a time, and prompts with their responses. Goes out: a `Certificate`.

Compared are the positions at which a model predicts a token of the response (that of its first token included), with
the response as it stands in the data before them; where a prompt has no response, its last position. The greedy token
of a position is the one with the largest logit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from ift.models.calling import calling_of

FLOAT32_TOLERANCE = 1e-4
"""Largest logit gap of two float32 models that should be one, as a share of the largest logit. A float32 rounding is
2**-24 (6e-8) of a value; over a thousand in a row, all to the same side, are a mistake and no rounding."""
ROUNDING_FACTOR = 2
"""How much larger the gap by rounding merged weights to a smaller dtype may be than the gap by computing in it, which
rounds every weight and every activation."""

FEW_TOKENS = 3
"""Changed greedy tokens that are no drift, of however few: two logits may be nearer to each other than rounding is."""


@dataclass(frozen=True)
class PromptSample:
    """A prompt on which models are compared."""

    prompt_ids: list[int]
    response_ids: list[int]
    """What follows it in the data; may be empty."""


@dataclass(frozen=True)
class Comparison:
    """One model against another, over all compared positions."""

    reference: str
    candidate: str
    dtype: str
    """That the candidate computed in."""
    num_tokens: int
    """Compared positions."""
    max_logit_gap: float
    """Largest absolute difference of a logit."""
    largest_logit: float
    """Largest absolute logit of the reference, by which to judge the gap."""
    mean_kl: float
    """KL(reference || candidate) per position in nats, mean."""
    max_kl: float
    changed_tokens: int
    """Positions whose greedy token differs."""

    @property
    def relative_gap(self) -> float:
        """The largest gap as a share of the largest logit."""
        return self.max_logit_gap / max(self.largest_logit, 1e-30)

    @property
    def changed_share(self) -> float:
        """Share of the positions whose greedy token differs."""
        return self.changed_tokens / max(1, self.num_tokens)


@dataclass(frozen=True)
class Certificate:
    """What a merge changed."""

    num_prompts: int
    prompts: str
    """Where they are from."""
    comparisons: tuple[Comparison, ...]
    """The first shows the merge alone: what was trained against what was written, both computed in float32."""
    dtype: str
    """To which the merged weights were rounded."""
    strict: int
    """Index of the comparison with nothing but float32 rounding in it, bound to `FLOAT32_TOLERANCE`: the first where
    float32 is written, else that of the merged and rounded weights with the files that were written of them."""
    deployed: int
    """Index of the comparison of what was trained with what was written, bound to `max_changed`."""
    yardstick: int | None
    """Index of the comparison that shows what computing in `dtype` changes without any merge; `None` in float32."""
    max_changed: float
    """Largest share of changed greedy tokens, beyond those that the dtype changes by itself. Unless it is 0, or all is
    in float32, `FEW_TOKENS` may change in any case."""

    def problems(self) -> list[str]:
        """Return what exceeds its limit, one sentence each."""
        found = []
        exact, strict, deployed = (self.comparisons[index] for index in (0, self.strict, self.deployed))
        yardstick = self.comparisons[self.yardstick] if self.yardstick is not None else None
        # A gap that is not a number is beyond every limit.
        if not strict.relative_gap <= FLOAT32_TOLERANCE:
            found.append(
                f"{strict.candidate} differs from {strict.reference} by {strict.relative_gap:.1e} of the largest "
                f"logit, and rounding in float32 explains at most {FLOAT32_TOLERANCE:.0e}."
            )
        if self.strict != 0 and yardstick is not None:
            limit = ROUNDING_FACTOR * yardstick.max_logit_gap
            if not exact.max_logit_gap <= limit:
                found.append(
                    f"{exact.candidate} differs from {exact.reference} by {exact.max_logit_gap:.1e} in float32, and "
                    f"rounding its weights to {self.dtype} explains at most {limit:.1e}."
                )
        # Of a few tokens, one is more than any small share.
        least = FEW_TOKENS / max(1, exact.num_tokens) if self.strict != 0 or self.deployed != 0 else 0.0
        allowed = max(self.max_changed, least if self.max_changed else 0.0)
        allowed += yardstick.changed_share if yardstick is not None else 0.0
        for one in {0: exact, self.deployed: deployed}.values():
            if one.changed_share > allowed or not one.mean_kl < float("inf"):
                found.append(
                    f"{one.candidate} changes {one.changed_tokens} of {one.num_tokens} greedy tokens "
                    f"({one.changed_share:.1%}) of {one.reference} in {one.dtype}; the limit is {allowed:.1%}."
                )
        return found

    def describe(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        shares = [
            {"relative_gap": one.relative_gap, "changed_share": one.changed_share, **asdict(one)}
            for one in self.comparisons
        ]
        return {
            **asdict(self),
            "comparisons": shares,
            "float32_tolerance": FLOAT32_TOLERANCE,
            "passed": not self.problems(),
            "problems": self.problems(),
        }

    def table(self) -> str:
        """Return the comparisons as a Markdown table."""
        head = "| reference | candidate | dtype | largest logit gap | of largest logit | mean KL | max KL | changed |"
        lines = [head, "|---|---|---|---|---|---|---|---|"]
        lines += [
            f"| {one.reference} | {one.candidate} | {one.dtype} | {one.max_logit_gap:.2e} | {one.relative_gap:.1e} "
            f"| {one.mean_kl:.1e} | {one.max_kl:.1e} | {one.changed_tokens} of {one.num_tokens} "
            f"({one.changed_share:.1%}) |"
            for one in self.comparisons
        ]
        return "\n".join(lines)


class Logits:
    """Logits of a model on the prompts, kept on disk: with a large vocabulary they are gigabytes.

    Args:
        folder: new, for one file per prompt.
        model: of transformers or PEFT; put into evaluation mode.
        samples: the prompts.
        float32: whether to compute in float32 whatever the dtype of the weights.
    """

    def __init__(self, folder: Path, model: Any, samples: Sequence[PromptSample], *, float32: bool) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        model.eval()
        with computing_in_float32(model, wanted=float32):
            for number, sample in enumerate(tqdm(samples, "computing logits", disable=None, leave=False)):
                torch.save(_logits(model, sample), folder / f"{number}.pt")

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the logits of each prompt, float32, `(positions, vocabulary)`."""
        for number in range(len(list(self._folder.glob("*.pt")))):
            yield torch.load(self._folder / f"{number}.pt", weights_only=True)


@torch.no_grad()
def _logits(model: Any, sample: PromptSample) -> torch.Tensor:
    # The last token of the response predicts nothing that is compared.
    ids = torch.tensor([sample.prompt_ids + sample.response_ids[:-1]], device=model.device)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, len(sample.prompt_ids) - 1 :] = True
    return calling_of(model).logits(model, {"input_ids": ids, "use_cache": False}, keep).float().cpu()


def compare(reference: Logits, candidate: Logits, *, names: tuple[str, str], dtype: str) -> Comparison:
    """Compare two models by their logits.

    Args:
        reference: of the one.
        candidate: of the other, on the same prompts.
        names: what to call them.
        dtype: that the candidate computed in.
    """
    gap = largest = total = highest = 0.0
    changed = tokens = 0
    for one, other in zip(reference, candidate, strict=True):
        one, other = _same_width(one.double(), other.double())
        differences = (one - other).abs()
        # max() of Python's floats would drop what is not a number.
        gap = float(torch.tensor([gap, float(differences.max())]).max())
        largest = max(largest, float(one.abs().max()))
        divergences = F.kl_div(other.log_softmax(-1), one.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        total += float(divergences.sum())
        highest = max(highest, float(divergences.max()))
        changed += int((one.argmax(-1) != other.argmax(-1)).sum())
        tokens += len(one)
    return Comparison(
        reference=names[0],
        candidate=names[1],
        dtype=dtype,
        num_tokens=tokens,
        max_logit_gap=gap,
        largest_logit=largest,
        mean_kl=max(0.0, total / max(1, tokens)),
        max_kl=highest,
        changed_tokens=changed,
    )


def _same_width(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Models of different vocabularies cannot be compared."""
    assert one.shape == other.shape, f"logits of {tuple(one.shape)} against {tuple(other.shape)}"
    return one, other


@contextmanager
def computing_in_float32(model: nn.Module, *, wanted: bool = True) -> Iterator[None]:
    """Let a model compute in float32 with weights of a smaller dtype, one block of it at a time.

    A whole float32 copy of a bfloat16 model would take twice its memory; here one decoder layer is copied while it
    computes. The logits are those of the model loaded in float32.
    """
    if not wanted:
        yield
        return
    handles = []
    for block in _blocks(model):
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        handles.append(block.register_forward_pre_hook(lambda module, _, kept=kept: _widen(module, kept)))
        handles.append(block.register_forward_hook(lambda _, __, ___, kept=kept: _restore(kept), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield modules that together hold all weights: the members of lists of layers, and what stands beside them."""
    if isinstance(module, nn.ModuleList):
        yield from module
    elif next(module.parameters(recurse=False), None) is not None or _wraps(module):
        yield module
    else:
        for child in module.children():
            yield from _blocks(child)


def _wraps(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _widen(module: nn.Module, kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kept.append((tensor, tensor.data))
            tensor.data = tensor.data.float()


def _restore(kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    while kept:
        tensor, data = kept.pop()
        tensor.data = data
