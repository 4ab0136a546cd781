"""Killed at any place and resumed, a run ends with the weights, curves, results and files of one that was not."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import largest_difference
from killing import curves, kept, kill_now, output, run_child
from tiny import make_rows

from ift.training.kept_checkpoints import RunCheckpoint
from ift.training.module import InstructionModule
from ift.training.run_folder import RunFolderWriter
from ift.training.samples import SampleResponses

Config = Callable[..., Path]

LORA = {
    "class_path": "peft.LoraConfig",
    "init_args": {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.2},
}
# 40 examples less 8 for validation, 5 a step: 7 steps an epoch, the last with 2 examples.
SETTINGS: dict[str, Any] = {
    "model": {"adapter": LORA},
    "data": {"global_batch_size": 5},
    "trainer": {"max_epochs": 2, "val_check_interval": 4, "log_every_n_steps": 3},
    "checkpoint": {"every_n_train_steps": 2},
}


def once_before(owner: Any, name: str, when: Callable[..., bool], *, flag: Path, after: bool = False) -> None:
    """Let a method kill this process, once in all sessions, before or after it does its work."""
    method = getattr(owner, name)

    def killing(self: Any, *arguments: Any, **options: Any) -> Any:
        now = not flag.exists() and when(self, *arguments, **options)
        if now:
            flag.touch()
            if not after:
                kill_now()
        result = method(self, *arguments, **options)
        if now:
            kill_now()
        return result

    setattr(owner, name, killing)


def at_place(place: str, flag: Path) -> Callable[[], None]:
    """Return what lets a child kill itself at a place, the first time that it comes there."""

    def patch() -> None:
        if place == "begin":
            from ift.training import run_folder

            write = run_folder.write_json

            def dying(path: Path, value: Any) -> None:  # in the middle of writing what goes into the folder
                if path.name == "template.json" and not flag.exists():
                    flag.touch()
                    kill_now()
                write(path, value)

            run_folder.write_json = dying
        elif place == "step":
            once_before(InstructionModule, "training_step", lambda *_: _[1].index == 5, flag=flag)
        elif place == "validation":  # at step 4, which has a checkpoint from before the validation
            once_before(
                InstructionModule, "validation_step", lambda m, _, i: m.trainer.global_step == 4 and i == 1, flag=flag
            )
        elif place == "after a validation":  # whose result is written, and flushed with the samples
            once_before(SampleResponses, "on_validation_end", lambda *_: _[1].global_step == 4, flag=flag, after=True)
        elif place == "writing":
            replace = os.replace

            def torn(source: Any, target: Any) -> None:
                if str(target).endswith("00000006.ckpt") and not flag.exists():
                    flag.touch()
                    os.truncate(source, os.path.getsize(source) // 2)
                    kill_now()
                replace(source, target)

            os.replace = torn  # type: ignore[assignment]
        elif place == "removing":  # the new checkpoint is there, the old one is not removed
            once_before(RunCheckpoint, "_remove_checkpoint", lambda *_: "00000006" in _[2], flag=flag)
        elif place == "last validation":
            once_before(InstructionModule, "validation_step", lambda m, *_: m.trainer.global_step == 12, flag=flag)
        elif place == "export":  # the adapter is complete under another name
            once_before(Path, "rename", lambda path, _: path.name == "adapter.tmp", flag=flag)
        elif place == "exported":
            once_before(RunFolderWriter, "_export", lambda *_: True, flag=flag, after=True)

    return patch


def check_same(reference: Path, run: Path) -> None:
    """Assert that all that a run leaves is that of another."""
    assert largest_difference(reference, run) == 0
    assert curves(run) == curves(reference) and len(curves(run)["train/loss"]) > 2
    assert kept(run) == kept(reference)
    assert (run / "losses.jsonl").read_text() == (reference / "losses.jsonl").read_text()
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith("config.session")) == sorted(
        path.name for path in reference.iterdir()
    )
    one, two = (json.loads((folder / "manifest.json").read_text()) for folder in (reference, run))
    for name in ("status", "steps", "validation", "exported", "fingerprint"):
        assert one[name] == two[name], name
    assert one["last_logged"]["train/loss"] == two["last_logged"]["train/loss"]
    assert one["last_logged"]["step"] == two["last_logged"]["step"]


PLACES = (
    "begin",
    "step",
    "validation",
    "after a validation",
    "writing",
    "removing",
    "last validation",
    "export",
    "exported",
)


def test_killed_at_every_kind_of_place(config: Config, tmp_path: Path) -> None:
    # Validation after the steps 4, 8 and 12, the last; the last entry of the log is none of the regular ones.
    trainer = {"max_epochs": -1, "max_steps": 12, "val_check_interval": 4, "check_val_every_n_epoch": None}
    settings = {**SETTINGS, "trainer": {**trainer, "log_every_n_steps": 5}}
    reference = config("reference", **settings)
    assert run_child(reference) == 0, output(reference)
    path = config("killed", **settings)
    for place in PLACES:
        assert run_child(path, patch=at_place(place, tmp_path / place)) == -9, place + output(path)
        if place == "writing":
            assert list(path.with_suffix("").glob("checkpoints/*.tmp"))
    assert run_child(path) == 0, output(path)
    check_same(reference.with_suffix(""), path.with_suffix(""))
    # Finished, it stays as it is.
    manifest = (path.with_suffix("") / "manifest.json").read_bytes()
    assert run_child(path) == 0, output(path)
    assert json.loads((path.with_suffix("") / "manifest.json").read_bytes()) == json.loads(manifest)


def test_the_monitored_checkpoints_are_those_of_an_uninterrupted_run(config: Config, tmp_path: Path) -> None:
    """A checkpoint between two validations is judged by the last one's result, which a resumed run must know."""
    settings = {**SETTINGS, "trainer": {**SETTINGS["trainer"], "max_epochs": 3, "val_check_interval": 5}}
    settings["checkpoint"] = {
        "every_n_train_steps": 2,
        "monitor": "validation/loss",
        "save_top_k": 2,
        "save_last": "link",
    }
    reference = config("reference", **settings)
    assert run_child(reference) == 0, output(reference)
    path = config("killed", **settings)
    for step in (9, 14):
        flag = tmp_path / f"step{step}"

        def patch(flag: Path = flag, step: int = step) -> None:
            once_before(InstructionModule, "training_step", lambda *_: _[1].index == step, flag=flag)

        assert run_child(path, patch=patch) == -9, output(path)
    assert run_child(path) == 0, output(path)
    check_same(reference.with_suffix(""), path.with_suffix(""))
    assert len(kept(path.with_suffix(""))) == 3


