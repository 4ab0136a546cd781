"""A chain of stages: equal to separate commands, measured as `ift validate` does, resumed exactly, refused early."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import make_rows, write_json

from ift.artifacts import RunFolder
from ift.cli import main
from ift.commands.forgetting import Losses, Measurement, as_json, table
from ift.commands.forgetting_chart import svg
from ift.commands.stage_config import read_chain
from ift.commands.stage_start import start_keys
from ift.models.methods import lora_plus

Refused = Callable[..., str]
Write = Callable[..., Path]
LORA = {"class_path": "lora", "init_args": {"r": 4, "lora_dropout": 0.1}}


def optimizer(lr: float) -> dict[str, Any]:
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds three small data sets and the cache of prepared data."""
    folder = tmp_path_factory.mktemp("chains")
    for number, name in enumerate("abc"):
        write_json(folder / f"{name}.json", make_rows(20, start=20 * number))
    return folder


def rows_of(folder: Path, name: str) -> dict[str, Any]:
    return {"sources": [{"path": str(folder / f"{name}.json"), "layout": "alpaca"}]}


def write_chain(path: Path, folder: Path, base: Path, stages: Any, **model: Any) -> Path:
    """Write a chain over one epoch of four steps; `model` replaces keys that the stages share."""
    values = {
        "run_dir": str(path.with_suffix("")),
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False},
        "model": {
            "base": str(base),
            "adapter": LORA,
            "optimizer": optimizer(0.01),
            "schedule": {"kind": "constant", "warmup": 0},
            **model,
        },
        "data": {
            **rows_of(folder, "a"),
            "validation": 4,
            "max_length": 256,
            "global_batch_size": 4,
            "micro_batch_tokens": 512,
            "cache_dir": str(folder / "cache"),
        },
        "samples": {"num_samples": 0},
        "stages": stages,
    }
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def three_stages(folder: Path) -> list[dict[str, Any]]:
    """One that begins, one that goes on with its adapter, one that merges it and begins another."""
    on_top = {"adapter": {"class_path": "ia3"}, "optimizer": optimizer(0.03)}
    return [
        {"name": "first"},
        {
            "name": "second",
            "data": rows_of(folder, "b"),
            "model": {"optimizer": {"init_args": {"lr": 0.002}}},
            "trainer": {"max_epochs": 6},
            "checkpoint": {"every_n_train_steps": 1},
        },
        {"name": "third", "start": "merge", "data": rows_of(folder, "c"), "model": on_top},
    ]


def run(*arguments: object) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # bit-for-bit comparisons need one order of summation
    try:
        assert main([*map(str, arguments), "--debug"]) == 0
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chain(folder: Path, base: Path) -> Path:
    """The run folder of a chain of three stages that nothing interrupted."""
    path = write_chain(folder / "chain.yaml", folder, base, three_stages(folder))
    run("fit", "--config", path)
    return folder / "chain"


def weights(stage: Path) -> bytes:
    return (stage / "adapter" / "adapter_model.safetensors").read_bytes()


