"""Configuration: files, overlays and flags; what is misspelt, missing or wrong is said with its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ift.commands import trainer_settings

Config = Callable[..., Path]
Refused = Callable[..., str]
ADAPTER = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}


def line_of(path: Path, text: str) -> int:
    (number,) = (n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in line)
    return number


def with_settings(**changes: Any) -> dict[str, Any]:
    return {"adapter": {**ADAPTER, "init_args": {**ADAPTER["init_args"], **changes}}}  # type: ignore[dict-item]


def sources(**changes: Any) -> dict[str, Any]:
    return {"sources": [{"path": "rows.json", "layout": "alpaca", **changes}]}


MISSPELT: list[tuple[dict[str, Any], str, str]] = [
    ({"modle": {"base": "x"}}, "modle", "unknown key 'modle'. Did you mean 'model'?"),
    ({"data": {"max_lenght": 3}}, "max_lenght", "unknown key 'data.max_lenght'. Did you mean 'data.max_length'?"),
    ({"model": {"schedule": {"knd": "x"}}}, "knd", "'model.schedule.knd'. Did you mean 'model.schedule.kind'?"),
    ({"trainer": {"max_epoch": 3}}, "max_epoch:", "'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?"),
    ({"checkpoint": {"save_topk": 3}}, "save_topk", "Did you mean 'checkpoint.save_top_k'?"),
    ({"model": {"max_length": 3}}, "max_length: 3", "'model.max_length'. Did you mean 'data.max_length'?"),
    ({"model": with_settings(lora_alfa=2)}, "lora_alfa", "'model.adapter.init_args.lora_alfa'. Did you mean 'lora_"),
    ({"model": {"adapter": {**ADAPTER, "initargs": {}}}}, "initargs", "'model.adapter.initargs'. Did you mean 'init_"),
    ({"data": sources(wieght=2)}, "wieght", "unknown key 'data.sources[0].wieght'. Did you mean 'weight'?"),
    (
        {"data": {"validation": [{"path": "x", "layot": "y"}]}},
        "layot",
        "'data.validation[0].layot'. Did you mean 'la",
    ),
    ({"data": {"template": {"name": "x", "usr": "{text}"}}}, "usr", "'data.template.usr'. Did you mean 'user'?"),
    (
        {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duratoin": 1}}]}},
        "duratoin",
        "unknown key 'trainer.callbacks[0].init_args.duratoin'. Did you mean 'duration'?",
    ),
    (
        {"model": {"adapter": {**ADAPTER, "class_path": "peft.LoraConfg"}}},
        "LoraConfg",
        "model.adapter.class_path: 'peft' has no 'LoraConfg'. Did you mean 'LoraConfig'?",
    ),
    ({"model": {"adapter": {"class_path": "pefft.LoraConfig"}}}, "pefft", "'pefft.LoraConfig' cannot be imported"),
]


@pytest.mark.parametrize(("sections", "typed", "message"), MISSPELT, ids=[typed for _, typed, _ in MISSPELT])
def test_a_misspelt_key_is_refused_with_the_nearest(
    sections: dict[str, Any], typed: str, message: str, config: Config, refused: Refused
) -> None:
    path = config(**sections)
    said = refused("fit", "--config", path)
    assert said.startswith(f"error: {path} line {line_of(path, typed)}: ") and message in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.max_lenght", "3"], "unknown option '--data.max_lenght'. Did you mean '--data.max_length'?"),
        (["--data.max_lenght=3"], "Did you mean '--data.max_length'?"),
        (["--model.adapter.init_args.lora_alfa", "3"], "command line: model.adapter: unknown setting 'lora_alfa'."),
        (["--data.base", "x"], "data.base"),
        (["extra"], "unknown option 'extra'"),
        (["--model.on_bad_step", "skip"], "found 'skip'. Write model.on_bad_step.action: skip."),
        (["--model.schedule", "gentle"], "'model.schedule' needs keys below it, found 'gentle'. Known there: "),
        (["--config"], "--config"),
        (["--config", "none.yaml"], "--config: no file 'none.yaml' (looked in "),
        (["--data.max_length", "many"], "command line: data.max_length: Expected int. Got value: many"),
        (["--model.dtype=float31"], "command line: model.dtype: Expected one of 'float32', 'bfloat16'."),
    ],
)
def test_a_wrong_flag_is_refused(flags: list[str], message: str, config: Config, refused: Refused) -> None:
    assert message in refused("fit", "--config", config(), *flags)


def test_an_overlay_may_name_another_class(config: Config, ift: Any, refused: Refused, tmp_path: Path) -> None:
    """The settings of each file are those of the class that it names itself."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {adapter: {class_path: ia3}}\n", encoding="utf-8")
    shown = ift("fit", "--config", config(), "--config", overlay, "--print_config")
    assert shown.code == 0, shown.err
    adapter = yaml.safe_load(shown.out)["model"]["adapter"]
    assert adapter["class_path"].endswith(".ia3") and "r" not in adapter.get("init_args", {})
    path = config(model=with_settings(lora_alfa=2))
    said = refused("fit", "--config", path, "--config", overlay)
    assert f"{path} line {line_of(path, 'lora_alfa')}: unknown key 'model.adapter.init_args.lora_alfa'" in said


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": {"dtype": "float31"}}, "dtype", "Expected one of 'float32', 'bfloat16'. Got value: float31."),
    ({"model": {"schedule": {"kind": "cosin"}}}, "kind", "Got value: cosin. Did you mean 'cosine'?"),
    ({"data": {"max_length": "many"}}, "max_length", "data.max_length: Expected int. Got value: many"),
    ({"data": {"validation": "five"}}, "validation", "data.validation: Expected int or float or list. Got value: five"),
    ({"data": sources(weight="much")}, "much", "data.sources: weight: Expected float. Got value: much"),
    ({"data": {"sources": "much"}}, "sources", "data.sources: Expected list. Got value: much"),
    ({"data": {"sources": [{"layout": "x"}]}}, "layout: x", "data.sources[0].path: required, and not given"),
    ({"model": with_settings(r="many")}, "r: many", "model.adapter: r: Expected int. Got value: many"),
    ({"model": with_settings(bias="some")}, "some", "bias: Expected one of 'none', 'all', 'lora_only'. Got value: so"),
    ({"model": {"adapter": "lola"}}, "lola", "model.adapter: unknown name 'lola'"),
    ({"model": 3}, "model: 3", "'model' needs keys below it, found '3'"),
    ({"data": {"base": "x"}}, "base: x", "'data.base' always follows 'model.base'. Leave it out."),
    ({"data": {"seed": 3}}, "seed: 3", "'data.seed' always follows 'seed_everything'. Leave it out."),
    ({"checkpoint": {"dirpath": "x"}}, "dirpath", "'checkpoint.dirpath' always follows 'run_dir'. Leave it out."),
]


