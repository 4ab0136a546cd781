"""What must not go on silently: changed settings, incomplete weights, numbers that are none, foreign folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_rows, write_json

from ift.cli import main
from ift.errors import UserError
from ift.models.loading import load_base_model

Config = Callable[..., Path]
Fit = Callable[..., Path]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_a_base_model_with_missing_weights_is_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "incomplete"
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    weights = load_file(str(base / "model.safetensors"))
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.base: 1 weights .* first 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_base_model("model.base", str(folder), "float32")


def test_a_folder_that_is_no_run_is_not_continued(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    path = config()
    run = path.with_suffix("")
    run.mkdir()
    (run / "notes.txt").write_text("keep me")
    assert "no run to continue" in refused(capsys, "fit", "--config", str(path), "--ckpt_path", "last")
    assert [file.name for file in run.iterdir()] == ["notes.txt"]


def test_a_run_killed_while_its_model_loaded_can_be_continued(config: Config, fit: Fit) -> None:
    path = config(trainer={"max_epochs": 1})
    # Lightning opens the log before the model is there.
    (path.with_suffix("") / "tensorboard").mkdir(parents=True)
    run = fit(path, "--ckpt_path", "last")
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.template", "plain"),
        ("seed_everything", "7"),
        ("data.global_batch_size", "4"),
        ("model.optimizer.lr", "0.1"),
    ],
)
def test_a_run_is_not_continued_with_other_settings(
    config: Config, fit: Fit, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    path = config(trainer={"max_epochs": 1})
    fit(path)
    message = refused(capsys, "fit", "--config", str(path), "--ckpt_path", "last", f"--{key}", value)
    assert key.rpartition(".")[2] in message and "began with" in message


def test_a_run_is_not_continued_with_other_data(
    config: Config, fit: Fit, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(trainer={"max_epochs": 1})
    fit(path)
    write_json(rows_file, make_rows(40, start=1))
    assert "have changed since" in refused(capsys, "fit", "--config", str(path), "--ckpt_path", "last")


def test_what_only_changes_speed_may_change(config: Config, fit: Fit) -> None:
    path = config(trainer={"max_epochs": 1})
    run = fit(path)
    changes = ("--data.micro_batch_tokens", "1000", "--data.row_layout", "grouped", "--trainer.max_epochs", "2")
    fit(path, "--ckpt_path", "last", *changes)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["steps"] == 8
    assert [session["row_layout"]["layout"] for session in manifest["sessions"]] == ["flattened", "grouped"]


def test_continuing_a_finished_run_leaves_it_as_it_is(config: Config, fit: Fit) -> None:
    path = config(trainer={"max_epochs": 1})
    run = fit(path)
    before = json.loads((run / "manifest.json").read_text())
    written = (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    fit(path, "--ckpt_path", "last")
    assert json.loads((run / "manifest.json").read_text()) == before
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_weights_that_are_no_numbers_are_not_kept(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    exploding = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0e30}}
    path = config(
        model={"optimizer": exploding, "adapter": None, "gradient_clip_norm": None},
        trainer={"max_epochs": 1, "log_every_n_steps": 100},
    )
    assert "not a number" in refused(capsys, "fit", "--config", str(path))
    run = path.with_suffix("")
    assert not (run / "model").exists() and not list(run.glob("checkpoints/*.ckpt"))


def test_rejected_rows_are_told(config: Config, fit: Fit, rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [*make_rows(40), {"instruction": "no output"}]
    write_json(rows_file, rows)
    run = fit(config(data={"max_rejected": 0.05}, trainer={"max_epochs": 1}))
    assert "1 of 41 rows cannot be used and are left out" in capsys.readouterr().err
    (reject,) = (run / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["row"] == {"instruction": "no output"}


def test_examples_longer_than_the_model_are_refused_before_weights_load(
    config: Config, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(rows_file, [*make_rows(40), {"instruction": "long", "input": "", "output": "river stone " * 300}])
    path = config(data={"max_length": 4096, "micro_batch_tokens": 4096})
    message = refused(capsys, "fit", "--config", str(path))
    assert "data.max_length" in message and "512 positions" in message
    assert not path.with_suffix("").exists()


def test_virtual_tokens_count_toward_the_models_positions(
    config: Config, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learned positions would end in the middle of a run."""
    write_json(rows_file, [*make_rows(40), {"instruction": "long", "input": "", "output": "river " * 300}])
    adapter = {"class_path": "prompt", "init_args": {"num_virtual_tokens": 400}}
    path = config(data={"max_length": 512}, model={"adapter": adapter})
    message = refused(capsys, "fit", "--config", str(path))
    assert "after 400 virtual ones" in message and "Set data.max_length to 112 or less" in message
    assert not path.with_suffix("").exists()


def test_validate_prints_the_result_and_needs_data(
    config: Config, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(trainer={"max_epochs": 1})
    run = fit(path)
    recorded = json.loads((run / "manifest.json").read_text())["validation"][-1]
    capsys.readouterr()
    assert main(["validate", "--config", str(path), "--ckpt_path", "last"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(recorded["loss"], abs=1e-6)
    assert found["step"] == recorded["step"] == 4
    other = config("other", data={"validation": None})
    assert "data.validation" in refused(capsys, "validate", "--config", str(other))


def test_plain_text_without_begin_of_text_trains_and_shows_no_samples(
    tmp_path: Path, base: Path, config: Config, fit: Fit
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "no_begin"
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    load_base_model("model.base", str(base), "float32").save_pretrained(str(folder))
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["post_processor"] = None
    tokenizer.save_pretrained(str(folder))
    (folder / "tokenizer.json").write_text(json.dumps(described))
    texts = write_json(tmp_path / "texts.json", [{"text": row["output"]} for row in make_rows(40)])
    data = {"sources": [{"path": str(texts), "layout": "text"}], "template": "plain"}
    run = fit(config(model={"base": str(folder)}, data=data, trainer={"max_epochs": 1}))
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"
