"""`ift diff`: what differed between two runs, and where their losses part."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import ROOT

from ift.artifacts import RunFolder
from ift.checks.loss_curves import Curve, part, recorded_losses, rounding_text
from ift.checks.weight_difference import compare_weights
from ift.cli import main
from ift.errors import UserError

Config = Callable[..., Path]


@pytest.fixture
def fit(config: Config) -> Callable[..., Path]:
    def run(name: str, **sections: Any) -> Path:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        path = config(name, **sections)
        try:
            assert main(["fit", "--config", str(path), "--debug"]) == 0
        finally:
            torch.set_num_threads(threads)
        return Path(yaml.safe_load(path.read_text(encoding="utf-8"))["run_dir"])

    return run


def diff(one: Path, other: Path, report: Path) -> tuple[int, dict[str, Any]]:
    code = main(["diff", str(one), str(other), "--json", str(report), "--debug"])
    return code, json.loads(report.read_text(encoding="utf-8"))


def test_two_runs_of_one_configuration_are_the_same(fit: Any, tmp_path: Path, capsys: Any) -> None:
    one, other = fit("one"), fit("other")
    code, report = diff(one, other, tmp_path / "report.json")
    assert code == 0 and report["same"]
    assert report["settings"] == [] and report["validation"] == [] and set(report["parts"].values()) == {True}
    assert report["losses"]["source"] == "losses.jsonl" and report["losses"]["num_steps"] == 8
    assert "the same bit for bit" in capsys.readouterr().out


def test_what_differed_is_named_and_so_is_the_step(fit: Any, rows_file: Path, tmp_path: Path, capsys: Any) -> None:
    reference = fit("reference")
    rate = fit("rate", model={"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.011}}})
    code, report = diff(reference, rate, tmp_path / "report.json")
    assert code == 1 and not report["same"] and set(report["parts"].values()) == {True}
    assert [change["name"] for change in report["settings"]] == ["model.optimizer.init_args.lr"]
    # The first loss is of the same weights; the first update is not.
    assert report["losses"]["first"] == 2 and report["losses"]["last_same"] == 1
    assert report["losses"]["gap"] != 0 and report["weights"]["differing"] > 0
    text = capsys.readouterr().out
    assert "model.optimizer.init_args.lr: 0.01 -> 0.011" in text and "part at step 2" in text

    seed = fit("seed", seed_everything=1)
    _, report = diff(reference, seed, tmp_path / "report.json")
    assert report["losses"]["first"] == 1
    assert {name for name, same in report["parts"].items() if not same} == {"initial_weights"}

    template = fit("template", data={"template": "plain"})
    _, report = diff(reference, template, tmp_path / "report.json")
    assert {name for name, same in report["parts"].items() if not same} == {"template", "labels"}

    rows = json.loads(rows_file.read_text(encoding="utf-8"))
    rows[3]["output"] += " more"
    rows_file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    data = fit("data")
    _, report = diff(reference, data, tmp_path / "report.json")
    assert {name for name, same in report["parts"].items() if not same} == {"data", "labels"}
    assert report["settings"] == []


def test_a_change_of_code_and_of_environment_is_seen(fit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reference = fit("reference", trainer={"max_epochs": 1})
    from ift.training import run_fingerprint

    code, environment = run_fingerprint.code, run_fingerprint.environment
    for changed_code, same in (({"commit": "another"}, True), ({"files": {"ift/data": "others"}}, False)):
        # A commit of other files, as of texts, leaves the code as it is.
        for module in ("run_fingerprint", "run_folder"):
            monkeypatch.setattr(f"ift.training.{module}.code", lambda changed=changed_code: {**code(), **changed})
        other = fit(f"other{same}", trainer={"max_epochs": 1})
        exit_code, report = diff(reference, other, tmp_path / "report.json")
        assert exit_code == 0 and report["parts"]["code"] is same and report["parts"]["environment"] is True
        assert report["same_fingerprint"] is same
        assert any(change["name"].startswith(f"code.{next(iter(changed_code))}") for change in report["details"])
    monkeypatch.undo()
    changed = lambda trainer: {**environment(trainer), "threads": 64}  # noqa: E731
    monkeypatch.setattr("ift.training.run_fingerprint.environment", changed)
    third = fit("third", trainer={"max_epochs": 1})
    _, report = diff(reference, third, tmp_path / "report.json")
    assert report["parts"]["environment"] is False and report["parts"]["code"] is True


def test_without_the_exact_record_the_log_says_between_which_steps(fit: Any, tmp_path: Path, capsys: Any) -> None:
    trainer = {"log_every_n_steps": 3}
    one = fit("one", trainer=trainer)
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 9}}
    other = fit("other", trainer=trainer, model={"optimizer": sgd})
    (one / "losses.jsonl").unlink()
    code, report = diff(one, other, tmp_path / "report.json")
    assert code == 1 and report["losses"]["source"] == "tensorboard"
    assert (report["losses"]["last_same"], report["losses"]["first"]) == (1, 3)
    assert "part between step 1 and 3" in capsys.readouterr().out


def test_changed_weights_are_measured(fit: Any, tmp_path: Path) -> None:
    one = fit("one", trainer={"max_epochs": 1})
    other = tmp_path / "copy"
    shutil.copytree(one, other)
    file = other / "adapter" / "adapter_model.safetensors"
    weights = load_file(str(file))
    name = sorted(weights)[5]
    weights[name][0, 0] += 0.25
    save_file(weights, str(file))
    code, report = diff(one, other, tmp_path / "report.json")
    assert code == 1 and report["weights"]["differing"] == 1 and report["weights"]["largest_in"] == name
    assert report["weights"]["largest"] == pytest.approx(0.25, abs=1e-6)
    assert report["losses"]["first"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_float_are_compared_as_torch_would(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    folders, tensors = [], []
    for number in range(2):
        values = torch.randn(7, 5, generator=generator).to(dtype)
        folder = tmp_path / str(number)
        (folder / "adapter").mkdir(parents=True)
        save_file({"a": values, "same": torch.ones(3, dtype=dtype)}, str(folder / "adapter" / "x.safetensors"))
        folders.append(RunFolder(folder))
        tensors.append(values.double())
    found = compare_weights(*folders)
    assert found.largest == float((tensors[0] - tensors[1]).abs().max())
    assert (found.tensors, found.differing, found.largest_in, found.only_one) == (2, 1, "a", 0)


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ({1: 3.0, 2: 2.0}, {1: 3.0, 2: 2.0}, (None, None)),
        ({1: 3.0, 2: 2.0}, {1: 3.0, 2: 2.0000001}, (2, 1)),
        ({1: 3.0, 2: 2.0}, {1: 3.5, 2: 2.0}, (1, None)),
        ({10: 3.0, 20: 2.0}, {5: 9.0, 10: 3.0, 20: 1.0}, (20, 10)),
        ({1: math.nan}, {1: math.nan}, (None, None)),
        ({1: 1.0, 2: math.nan}, {1: 1.0, 2: 1.0}, (2, 1)),
    ],
)
def test_where_curves_part(one: dict[int, float], two: dict[int, float], expected: tuple[Any, Any]) -> None:
    found = part(Curve("losses.jsonl", one), Curve("losses.jsonl", two))
    assert (found.first, found.last_same) == expected
    assert found.same == (expected[0] is None)


def test_a_run_that_is_shorter_is_not_the_same(fit: Any, tmp_path: Path) -> None:
    constant = {"schedule": {"kind": "constant", "warmup": 0}}
    one = fit("one", model=constant, trainer={"max_epochs": 1})
    other = fit("other", model=constant)
    code, report = diff(one, other, tmp_path / "report.json")
    assert code == 1 and report["losses"]["first"] is None and report["losses"]["steps"] == [4, 8]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert "RUN_A:" in capsys.readouterr().err
    assert main(["diff", str(tmp_path), str(tmp_path), "--json", str(tmp_path)]) == 2
    assert "--json: " in capsys.readouterr().err


def test_damaged_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.losses.write_text('{"step": 1, "loss": 2.0}\n{"step"\n{"step": 3, "loss": 1.0}\n')
    with pytest.raises(UserError, match=r"line 2: damaged: .* Restore the file, or compare other runs\.$"):
        recorded_losses(run)
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"\x07" + bytes(7) + b"not one")
    with pytest.raises(UserError, match=r"cannot be read as safetensors: .* Restore it, or compare other runs\.$"):
        compare_weights(run, run)


def test_it_needs_no_torch(fit: Any) -> None:
    one, other = fit("one", trainer={"max_epochs": 1}), fit("other", trainer={"max_epochs": 1})
    (one / "losses.jsonl").unlink()  # so that TensorBoard's log is read, too
    program = (
        "import sys; from ift.cli import main\n"
        f"assert main(['diff', {str(one)!r}, {str(other)!r}]) == 0\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.splitlines()[-1].split()) & {"torch", "transformers", "lightning", "peft"}


STEADY = {"schedule": {"kind": "constant", "warmup": 0}}


def test_of_a_later_session_only_what_it_changed_is_told(fit: Any, config: Config, tmp_path: Path, capsys: Any) -> None:
    one = fit("one", model=STEADY)
    other = fit("other", model=STEADY, trainer={"max_epochs": 1})
    more: dict[str, Any] = {"model": STEADY, "run_dir": str(other), "data": {"micro_batch_tokens": 256}}
    path = config("more", **more)
    assert main(["fit", "--config", str(path), "--ckpt_path", "last", "--debug"]) == 0
    capsys.readouterr()
    _, report = diff(one, other, tmp_path / "report.json")
    text = capsys.readouterr().out
    assert "sessions: A one session; B went on from step 4" in text
    told = [line for line in text.splitlines() if line.startswith("  B, session 2: ")]
    assert told == [
        "  B, session 2: data.micro_batch_tokens: 512 -> 256",
        "  B, session 2: trainer.max_epochs: 1 -> 2",
    ]
    assert report["sessions"][0] == [] and report["sessions"][1][0]["from_step"] == 4
    assert "versions" not in text and "absent" not in text
    # A session in the same way on both sides is no difference.
    diff(other, other, tmp_path / "report.json")
    assert "sessions: both went on from step 4, in the same way" in capsys.readouterr().out


def test_dropout_masks_that_differ_by_design_are_told(fit: Any, tmp_path: Path, capsys: Any) -> None:
    settings = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.25}
    dropout = {"adapter": {"class_path": "peft.LoraConfig", "init_args": settings}}
    for name, model in (("dropped", dropout), ("whole", {})):
        one = fit(f"{name}_one", model=model)
        other = fit(f"{name}_other", model=model, data={"micro_batch_tokens": 256})
        again = fit(f"{name}_again", model=model, data={"num_workers": 1})
        capsys.readouterr()
        _, report = diff(one, other, tmp_path / "report.json")
        text = capsys.readouterr().out
        if name == "dropped":
            assert "beyond rounding" in report["rounding"] and "real" in text
            assert "lora_dropout 0.25" in report["dropout"] and "data.micro_batch_tokens" in report["dropout"]
            assert report["dropout"] in text
        else:
            assert report["dropout"] is None and "  within rounding: " in text
            assert text.rstrip().endswith("different (losses within rounding)")
            assert report["losses"]["largest_share"] < 1e-5
        code, report = diff(one, again, tmp_path / "report.json")
        assert code == 0 and report["dropout"] is None and report["rounding"] is None


@pytest.mark.parametrize(
    ("gaps", "dtypes", "told", "not_told"),
    [
        ((1e-8, 4e-7), {"float32"}, "within rounding: at most 2.0e-07", "beyond rounding"),
        ((2e-3, 4e-2), {"float32"}, "The difference is real", "enlarged"),
        ((2e-7, 4e-2), {"float32"}, "that many steps have enlarged", "within rounding"),
        ((2e-3, 4e-3), {"float32", "bfloat16"}, "in bfloat16", "beyond rounding"),
        ((math.nan, 1e-8), {"float32"}, "beyond rounding", "within rounding"),
    ],
)
def test_gaps_are_said_to_be_rounding_or_not(
    gaps: tuple[float, float], dtypes: set[str], told: str, not_told: str
) -> None:
    one = {1: 2.0, 2: 2.0, 3: 2.0}
    two = {1: 2.0, 2: 2.0 + gaps[0], 3: 2.0 + gaps[1]}
    text = rounding_text(part(Curve("losses.jsonl", one), Curve("losses.jsonl", two)), dtypes)
    assert text is not None and told in text and not_told not in text
    assert rounding_text(part(Curve("losses.jsonl", one), Curve("losses.jsonl", one)), dtypes) is None
