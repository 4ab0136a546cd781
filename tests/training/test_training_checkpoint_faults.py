"""Damaged and foreign checkpoints are refused; a disk that cannot be written to leaves the last whole one."""

import pickle
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from killing import kept, output, run_child
from rank_runs import run_on_ranks

from ift.artifacts import RunFolder
from ift.cli import main
from ift.errors import UserError
from ift.training.checkpoints import AtomicCheckpointIO, check_checkpoint, resolve_checkpoint
from ift.training.module import InstructionModule
from ift.training.seals import check_seal

Config = Callable[..., Path]
Fit = Callable[..., Path]

SETTINGS: dict[str, Any] = {
    "data": {"global_batch_size": 5, "validation": None},
    "trainer": {"max_epochs": -1, "max_steps": 8},
    "checkpoint": {"every_n_train_steps": 2},
}


def test_any_change_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """Trap: torch.load returns changed weights without a word for most bits that are turned over."""
    path, chance = tmp_path / "one.ckpt", random.Random(3)
    weights = {"weights": torch.randn(400), "global_step": 3, "nested": {"list": [1, 2.5, "text"]}}
    AtomicCheckpointIO().save_checkpoint(weights, path)
    check_seal("--ckpt_path", path)
    loaded = torch.load(path, weights_only=True)
    assert torch.equal(loaded["weights"], weights["weights"]) and loaded["nested"] == weights["nested"]
    whole, silent = path.read_bytes(), 0
    for _ in range(150):
        damaged, place = bytearray(whole), chance.randrange(len(whole))
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with suppress(Exception):
            silent += not torch.equal(torch.load(path, weights_only=True)["weights"], weights["weights"])
        with pytest.raises(UserError, match="--ckpt_path"):
            check_seal("--ckpt_path", path)
    assert silent > 20  # so the check is needed
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole + b"\0", b"", whole[:100], whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="--ckpt_path"):
            check_seal("--ckpt_path", path)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100_000])
def test_a_seal_stands_whatever_is_written(size: int, tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    AtomicCheckpointIO().save_checkpoint({"tensor": torch.arange(size), "empty": torch.zeros(0)}, path)
    check_seal("--ckpt_path", path)
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["tensor"], torch.arange(size))
    assert [one.name for one in tmp_path.iterdir()] == ["one.ckpt"]