def test_a_run_resumed_at_the_end_of_an_epoch_resumes_again(config: Config, tmp_path: Path) -> None:
    """Trap: resumed there, Lightning counts one epoch too few; resumed again, it leaves out the next validation."""
    settings = {**SETTINGS, "checkpoint": {"every_n_train_steps": 1}}
    reference, path = config("reference", **settings), config("killed", **settings)
    assert run_child(reference) == 0, output(reference)
    for step in (7, 10):  # the end of the first epoch; and before the validation after step 11
        assert run_child(path, patch=lambda: _kill_in_step(step, tmp_path / str(step))) == -9, output(path)  # noqa: B023
    assert run_child(path) == 0, output(path)
    check_same(reference.with_suffix(""), path.with_suffix(""))


def test_a_link_to_a_removed_checkpoint_is_no_checkpoint(config: Config, tmp_path: Path) -> None:
    """Trap: the last checkpoint is removed before the link to it is replaced, and a kill may come between."""
    settings = {**SETTINGS, "checkpoint": {"every_n_train_steps": 2, "save_last": "link"}}
    path = config("killed", **settings)

    assert run_child(path, patch=lambda: _kill_in_link(tmp_path / "flag")) == -9, output(path)
    link = path.with_suffix("") / "checkpoints" / "last.ckpt"
    assert link.is_symlink() and not link.exists()
    assert run_child(path) == 0, output(path)
    assert link.exists() and kept(path.with_suffix("")) == ["last.ckpt", "step-00000014.ckpt"]


