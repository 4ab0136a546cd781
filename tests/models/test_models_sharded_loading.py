"""Models whose weights stay in their files: equal to those that were loaded whole, and never whole in one process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from original_checkpoints import write_checkpoint
from original_families import CHECKPOINTS
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ift.errors import UserError
from ift.models import deferred, methods
from ift.models.adapters import attach
from ift.models.deferred import Deferred
from ift.models.deferred_files import deferred_tensors
from ift.models.families.normalized_head import settle_heads
from ift.models.loading import load_base_model
from ift.models.quantization import Quantization
from ift.models.sharded_loading import can_defer, read_sharded

RANKS = Path(__file__).parent / "sharding_ranks.py"
CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LARGER = {**SIZES, "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "larger": ("llama", LARGER),
    "tied": ("qwen2", {**SIZES, "tie_word_embeddings": True}),
    "experts": ("mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),  # joined while they are read
    "transposed": ("gpt2", {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "t5": ("t5", {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
}
LORA = {"method": "lora", "settings": {"lora_dropout": 0.0}}
DORA = {"method": "dora", "settings": {"lora_dropout": 0.0}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random models in bfloat16, in shards."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name, (kind, settings) in MODELS.items():
        more = {"decoder_start_token_id": 0, "pad_token_id": 0, "is_encoder_decoder": True} if kind == "t5" else {}
        config = AutoConfig.for_model(kind, **settings, **more)
        torch.manual_seed(1)
        model = (AutoModelForSeq2SeqLM if more else AutoModelForCausalLM).from_config(config).to(torch.bfloat16)
        model.save_pretrained(str(root / name), max_shard_size="2MB" if name == "larger" else "40KB")
        found[name] = str(root / name)
    return found


def run_on_ranks(folder: Path, cases: dict[str, dict[str, Any]], *, ranks: int = 2) -> list[dict[str, Any]]:
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    outputs = [folder / f"rank-{rank}.json" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        log = (folder / f"rank-{rank}.log").open("w", encoding="utf-8")
        arguments = [str(folder / "cases.json"), str(rank), str(ranks), str(folder / "store"), str(output)]
        processes.append(subprocess.Popen([sys.executable, str(RANKS), *arguments], stdout=log, stderr=log))
    try:
        for process in processes:
            process.wait(timeout=240)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, output in enumerate(outputs):
        assert output.is_file(), (folder / f"rank-{rank}.log").read_text(encoding="utf-8")[-6000:]
    return [json.loads(output.read_text(encoding="utf-8")) for output in outputs]


def test_two_ranks_hold_what_one_process_would(folders: dict[str, str], tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "full": {"base": "larger", "dtype": "float32", "method": "full"},
        "lora": {"base": "larger", "dtype": "float32", **LORA},
        "full_as_stored": {"base": "larger", "dtype": "bfloat16", "method": "full"},
        "dora": {"base": "llama", "dtype": "float32", **DORA},
        "tied": {"base": "tied", "dtype": "float32", **LORA},
        "experts": {"base": "experts", "dtype": "float32", **LORA},
        "transposed": {"base": "transposed", "dtype": "float32", **DORA},
        "t5": {"base": "t5", "dtype": "bfloat16", "method": "full"},
        "enlarged": {"base": "tied", "dtype": "float32", "gained": 5, **LORA},
    }
    for case in cases.values():
        case["base"] = folders[case["base"]]
    for found in run_on_ranks(tmp_path, cases):
        for name, one in found.items():
            assert one["differing"] == [], name
            assert one["logits"] == 0, name
        for name in ("full", "lora", "full_as_stored"):
            one = found[name]
            assert one["own_bytes"] <= one["model_bytes"] // 2 + one["largest_bytes"], name
            held = one["own_bytes"] + one["adapter_bytes"] + one["largest_bytes"]
            assert one["peak_bytes"] < held + (1 << 18), name
        # That the measure sees a whole model, where the dtype is not the files'.
        assert found["full"]["peak_bytes_of_whole"] >= found["full"]["model_bytes"]


def both(base: str, dtype: Any = "float32", method: str = "lora") -> tuple[Any, Any]:
    """Return a model that was loaded whole, and one whose weights were read at the end."""
    whole, read = (load_base_model("model.base", base, dtype, deferred=put_off) for put_off in (False, True))
    unread = [one for one in read.parameters() if isinstance(one, Deferred)]
    assert sum(one.numel() for one in unread) > 0.8 * sum(one.numel() for one in read.parameters())
    settings = {"lora_dropout": 0.0} if "ora" in method else {}
    whole, read = (attach(model, getattr(methods, method)(**settings), seed=3, num_steps=5) for model in (whole, read))
    for model in (whole, read):
        settle_heads(model)
    read_sharded(read, lambda model: None, device=CPU)
    return whole, read


def assert_equal(whole: Any, read: Any) -> None:
    theirs, ours = whole.state_dict(), read.state_dict()
    assert list(theirs) == list(ours)
    for name, one in theirs.items():
        assert type(ours[name]) is torch.Tensor
        assert one.dtype == ours[name].dtype
        assert torch.equal(one, ours[name]), name
    buffers = dict(read.named_buffers())
    for name, one in whole.named_buffers():
        assert torch.equal(one, buffers[name]), name
    trained, own = ({n for n, one in model.named_parameters() if one.requires_grad} for model in (whole, read))
    assert trained == own
    assert whole.config.to_dict() == read.config.to_dict()
    assert whole.generation_config.to_dict() == read.generation_config.to_dict()
    assert type(whole) is type(read)
    assert [module.training for module in whole.modules()] == [module.training for module in read.modules()]


@pytest.mark.parametrize(
    ("name", "files"), [*((name, "safetensors") for name in sorted(CHECKPOINTS)), ("chatglm", "bin")]
)
def test_checkpoints_of_2023_are_renamed_and_split_all_the_same(name: str, files: Any, tmp_path: Path) -> None:
    write_checkpoint(CHECKPOINTS[name]().in_dtype(torch.bfloat16), tmp_path / name, files=files, shards=2)
    assert_equal(*both(str(tmp_path / name), method="dora"))


METHODS = ("full", "lora", "dora", "ln_tuning", "ia3", "prompt", "prefix", "embeddings", "freeze")


@pytest.mark.parametrize("method", METHODS)
def test_methods_begin_with_the_same_values(method: str, folders: dict[str, str]) -> None:
    assert_equal(*both(folders["llama"], "bfloat16", method))


def test_tied_weights_are_one_tensor_read_once(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_base_model("model.base", folders["tied"], "float32", deferred=True)
    reading = read_sharded(model, lambda model: None, device=CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert reading.own_bytes == reading.model_bytes == sum(one.nbytes for one in model.parameters())


def test_only_the_asked_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.arange(64.0).reshape(16, 4), "b": torch.arange(8.0)}, tmp_path / "model.safetensors")
    tensors = deferred_tensors(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-40])
    halves = torch.split(tensors["a"], 8)  # "b" lies behind it and is cut off
    read = [one.rows(0, 2) for one in halves if isinstance(one, Deferred)]
    assert [one.tolist()[0][0] for one in read] == [0.0, 32.0]
    with pytest.raises(OSError, match="ends before"):
        tensors["b"].in_memory()  # type: ignore[attr-defined]


def operations() -> dict[str, Any]:
    """Operations on a matrix `(6, 4)` and another one of its shape, which must give what they give on plain ones."""
    return {
        "cast": lambda a, b: a.to(torch.bfloat16),
        "rows": lambda a, b: a[2:5],
        "rows_from_the_end": lambda a, b: a[-3:-1],
        "every_second": lambda a, b: a[::2],
        "columns": lambda a, b: a[:, 1:3],
        "split": lambda a, b: torch.split(a, [1, 2, 3])[2],
        "split_columns": lambda a, b: torch.split(a, 2, dim=1)[1],
        "chunk": lambda a, b: torch.chunk(a, 3)[2],
        "joined": lambda a, b: torch.cat([a, b[:3], b])[5:11],
        "joined_columns": lambda a, b: torch.cat([a, b], dim=-1)[4:],
        "stacked": lambda a, b: torch.stack([a, b, a])[1:],
        "stacked_inside": lambda a, b: torch.stack([a, b], dim=1),
        "transposed": lambda a, b: a.t()[1:3],
        "reshaped": lambda a, b: a.reshape(2, 3, 4).transpose(1, 2)[1],
        "permuted_for_rotations": lambda a, b: a.view(1, 3, 2, 4).transpose(1, 2).reshape(6, 4).contiguous(),
        "chosen": lambda a, b: torch.cat([a, b]).unsqueeze(0).squeeze(0)[4],
        "computed": lambda a, b: a.float() @ b.float().T + a.sum(),
        "equal": lambda a, b: torch.tensor(torch.equal(a, a)),
        "copied": lambda a, b: torch.zeros(6, 4).copy_(a),
    }


@pytest.mark.parametrize("name", operations())
@pytest.mark.parametrize("buffer_bytes", [1, 1 << 20])
def test_operations_give_what_they_give_on_plain_tensors(
    name: str, buffer_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred, "BUFFER_BYTES", buffer_bytes)
    torch.manual_seed(0)
    plain = {"a": torch.randn(6, 4), "b": torch.randn(6, 4)}
    save_file(plain, tmp_path / "model.safetensors")
    unread = deferred_tensors(tmp_path / "model.safetensors")
    operation = operations()[name]
    expected, found = operation(plain["a"], plain["b"]), operation(unread["a"], unread["b"])
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert torch.equal(found.in_memory() if isinstance(found, Deferred) else found, expected)


def test_nothing_can_be_written_into_what_is_not_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    unread = deferred_tensors(tmp_path / "model.safetensors")["a"]
    parameter = nn.Parameter(unread, requires_grad=False)
    for write in (
        lambda: parameter.add_(1),
        lambda: parameter.copy_(torch.zeros(2, 2)),
        lambda: parameter[0].zero_(),
        lambda: setattr(parameter, "data", torch.zeros(2, 2)),
        lambda: setattr(parameter, "data", parameter.data.to(torch.bfloat16)),
    ):
        with pytest.raises(RuntimeError, match="not read yet"):
            write()
    assert torch.equal(parameter.in_memory(), torch.ones(2, 2))  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", ["missing", "mismatched", "truncated", "garbage"])
def test_wrong_files_are_refused_as_ever(damage: str, tmp_path: Path, folders: dict[str, str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "model.safetensors"
    tensors = load_file(str(path))
    if damage == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif damage == "mismatched":
        tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, path, metadata={"format": "pt"})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "garbage":
        path.write_bytes(b"weights")
    said = []
    for put_off in (False, True):
        with pytest.raises(UserError) as refusal:
            load_base_model("model.base", str(tmp_path), "float32", deferred=put_off)
        said.append(str(refusal.value))
    assert said[0] == said[1]


def test_tells_which_way_is_taken(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    base = folders["llama"]
    plain: dict[str, Any] = {"quantization": None, "merged": False, "method": methods.lora()}
    assert can_defer("model.base", base, **plain)
    assert "every rank reads its own rows" in capsys.readouterr().err
    assert can_defer("model.base", base, **plain, ranks=False)
    assert not capsys.readouterr().err
    for other, reason in (
        ({"quantization": Quantization("nf4")}, "its weights are quantized while they are read"),
        ({"merged": True}, "adapters are merged into it"),
        ({"method": methods.pissa()}, "pissa begins with a part of its weights"),
    ):
        with pytest.warns(UserWarning, match=reason):
            assert not can_defer("model.base", base, **{**plain, **other})
        assert not can_defer("model.base", base, **{**plain, **other}, ranks=False)
        assert f"all of '{base}' is loaded into memory, as {reason}" in capsys.readouterr().err
