"""Every run under configs/ is parsed and its classes are made; what it needs of earlier stages is stood in for."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ROOT

from ift.records import PromptRecord, write_jsonl

PREDICT_CONFIGS = sorted((ROOT / "configs" / "eval").glob("*.yaml"))
FIT_CONFIGS = sorted(set((ROOT / "configs").rglob("*.yaml")) - set(PREDICT_CONFIGS))


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [PromptRecord("one", ({"role": "user", "content": "Repeat: river"},))])
    return path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("path", FIT_CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_configuration_makes_module_data_and_trainer(
    path: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    from ift.commands.stage_config import StageFiles, has_stages, read_chain
    from ift.commands.trainer import TrainingCLI

    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    arguments = ["--config", str(path), "--model.base", str(base), "--run_dir", str(run)]
    runs = [arguments]
    if has_stages(arguments):
        chain = read_chain(arguments)
        files = stack.enter_context(StageFiles(chain))
        runs = [files.arguments(stage) for stage in chain.stages]
        assert len(runs) > 1
    for one in runs:
        cli = TrainingCLI("fit", one)
        assert cli.trainer.max_epochs or cli.trainer.max_steps
        assert cli.datamodule.base == cli.model.base == str(base)
    assert not run.exists(), "nothing may be written before the run begins"


@pytest.mark.slow
@pytest.mark.parametrize("path", FIT_CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_configuration_is_planned(
    path: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    from ift.commands.planning import plan
    from ift.commands.stage_config import StageFiles, has_stages, read_chain

    monkeypatch.chdir(ROOT)
    arguments = ["--config", str(path), "--model.base", str(base), "--run_dir", str(tmp_path / "run")]
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    if "vocabulary" in settings:  # trained by a command in the header
        arguments += ["--model.vocabulary.tokenizer", str(base)]
    if "merged_adapters" in settings:  # of the stage before
        arguments += ["--model.merged_adapters", "null"]
    if has_stages(arguments):
        chain = read_chain(arguments)
        # The later stages go on with what the earlier ones made.
        arguments = stack.enter_context(StageFiles(chain)).arguments(chain.stages[0])
    report = plan(arguments, card=None, devices=None, skip_data=True)
    assert report.own.fits and report.own.refused is None
    assert 0 < report.trainable <= report.parameters and not report.skipped


@pytest.mark.parametrize("path", PREDICT_CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_configuration_answers_prompts(
    path: Path, base: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ift.commands.predict import PredictCLI

    monkeypatch.chdir(ROOT)
    output = tmp_path / "out"
    own = ["--data.path", str(prompts_file), "--output_dir", str(output)]
    cli = PredictCLI(["--config", str(path), "--model.base", str(base), *own])
    assert cli.datamodule.prompts and cli.model.decoding.max_new_tokens == 512
    assert not (output / "predictions.jsonl").exists()


@pytest.mark.parametrize("path", [*FIT_CONFIGS, *PREDICT_CONFIGS], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_header_tells_command_and_hardware(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    command, place = ("predict", "output_dir") if path in PREDICT_CONFIGS else ("fit", "run_dir")
    assert f"ift {command} --config {path.relative_to(ROOT)}" in "\n".join(header)
    assert "Hardware:" in "\n".join(header)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))[place].startswith("runs/")


def test_there_are_configurations() -> None:
    assert len(FIT_CONFIGS) >= 2 and len(PREDICT_CONFIGS) >= 2


def test_belle_eval_is_answered_in_the_two_ways_of_alpaca_cot(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is theirs to the letter, and so are the settings of eval/pipeline.py and eval/generate.py."""
    from ift.commands.predict import PredictCLI

    monkeypatch.chdir(ROOT)
    prompts = tmp_path / "prompts.jsonl"
    message = {"role": "user", "content": "把“猫”译成英文。"}
    write_jsonl(prompts, [PromptRecord("belle_eval-00000", (message,))])
    options: dict[str, dict[str, Any]] = {}
    for name in ("greedy", "beams"):
        own = ["--model.base", str(base), "--data.path", str(prompts), "--output_dir", str(tmp_path / name)]
        cli = PredictCLI(["--config", f"configs/eval/belle_eval_{name}.yaml", *own])
        options[name] = cli.model.decoding.options() | {"batch": cli.datamodule.batch_size}
        text = cli.datamodule.encoder.tokenizer.decode(cli.datamodule.prompts[0].ids, skip_special_tokens=True)
        assert text.strip() == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\n把“猫”译成英文。\n\n### Response:"
        )
    assert options["greedy"] == {
        "max_new_tokens": 512,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "batch": 20,
    }
    assert options["beams"] == {
        "max_new_tokens": 512,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 40,
        "num_beams": 4,
        "no_repeat_ngram_size": 6,
        "repetition_penalty": 1.8,
        "batch": 1,
    }
