"""`ift consolidate`: a checkpoint as one folder, equal to what the run itself wrote at its end."""

import io
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import run_on_ranks
from safetensors.torch import load_file
from tiny import make_llama
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ift.cli import main
from ift.errors import UserError
from ift.training.sharded_checkpoints import FACTS, METADATA, save_sharded
from ift.training.sharded_tensors import deferred_weights

Config = Callable[..., Path]
Fit = Callable[..., Path]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(str(path))
    return found


def assert_same_folder(folder: Path, expected: Path) -> None:
    ours, theirs = tensors(folder), tensors(expected)
    assert ours.keys() == theirs.keys()
    assert ours
    assert all(torch.equal(ours[name], one) and ours[name].dtype == one.dtype for name, one in theirs.items())
    plain = {
        path.name: path.read_text(encoding="utf-8") for path in expected.glob("*.json") if "index" not in path.name
    }
    assert {name: (folder / name).read_text() for name in plain} == plain


PEAK = """
import itertools, sys
from torch.profiler import ProfilerActivity, profile
from ift.cli import main
from ift.errors import UserError
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
    assert main(["consolidate", *sys.argv[1:]]) == 0
events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
print(max(itertools.accumulate(sizes)))
"""
"""A program that tells the largest sum of what was allocated at a time; nothing else has run in its process."""


def consolidate(source: Path, output: Path, *options: str) -> Path:
    assert main(["consolidate", str(source), "--output", str(output), *options, "--debug"]) == 0
    return output


def as_of_many_ranks(run: Path) -> Path:
    """Rewrite a run's checkpoint of one file as a folder, as fsdp has it, and return that."""
    (path,) = (run / "checkpoints").glob("*.ckpt")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    path.unlink()
    save_sharded(checkpoint, path)
    return path


def whole(**model: Any) -> dict[str, Any]:
    return {"trainer": {"max_epochs": 1}, "model": {"adapter": None, **model}}


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"adapter": None},
        {"adapter": {"class_path": "freeze", "init_args": {"num_layers": 1}}, "dtype": "bfloat16"},
        {"adapter": {"class_path": "dora"}},
        {"adapter": {"class_path": "pissa", "init_args": {"r": 4}}},
    ],
    ids=["lora", "full", "some_layers", "dora", "pissa"],
)
def test_equals_what_the_run_exported(config: Config, fit: Fit, tmp_path: Path, model: dict[str, Any]) -> None:
    run = fit(config(trainer={"max_epochs": 1}, model=model))
    exported = next(run / name for name in ("adapter", "model") if (run / name).is_dir())
    assert_same_folder(consolidate(run, tmp_path / "of_file"), exported)
    assert_same_folder(consolidate(as_of_many_ranks(run), tmp_path / "of_ranks", "--shard_size", "20KB"), exported)


def test_two_ranks_leave_what_one_process_puts_together(config: Config, tmp_path: Path) -> None:
    path = config(**whole())
    (outcome,) = run_on_ranks(
        tmp_path / "ranks", [["fit", "--config", str(path), "--trainer.devices=2", "--trainer.strategy=fsdp"]]
    )
    assert not outcome, outcome
    run = path.with_suffix("")
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    output = consolidate(run, tmp_path / "output", "--shard_size", "50KB")
    assert len(list(output.glob("*.safetensors"))) > 1
    assert_same_folder(output, run / "model")
    assert AutoModelForCausalLM.from_pretrained(str(output)).num_parameters() > 0
    assert len(AutoTokenizer.from_pretrained(str(output))) > 0


def test_memory_holds_one_file_and_one_tensor(config: Config, fit: Fit, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6}
    rows = AutoConfig.from_pretrained(str(base)).vocab_size
    make_llama(tmp_path / "base", rows, **sizes)
    run = fit(config(trainer={"max_steps": 1}, model={"adapter": None, "base": str(tmp_path / "base")}))
    checkpoint = as_of_many_ranks(run)
    output = tmp_path / "output"
    command = [sys.executable, "-c", PEAK, str(checkpoint), "--output", str(output), "--shard_size", "100KB"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout.splitlines()[-1])
    written = [one.nbytes for one in tensors(output).values()]
    assert sum(written) > 1_500_000
    # A tensor, the part of it that is read, and what they are copied to.
    assert peak < 100_000 + 4 * max(written)


