"""Bad input: one clear message with key, file, line and repair, before any weights load, and nothing half-written."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import make_llama, make_rows

Config = Callable[..., Path]
Refused = Callable[..., str]


def source(path: Path, layout: str = "alpaca") -> dict[str, Any]:
    return {"sources": [{"path": str(path), "layout": layout}]}


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def good_lines(number: int) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in make_rows(number)]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def fit_refused(config: Config, refused: Refused, base_without_weights: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs `ift fit` over a base whose weights cannot be loaded, and returns the message; no run folder may appear."""

    def run(data: dict[str, Any], *flags: object, model: dict[str, Any] | None = None) -> str:
        path = config(data=data, model={"base": str(base_without_weights), **(model or {})})
        said = refused("fit", "--config", path, *flags)
        assert not (tmp_path / "run").exists()
        return said

    return run


def test_missing_file(fit_refused: Refused, tmp_path: Path) -> None:
    said = fit_refused(source(tmp_path / "none.json"))
    assert said.startswith(f"error: data.sources[0].path: no file '{tmp_path / 'none.json'}' (looked in ")
    assert "Mend the path" in said


def test_empty_file(fit_refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    assert f"data.sources[0].path: '{tmp_path / 'empty.json'}' is empty (0 bytes)" in fit_refused(
        source(tmp_path / "empty.json")
    )


@pytest.mark.parametrize("text", ["[]", "\n \n", "\ufeff"])
def test_a_file_without_rows(text: str, fit_refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "blank.json").write_text(text, encoding="utf-8")
    assert f"data.sources: no row in {tmp_path / 'blank.json'}" in fit_refused(source(tmp_path / "blank.json"))


def test_broken_json_on_a_line(fit_refused: Refused, tmp_path: Path) -> None:
    lines = good_lines(20)
    lines[13] = lines[13][:-4]
    path = write_lines(tmp_path / "rows.jsonl", lines)
    said = fit_refused(source(path))
    assert "data.sources: 1 of 20 rows cannot be used, more than data.max_rejected 0.01 allows" in said
    assert f"{path} line 14: not valid JSON" in said
    assert "Mend the rows or their layout. Or raise data.max_rejected" in said


def test_row_without_output(fit_refused: Refused, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [*good_lines(8), '{"instruction": "What?"}'])
    said = fit_refused(source(path))
    assert f"{path} line 9: layout 'alpaca' needs 'instruction' and 'output'; found 'instruction'" in said


def test_wrong_layout(fit_refused: Refused, rows_file: Path) -> None:
    said = fit_refused(source(rows_file, "sharegpt"))
    assert "data.sources: 40 of 40 rows cannot be used" in said and "40 x layout 'sharegpt' needs" in said
    assert f"{rows_file} line 2: layout 'sharegpt' needs a list 'conversations'; found 'instruction'" in said


def test_unknown_layout(fit_refused: Refused, rows_file: Path) -> None:
    said = fit_refused(source(rows_file, "sharegtp"))
    assert "data.sources[0].layout: unknown name 'sharegtp'. Did you mean 'sharegpt'?" in said


def test_unknown_template(fit_refused: Refused) -> None:
    said = fit_refused({"template": "alpacca"})
    assert "data.template: unknown name 'alpacca'. Did you mean 'alpaca'? Known: alpaca, alpaca_chatglm," in said


def test_a_template_without_a_place_for_the_text(fit_refused: Refused) -> None:
    said = fit_refused({"template": {"name": "own", "user": "Q: {txt}"}})
    assert "data.template.user: 'Q: {txt}' of template 'own' must contain '{text}'" in said
    said = fit_refused({"template": {"name": "own", "user": "{text}", "user_with_context": "{text}"}})
    assert "data.template.user_with_context: '{text}' of template 'own' must contain" in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/no/such/model", "model.base: no folder '/no/such/model' (looked in "),
        ("./model", "model.base: no folder './model' (looked in "),
        ("no such model", "and it is no hub id (owner/name)"),
        ("owner/no-such-model", "and nothing of that name was fetched before"),
    ],
)
def test_a_base_model_that_does_not_exist(name: str, reason: str, fit_refused: Refused) -> None:
    assert reason in fit_refused({}, model={"base": name})


