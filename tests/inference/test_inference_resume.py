"""The predictions folder: continued after a kill without repeating or losing an item, and never overwritten."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from predicting import Predicting, make_prompts, read, write_prompts
from tiny import ROOT

from ift.inference.prompts import PromptDataModule

SAMPLING = ["--model.decoding.do_sample=true", "--model.decoding.temperature=4", "--seed_everything=7"]


def interrupted(finished: Path, folder: Path, keep: int) -> Path:
    """Copy a finished folder as it was when `keep` bytes of its predictions were written."""
    folder.mkdir()
    about = json.loads((finished / "predict.json").read_text(encoding="utf-8"))
    (folder / "predict.json").write_text(
        json.dumps({"status": "running", "identity": about["identity"]}), encoding="utf-8"
    )
    (folder / "predictions.jsonl").write_bytes((finished / "predictions.jsonl").read_bytes()[:keep])
    return folder


def same(one: Path, two: Path) -> bool:
    return (one / "predictions.jsonl").read_bytes() == (two / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize("sampling", [[], SAMPLING], ids=["greedy", "sampling"])
def test_a_torn_file_is_continued(sampling: list[str], predict: Predicting, tmp_path: Path) -> None:
    found = predict.lines(tmp_path / "whole", *sampling)
    assert bool(sampling) == (found != predict.lines(tmp_path / "greedy"))
    content = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    third = len(b"".join(lines[:3]))
    wide = third + lines[3].decode().encode().index("深".encode()) + 1  # in the middle of a character
    half = len(b"".join(lines[:14]))  # several batches in, and inside one
    cuts = [0, 1, third - 1, third, third + 1, wide, half, len(content) - 1, len(content)]
    for number, keep in enumerate(cuts):
        folder = interrupted(tmp_path / "whole", tmp_path / f"cut{number}", keep)
        code, said = predict(folder, *sampling)
        assert code == 0
        done = content[:keep].count(b"\n")
        assert (f"continuing: {done} of 30 prompts are answered already" in said) == (done > 0)
        assert same(folder, tmp_path / "whole")
        assert json.loads((folder / "predict.json").read_text(encoding="utf-8"))["status"] == "finished"


def test_what_other_ranks_wrote_counts(predict: Predicting, tmp_path: Path) -> None:
    """A run on three devices that was killed, continued on one."""
    predict.lines(tmp_path / "whole")
    lines = (tmp_path / "whole" / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    folder = interrupted(tmp_path / "whole", tmp_path / "cut", len(b"".join(lines[:2])))
    (folder / "predictions.rank1.jsonl").write_bytes(b"".join(lines[4:8]))
    (folder / "predictions.rank2.jsonl").write_bytes(b"".join(lines[12:13]) + lines[13][:20])
    _, said = predict(folder)
    assert "continuing: 7 of 30 prompts" in said
    assert same(folder, tmp_path / "whole")
    assert sorted(path.name for path in folder.iterdir()) == ["predict.json", "predictions.jsonl"]


def test_a_finished_folder_is_refused(predict: Predicting, tmp_path: Path) -> None:
    predict.lines(tmp_path / "out")
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    said = predict.refused(tmp_path / "out")
    assert f"output_dir: '{tmp_path / 'out'}' already holds all 30 predictions of this task" in said
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


def test_a_folder_of_something_else_is_refused(predict: Predicting, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert f"output_dir: '{tmp_path}' exists and holds no predictions" in predict.refused(tmp_path)
    assert "output_dir: " in predict.refused(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        (["--model.decoding.max_new_tokens=5"], "decoding"),
        (["--seed_everything=3"], "seed"),
        (["--data.batch_size=5"], "batch_size"),
        (["--model.dtype=bfloat16"], "dtype"),
        (["--trainer.precision=bf16-mixed"], "precision"),
        (["OTHER PROMPTS"], "prompts"),
        (["BASE"], "adapter"),
        (["BASE", "--data.template=plain"], "adapter, template"),
        (["BASE", "TOKENIZER"], "adapter, tokenizer"),
    ],
)
def test_another_task_is_refused(
    changes: list[str],
    differing: str,
    predict: Predicting,
    base: Path,
    trained: Path,
    prompts_file: Path,
    tmp_path: Path,
) -> None:
    predict.lines(tmp_path / "whole")
    folder = interrupted(tmp_path / "whole", tmp_path / "cut", 1000)
    arguments = list(predict.arguments)
    if "BASE" in changes:
        arguments[0] = f"--model.base={base}"
    if "OTHER PROMPTS" in changes:
        prompts = [json.loads(line) for line in prompts_file.read_text(encoding="utf-8").splitlines()]
        prompts[0]["messages"][0]["content"] += "?"
        arguments.append(f"--data.path={write_prompts(tmp_path / 'other.jsonl', prompts)}")
    if "TOKENIZER" in changes:
        shutil.copytree(trained / "tokenizer", tmp_path / "tokenizer")
        about = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
        text = json.dumps({**about, "eos_token": "<pad>"})
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(text, encoding="utf-8")
        arguments.append(f"--data.tokenizer={tmp_path / 'tokenizer'}")
    flags = [flag for flag in changes if flag.startswith("--")]
    said = Predicting(predict.capture, arguments).refused(folder, *flags)
    assert f"holds predictions of another task (differing: {differing})" in said
    assert (folder / "predictions.jsonl").stat().st_size == 1000


FUNCTION = """
from ift.data.conversation import Conversation, Message