RANDOM: dict[str, dict[str, Any]] = {
    "lora": SETTINGS,
    "workers and best": {
        **SETTINGS,
        "data": {"global_batch_size": 5, "num_workers": 2},
        "checkpoint": {"every_n_train_steps": 3, "monitor": "validation/loss", "save_top_k": 2, "save_last": True},
    },
    "adalora": {
        **SETTINGS,
        "model": {
            "adapter": {
                "class_path": "adalora",
                "init_args": {"init_r": 4, "target_r": 2, "interval": 2, "lora_dropout": 0.2},
            }
        },
    },
    "lisa": {
        **SETTINGS,
        "model": {"adapter": {"class_path": "lisa", "init_args": {"num_layers": 1, "period": 5}}},
        "checkpoint": {"every_n_train_steps": 4},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*RANDOM, "stream"])
def test_twenty_random_kills(kind: str, config: Config, tmp_path: Path) -> None:
    settings = RANDOM.get(kind) or _stream(tmp_path)
    settings = {**settings, "trainer": {**settings["trainer"], "num_sanity_val_steps": 0, "log_every_n_steps": 1}}
    if kind != "stream":
        settings["trainer"]["max_epochs"] = 5
    reference = config("reference", **settings)
    assert run_child(reference) == 0, output(reference)  # which also fills the cache and warms up
    begun = time.monotonic()
    second = config("second", **settings)
    assert run_child(second) == 0
    seconds = time.monotonic() - begun
    check_same(reference.with_suffix(""), second.with_suffix(""))
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    num_kills, number, moments = 0, 0, []
    while num_kills < 20:
        number += 1
        path = config(f"killed{number}", **settings)
        while True:
            after = chance.uniform(0.2, 0.6) * seconds if num_kills < 20 else None
            code = run_child(path, kill_after=after)
            if code == 0:
                break
            num_kills += 1
            moments.append(round(after or 0.0, 3))
            print(f"{kind}: seed {seed}, run {number}, kill {num_kills} after {after:.3f} of {seconds:.1f} s")
            assert code == -9, f"seed {seed}, kills {moments}: {output(path)}"
        check_same(reference.with_suffix(""), path.with_suffix(""))


def test_what_waited_for_a_validation_is_not_saved_again(config: Config, tmp_path: Path) -> None:
    """The checkpoint of step 18 waits for the validation that follows; after a kill, no later one may do so."""
    settings = RANDOM["workers and best"]
    settings = {**settings, "trainer": {**SETTINGS["trainer"], "max_epochs": 5, "num_sanity_val_steps": 0}}
    reference, path = config("reference", **settings), config("killed", **settings)
    assert run_child(reference) == 0, output(reference)

    def patch() -> None:
        def at_18(self: Any, trainer: Any, *arguments: Any) -> bool:
            return bool(trainer.global_step == 18)

        once_before(RunCheckpoint, "on_validation_end", at_18, flag=tmp_path / "flag", after=True)

    assert run_child(path, patch=patch) == -9
    assert run_child(path) == 0
    check_same(reference.with_suffix(""), path.with_suffix(""))


def _stream(tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "stream.jsonl"
    rows.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in [*make_rows(60), {"broken": 1}]) + "\n")
    source = {"path": str(rows), "layout": "alpaca", "stream": True}
    data = {"sources": [source], "shuffle_buffer": 8, "global_batch_size": 5, "max_rejected": 0.5}
    own = [{"path": str(tmp_path / "rows.json"), "layout": "alpaca"}]
    trainer = {**SETTINGS["trainer"], "max_epochs": -1, "max_steps": 30}
    return {**SETTINGS, "data": {**data, "validation": own}, "trainer": trainer}


def _kill_in_link(flag: Path) -> None:
    link = RunCheckpoint._link_checkpoint

    def killing(trainer: Any, filepath: str, linkpath: str) -> None:
        if "00000006" in filepath and not flag.exists():
            flag.touch()
            kill_now()
        link(trainer, filepath, linkpath)

    RunCheckpoint._link_checkpoint = staticmethod(killing)  # type: ignore[method-assign]


def _kill_in_step(step: int, flag: Path) -> None:
    once_before(InstructionModule, "training_step", lambda *_: _[1].index == step, flag=flag)
