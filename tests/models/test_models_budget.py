"""A budget finds the nearest size: against counting every size, made by the methods' own constructors."""

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tiny import ROOT

sys.path.insert(0, str(ROOT / "tests" / "training"))  # the factories of tiny models
from families import make_model

import ift.models.bottleneck  # noqa: F401 (PEFT then knows its type)
from ift.errors import UserError
from ift.models import budget as budgets
from ift.models.adapters import attach, count_trainable
from ift.models.budget import allot
from ift.models.methods import METHODS, Method, as_method, lora, rslora
from ift.models.sizes import SIZES, WITHOUT_SIZE

FAMILIES = ("llama", "bloom", "gpt2")
SIZED = {
    "lora": "r", "qlora": "r", "dora": "r", "rslora": "r", "lora_plus": "r", "pissa": "r", "adalora": "init_r",
    "prefix": "num_virtual_tokens", "p_tuning": "num_virtual_tokens", "prompt": "num_virtual_tokens",
    "sadapter_h": "bottleneck_size", "sadapter_p": "bottleneck_size", "p_adapter": "bottleneck_size",
    "freeze": "num_layers",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_layers": 2},
    "CARTRIDGE": {"num_frozen_tokens": 1},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
    "OFT": {"r": 0},
    "P_TUNING": {"encoder_hidden_size": 8},
    "VBLORA": {"vector_length": 4},
}
"""What a type needs besides its size."""
ODD = {"XLORA"}  # wants adapters that were trained before
LARGEST = 16
"""Sizes that are all counted; budgets stay below what larger ones train."""
COMMON = {"ADAPTION_PROMPT", "BOFT", "C3A", "GRALORA", "HRA", "LOHA", "LOKR", "MISS", "OFT", "SHIRA", "VBLORA", "VERA"}
"""Types that are tried in the quick suite: those whose sizes or counts are in some way special, and well known ones."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of configs, without any weights."""
    root = tmp_path_factory.mktemp("configs")
    for family in FAMILIES:
        make_model(family).config.save_pretrained(str(root / family))
    return {family: str(root / family) for family in FAMILIES}


@cache
def empty(family: str) -> Any:
    return make_model(family).to("meta")


def named(name: str, value: int) -> Method:
    return METHODS[name](**{SIZED[name]: value})


def of_type(kind: str, value: int) -> Method:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind]  # type: ignore[index]  # members are strings
    return as_method(config(**{**SETTINGS.get(kind, {}), SIZES[kind].parameter: value}))


def all_counts(make: Callable[[int], Method], family: str, *, largest: int = LARGEST) -> dict[int, int]:
    """Return the counts of all sizes that the method can have, up to a largest."""

    def tried() -> Iterator[tuple[int, int]]:
        for value in range(1, largest + 1):
            try:
                count = count_trainable(make(value), empty(family))
            except ValueError:  # PEFT's, or ours
                continue
            assert count is not None
            if count:
                yield value, count

    return dict(tried())