def read(row):
    return Conversation((Message("user", row["messages"][0]["content"] + "{mark}"),), id=row["id"])
"""


def test_rows_that_are_read_otherwise_are_another_task(
    predict: Predicting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row function of one's own may change under its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, mark in (("one", "."), ("other", "!")):
        (tmp_path / f"own_rows_{name}.py").write_text(FUNCTION.replace("{mark}", mark), encoding="utf-8")
    own = "--data.layout=own_rows_one.read"
    predict.lines(tmp_path / "whole", own)
    folder = interrupted(tmp_path / "whole", tmp_path / "cut", 1000)
    import own_rows_one  # type: ignore[import-not-found]
    import own_rows_other  # type: ignore[import-not-found]

    before = own_rows_one.read
    monkeypatch.setattr(own_rows_one, "read", own_rows_other.read)
    assert "another task (differing: prompts)" in predict.refused(folder, own)
    monkeypatch.setattr(own_rows_one, "read", before)
    assert predict(folder, own)[0] == 0 and same(folder, tmp_path / "whole")


def start(arguments: list[str], output: Path) -> Any:
    command = [sys.executable, "-m", "ift", "predict", *arguments, "--output_dir", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload]


@pytest.mark.parametrize("sampling", [[], SAMPLING], ids=["greedy", "sampling"])
def test_killed_in_the_middle_and_started_again(sampling: list[str], predict: Predicting, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "many.jsonl", make_prompts(150))
    flags = [*sampling, f"--data.path={prompts}", "--data.batch_size=2"]
    process = start([*predict.arguments, *flags], tmp_path / "killed")
    written, deadline = tmp_path / "killed" / "predictions.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if written.is_file() and written.read_bytes().count(b"\n") >= 20:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL, process.stdout.read()
    done = written.read_bytes().count(b"\n")
    assert 20 <= done < 150
    code, said = predict(tmp_path / "killed", *flags)
    assert code == 0 and f"continuing: {done} of 150 prompts" in said
    predict.lines(tmp_path / "whole", *flags)
    assert same(tmp_path / "killed", tmp_path / "whole")
    ids = [one["id"] for one in read(tmp_path / "killed")]
    assert ids == [prompt["id"] for prompt in make_prompts(150)]


def test_two_ranks_write_what_one_does(predict: Predicting, tmp_path: Path) -> None:
    flags = [*SAMPLING, "--data.batch_size=4"]
    process = start([*predict.arguments, *flags, "--trainer.devices=2", "--trainer.strategy=ddp"], tmp_path / "two")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    predict.lines(tmp_path / "one", *flags)
    assert same(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["predict.json", "predictions.jsonl"]


def test_every_rank_has_a_batch(base: Path, prompts_file: Path) -> None:
    """One without any would be skipped by Lightning, and the others would wait for it for ever."""
    module = PromptDataModule(str(prompts_file), str(base), batch_size=4)
    module.load()
    module.done = {prompt.id for prompt in module.prompts[:-1]}
    found = []
    for rank in range(3):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=3)  # type: ignore[assignment]
        found.append([[prompt.id for prompt in batch.prompts] for batch in module.predict_dataloader()])
    assert found == [[[prompt.id for prompt in module.prompts[28:]]], [[]], [[]]]
