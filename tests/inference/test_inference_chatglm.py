"""Options of ChatGLM-6B, which reads a prompt in both directions: shared beginnings change no score."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT

sys.path.insert(0, str(ROOT / "tests" / "models"))  # the checkpoints in the original's layout
from chatglm_reference import GMASK, MASK, PAD, SOP, load, reference_logits, weights, write_checkpoint

from ift.inference.generation import Decoding, generate
from ift.inference.likelihood import Scorer
from ift.models.calling import calling_of

LIMIT = 5e-5
FEW_SHOT = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
ASKED = [[*FEW_SHOT, 20, 21, GMASK, SOP], [*FEW_SHOT, 22, GMASK, SOP], [*FEW_SHOT, 20, 23, 24, MASK, SOP]]
PLAIN = [[*FEW_SHOT, 30], [*FEW_SHOT, 30, 31, 32]]
CASES: dict[str, tuple[list[list[int]], list[list[list[int]]]]] = {
    "prompts that begin alike": (ASKED, [[[40], [41, 42], [41, 43, 44]], [[45, 46], [47]], [[48, 49, 50], [48, 51]]]),
    "text without prompts": (PLAIN, [[[40], [41, 42], [41, 43]], [[44, 45], [46]]]),
    "prompts and plain text": ([ASKED[0], *PLAIN], [[[40, 41], [42]], [[43]], [[44, 45], [44, 46]]]),
    "a prompt that goes on in its options": (
        [[*FEW_SHOT, 20], [*FEW_SHOT, GMASK], [SOP]],
        [[[21, GMASK, SOP, 40], [21, 22, GMASK, SOP, 41], [21, 22]], [[SOP, 42], [SOP, 43, 44]], [[5, 6], [5, 7]]],
    ),
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("chatglm") / "base")
    return load(folder, attn_implementation=request.param)


@torch.no_grad()
def alone(model: Any, prompt: list[int], option: Sequence[int]) -> float:
    """The score of an option whose whole text is run by itself."""
    logits = model(input_ids=torch.tensor([[*prompt, *option]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(option)), list(option)].sum())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows_at_once", [1, 5])
def test_scores_are_those_of_each_option_alone(model: Any, case: str, rows_at_once: int) -> None:
    prompts, options = CASES[case]
    scorer = Scorer(model, rows_at_once=rows_at_once, least_saved=0)
    assert scorer.shares
    for prompt, own, scores in zip(prompts, options, scorer.scores(prompts, options), strict=True):
        for option, score in zip(own, scores, strict=True):
            assert abs(score - alone(model, prompt, option)) <= LIMIT


def test_scores_are_those_written_out_in_loops(model: Any) -> None:
    prompts, options = CASES["prompts that begin alike"]
    for prompt, own, scores in zip(
        prompts, options, Scorer(model, rows_at_once=8).scores(prompts, options), strict=True
    ):
        for option, score in zip(own, scores, strict=True):
            likelihoods = reference_logits(weights(), [*prompt, *option])[len(prompt) - 1 : -1].log_softmax(-1)
            assert abs(likelihoods[range(len(option)), option].sum().item() - score) <= LIMIT


def tokens_run(model: Any, prompts: list[list[int]], options: list[list[list[int]]]) -> int:
    """The tokens that go through the model."""
    seen: list[int] = []
    hook = model.transformer.word_embeddings.register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    try:
        Scorer(model, rows_at_once=8, shares=True, least_saved=0).scores(prompts, options)
    finally:
        hook.remove()
    return sum(seen)


def test_a_prompt_is_run_once_and_only_as_a_whole(model: Any) -> None:
    options = [[[40, 41], [42, 43], [44, 45]]]
    assert tokens_run(model, ASKED[:1], options) == len(ASKED[0]) + 3
    # The beginnings of two prompts are not shared, those of plain texts are.
    assert tokens_run(model, ASKED[:2], [[[40]], [[41]]]) >= len(ASKED[0]) + len(ASKED[1])
    assert tokens_run(model, PLAIN, [[[40]], [[41]]]) < len(PLAIN[0]) + len(PLAIN[1])


def test_what_settles_a_text(model: Any) -> None:
    settled = calling_of(model).settled_length
    assert [settled(prompt) for prompt in ASKED] == [len(prompt) for prompt in ASKED]
    assert settled([*ASKED[0], 40, 41]) == len(ASKED[0])
    assert settled(PLAIN[0]) == 0
    assert settled([5, MASK, 6, SOP, 7, GMASK, 8]) == 6  # the first [gMASK] counts, wherever it stands
    assert settled([5, GMASK, 6]) == 2


def test_answers_do_not_depend_on_the_other_prompts(model: Any) -> None:
    prompts = [ASKED[0], [31, 32, GMASK, SOP], PLAIN[0], [33, MASK, 34, SOP]]

    def answers(asked: list[list[int]]) -> list[list[int]]:
        found = generate(model, asked, decoding=Decoding(max_new_tokens=5), stop_token_ids=[999], pad_token_id=PAD)
        return [one.ids for one in found]

    assert answers(prompts) == [answers([prompt])[0] for prompt in prompts]