def asked(counts: dict[int, int]) -> list[int]:
    """Return budgets on, just beside, and between counts."""
    ordered = sorted(set(counts.values()))
    picked = [ordered[0], ordered[len(ordered) // 3], ordered[-1] if len(ordered) < 4 else ordered[-4]]
    between = [(a + b) // 2 + 1 for a, b in pairwise(ordered)][-3:-2]
    return sorted({*picked, *(one + 1 for one in picked), *between})


def check_nearest(make: Callable[[int], Method], folder: str, counts: dict[int, int]) -> None:
    start = make(max(counts))
    for number in asked(counts):
        nearest = min(abs(count - number) for count in counts.values())
        if nearest > 0.5 * number:
            with pytest.raises(UserError, match=r"^model\.budget: .* within 50% of that"):
                allot(start, number, base=folder)
            continue
        _, found = allot(start, number, base=folder)
        assert abs(found.trainable - number) == nearest
        assert counts[found.value] == found.trainable


def quick_or_slow(name: str, *others: str, quick: bool) -> Any:
    return pytest.param(name, *others, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        quick_or_slow(name, family, quick=(place + number) % len(FAMILIES) == 0)
        for place, family in enumerate(FAMILIES)
        for number, name in enumerate(sorted(SIZED))
    ],
)
def test_no_other_size_is_nearer(name: str, family: str, folders: dict[str, str]) -> None:
    counts = all_counts(lambda value: named(name, value), family)
    assert len(counts) >= 2
    check_nearest(lambda value: named(name, value), folders[family], counts)


USABLE: dict[str, Callable[[int], bool]] = {
    "OFT": lambda size: size > 1 and 16 % size == 0,  # PEFT takes a near one instead of one that divides no matrix
    "BOFT": lambda size: size > 1,
    "HRA": lambda size: size % 2 == 0,
    "CARTRIDGE": lambda size: size > 1,
    "VBLORA": lambda size: size > 1,
}
"""Sizes beside PEFT's own refusals: where training one would not be, or would begin elsewhere than at the base model.

A tiny Llama's inputs are 32 and 48 wide.
"""


@pytest.mark.parametrize("kind", [quick_or_slow(one, quick=one in COMMON) for one in sorted(SIZES.keys() - ODD)])
def test_no_other_size_of_a_peft_type_is_nearer(kind: str, folders: dict[str, str]) -> None:
    usable = USABLE.get(kind, lambda _: True)
    largest = 32 if SIZES[kind].ragged else LARGEST  # the model's width, above which no rank is sought
    counts = all_counts(lambda value: of_type(kind, value), "llama", largest=largest)
    counts = {value: count for value, count in counts.items() if usable(value)}
    assert len(counts) >= 2
    check_nearest(lambda value: of_type(kind, value), folders["llama"], counts)


def test_of_every_peft_type_it_is_known_whether_it_has_a_size() -> None:
    assert SIZES.keys() | WITHOUT_SIZE == {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}


@pytest.mark.parametrize("name", sorted(SIZED.keys() - {"qlora", "freeze"}))
def test_the_loaded_model_trains_what_was_counted(name: str, folders: dict[str, str]) -> None:
    settings = {"encoder_hidden_size": 8} if name == "p_tuning" else {}
    start = METHODS[name](**settings)
    method, found = allot(start, 2700 if name != "dora" else 2400, base=folders["llama"])
    model = attach(make_model("llama"), method, seed=0, num_steps=100)
    assert sum(one.numel() for one in model.parameters() if one.requires_grad) == found.trainable
    assert getattr(method.peft_config, found.parameter) == found.value
    assert (start.name, start.learning_rate_ratio, start.quantization) == (
        method.name, method.learning_rate_ratio, method.quantization
    )  # fmt: skip


def scales(model: Any) -> set[float]:
    found = {}
    for module in model.modules():
        if hasattr(module, "scaling") and hasattr(module, "r"):
            found[module] = module.scaling["default"]
    return {round(float(one), 9) for one in found.values()}


@pytest.mark.parametrize(
    "method",
    [
        lora(), lora(r=4, lora_alpha=6), rslora(), METHODS["dora"](), METHODS["pissa"](),
        as_method(peft.LoHaConfig(alpha=4)), as_method(peft.LoKrConfig(r=2, alpha=6)),
        as_method(peft.PsoftConfig(r=8, psoft_alpha=24)), as_method(peft.GraloraConfig(r=4, hybrid_r=2, alpha=12)),
    ],
    ids=lambda method: method.name,
)  # fmt: skip
def test_the_scale_of_the_update_is_kept(method: Method, folders: dict[str, str]) -> None:
    def scale_of(one: Method) -> set[float]:
        rank = one.peft_config.r  # type: ignore[union-attr]
        if one.name == "pissa":  # its rank by default is more than a tiny matrix has
            return {one.peft_config.lora_alpha / rank}  # type: ignore[union-attr]
        return scales(attach(make_model("llama"), one, seed=0, num_steps=None))

    sizes = {"dora": 2320, "LoHaConfig": 3712, "LoKrConfig": 900, "PsoftConfig": 196, "GraloraConfig": 3712}
    number = sizes.get(method.name, 2784)
    solved, found = allot(method, number, base=folders["llama"])
    assert found.value != method.peft_config.r  # type: ignore[union-attr]
    assert scale_of(solved) == scale_of(method) and len(scale_of(solved)) == 1


@pytest.mark.parametrize(("init_r", "target_r"), [(12, 8), (8, 2)])
def test_adalora_keeps_the_share_of_ranks_that_stays(init_r: int, target_r: int, folders: dict[str, str]) -> None:
    start = METHODS["adalora"](target_r=target_r, init_r=init_r, lora_alpha=24)
    method, found = allot(start, 942 * 6, base=folders["llama"])
    config: Any = method.peft_config
    assert (found.parameter, found.value, config.init_r) == ("init_r", 6, 6)
    assert config.target_r == round(6 * target_r / init_r)
    assert config.lora_alpha / config.init_r == pytest.approx(24 / init_r)


def test_a_prefix_written_by_a_network_counts_the_network(folders: dict[str, str]) -> None:
    _, found = allot(METHODS["prefix"](projection_size=16), 5000, base=folders["llama"])
    # 2 heads of 8 keys: 16 for each token; from there to 16 hidden units, and to keys and values of 2 layers.
    assert found.trainable == 16 * found.value + (16 * 16 + 16) + (16 * 64 + 64)


def test_modules_to_save_are_counted(folders: dict[str, str]) -> None:
    config = peft.LoraConfig(r=8, target_modules="all-linear", modules_to_save=["lm_head"])
    _, found = allot(as_method(config), 90 * 32 + 928 * 5 + 100, base=folders["llama"])
    assert (found.value, found.trainable) == (5, 90 * 32 + 928 * 5)


def test_few_sizes_are_counted(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    count = budgets._count
    monkeypatch.setattr(budgets, "_count", lambda *given: calls.append(0) or count(*given))  # type: ignore[func-returns-value]
    allot(METHODS["sadapter_p"](), 1_000_000, base=folders["llama"])
    allot(METHODS["prompt"](), 32 * 200, base=folders["llama"])
    assert len(calls) <= 12


@pytest.mark.parametrize("target", range(0, 130, 3))
@pytest.mark.parametrize("falling", [False, True])
def test_the_search_finds_the_first_of_any_steady_counts(target: int, falling: bool) -> None:
    for number, function in [
        (1, lambda i: 5 * i),
        (2, lambda i: i),
        (60, lambda i: i * i),
        (60, lambda i: min(i, 20)),
        (90, lambda i: 3 * i if i < 30 else math.inf),
        (90, lambda i: 2**i if i < 40 else math.inf),
        (60, lambda i: i // 7),
    ]:
        counts: Any = [120 - function(i) if falling else function(i) for i in range(number)]
        if falling and -math.inf in counts:
            continue
        right = [i for i in range(number) if (counts[i] <= target if falling else counts[i] >= target)]
        assert budgets._first(counts, target, falling=falling) == (right[0] if right else number)


@pytest.mark.parametrize(
    ("method", "number", "told"),
    [
        (METHODS["full"](), 1000, "full has no size to choose; on this model it trains 21,280 parameters"),
        (METHODS["lisa"](), 1000, "lisa has no size .* some layers at a time"),
        (METHODS["ln_tuning"](), 1000, "trains 160 parameters"),
        (METHODS["ia3"](), 1000, "trains 160 parameters"),
        (as_method(peft.SupertuningConfig()), 1000, "has no size to choose"),
        (lora(), 100, r"100, and no size .* 928 \(r 1\), of the smallest .* Ask for 928"),
        (lora(), 1_000_000, r"1,000,000, and no size of lora .* 29,696 \(r 32\), of the largest .* Ask for 29,696"),
        (lora(), 500, r"500, .* 928 \(r 1\)"),
        (METHODS["pissa"](), 32_000, r"14,848 \(r 16\)"),
        (METHODS["prompt"](), 32 * 1000, r"8,160 \(num_virtual_tokens 255\)"),
        (METHODS["freeze"](), 1000, r"\(num_layers 1\)"),
        (as_method(peft.LoraConfig(rank_pattern={"q_proj": 2})), 2000, r"model\.adapter\.rank_pattern"),
        (as_method(peft.FrodConfig()), 1000, "no size to choose"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_cannot_be_met_is_told_with_numbers(
    method: Method, number: int, told: str, folders: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=rf"^model\.budget: .*{told}"):
        allot(method, number, base=folders["llama"])


def test_biases_are_told_where_there_are_some(folders: dict[str, str]) -> None:
    count = sum(one.numel() for name, one in make_model("gpt2").named_parameters() if name.endswith("bias"))
    with pytest.raises(UserError, match=f"bitfit has no size .* {count:,} parameters, which are all biases"):
        allot(METHODS["bitfit"](), 1000, base=folders["gpt2"])


def test_a_trained_adapter_keeps_its_size(tmp_path: Path, folders: dict[str, str]) -> None:
    model = attach(make_model("llama"), lora(r=3), seed=0, num_steps=None)
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="is trained already and holds 2,784 parameters"):
        allot(METHODS["lora"]().__class__("trained", tmp_path / "adapter"), 1000, base=folders["llama"])


@pytest.mark.parametrize("number", [0, -5])
def test_no_parameters_are_no_budget(number: int) -> None:
    with pytest.raises(UserError, match=r"^model\.budget: "):
        budgets.check_budget(number)


def test_counting_needs_no_memory_for_the_weights(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=2).save_pretrained(str(tmp_path))
    _, found = allot(METHODS["lora"](), 2 * 39_040 * 4 * 100, base=str(tmp_path))
    assert found.trainable == found.value * 2 * (4 * 8192 + 3 * 15104)
    assert torch.get_default_device().type == "cpu"


def test_a_count_far_from_the_budget_is_said_not_to_be_of_equal_cost(folders: dict[str, str]) -> None:
    """Sizes are whole numbers: between two ranks, either is far from the budget."""
    counts = [allot(METHODS["lora"](), number, base=folders["llama"])[1] for number in (1400, 928)]
    assert "do not cost the same" in counts[0].note() and "do not cost the same" not in counts[1].note()
