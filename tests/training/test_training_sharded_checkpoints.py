"""Sharded checkpoints that were tampered with or are not whole are refused, and nothing in them is executed."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from ift.artifacts import RunFolder
from ift.errors import UserError
from ift.training.checkpoints import AtomicCheckpointIO, newest_checkpoint, resolve_checkpoint, steps_of
from ift.training.sharded_checkpoints import check_whole, read_whole, save_sharded

WEIGHTS = {"model.a": torch.arange(12.0).reshape(4, 3), "model.b": torch.ones(5, dtype=torch.bfloat16)}
STATE = {0: {"step": torch.tensor(7.0), "exp_avg": torch.full((4, 3), 0.5)}, 1: {"momentum_buffer": None}}


class Trap:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("trap-was-sprung",)


def checkpoint(step: int) -> dict[str, Any]:
    groups = [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1]}]
    facts = {"global_step": step, "ift": {"base": "here", "base_fingerprint": "none"}, "loops": {"fit_loop": {}}}
    return {**facts, "state_dict": dict(WEIGHTS), "optimizer_states": [{"state": STATE, "param_groups": groups}]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of step 7 in a run folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()  # as a run has it
    place = tmp_path / "run/checkpoints/step-7.ckpt"
    save_sharded(checkpoint(7), place)
    return place


def test_what_was_saved_comes_back(folder: Path) -> None:
    found = AtomicCheckpointIO().load_checkpoint(folder, weights_only=True)
    assert found.keys() == checkpoint(7).keys() and found["global_step"] == 7
    for name, value in WEIGHTS.items():
        torch.testing.assert_close(found["state_dict"][name], value, atol=0, rtol=0)
    (state,) = found["optimizer_states"]
    torch.testing.assert_close(state["state"], STATE, atol=0, rtol=0)
    assert state["param_groups"] == checkpoint(7)["optimizer_states"][0]["param_groups"]


def test_the_newest_is_found_and_what_is_not_whole_is_not(folder: Path) -> None:
    run = RunFolder(folder.parents[1])
    torch.save(checkpoint(5), folder.with_name("step-5.ckpt"))
    assert newest_checkpoint(run) == folder and resolve_checkpoint("last", run, required=True) == folder
    shutil.copytree(folder, folder.with_name("step-9.ckpt.tmp"))
    assert newest_checkpoint(run) == folder
    save_sharded(checkpoint(8), folder)  # another in its place
    assert read_whole(folder)["global_step"] == 8
    AtomicCheckpointIO().remove_checkpoint(folder)
    assert newest_checkpoint(run) == folder.with_name("step-5.ckpt")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-5.ckpt", "step-9.ckpt.tmp"]


def spring(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Trap()))


def spring_inside(folder: Path) -> None:
    table: Any = pickle.loads((folder / ".metadata").read_bytes())
    table.planner_data = Trap()
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def point_outside(folder: Path) -> None:
    table: Any = pickle.loads((folder / ".metadata").read_bytes())
    for place in table.storage_data.values():
        object.__setattr__(place, "relative_path", "../" + place.relative_path)
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def spring_in_tensors(folder: Path) -> None:
    written = io.BytesIO()
    torch.save(Trap(), written)
    (file,) = folder.glob("*.distcp")
    file.write_bytes(written.getvalue() + bytes(file.stat().st_size))


def spring_in_facts(folder: Path) -> None:
    torch.save({**torch.load(folder / "facts.pt", weights_only=True), "trap": Trap()}, folder / "facts.pt")


def cut_off(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_a_part(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.unlink()


def empty_table(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({})))


@pytest.mark.parametrize(
    "change",
    [spring, spring_inside, point_outside, spring_in_tensors, spring_in_facts, cut_off, lose_a_part, empty_table],
)
def test_what_was_tampered_with_is_refused_and_not_executed(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    with pytest.raises(UserError, match=r"--ckpt_path: '.*step-7\.ckpt"):
        steps_of(folder)
        check_whole(folder)
        read_whole(folder)
    assert not Path("trap-was-sprung").exists()


@pytest.mark.parametrize("change", [spring, spring_inside, point_outside, cut_off, lose_a_part, empty_table])
def test_what_is_not_whole_shows_before_tensors_are_read(change: Callable[[Path], None], folder: Path) -> None:
    check_whole(folder)
    change(folder)
    with pytest.raises(UserError, match=r"--ckpt_path: '.*step-7\.ckpt"):
        check_whole(folder)