def state(chain: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((chain / "stages.json").read_text(encoding="utf-8"))
    return found


def losses(chain: Path) -> dict[tuple[str | None, str], float]:
    return {(one["after"], one["on"]): one["loss"] for one in state(chain)["measurements"]}


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class TestStages:
    def test_are_what_separate_commands_train(self, chain: Path, folder: Path, base: Path) -> None:
        """Bit for bit: the first alone, the second from its folder, the third on top of both."""
        starts: list[dict[str, Any]] = [
            {},
            {"adapter": str(chain / "01-first"), "optimizer": optimizer(0.002)},
            {
                "merged_adapters": [str(chain / "02-second")],
                "adapter": {"class_path": "ia3"},
                "optimizer": optimizer(0.03),
            },
        ]
        names = ["01-first", "02-second", "03-third"]
        for name, letter, epochs, model in zip(names, "abc", (1, 6, 1), starts, strict=True):
            path = write_chain(folder / f"alone-{name}.yaml", folder, base, None, **model)
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            del values["stages"]
            values["data"] |= rows_of(folder, letter)
            values["trainer"]["max_epochs"] = epochs
            path.write_text(yaml.safe_dump(values), encoding="utf-8")
            run("fit", "--config", path)
            assert weights(path.with_suffix("")) == weights(chain / name), name
        assert weights(chain / "01-first") != weights(chain / "02-second")

    def test_run_in_order_each_with_its_own_learning_rate(self, chain: Path) -> None:
        started = []
        rates = [0.01, 0.002, 0.03]
        for name, rate in zip(["01-first", "02-second", "03-third"], rates, strict=True):
            manifest = json.loads((chain / name / "manifest.json").read_text(encoding="utf-8"))
            started.append(manifest["sessions"][0]["started"])
            told = [value for _, value in curve(chain / name, "train/learning_rate")]
            assert told == pytest.approx([rate] * len(told)) and told
        assert started == sorted(started)
        assert [one["learning_rate"] for one in state(chain)["stages"]] == rates

    def test_are_runs_that_can_be_used(self, chain: Path, folder: Path) -> None:
        prompts, output = write_json(folder / "prompts.json", make_rows(1)), folder / "predicted"
        arguments = ["--run", chain / "03-third", "--data.path", prompts, "--data.layout", "alpaca"]
        arguments += ["--output_dir", output]
        run("predict", *arguments, "--model.decoding.max_new_tokens", 3, "--trainer.accelerator", "cpu")
        assert len((output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 1


class TestForgetting:
    def test_every_loss_is_that_of_validate(self, chain: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The configuration of the stage whose data they are, and the model named by hand."""
        second = str(chain / "02-second")
        models = {
            None: ["--model.base", base, "--model.adapter", "null", "--model.merged_adapters", "null"],
            "first": ["--model.adapter", chain / "01-first", "--model.merged_adapters", "null"],
            "second": ["--model.adapter", second, "--model.merged_adapters", "null"],
            "third": ["--model.adapter", chain / "03-third", "--model.merged_adapters", json.dumps([second])],
        }
        folders = {"first": "01-first", "second": "02-second", "third": "03-third"}
        found = losses(chain)
        assert set(found) == {
            *((None, name) for name in folders),
            ("first", "first"),
            *(("second", name) for name in ("first", "second")),
            *(("third", name) for name in folders),
        }
        for (after, on), loss in found.items():
            capsys.readouterr()
            run("validate", "--config", chain / folders[on] / "config.yaml", *models[after])
            assert json.loads(capsys.readouterr().out)["loss"] == loss, (after, on)
        assert len(set(found.values())) == len(found)

    def test_is_the_rise_above_the_least_earlier_loss(self, chain: Path) -> None:
        loss = losses(chain)
        expected = {
            ("second", "first"): loss["second", "first"] - loss["first", "first"],
            ("third", "first"): loss["third", "first"] - min(loss["first", "first"], loss["second", "first"]),
            ("third", "second"): loss["third", "second"] - loss["second", "second"],
        }
        report = json.loads((chain / "forgetting.json").read_text(encoding="utf-8"))
        told = {(row["after"], of): value for row in report["rows"] for of, value in row["forgetting"].items()}
        assert told == expected
        mean = (expected["third", "first"] + expected["third", "second"]) / 2
        assert report["rows"][-1]["mean_forgetting"] == pytest.approx(mean, abs=1e-12)
        page = (chain / "forgetting.md").read_text(encoding="utf-8")
        assert f"{loss['third', 'first']:.4f} ({expected['third', 'first']:+.4f})" in page

    def test_stands_in_tensorboard_over_the_stages(self, chain: Path) -> None:
        loss = losses(chain)
        first = [(0, None), (1, "first"), (2, "second"), (3, "third")]
        for name, steps in {"first": first, "second": [first[0], *first[2:]], "third": [first[0], first[3]]}.items():
            expected = [(step, pytest.approx(loss[after, name], abs=1e-5)) for step, after in steps]
            assert curve(chain, f"validation_of/{name}") == expected
        rise = loss["second", "first"] - loss["first", "first"]
        assert curve(chain, "forgetting/first")[0] == (2, pytest.approx(rise, abs=1e-5))

    def test_of_hand_made_losses(self) -> None:
        values = {(None, "a"): 9, (None, "b"): 8, ("a", "a"): 3, ("b", "a"): 2, ("b", "b"): 5, ("c", "a"): 4}
        measured = [Measurement(after, on, loss, 0.0, 1, "") for (after, on), loss in values.items()]
        measured.append(Measurement("c", "b", 4.5, 0.0, 1, ""))
        found = Losses.of(["a", "b", "c"], measured)
        assert found.forgetting(2, 1) == -1
        assert found.forgetting(3, 1) == 2  # above the 2 after b, not the 3 after a
        assert found.forgetting(3, 2) == -0.5  # what it was before training (8) is no earlier best
        assert found.forgetting(1, 1) is None and found.forgetting(2, 3) is None
        assert found.mean_forgetting(3) == 0.75 and found.mean_forgetting(1) is None
        assert as_json(found)["rows"][3]["forgetting"] == {"a": 2, "b": -0.5}
        lines = table(found).splitlines()
        assert [line.count("|") for line in lines] == [6] * 6 and len({len(line) for line in lines}) == 1
        assert "4.0000 (+2.0000)" in lines[-1] and "+0.7500" in lines[-1]

    def test_is_drawn(self) -> None:
        names = [f"stage <{number}>" for number in range(1, 10)]
        values = {(j, i): 1 + (j * i) % 4 / 2 for i in range(1, 10) for j in (0, *range(i, 10))}
        root = ElementTree.fromstring(svg(names, values))
        circles = [
            (float(one.get("cx", 0)), float(one.get("cy", 0))) for one in root.iter() if one.tag.endswith("}circle")
        ]
        assert len(circles) == len(values)
        assert svg(names, values) == svg(names, values)
        height, width = float(root.get("height", 0)), float(root.get("width", 0))
        assert all(0 < x < width and 0 < y < height for x, y in circles)
        # A lower loss is drawn lower, and losses are drawn on one scale.
        heights = {round(value, 6): set[float]() for value in values.values()}
        for (_, y), (_, value) in zip(
            circles, sorted(values.items(), key=lambda one: (one[0][1], one[0])), strict=True
        ):
            heights[round(value, 6)].add(y)
        drawn = [heights[value] for value in sorted(heights)]
        assert all(len(one) == 1 for one in drawn)
        assert [min(one) for one in drawn] == sorted((min(one) for one in drawn), reverse=True)


KILLER = """
import glob, os, signal, sys, time
import ift.commands.trainer
from ift.artifacts import RunFolder
from ift.cli import main
config, *patterns = sys.argv[1:]
for pattern in patterns:
    child = os.fork()  # nothing has been computed here, so a child is as good as a process of its own
    if child == 0:
        os._exit(main(["fit", "--config", config, "--ckpt_path", "last"]) or 17)
    while not glob.glob(pattern):
        ended, status = os.waitpid(child, os.WNOHANG)
        assert not ended, status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    chain = config.removesuffix(".yaml")
    print(*sorted(os.listdir(chain)), *glob.glob(chain + "/*/adapter"))
"""
"""Starts a chain again and again, and kills it as soon as a file is there."""


def test_a_chain_killed_between_and_inside_stages_ends_bit_for_bit_the_same(
    chain: Path, folder: Path, base: Path
) -> None:
    path = write_chain(folder / "killed.yaml", folder, base, three_stages(folder))
    killed = folder / "killed"
    patterns = [killed / "01-first" / "adapter", killed / "02-second" / "checkpoints" / "*-0000000[3-9].ckpt"]
    program = [sys.executable, "-c", KILLER, *map(str, [path, *patterns])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    between, inside = [line for line in ended.stdout.splitlines() if line.startswith("01-first")]
    assert "02-second" not in between and between.count("adapter") == 1
    assert "02-second" in inside and inside.count("adapter") == 1
    before = [one for one in state(killed)["measurements"] if one["after"] is None]
    run("fit", "--config", path, "--ckpt_path", "last")
    for name in ("01-first", "02-second", "03-third"):
        assert weights(killed / name) == weights(chain / name)
    sessions = json.loads((killed / "02-second" / "manifest.json").read_text(encoding="utf-8"))["sessions"]
    assert len(sessions) == 2 and sessions[1]["from_step"] >= 3
    assert losses(killed) == losses(chain)
    assert [one for one in state(killed)["measurements"] if one["after"] is None] == before
    assert (killed / "forgetting.json").read_bytes() == (chain / "forgetting.json").read_bytes()
    assert (killed / "forgetting.svg").read_bytes() == (chain / "forgetting.svg").read_bytes()
    assert curve(killed, "validation_of/first") == curve(chain, "validation_of/first")


class TestContinuing:
    @pytest.fixture(scope="class")
    def full(self, folder: Path, base: Path) -> Path:
        """A chain of one stage that trains all weights."""
        path = write_chain(folder / "full.yaml", folder, base, [{"name": "one"}], adapter=None)
        run("fit", "--config", path)
        return path

    def test_a_stage_may_be_added_and_base_weights_are_gone_on_with(
        self, full: Path, folder: Path, base: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = full.with_suffix("")
        stages = [{"name": "one"}, {"name": "two", "data": rows_of(folder, "b")}]
        longer = write_chain(folder / "longer.yaml", folder, base, stages, adapter=None)
        before = losses(root)
        capsys.readouterr()
        run("fit", "--config", longer, "--run_dir", root, "--ckpt_path", "last")
        said = capsys.readouterr().err
        assert "validation of 'two' before all stages" in said and "validation of 'one' before" not in said
        assert {cell: losses(root)[cell] for cell in before} == before
        assert set(losses(root)) - set(before) == {(None, "two"), ("two", "one"), ("two", "two")}
        stages = [{"name": "one"}, {"name": "same"}]
        run("fit", "--config", write_chain(folder / "same.yaml", folder, base, stages, adapter=None))
        assert "validation of 'same'" not in capsys.readouterr().err, "one set is measured once with one model"
        found = losses(folder / "same")
        assert found["same", "one"] == found["same", "same"] < found["one", "one"] < found[None, "same"]
        alone = [{"name": "alone", "data": rows_of(folder, "b")}]
        again = write_chain(folder / "again.yaml", folder, root / "01-one" / "model", alone, adapter=None)
        run("fit", "--config", again)
        file = Path("model") / "model.safetensors"
        assert (root / "02-two" / file).read_bytes() == (folder / "again" / "01-alone" / file).read_bytes()

    def test_a_chain_may_begin_with_a_trained_adapter(self, chain: Path, folder: Path, base: Path) -> None:
        """What it starts from is measured with it, and the first stage goes on with it."""
        stages = [{"name": "hot", "data": rows_of(folder, "b"), "trainer": {"max_epochs": 6}}]
        model = {"adapter": f"{chain}/01-first", "optimizer": optimizer(0.002)}
        run("fit", "--config", write_chain(folder / "hot.yaml", folder, base, stages, **model))
        assert weights(folder / "hot" / "01-hot") == weights(chain / "02-second")
        before, after = losses(folder / "hot")[None, "hot"], losses(folder / "hot")["hot", "hot"]
        assert after == losses(chain)["second", "second"]
        assert after < before < losses(chain)[None, "second"]

    def test_what_is_done_may_not_change(self, chain: Path, folder: Path, base: Path, refused: Refused) -> None:
        def said(change: Callable[[list[dict[str, Any]]], object], *flags: object) -> str:
            stages = three_stages(folder)
            change(stages)
            path = write_chain(folder / "changed.yaml", folder, base, stages)
            return refused("fit", "--config", path, "--run_dir", chain, "--ckpt_path", "last", *flags)

        before = {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file()}
        told = said(lambda stages: stages[1]["model"]["optimizer"]["init_args"].update(lr=0.004))
        assert f"stage 'second': model.optimizer.init_args.lr: '{chain / '02-second'}' began with 0.002" in told
        told = said(lambda stages: stages[1]["trainer"].update(max_epochs=7))
        assert "stage 'second': trainer.max_epochs: " in told and "is finished with 6, and here it is 7" in told
        told = said(lambda stages: stages.pop(1))
        assert "stages[1]: " in told and "has trained '02-second' (start: continue)" in told
        assert "here stands '02-third' (start: merge)" in told
        told = said(lambda stages: stages[1].update(start="fresh"))
        assert "here stands '02-second' (start: fresh)" in told
        told = said(lambda stages: stages[0].update(data=rows_of(folder, "c")))
        assert "stage 'first': data.sources: " in told
        assert "began with 4, and is to be continued with 2" in said(len, "--data.global_batch_size", "2")
        assert {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file()} == before

    def test_a_folder_that_is_no_chain_is_left_alone(
        self, chain: Path, folder: Path, base: Path, refused: Refused
    ) -> None:
        path = write_chain(folder / "other.yaml", folder, base, [{"name": "one"}])
        for flags in ([], ["--ckpt_path", "last"]):
            told = refused("fit", "--config", path, "--run_dir", chain / "01-first", *flags)
            assert "holds files but no stages.json" in told if flags else "exists, and nothing in an older run" in told

    def test_a_stage_that_was_trained_further_is_refused(
        self, chain: Path, folder: Path, base: Path, refused: Refused
    ) -> None:
        touched = Path(shutil.copytree(chain, folder / "touched"))
        path = write_chain(folder / "touched.yaml", folder, base, three_stages(folder))
        file = touched / "01-first" / "adapter" / "README.md"
        file.write_text("other", encoding="utf-8")
        told = refused("fit", "--config", path, "--ckpt_path", "last")
        assert f"stages[0]: '{file}' has changed since the run ended" in told
        manifest = touched / "01-first" / "manifest.json"
        kept = json.loads(manifest.read_text(encoding="utf-8"))
        kept["exported"]["README.md"] = hashlib.sha256(b"other").hexdigest()
        manifest.write_text(json.dumps(kept), encoding="utf-8")
        told = refused("fit", "--config", path, "--ckpt_path", "last")
        assert f"stages[0]: '{touched / '01-first'}' has been trained further since it was measured" in told

    def test_keeps_what_the_folder_of_an_adapter_does_not_hold(self, chain: Path, folder: Path, tmp_path: Path) -> None:
        """The ratio of learning rates of LoRA+, and the quantization that a short name brought."""
        (_, second, _) = read_chain(["--config", str(folder / "chain.yaml")]).stages
        before = RunFolder(tmp_path)
        kept = json.loads((chain / "01-first" / "manifest.json").read_text(encoding="utf-8"))
        before.manifest.write_text(json.dumps({**kept, "quantization": {"scheme": "nf4"}}), encoding="utf-8")
        keys = start_keys(second, before, lora_plus())
        assert keys is not None
        expected = {"folder": str(before.adapter), "learning_rate_ratio": 16}
        assert keys["model"]["adapter"]["init_args"] == expected
        assert keys["model"]["quantization"] == {"scheme": "nf4"}
        assert keys["model"]["base"] == kept["base"]["name"] and keys["model"]["merged_adapters"] is None

    @pytest.mark.slow
    def test_keeps_the_quantization_of_a_short_name(self, folder: Path, base: Path) -> None:
        """The second stage's adapter is a folder, which names none."""
        stages = [{"name": "one"}, {"name": "two", "data": rows_of(folder, "b")}]
        run("fit", "--config", write_chain(folder / "qlora.yaml", folder, base, stages, adapter="qlora"))
        for name in ("01-one", "02-two"):
            manifest = json.loads((folder / "qlora" / name / "manifest.json").read_text(encoding="utf-8"))
            assert manifest["quantization"]["scheme"] == "nf4"


def line_of(path: Path, text: str) -> int:
    (number,) = (n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in line)
    return number


LAST: list[tuple[dict[str, Any], str, str]] = [
    ({"data": {"max_lenght": 3}}, "max_lenght", "unknown key 'data.max_lenght'. Did you mean 'data.max_length'?"),
    ({"trianer": {"max_epochs": 3}}, "trianer", "unknown key 'trianer'. Did you mean 'trainer'?"),
    ({"data": {"max_length": "many"}}, "many", "data.max_length: Expected int. Got value: many"),
    ({"model": {"optimizer": {"init_args": {"lrr": 1}}}}, "lrr", "'model.optimizer.init_args.lrr'. Did you mean 'lr'?"),
    ({"model": {"adapter": "lola"}, "start": "merge"}, "lola", "model.adapter: unknown name 'lola'"),
    ({"name": "First"}, "- name: First", "stages[1].name: 'First' is the name of stages[0] already"),
    ({"name": "a/b"}, "a/b", "stages[1].name: 'a/b' may hold letters"),
    ({"name": ""}, "- name: ''", "stages[1].name: required, and not given"),
    ({"start": "merged"}, "merged", "stages[1].start: unknown name 'merged'. Did you mean 'merge'?"),
    ({"run_dir": "x"}, "run_dir: x", "stages[1].run_dir: not possible in a stage; each stage is a run folder inside"),
    ({"ckpt_path": "last"}, "ckpt_path", "stages[1].ckpt_path: not possible in a stage; a whole chain"),
    ({"stages": []}, "stages: []", "stages[1].stages: not possible in a stage"),
    ({"model": {"base": "other"}}, "base: other", "stages[1].model.base: not possible in a stage; a chain has one"),
    ({"model": {"adapter": "dora"}}, "adapter: dora", "stages[1].model.adapter: start 'continue' goes on with the"),
    ({"model": {"merged_adapters": ["x/y"]}}, "merged_adapters", "stages[1].model.merged_adapters: follows from the"),
    ({"data": {"validation": None}}, "- name: last", "stages[1].data.validation: null holds nothing out"),
]


class TestRefusedBeforeAnythingTrains:
    @pytest.fixture
    def said(
        self, folder: Path, base_without_weights: Path, refused: Refused, tmp_path: Path
    ) -> Iterator[Callable[..., str]]:
        def run(stages: Any, *flags: object, base: Path = base_without_weights) -> str:
            path = write_chain(tmp_path / "wrong.yaml", folder, base, stages)
            return refused("fit", "--config", path, *flags)

        yield run
        assert not (tmp_path / "wrong").exists()

    @pytest.mark.parametrize(("last", "typed", "message"), LAST, ids=[message[:40] for *_, message in LAST])
    def test_with_file_line_and_stage(
        self, last: dict[str, Any], typed: str, message: str, said: Callable[..., str], tmp_path: Path
    ) -> None:
        told = said([{"name": "first"}, {"name": "last", **last}])
        path = tmp_path / "wrong.yaml"
        assert f"{path} line {line_of(path, typed)}: " in told and message in told
        assert told.startswith(("error: stage 'last': ", f"error: {path} line "))

    @pytest.mark.parametrize(
        ("first", "start", "message"),
        [
            ("prefix", "merge", "stages[1].start: merge: a PREFIX_TUNING adapter cannot be merged"),
            ("sadapter_h", "merge", "stages[1].start: merge: a BOTTLENECK adapter cannot be merged"),
            ("p_tuning", "continue", "stages[1].start: 'p_tuning' adapters cannot be trained further"),
            ("full", "merge", "stages[1].start: 'first' trains the base model's own weights (full) and leaves no"),
            ("qlora", "merge", "stages[1].start: merge: adapters are not merged into quantized weights"),
            ("adalora", "fresh", "model.adapter: of 4 steps, AdaLoRA keeps"),
        ],
    )
    def test_for_what_the_stage_before_leaves(
        self, first: str, start: str, message: str, said: Callable[..., str]
    ) -> None:
        shares = {"class_path": first, "init_args": {"warmup_share": 0.5, "final_share": 0.5}}
        own: dict[str, Any] = {"model": {"adapter": shares if first == "adalora" else first}}
        assert message in said([{"name": "first", **own}, {"name": "last", "start": start}])

    def test_for_an_adapter_of_another_model(self, said: Callable[..., str], base: Path, chain: Path) -> None:
        trained = {"adapter": str(chain / "01-first" / "adapter")}
        told = said([{"name": "first"}, {"name": "last", "start": "merge", "model": trained}], base=base)
        assert "stages[1].model.adapter: " in told and "was not trained on top of 'first', and start is 'merge'" in told

    def test_for_data_of_the_last_stage(self, said: Callable[..., str], tmp_path: Path) -> None:
        told = said([{"name": "first"}, {"name": "last", "data": rows_of(tmp_path, "none")}])
        assert told.startswith(f"error: stage 'last': data.sources[0].path: no file '{tmp_path / 'none.json'}'")

    @pytest.mark.parametrize(
        ("stages", "message"),
        [
            ([], "stages: expected a list with at least one stage"),
            (3, "stages: expected a list with at least one stage"),
            (["one"], "stages[0]: expected keys and values"),
            ([{"name": "one", "start": "merge"}], "stages[0].start: 'merge' needs a stage before it"),
        ],
    )
    def test_for_no_list_of_stages(self, stages: Any, message: str, said: Callable[..., str]) -> None:
        assert message in said(stages)

    def test_for_options_of_the_command_line(self, said: Callable[..., str], tmp_path: Path) -> None:
        stages = [{"name": "one"}]
        assert "--ckpt_path: 'x.ckpt' is one checkpoint, and a chain" in said(stages, "--ckpt_path", "x.ckpt")
        assert "unknown option '--data.max_lenght'" in said(stages, "--data.max_lenght", "3")
        assert "trainer.num_nodes: 2, and a chain of stages runs on one machine" in said(
            stages, "--trainer.num_nodes=2"
        )
        assert "--run_dir: needs a value" in said(stages, "--run_dir")

    @pytest.mark.parametrize(("variable", "program"), [("WORLD_SIZE", "torchrun"), ("SLURM_NTASKS", "SLURM")])
    def test_for_a_start_by_several_processes(
        self, variable: str, program: str, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, "4")
        monkeypatch.setenv("SLURM_JOB_NAME", "mine")
        assert f"stages: {program} started 4 processes ({variable})" in said([{"name": "one"}])

    def test_for_other_commands(self, chain: Path, folder: Path, refused: Refused) -> None:
        assert "stages: a chain is trained with 'ift fit'" in refused("validate", "--config", folder / "chain.yaml")
        told = refused("data", "inspect", "--config", folder / "chain.yaml")
        assert "stages: each stage has data of its own" in told


def test_the_configuration_of_every_stage_is_shown(
    folder: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_chain(tmp_path / "shown.yaml", folder, base, three_stages(folder))
    (tmp_path / "more.yaml").write_text("data: {micro_batch_tokens: 640}\n", encoding="utf-8")
    flags = ["--config", tmp_path / "more.yaml", "--trainer.max_epochs", "9", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), *map(str, flags)])
    assert stop.value.code == 0
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [one["model"]["optimizer"]["init_args"]["lr"] for one in shown] == [0.01, 0.002, 0.03]
    assert [one["run_dir"] for one in shown] == [
        str(tmp_path / "shown" / name) for name in ("01-first", "02-second", "03-third")
    ]
    assert [one["model"]["adapter"]["class_path"].rpartition(".")[2] for one in shown] == ["lora", "lora", "ia3"]
    # A second file counts for all stages, and the command line wins over a stage's own keys.
    assert {one["data"]["micro_batch_tokens"] for one in shown} == {640}
    assert {one["trainer"]["max_epochs"] for one in shown} == {9}
    assert not (tmp_path / "shown").exists()


@pytest.mark.slow
def test_two_processes_train_and_measure_the_same(folder: Path, base: Path) -> None:
    stages = [{"name": "one"}, {"name": "two", "data": rows_of(folder, "b")}]
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    adapter = {"class_path": "lora", "init_args": {"r": 4, "lora_dropout": 0.0}}
    path = write_chain(folder / "single.yaml", folder, base, stages, optimizer=sgd, adapter=adapter)
    run("fit", "--config", path)
    arguments = ["fit", "--config", path, "--run_dir", folder / "double", "--trainer.devices", "2"]
    program = [sys.executable, "-m", "ift", *map(str, arguments)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    single, double = losses(folder / "single"), losses(folder / "double")
    assert single.keys() == double.keys()
    assert all(double[cell] == pytest.approx(loss, abs=1e-6) for cell, loss in single.items())
    manifest = json.loads((folder / "double" / "02-two" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["sessions"][0]["world_size"] == 2
