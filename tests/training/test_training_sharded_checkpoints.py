"""Sharded checkpoints that were tampered with or are not whole are refused, and nothing in them is executed."""

import hashlib
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from ift.artifacts import RunFolder
from ift.errors import UserError
from ift.training.checkpoints import AtomicCheckpointIO, newest_checkpoint, resolve_checkpoint, steps_of
from ift.training.sharded_checkpoints import check_parts, check_whole, read_whole, save_sharded

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
    assert newest_checkpoint("--ckpt_path", run) == folder and resolve_checkpoint("last", run, required=True) == folder
    shutil.copytree(folder, folder.with_name("step-9.ckpt.tmp"))
    assert newest_checkpoint("--ckpt_path", run) == folder
    save_sharded(checkpoint(8), folder)  # another in its place
    assert read_whole(folder)["global_step"] == 8
    AtomicCheckpointIO().remove_checkpoint(folder)
    assert newest_checkpoint("--ckpt_path", run) == folder.with_name("step-5.ckpt")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-5.ckpt", "step-9.ckpt.tmp"]


def test_a_run_without_a_checkpoint_says_what_to_do_instead(tmp_path: Path) -> None:
    assert resolve_checkpoint("last", RunFolder(tmp_path), required=False) is None
    with pytest.raises(UserError, match=r"there is no checkpoint in .* Leave --ckpt_path out, or name a file\.$"):
        resolve_checkpoint("last", RunFolder(tmp_path), required=True)


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
        steps_of("--ckpt_path", folder)
        check_whole("--ckpt_path", folder)
        check_parts("--ckpt_path", folder)
    with pytest.raises((UserError, UnpicklingError)):  # by itself as well
        steps_of("--ckpt_path", folder)
        read_whole(folder)
    assert not Path("trap-was-sprung").exists()


@pytest.mark.parametrize("change", [spring, spring_inside, point_outside, cut_off, lose_a_part, empty_table])
def test_what_is_not_whole_shows_before_tensors_are_read(change: Callable[[Path], None], folder: Path) -> None:
    check_whole("--ckpt_path", folder)
    change(folder)
    with pytest.raises(UserError, match=r"--ckpt_path: '.*step-7\.ckpt"):
        check_whole("--ckpt_path", folder)


def test_any_change_of_any_file_is_noticed(folder: Path) -> None:
    chance = random.Random(5)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=f"--ckpt_path: '.*/{path.name}' (is damaged|was not written)"):
                check_whole("--ckpt_path", folder)
                check_parts("--ckpt_path", folder)
        path.write_bytes(whole)
    check_whole("--ckpt_path", folder)
    check_parts("--ckpt_path", folder)


def test_a_file_of_another_checkpoint_is_noticed(folder: Path) -> None:
    other = folder.with_name("step-8.ckpt")
    save_sharded({**checkpoint(8), "state_dict": {name: one + 1 for name, one in WEIGHTS.items()}}, other)
    check_parts("--ckpt_path", other)
    shutil.copy(other / "__0_0.distcp", folder)
    check_whole("--ckpt_path", folder)
    with pytest.raises(UserError, match=r"__0_0\.distcp' is damaged"):
        check_parts("--ckpt_path", folder)


def test_a_folder_without_sums_is_refused(folder: Path) -> None:
    """As those of before there were any."""
    AtomicCheckpointIO().save_checkpoint(torch.load(folder / "facts.pt", weights_only=True) | {"sha256": None}, "facts")
    shutil.move("facts", folder / "facts.pt")
    with pytest.raises(UserError, match="lacks the checksums of its files"):
        check_whole("--ckpt_path", folder)


@pytest.mark.parametrize("num_ranks", [1, 2, 5, 11])
def test_ranks_share_the_files_out(folder: Path, num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = folder.glob("*.distcp")
    names = [f"__{rank}_0.distcp" for rank in range(11)]
    for name in names[1:]:
        shutil.copy(part, folder / name)
    facts = torch.load(folder / "facts.pt", weights_only=True)
    facts["sha256"] |= dict.fromkeys(names, facts["sha256"][part.name])
    AtomicCheckpointIO().save_checkpoint(facts, folder / "facts.pt")
    opened: list[str] = []
    digest = hashlib.file_digest

    def noted(file: Any, algorithm: str) -> Any:
        opened.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr("hashlib.file_digest", noted)
    shares = []
    for rank in range(num_ranks):
        opened.clear()
        check_parts("--ckpt_path", folder, rank=rank, num_ranks=num_ranks)
        shares.append(sorted(opened))
    assert sorted(name for own in shares for name in own) == sorted(names)
    if num_ranks == len(names):
        assert shares == [[name] for name in names]  # each checks what it has written
