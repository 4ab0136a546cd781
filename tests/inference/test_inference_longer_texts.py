"""Prompts beyond the length up to which rotary positions follow from each text alone are told of."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from ift.errors import UserError
from ift.inference.generation import Decoding
from ift.inference.module import PredictionModule
from ift.inference.prompts import Prompt
from ift.models.rope import Rope

POSITIONS = 512
"""Of the tiny Llama."""


def prompt(name: str, length: int) -> Prompt:
    return Prompt(id=name, ids=[5] * length, options=(), option_ids=(), reference=None, meta={})


def check(base: Path, prompts: list[Prompt], **settings: Any) -> None:
    module = PredictionModule(str(base), decoding=Decoding(max_new_tokens=10), **settings)
    module._check_lengths(prompts)


def test_answers_that_depend_on_their_batch_are_told_of(base: Path) -> None:
    prompts = [prompt("short", POSITIONS - 10), prompt("long", POSITIONS - 9)]
    with pytest.warns(UserWarning, match=f"1 of 2 prompts may be longer .* than {POSITIONS} tokens, first 'long'"):
        check(base, prompts, rope=Rope("dynamic", 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(base, prompts, rope=Rope("linear", 2.0))
        check(base, prompts[:1], rope=Rope("dynamic", 2.0))


def test_positions_are_counted_with_the_scaling(base: Path) -> None:
    prompts = [prompt("long", 2 * POSITIONS - 9)]
    with pytest.raises(UserError, match=f"longer than the model's {POSITIONS} positions"):
        check(base, prompts)
    with pytest.raises(UserError, match=f"longer than the model's {2 * POSITIONS} positions"):
        check(base, prompts, rope=Rope("yarn", 2.0))
    check(base, prompts, rope=Rope("yarn", 4.0))