@pytest.mark.parametrize(("sections", "typed", "message"), WRONG, ids=[message[:30] for *_, message in WRONG])
def test_a_wrong_value_is_refused_with_its_place(
    sections: dict[str, Any], typed: str, message: str, config: Config, refused: Refused
) -> None:
    path = config(**sections)
    said = refused("fit", "--config", path)
    assert said.startswith(f"error: {path} line {line_of(path, typed)}: ") and message in said


@pytest.mark.parametrize(
    ("section", "key"), [("model", "base"), ("data", "max_length"), ("data", "sources"), ("model", "optimizer")]
)
def test_a_missing_key_is_named(section: str, key: str, config: Config, refused: Refused) -> None:
    path = config()
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values[section][key]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    said = refused("fit", "--config", path)
    assert f"{section}.{key}: required, and not given. Set it in the YAML, or with --{section}.{key}." in said


@pytest.mark.parametrize(("command", "key"), [("fit", "run_dir"), ("validate", "run_dir"), ("predict", "output_dir")])
def test_the_folder_is_required(command: str, key: str, base: Path, rows_file: Path, refused: Refused) -> None:
    flags: list[Any] = ["--model.base", base]
    flags += ["--data.path", rows_file] if command == "predict" else []
    if command != "predict":
        flags += ["--model.optimizer", "torch.optim.SGD", "--trainer.max_epochs", 1, "--data.max_length", 64]
        flags += ["--data.global_batch_size", 1, "--data.micro_batch_tokens", 64]
        flags += ["--data.sources", f"[{{path: {rows_file}, layout: alpaca}}]"]
    assert f"{key}: required, and not given" in refused(command, *flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [1\nmodel: 3", "line 2: not valid YAML: while parsing a flow sequence expected ',' or ']'"),
        ("data:\n\tmax_length: 3", "line 2: not valid YAML"),
        ("- data\n", "expected keys and values"),
        ("run_dir: a\ndata: {}\nrun_dir: b\n", "line 3: 'run_dir' stands on line 1 already. Keep one of them."),
        ("data:\n  sources:\n  - path: a\n    path: b\n", "line 4: 'data.sources[0].path' stands on line 3 already"),
    ],
)
def test_a_file_that_is_no_configuration(text: str, message: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    said = refused("fit", "--config", path)
    assert said.startswith(f"error: {path}") and message in said


def test_later_files_win_and_flags_win_over_files(config: Config, tmp_path: Path, ift: Any) -> None:
    overlay, second = tmp_path / "overlay.yaml", tmp_path / "second.yaml"
    overlay.write_text("data: {max_length: 100}\nmodel: {adapter: {init_args: {r: 2}}}\n", encoding="utf-8")
    second.write_text("data: {max_length: 90}\nseed_everything: 5\n", encoding="utf-8")
    files = ["--config", config(), f"--config={overlay}", "--config", second]
    outcome = ift("fit", *files, "--data.global_batch_size", 4, "--model.adapter.r", 8, "--print_config")
    assert outcome.code == 0, outcome.err
    shown = yaml.safe_load(outcome.out)
    assert (shown["data"]["max_length"], shown["data"]["global_batch_size"]) == (90, 4)
    assert shown["data"]["micro_batch_tokens"] == 512 and shown["seed_everything"] == 5
    assert shown["model"]["adapter"]["init_args"]["r"] == 8
    assert shown["model"]["adapter"]["init_args"]["target_modules"] == "all-linear"


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_printed_configuration_is_the_same_again(command: str, config: Config, tmp_path: Path, ift: Any) -> None:
    template = {"name": "own", "user": "Q: {text}\nA:", "between_turns": ""}
    first = ift(command, "--config", config(data={"template": template}), "--print_config")
    again = tmp_path / "again.yaml"
    again.write_text(first.out, encoding="utf-8")
    second = ift(command, "--config", again, "--print_config")
    assert (first.code, second.code) == (0, 0), second.err
    assert second.out == first.out
    assert yaml.safe_load(first.out)["data"]["template"]["user"] == "Q: {text}\nA:"


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_help_documents_the_keys(command: str, ift: Any) -> None:
    outcome = ift(command, "--help")
    assert outcome.code == 0
    for words in ("--model.base BASE", "folder or hub id of the base model", "--data.template"):
        assert words in outcome.out


ILLEGAL: list[tuple[dict[str, Any], str]] = [
    ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches: 2 is not possible"),
    ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val: 1.0 is not possible; set model.gradient_clip_norm"),
    ({"gradient_clip_algorithm": "value"}, "trainer.gradient_clip_algorithm: value is not possible"),
    ({"precision": "16-mixed"}, "trainer.precision: 16-mixed is not possible"),
    ({"precision": 16}, "trainer.precision: 16 is not possible"),
    ({"precision": "16-true"}, "trainer.precision: 16-true is not possible"),
    ({"use_distributed_sampler": True}, "trainer.use_distributed_sampler: True is not possible"),
    ({"limit_train_batches": 3}, "trainer.limit_train_batches: 3 is not possible; use trainer.max_steps"),
    ({"overfit_batches": 2}, "trainer.overfit_batches: 2 is not possible"),
    ({"reload_dataloaders_every_n_epochs": 1}, "trainer.reload_dataloaders_every_n_epochs: 1 is not possible"),
    ({"fast_dev_run": True}, "trainer.fast_dev_run: True is not possible"),
    ({"barebones": True}, "trainer.barebones: True is not possible"),
    ({"limit_predict_batches": 1}, "trainer.limit_predict_batches: 1 is not possible"),
    ({"default_root_dir": "somewhere"}, "trainer.default_root_dir: somewhere is not possible"),
    ({"limit_val_batches": 2}, "trainer.limit_val_batches: 2 is not possible"),
    ({"limit_val_batches": 1}, "trainer.limit_val_batches: 1 is not possible"),
    ({"strategy": "fsdq"}, "trainer.strategy: unknown name 'fsdq'. Did you mean 'fsdp'?"),
    (
        {"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}},
        "trainer.strategy: FSDPStrategy is not possible",
    ),
    ({"accelerator": "gpuu"}, "trainer.accelerator: unknown name 'gpuu'. Did you mean 'gpu'?"),
    ({"accelerator": "tpu"}, "trainer.accelerator: 'tpu', and torch finds none here"),
    ({"devices": 0}, "trainer: "),
    ({"max_epochs": None}, "trainer.max_epochs: required, or trainer.max_steps"),
    ({"max_epochs": -1}, "trainer.max_epochs: -1 is less than 1"),
    ({"max_epochs": 0}, "trainer.max_epochs: 0 is less than 1"),
    ({"max_epochs": -2, "max_steps": 3}, "trainer.max_epochs: -2 is less than 1"),
    ({"max_steps": 0}, "trainer.max_steps: 0 is less than 1"),
    ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch: 0 is below 1"),
    ({"val_check_interval": 100}, "trainer.val_check_interval: 100, and an epoch has 4 steps"),
    (
        {"callbacks": [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]},
        "trainer.callbacks: EMAWeightAveraging is not possible",
    ),
    (
        {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "train/loss"}}
            ]
        },
        "trainer.callbacks: EarlyStopping monitors 'train/loss', which no validation gives",
    ),
]


