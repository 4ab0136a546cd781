"""`model.rope`: the angles are the papers', the config says what was set, and nothing impossible is set."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_llama
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from ift.errors import UserError
from ift.models.loading import load_base_model, max_positions, read_config
from ift.models.positions import positions_of, steady_length
from ift.models.rope import Rope, check_rope, with_rope

DIM, BASE, ORIGINAL = 16, 10000.0, 64
LONG = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
SHORT = [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with heads of 16, trained on 64 positions."""
    sizes = {"hidden_size": 64, "max_position_embeddings": ORIGINAL}
    return make_llama(tmp_path_factory.mktemp("rope") / "llama", 90, **sizes)


def plain(base: float = BASE) -> np.ndarray:
    return np.array([base ** (-2 * i / DIM) for i in range(DIM // 2)])


def ntk(factor: float, length: int) -> np.ndarray:
    """bloc97's and emozilla's: the base grows so that the lowest frequency is interpolated by what is beyond."""
    scale = factor * length / ORIGINAL - (factor - 1)
    return plain(BASE * scale ** (DIM / (DIM - 2)))


def yarn(factor: float, fast: float = 32, slow: float = 1) -> np.ndarray:
    """Peng et al. 2023, NTK-by-parts (section 3.2), with the bounds in whole dimensions as their code has them."""

    def dimension(turns: float) -> float:
        return DIM * math.log(ORIGINAL / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), DIM - 1)
    found = []
    for i, frequency in enumerate(plain()):
        interpolated = min(1.0, max(0.0, (i - low) / (high - low)))
        found.append(frequency * (1 - interpolated) + frequency / factor * interpolated)
    return np.array(found)


def llama3(factor: float) -> np.ndarray:
    """Llama 3.1's `apply_scaling`, by wavelength."""
    found = []
    for frequency in plain():
        wavelength = 2 * math.pi / frequency
        if wavelength < ORIGINAL / 4:
            found.append(frequency)
        elif wavelength > ORIGINAL / 1:
            found.append(frequency / factor)
        else:
            smooth = (ORIGINAL / wavelength - 1) / (4 - 1)
            found.append((1 - smooth) * frequency / factor + smooth * frequency)
    return np.array(found)


CASES: dict[str, tuple[Rope, int, np.ndarray, float]] = {
    "linear": (Rope("linear", 4.0), 200, plain() / 4, 1.0),
    "dynamic, short": (Rope("dynamic", 4.0), 64, plain(), 1.0),
    "dynamic, long": (Rope("dynamic", 4.0), 200, ntk(4.0, 200), 1.0),
    "yarn": (Rope("yarn", 4.0), 200, yarn(4.0), 0.1 * math.log(4) + 1),
    "yarn, own bounds": (Rope("yarn", 4.0, beta_fast=4.0, beta_slow=2.0, attention_factor=1.5), 9, yarn(4, 4, 2), 1.5),
    "llama3": (Rope("llama3", 8.0), 200, llama3(8.0), 1.0),
    "longrope, short": (
        Rope("longrope", 4.0, short_factor=SHORT, long_factor=LONG),
        64,
        plain() / SHORT,
        math.sqrt(1 + math.log(4) / math.log(64)),
    ),
    "longrope, long": (
        Rope("longrope", 4.0, short_factor=SHORT, long_factor=LONG),
        65,
        plain() / LONG,
        math.sqrt(1 + math.log(4) / math.log(64)),
    ),
    "theta": (Rope(theta=500000.0), 60, plain(500000.0), 1.0),
    "theta and linear": (Rope("linear", 2.0, theta=77.0), 60, plain(77.0) / 2, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_angles_are_the_papers(name: str, folder: Path) -> None:
    rope, length, frequencies, scale = CASES[name]
    model = load_base_model("model.base", str(folder), "float32", rope=rope)
    positions = torch.arange(length)[None]
    cosines, sines = model.model.rotary_emb(torch.zeros(1, length, 64), positions)
    angles = np.arange(length)[:, None] * np.concatenate([frequencies, frequencies])[None]
    np.testing.assert_allclose(cosines[0], np.cos(angles) * scale, atol=5e-5)
    np.testing.assert_allclose(sines[0], np.sin(angles) * scale, atol=5e-5)


def test_the_types_differ() -> None:
    """Otherwise the test above would not tell them apart."""
    found = [frequencies for _, _, frequencies, _ in CASES.values()]
    alike = {(a, b) for a in range(len(found)) for b in range(a) if np.allclose(found[a], found[b])}
    assert len(alike) == 0


@pytest.mark.parametrize("name", CASES)
def test_positions_grow_and_the_saved_model_keeps_them(name: str, folder: Path, tmp_path: Path) -> None:
    rope = CASES[name][0]
    expected = math.floor(ORIGINAL * (rope.factor or 1))
    assert max_positions(str(folder)) == ORIGINAL
    assert max_positions(str(folder), rope) == expected
    model = load_base_model("model.base", str(folder), "float32", rope=rope)
    model.save_pretrained(str(tmp_path))
    assert max_positions(str(tmp_path)) == expected
    assert max_positions(str(tmp_path), rope) == expected  # it is so already
    again = load_base_model("model.base", str(tmp_path), "float32").eval()
    ids = torch.arange(60)[None] % 90
    assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_the_base_models_own_config_is_left_alone(folder: Path) -> None:
    config = read_config(str(folder))
    before = config.to_dict()
    changed = with_rope(config, Rope("yarn", 4.0))
    assert config.to_dict() == before != changed.to_dict()
    assert with_rope(config, None) is config


@pytest.mark.parametrize("model_type", ["glm", "gpt_neox", "phi", "stablelm", "nemotron"])
def test_what_is_rotated_of_each_head_stays(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    share = config.rope_parameters["partial_rotary_factor"]
    changed = with_rope(config, Rope("yarn", 2.0))
    assert changed.rope_parameters["partial_rotary_factor"] == share < 1
    assert changed.rope_parameters["rope_type"] == "yarn"


def test_layers_with_a_window_keep_their_positions() -> None:
    changed = with_rope(AutoConfig.for_model("gemma3_text"), Rope("linear", 8.0))
    assert changed.rope_parameters["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    assert changed.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}


def test_phi3_keeps_its_second_place_of_original_positions() -> None:
    numbers = [2.0] * 48
    config = AutoConfig.for_model("phi3", original_max_position_embeddings=1024, max_position_embeddings=2048)
    changed = with_rope(config, Rope("longrope", 4.0, short_factor=numbers, long_factor=numbers))
    again = type(changed).from_dict(changed.to_dict())
    assert again.rope_parameters["original_max_position_embeddings"] == 2048
    assert (again.max_position_embeddings, again.original_max_position_embeddings) == (8192, 2048)


def llama_with(**rope: Any) -> Any:
    return LlamaConfig(max_position_embeddings=256, rope_parameters={"rope_theta": 1e4, **rope})


def test_a_model_that_is_scaled_already_is_not_scaled_twice() -> None:
    scaled = llama_with(rope_type="linear", factor=4.0)
    with pytest.raises(UserError, match=r"scaled already \(rope_type linear, factor 4.0\), to 256 positions. Leave"):
        with_rope(scaled, Rope("yarn", 2.0))
    with pytest.raises(UserError, match="scaled already"):
        with_rope(scaled, Rope("linear", 2.0))
    assert with_rope(scaled, Rope("linear", 4.0)).to_dict() == scaled.to_dict()
    assert with_rope(scaled, Rope("linear", 4.0, max_position_embeddings=256)).to_dict() == scaled.to_dict()
    with pytest.raises(UserError, match="scaled already"):
        with_rope(scaled, Rope("linear", 4.0, max_position_embeddings=512))
    replaced = with_rope(scaled, Rope("yarn", 8.0, original_max_position_embeddings=64))
    assert replaced.rope_parameters == {
        "rope_theta": 1e4,
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
    }
    assert positions_of(replaced) == 512
    assert with_rope(scaled, Rope(theta=5e5)).rope_parameters["factor"] == 4.0


def test_more_positions_may_be_claimed() -> None:
    """Llama 3.1 has 16 times the original positions with a factor of 8."""
    asked = Rope("llama3", 8.0, original_max_position_embeddings=8192, max_position_embeddings=131072)
    assert positions_of(with_rope(LlamaConfig(), asked)) == 131072
    assert positions_of(with_rope(LlamaConfig(), Rope(theta=1e6, max_position_embeddings=16384))) == 16384


@pytest.mark.parametrize("model_type", ["bloom", "gpt2", "opt", "codegen", "gptj", "mpt"])
def test_models_without_settable_rotation_are_refused(model_type: str) -> None:
    with pytest.raises(UserError, match=f"model.rope: '{model_type}' models have no rotary positions .* Leave"):
        check_rope(Rope("linear", 2.0), config=AutoConfig.for_model(model_type))


def test_a_model_whose_code_does_not_read_it_is_refused() -> None:
    from ift.models.families.baichuan import BAICHUAN_13B
    from ift.models.families.baichuan_alibi import BaichuanAlibiConfig

    BAICHUAN_13B.reader()  # made known to transformers
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 90}
    with pytest.raises(UserError, match="BaichuanAlibi.* does not read it; its positions are others"):
        check_rope(Rope("linear", 2.0), config=BaichuanAlibiConfig(**sizes))
    falcon = AutoConfig.for_model("falcon", alibi=True)
    with pytest.raises(UserError, match="'falcon' models have no rotary positions"):
        check_rope(Rope("linear", 2.0), config=falcon)
    check_rope(Rope("linear", 2.0), config=LlamaConfig(**sizes))
    with pytest.raises(UserError, match=r"'phi3' models do not take this: .*longrope"):
        check_rope(Rope("linear", 2.0), config=AutoConfig.for_model("phi3"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "neither a type of scaling nor another theta"),
        ({"type": "linear"}, r"model.rope.factor: None; 'linear' needs one of at least 1"),
        ({"type": "linear", "factor": 0.5}, r"model.rope.factor: 0.5; 'linear' needs"),
        ({"type": "linear", "factor": float("nan")}, "model.rope.factor: nan is not above 0"),
        ({"theta": -1.0}, "model.rope.theta: -1.0 is not above 0"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 3.0}, "model.rope.beta_fast: has no effect with type linear"),
        ({"theta": 1e6, "factor": 2.0}, "model.rope.factor: has no effect with type null"),
        ({"type": "ntk", "factor": 2.0}, "model.rope.type: .*ntk"),
        ({"type": "longrope", "factor": 2.0}, "needs short_factor and long_factor"),
        ({"type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [0.0]}, "not all numbers are above"),
        ({"type": "llama3", "factor": 2.0, "low_freq_factor": 9.0}, "high_freq_factor: is not above low_freq_factor"),
        ({"type": "yarn", "factor": 2.0, "beta_slow": 40.0}, "beta_fast: is not above beta_slow"),
        ({"type": "dynamic", "factor": 2.0, "max_position_embeddings": 9}, "follows from factor with type dynamic"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Rope(**settings)


def test_longrope_needs_a_number_for_each_frequency() -> None:
    with pytest.raises(UserError, match="model.rope.short_factor: 2 numbers, and the heads of this model have 64"):
        with_rope(LlamaConfig(), Rope("longrope", 2.0, short_factor=[1.0, 2.0], long_factor=[1.0] * 64))


ROPES = {name: CASES[name][0] for name in ("linear", "dynamic, long", "yarn", "llama3", "longrope, long", "theta")}


class TestCompany:
    """Does what else is in a batch change a text's logits? Of dynamic scaling and longrope, beyond a length."""

    @pytest.mark.parametrize("name", ROPES)
    def test_only_beyond_the_steady_length(self, name: str, folder: Path) -> None:
        rope = ROPES[name]
        model = load_base_model("model.base", str(folder), "float32", rope=rope).eval()
        steady = steady_length(with_rope(read_config(str(folder)), rope))
        assert steady == (ORIGINAL if rope.type in ("dynamic", "longrope") else None)
        ids = torch.randint(3, 90, (1, 150), generator=torch.Generator().manual_seed(0))

        def error(length: int, longest: int) -> float:
            """Return how far the logits of a text are from those it has beside a longer one, padded on the right."""
            with torch.no_grad():
                alone = model(input_ids=ids[:, :length]).logits[0]
                beside = model(input_ids=torch.cat([ids[:, :length], ids[:, : longest - length]], 1)).logits[0, :length]
            return float((alone - beside).abs().max())

        assert error(40, 60) < 1e-5
        far = max(error(50, 150), error(100, 150))
        assert far > 1e-4 if steady is not None else far < 1e-5

    @pytest.mark.parametrize("name", ["dynamic, long", "longrope, long"])
    def test_packed_rows_are_exact_within_it(self, name: str, folder: Path) -> None:
        """A row may be longer than that: positions begin anew with each example."""
        model = load_base_model("model.base", str(folder), "float32", rope=ROPES[name]).eval()
        ids = torch.randint(3, 90, (1, 120), generator=torch.Generator().manual_seed(0))
        positions = torch.cat([torch.arange(60), torch.arange(60)])[None]
        with torch.no_grad():
            packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
            for part in (slice(0, 60), slice(60, 120)):
                torch.testing.assert_close(packed[part], model(input_ids=ids[:, part]).logits[0], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("layers", ["of one kind", "of several"])
    def test_dynamic_scaling_forgets_longer_texts(self, layers: str, folder: Path, tmp_path: Path) -> None:
        if layers == "of several":
            sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = AutoConfig.for_model(
                "gemma3_text",
                **sizes,
                num_key_value_heads=1,
                head_dim=16,
                vocab_size=99,
                max_position_embeddings=64,
                layer_types=["sliding_attention", "full_attention"],
            )
            folder = tmp_path / "base"
            AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
        model = load_base_model("model.base", str(folder), "float32", rope=Rope("dynamic", 4.0)).eval()
        ids = torch.randint(3, 90, (1, 200), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for length in (64, 100):
                first = model(input_ids=ids[:, :length]).logits
                model(input_ids=ids)
                assert torch.equal(model(input_ids=ids[:, :length]).logits, first)