class Dangerous:
    """Pickled, it is a call of a function."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_changed_or_foreign_checkpoint_is_refused(
    config: Config, fit: Fit, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("run", **SETTINGS)
    run = fit(path)
    (checkpoint,) = run.glob("checkpoints/*.ckpt")
    whole, marker = checkpoint.read_bytes(), tmp_path / "executed"
    turned = bytearray(whole)
    turned[whole.index(b"lora_A") + 900] ^= 4
    changed = torch.load(checkpoint, weights_only=True)
    next(iter(changed["state_dict"].values())).add_(1.0)
    files: dict[str, Callable[[Path], Any]] = {
        "turned": lambda file: file.write_bytes(turned),
        "cut off": lambda file: file.write_bytes(whole[:-1000]),
        "empty": lambda file: file.write_bytes(b""),
        "edited": lambda file: torch.save(changed, file),
        "foreign": lambda file: torch.save({"model": {"w": torch.zeros(2)}, "epoch": 3}, file),
        "pickled": lambda file: file.write_bytes(pickle.dumps(Dangerous(marker))),
        "code in a zip": lambda file: torch.save({**changed, "state": Dangerous(marker)}, file),
        "text": lambda file: file.write_text("no checkpoint at all"),
        "weights": lambda file: shutil.copy(run / "adapter" / "adapter_model.safetensors", file),
        "folder": lambda file: file.mkdir(),
    }
    for name, write in files.items():
        file = tmp_path / f"{name}.ckpt"
        write(file)
        for place in (file, run / "checkpoints" / "step-99999999.ckpt"):
            if place != file:
                shutil.move(file, place)
            with pytest.raises(UserError, match=f"--ckpt_path: .*{place.name}"):
                found = resolve_checkpoint("last" if place != file else str(file), RunFolder(run), required=True)
                assert found is not None
                check_checkpoint(found, str(base))
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        assert not marker.exists(), name
    before = (run / "manifest.json").read_bytes()
    checkpoint.write_bytes(turned)
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2
    message = capsys.readouterr().err
    assert "is damaged or was changed" in message and checkpoint.name in message and "Traceback" not in message
    assert "No checkpoint beside it is intact." in message
    assert (run / "manifest.json").read_bytes() == before


def test_the_next_intact_checkpoint_is_named_and_gone_on_with(
    config: Config, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    often = {**SETTINGS, "checkpoint": {"every_n_train_steps": 2, "save_top_k": -1}}
    path = config("run", **often)
    run = fit(path)
    third, second, newest = sorted(run.glob("checkpoints/*.ckpt"))[-3:]
    turned = bytearray(newest.read_bytes())
    turned[turned.index(b"lora_A") + 900] ^= 4  # seen by its seal
    newest.write_bytes(turned)
    second.write_bytes(b"")  # seen when the newest is looked for
    for damaged in (second, newest):
        assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2
        message = capsys.readouterr().err
        assert f"'{damaged}'" in message and f"'{third}', of step {int(third.stem[-8:])}: after 'mv " in message
        if damaged == newest:
            assert main(["consolidate", str(run), "--output", str(tmp_path / "out")]) == 2
            assert f"'{third}', of step {int(third.stem[-8:])}: name that one." in capsys.readouterr().err
        source, target = re.findall(r"after 'mv (\S+) (\S+)'", message)[0]
        Path(source).rename(target)
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 0
    assert newest.is_file()


def test_a_run_dir_that_cannot_be_made_is_refused_by_its_key(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    path = str(config("run", run_dir=str(tmp_path / "file" / "run")))
    for more in ([], ["--ckpt_path", "last"]):
        assert main(["fit", "--config", path, *more]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: run_dir: ") and "is no folder that you can write to" in said


def test_weights_alone_are_not_resumed_from(config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    path = config("run", **{**SETTINGS, "checkpoint": {"every_n_train_steps": 2, "save_weights_only": True}})
    fit(path)
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2
    assert "checkpoint.save_weights_only" in capsys.readouterr().err
    assert main(["validate", "--config", str(path), "--ckpt_path", "last", "--data.validation", "8"]) == 0


def before_step(number: int, act: Callable[[], Any]) -> Callable[[], None]:
    """Return what lets a child do something before a step."""

    def patch() -> None:
        train = InstructionModule.training_step

        def acting(module: InstructionModule, step: Any, batch_idx: int) -> Any:
            if step.index == number:
                act()
            return train(module, step, batch_idx)

        InstructionModule.training_step = acting  # type: ignore[method-assign]

    return patch


def check_left_whole(path: Path, *, last: str = "step-00000004.ckpt") -> str:
    """Assert that a failed run has left its last checkpoint and nothing else; return what it said."""
    (checkpoint,) = path.with_suffix("").glob("checkpoints/*.ckpt")
    check_seal("--ckpt_path", checkpoint)
    assert kept(path.with_suffix("")) == [last]
    said = output(path)
    assert "Traceback" not in said, said
    return said


def check_goes_on(config: Config, path: Path, **settings: Any) -> None:
    assert run_child(path) == 0, output(path)
    reference = config("reference", **settings)
    assert run_child(reference) == 0, output(reference)
    assert largest_difference(reference.with_suffix(""), path.with_suffix("")) == 0


def test_a_file_that_cannot_grow_leaves_the_last_checkpoint(config: Config) -> None:
    path = config("run", **SETTINGS)
    limit = before_step(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY)))
    assert run_child(path, patch=limit) == 2, output(path)
    said = check_left_whole(path)
    assert "step-00000006.ckpt' could not be written: File too large" in said
    assert "The last whole checkpoint is 'step-00000004.ckpt'" in said and "--ckpt_path last" in said
    check_goes_on(config, path, **SETTINGS)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """Mount small file systems in memory; skips where that is not allowed."""
    mounted: list[Path] = []

    def do(folder: Path, kilobytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(folder)

    yield do
    for folder in reversed(mounted):
        for _ in range(3):  # what a test has mounted over it as well
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def fill(folder: Path) -> None:
    """Leave no room in a file system."""
    with (folder / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"\0" * 4096)


@pytest.mark.parametrize("what", ["checkpoints", "run"])
def test_a_full_disk_leaves_the_last_checkpoint(what: str, config: Config, mount: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mount(disk, 4096)
    path = config("run", run_dir=str(disk / "run"), **SETTINGS)
    run = disk / "run"
    if what == "checkpoints":
        mount(run / "checkpoints", 1024)
    assert run_child(path, patch=before_step(5, lambda: fill(run / "checkpoints"))) == 2, output(path)
    (run / "checkpoints" / "filler").unlink()
    (checkpoint,) = run.glob("checkpoints/*")
    assert checkpoint.name == "step-00000004.ckpt"
    check_seal("--ckpt_path", checkpoint)
    said = output(path)
    assert "Traceback" not in said and "No space left on device" in said
    if what == "checkpoints":
        assert "'step-00000004.ckpt'; mend that and go on with --ckpt_path last" in said
    assert run_child(path) == 0, output(path)
    reference = config("reference", **SETTINGS)
    assert run_child(reference) == 0
    assert largest_difference(reference.with_suffix(""), run) == 0


def test_a_folder_made_read_only_leaves_the_last_checkpoint(config: Config, mount: Any) -> None:
    path = config("run", **SETTINGS)
    folder = path.with_suffix("") / "checkpoints"
    mount(folder, 1024)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)

    assert run_child(path, patch=before_step(5, lambda: remount("ro"))) == 2, output(path)
    assert "could not be written: Read-only file system. The last whole checkpoint is" in check_left_whole(path)
    remount("rw")
    check_goes_on(config, path, **SETTINGS)


def test_a_mount_that_vanishes_is_not_replaced_by_a_folder(config: Config, mount: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mount(disk, 4096)
    path = config("run", run_dir=str(disk / "run"), **SETTINGS)
    vanish = before_step(5, lambda: subprocess.run(["umount", "-l", str(disk)], check=True))
    assert run_child(path, patch=vanish) == 2, output(path)
    assert "the run folder is gone (a mount that vanished?)" in output(path) and "Traceback" not in output(path)
    assert not list(disk.iterdir())


@pytest.mark.slow
def test_nobody_waits_for_a_rank_that_cannot_write(config: Config, mount: Any, tmp_path: Path) -> None:
    """Ranks that nobody ends with the first one, so that each has to find its own way out."""
    path = config("run", **SETTINGS)
    mount(path.with_suffix("") / "checkpoints", 16)
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    (said,) = run_on_ranks(tmp_path / "ranks", [["fit", "--config", str(path), "--ckpt_path", "last", *two]])
    assert said.startswith("[2, 2]"), said
    assert "step-00000002.ckpt' could not be written: No space left on device" in said
    assert "another rank could not write" in said and "Traceback" not in said