def test_nothing_is_executed_and_nothing_half_written_stays(
    config: Config, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(config(**whole()))
    checkpoint = as_of_many_ranks(run)
    (checkpoint / METADATA).write_bytes(_planting(tmp_path / "planted"))
    output = tmp_path / "output"
    assert main(["consolidate", str(run), "--output", str(output)]) == 2
    assert ".metadata' is damaged or was changed" in capsys.readouterr().err
    assert not (tmp_path / "planted").exists()
    assert [path.name for path in tmp_path.iterdir() if "output" in path.name] == []


def _planting(path: Path) -> bytes:
    class Planting:
        def __reduce__(self) -> Any:
            return (Path.touch, (path,))

    stream = io.BytesIO()
    pickle.dump(Planting(), stream)
    return stream.getvalue()


def test_damage_leaves_nothing(config: Config, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(config(**whole()))
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")

    def refused(file: Path, damaged: bytes, told: str) -> None:
        kept = file.read_bytes()
        file.write_bytes(damaged)
        assert main(["consolidate", str(checkpoint), "--output", str(tmp_path / "output")]) == 2
        said = capsys.readouterr().err
        assert f"RUN_OR_CHECKPOINT: '{file}' {told}" in said and "Traceback" not in said
        assert [path.name for path in tmp_path.iterdir() if "output" in path.name] == []
        file.write_bytes(kept)

    refused(checkpoint, one_bit_turned(checkpoint), "is damaged or was changed")
    (part,) = as_of_many_ranks(run).glob("*.distcp")
    refused(part, part.read_bytes()[:-100], "is missing or was cut off")
    refused(part, one_bit_turned(part), "is damaged or was changed")  # of what is not read: weights come first in it
    facts = checkpoint / FACTS
    refused(facts, one_bit_turned(facts), "is damaged or was changed")


def one_bit_turned(path: Path) -> bytes:
    """Return a file's bytes with one bit turned over in the last tensor, of the optimizer, and nowhere else."""
    whole = bytearray(path.read_bytes())
    whole[-1500] ^= 1
    return bytes(whole)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}", "--output", "{run}"], "nothing is ever overwritten"),
        (["{run}", "--output", "{new}", "--shard_size", "5"], "--shard_size: '5' is no size"),
        (["{run}", "--output", "{new}"], "RUN_OR_CHECKPOINT: there is no checkpoint in "),
        (["{new}", "--output", "{new}"], "is neither a run folder"),
        (["{run}/manifest.json", "--output", "{new}"], "does not lie in a run folder"),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    given = [one.format(run=run, new=tmp_path / "new") for one in arguments]
    assert main(["consolidate", *given]) == 2
    assert told in capsys.readouterr().err


def test_a_checkpoint_of_another_method_is_refused(
    config: Config, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = fit(config("one", trainer={"max_epochs": 1})), fit(config("other", **whole()))
    shutil.rmtree(one / "checkpoints")
    shutil.copytree(other / "checkpoints", one / "checkpoints")
    assert main(["consolidate", str(one), "--output", str(tmp_path / "output")]) == 2
    assert "RUN_OR_CHECKPOINT: the checkpoint is of another model or adapter" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_named_as_it_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    (run / "checkpoints" / "step-7.ckpt").write_text("not one")
    assert main(["consolidate", str(run), "--output", str(tmp_path / "output")]) == 2
    said = capsys.readouterr().err
    assert "RUN_OR_CHECKPOINT: '" in said and "step-7.ckpt' cannot be read as a checkpoint" in said
    assert "--ckpt_path" not in said


@pytest.mark.parametrize("table", [pickle.dumps(7), b"not one"])
def test_a_table_that_cannot_be_read_is_named_as_it_was_given(tmp_path: Path, table: bytes) -> None:
    (tmp_path / METADATA).write_bytes(table)
    with pytest.raises(UserError, match=r"^RUN_OR_CHECKPOINT: '.*\.metadata' .*[^.]\. Take another checkpoint\.$"):
        deferred_weights("RUN_OR_CHECKPOINT", tmp_path, {})