@pytest.mark.parametrize(("settings", "message"), ILLEGAL, ids=[f"{settings}" for settings, _ in ILLEGAL])
def test_an_illegal_trainer_is_refused_before_weights_load(
    settings: dict[str, Any], message: str, config: Config, base_without_weights: Path, tmp_path: Path, refused: Refused
) -> None:
    said = refused("fit", "--config", config(trainer=settings, model={"base": str(base_without_weights)}))
    assert said.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_predict_refuses_them_too(base: Path, rows_file: Path, tmp_path: Path, refused: Refused) -> None:
    flags = ["--model.base", base, "--data.path", rows_file, "--data.layout", "alpaca", "--output_dir", tmp_path / "p"]
    said = refused("predict", *flags, "--trainer.limit_predict_batches", 1)
    assert said.startswith("error: trainer.limit_predict_batches: 1 is not possible")
    assert not (tmp_path / "p").exists()


MODEL: list[tuple[dict[str, Any], str]] = [
    ({"gradient_clip_norm": 0}, "model.gradient_clip_norm: 0.0 is not above 0"),
    ({"schedule": {"warmup": -1}}, "model.schedule.warmup: -1 is neither"),
    ({"schedule": {"warmup": 1.5}}, "model.schedule.warmup: 1.5 is neither"),
    ({"schedule": {"final_share": 2}}, "model.schedule.final_share: 2.0 is no share"),
]


@pytest.mark.parametrize(("settings", "message"), MODEL, ids=[f"{settings}" for settings, _ in MODEL])
def test_an_illegal_model_is_refused_before_weights_load(
    settings: dict[str, Any], message: str, config: Config, base_without_weights: Path, tmp_path: Path, refused: Refused
) -> None:
    said = refused("fit", "--config", config(model={**settings, "base": str(base_without_weights)}))
    assert message in said
    assert not (tmp_path / "run").exists()


def test_every_rule_of_the_trainer_is_tested() -> None:
    """The list above and the rules must not part."""
    source = Path(trainer_settings.__file__).read_text(encoding="utf-8")
    rules = source[source.index("    refused = {") : source.index("for key, (is_refused, repair)")]
    named = {line.strip().split('"')[1] for line in rules.splitlines() if line.startswith('        "')}
    assert named <= {key for settings, _ in ILLEGAL for key in settings}