def test_a_base_model_that_is_none(fit_refused: Refused, rows_file: Path, tmp_path: Path) -> None:
    assert f"model.base: '{rows_file}' is a file" in fit_refused({}, model={"base": str(rows_file)})
    (tmp_path / "folder").mkdir()
    said = fit_refused({}, model={"base": str(tmp_path / "folder")})
    assert "model.base" in said and str(tmp_path / "folder") in said


def test_a_tokenizer_without_end_of_text(fit_refused: Refused, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no_end"
    shutil.copytree(base, folder)
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del about["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    said = fit_refused({}, model={"base": str(folder)})
    assert f"model.base: the tokenizer of '{folder}' has no end-of-text token" in said
    assert f"Name one as 'eos_token' in {folder / 'tokenizer_config.json'}" in said


def test_a_response_longer_than_the_limit(fit_refused: Refused, tmp_path: Path) -> None:
    row = {"instruction": "Write.", "input": "", "output": "stone " * 200}
    path = write_lines(tmp_path / "rows.jsonl", [*good_lines(10), json.dumps(row)])
    said = fit_refused(source(path))
    assert "1 x longer than data.max_length" in said
    assert f"{path} line 11: " in said and "tokens, data.max_length is 256" in said
    assert "Raise data.max_length, or let data.over_long cut" in said


def test_fewer_examples_than_one_step(fit_refused: Refused) -> None:
    said = fit_refused({"global_batch_size": 33})
    assert "data.global_batch_size: a step takes 33 examples, and an epoch has only 32. Lower it, or add data." in said


def test_a_validation_that_takes_all(fit_refused: Refused) -> None:
    assert "data.validation: 40 examples held out of 40 leave none to train on" in fit_refused({"validation": 40})


def test_an_adapter_that_does_not_fit_leaves_no_folder(config: Config, refused: Refused, tmp_path: Path) -> None:
    """Only the model itself can tell, so here weights load; but the run has not begun."""
    settings = {"r": 4, "target_modules": ["q_prooj"]}
    path = config(model={"adapter": {"class_path": "peft.LoraConfig", "init_args": settings}})
    said = refused("fit", "--config", path)
    assert "model.adapter: LoraConfig cannot be applied to this model: " in said and "q_prooj" in said
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_read(fit_refused: Refused, base_without_weights: Path) -> None:
    said = fit_refused({})
    assert f"model.base: no model could be loaded from '{base_without_weights}'" in said


def test_a_tokenizer_larger_than_the_model(
    config: Config, refused: Refused, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = make_llama(tmp_path / "small", 400)
    for path in tokenizer_folder.iterdir():
        shutil.copy(path, folder)
    said = refused("fit", "--config", config(model={"base": str(folder)}))
    assert "model.base: the tokenizer has 420 tokens, the model's embedding only 400 rows" in said
    assert not (tmp_path / "run").exists()


class TestExistingRun:
    def test_is_never_overwritten(self, config: Config, ift: Any, refused: Refused, tmp_path: Path) -> None:
        path = config()
        assert ift("fit", "--config", path).code == 0
        before = contents(tmp_path / "run")
        said = refused("fit", "--config", path)
        assert f"run_dir: '{tmp_path / 'run'}' exists" in said and "--ckpt_path last" in said
        assert contents(tmp_path / "run") == before
        # Neither by a run that begins from the checkpoint of another.
        assert ift("fit", "--config", path, "--run_dir", tmp_path / "other").code == 0
        (checkpoint,) = (tmp_path / "other" / "checkpoints").iterdir()
        assert f"run_dir: '{tmp_path / 'run'}' exists" in refused("fit", "--config", path, "--ckpt_path", checkpoint)
        assert contents(tmp_path / "run") == before

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_nor_anything_else(self, kind: str, config: Config, refused: Refused, tmp_path: Path) -> None:
        if kind == "file":
            (tmp_path / "run").write_text("mine", encoding="utf-8")
        else:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
        assert f"run_dir: '{tmp_path / 'run'}' exists" in refused("fit", "--config", config())
        file = tmp_path / "run" if kind == "file" else tmp_path / "run" / "notes.txt"
        assert file.read_text(encoding="utf-8") == "mine"


class TestCheckpointOfAnother:
    def test_base_model(self, config: Config, ift: Any, refused: Refused, base: Path, tmp_path: Path) -> None:
        assert ift("fit", "--config", config()).code == 0
        other = tmp_path / "other_base"
        shutil.copytree(base, other)
        about = json.loads((other / "config.json").read_text(encoding="utf-8"))
        (other / "config.json").write_text(json.dumps({**about, "rope_theta": 20000.0}), encoding="utf-8")
        before = contents(tmp_path / "run")
        said = refused("fit", "--config", config(model={"base": str(other)}), "--ckpt_path", "last")
        assert "--ckpt_path: " in said and f"belongs to another base model ('{base}'; model.base is '{other}'" in said
        assert "Resume with the configuration in the run folder" in said
        assert contents(tmp_path / "run") == before

    def test_adapter(self, config: Config, ift: Any, refused: Refused, tmp_path: Path) -> None:
        assert ift("fit", "--config", config()).code == 0
        (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
        settings = {"r": 3, "target_modules": "all-linear"}
        other = config("second", model={"adapter": {"class_path": "peft.LoraConfig", "init_args": settings}})
        said = refused("fit", "--config", other, "--ckpt_path", checkpoint)
        assert "model.adapter.init_args.r: " in said and "began with 4, and is to be continued with 3" in said
        moved = checkpoint.rename(tmp_path / checkpoint.name)  # where nothing tells what it was trained with
        said = refused("fit", "--config", other, "--ckpt_path", moved)
        assert "--ckpt_path: the checkpoint is of another model or adapter" in said
        assert "Resume with the configuration in the run folder" in said
        assert not (tmp_path / "second").exists()

    def test_no_checkpoint_at_all(self, fit_refused: Refused, rows_file: Path) -> None:
        assert "--ckpt_path: no file 'none.ckpt'" in fit_refused({}, "--ckpt_path", "none.ckpt")
        assert f"--ckpt_path: '{rows_file}' was not written by ift fit" in fit_refused({}, "--ckpt_path", rows_file)


class TestRejectedRows:
    def rows(self, tmp_path: Path) -> Path:
        lines = good_lines(98)
        lines[40:40] = ['{"instruction": "no output"}', "broken"]
        return write_lines(tmp_path / "many.jsonl", lines)

    def test_below_the_limit_they_are_listed_and_counted(self, config: Config, ift: Any, tmp_path: Path) -> None:
        path = self.rows(tmp_path)
        outcome = ift("fit", "--config", config(data={**source(path), "max_rejected": 0.02}))
        assert outcome.code == 0, outcome.err
        run = tmp_path / "run"
        text = (run / "rejects.jsonl").read_text(encoding="utf-8")
        rejects = [json.loads(line) for line in text.splitlines()]
        assert [(r["file"], r["line"]) for r in rejects] == [(str(path), 41), (str(path), 42)]
        assert "needs 'instruction' and 'output'" in rejects[0]["reason"]
        assert rejects[1]["reason"].startswith("not valid JSON")
        data = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["data"]
        (counts,) = data["sources"]
        assert (counts["rows"], counts["examples"], sum(counts["rejected"].values())) == (100, 98, 2)
        assert counts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert data["train_examples"] + data["validation_examples"] == 98

    def test_above_it_nothing_begins(self, fit_refused: Refused, tmp_path: Path) -> None:
        path = self.rows(tmp_path)
        said = fit_refused({**source(path), "max_rejected": 0.019})
        assert "data.sources: 2 of 100 rows cannot be used, more than data.max_rejected 0.019 allows" in said
        assert f"{path} line 41: " in said and f"{path} line 42: " in said
        rejects = Path(said[said.index("All of them: ") :].splitlines()[0].removeprefix("All of them: "))
        assert len(rejects.read_text(encoding="utf-8").splitlines()) == 2

    def test_the_default_is_one_in_a_hundred(self, fit_refused: Refused, tmp_path: Path) -> None:
        assert "data.max_rejected 0.01 allows" in fit_refused(source(self.rows(tmp_path)))


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_debug_shows_the_traceback(command: str, config: Config) -> None:
    from ift.cli import main

    path = config(data={"template": "alpacca"})
    with pytest.raises(ValueError, match="data.template"):
        main([command, "--config", str(path), "--debug"])


def test_many_kinds_of_rejects_still_fit_on_a_screen(fit_refused: Refused, tmp_path: Path) -> None:
    lines = [json.dumps({f"field {i}": "x" * 50}) for i in range(500)]
    files = [write_lines(tmp_path / f"{i}.jsonl", lines) for i in range(5)]
    said = fit_refused({"sources": [{"path": str(path), "layout": "alpaca"} for path in files]})
    assert "2500 of 2500 rows cannot be used" in said
