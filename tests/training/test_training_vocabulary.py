"""Runs with an enlarged vocabulary: rows, tokenizer and adapter are saved, loaded, merged and resumed together."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest_difference
from peft import PeftModel
from safetensors.torch import load_file
from test_training_method_resume import interrupt
from tiny import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabularies import larger_tokenizer

from ift.artifacts import RunFolder
from ift.cli import main

Config = Callable[..., Path]
Fit = Callable[..., Path]
Enlarged = Callable[..., Path]

OLD, NEW = 420, 432
LORA = {"class_path": "lora", "init_args": {"r": 4, "lora_dropout": 0.1}}
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
OPTIONS = [" river stone", "项：河流", " cloud paper lamp"]


@pytest.fixture(scope="module")
def tied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one matrix for embedding and head."""
    folder = make_llama(tmp_path_factory.mktemp("tied") / "llama", OLD, tie_word_embeddings=True)
    AutoTokenizer.from_pretrained(str(base)).save_pretrained(str(folder))
    return folder


@pytest.fixture
def larger(base: Path, tmp_path: Path) -> Path:
    """The tokenizer of both with twelve pieces more."""
    return larger_tokenizer(base, tmp_path / "larger", NEW - OLD)


@pytest.fixture
def enlarged(config: Config, base: Path, larger: Path) -> Enlarged:
    """Write a run with the larger tokenizer."""

    def write(name: str = "run", *, model: dict[str, Any] | None = None, **sections: Any) -> Path:
        own = {"base": str(base), "adapter": LORA, "vocabulary": {"tokenizer": str(larger)}, **(model or {})}
        quick = {"trainer": {"max_epochs": 1}, "samples": {"num_samples": 0}, "data": {"global_batch_size": 16}}
        return config(name, model=own, **{**quick, **sections})

    return write


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "model.safetensors"))


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return found


def predicted(tmp_path: Path, name: str, *arguments: str) -> list[float]:
    """Return how likely `ift predict` finds three texts after a request."""
    row = {"messages": [{"role": "user", "content": "请重复第3项：河流"}], "options": OPTIONS}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    data = ["--data.path", str(tmp_path / "prompts.jsonl"), "--output_dir", str(tmp_path / name)]
    assert main(["predict", *arguments, *data, *CPU, "--debug"]) == 0
    scores: list[float] = json.loads((tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8"))[
        "option_scores"
    ]
    return scores


@torch.no_grad()
def likelihoods(model: Any, run: Path) -> list[float]:
    """The same by transformers alone."""
    from ift.commands.merge_prompts import encoder_of
    from ift.data.conversation import Conversation, Message

    encoder = encoder_of(RunFolder(run), "alpaca", {})
    prompt = encoder.prompt_ids(Conversation((Message("user", "请重复第3项：河流"),)))
    found = []
    for option in OPTIONS:
        own = encoder.response_ids(option)
        out = model.eval()(input_ids=torch.tensor([[*prompt, *own]])).logits[0].log_softmax(-1)
        found.append(sum(float(out[len(prompt) + place - 1, token]) for place, token in enumerate(own)))
    return found


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_rows_tokenizer_and_adapter_stay_together(
    kind: str, base: Path, tied: Path, larger: Path, enlarged: Enlarged, fit: Fit, tmp_path: Path
) -> None:
    own = base if kind == "untied" else tied
    run = fit(enlarged(model={"base": str(own)}))
    shutil.rmtree(larger)  # the run has a copy
    assert len(AutoTokenizer.from_pretrained(str(run / "tokenizer"))) == NEW
    saved = load_file(str(run / "adapter" / "adapter_model.safetensors"))
    rows = {name: one for name, one in saved.items() if "lora_" not in name}
    assert all(one.shape == (NEW - OLD, 32) for one in rows.values())
    assert len(rows) == (2 if kind == "untied" else 1)
    # The base model resized by transformers, with whatever it puts into the new rows.
    plain = AutoModelForCausalLM.from_pretrained(str(own))
    plain.resize_token_embeddings(NEW)
    expected = likelihoods(PeftModel.from_pretrained(plain, str(run / "adapter")), run)
    assert predicted(tmp_path, "predicted", "--run", str(run)) == pytest.approx(expected, abs=1e-4)
    merged = tmp_path / "merged"
    assert main(["merge", str(run), "--output", str(merged), "--num_prompts", "4", "--debug"]) == 0
    assert "| vocabulary | 12 new tokens (they began as: pieces), 432 rows |" in (merged / "README.md").read_text()
    again = AutoModelForCausalLM.from_pretrained(str(merged))
    assert again.config.vocab_size == NEW and again.config.tie_word_embeddings == (kind == "tied")
    assert likelihoods(again, run) == pytest.approx(expected, abs=1e-4)
    assert predicted(tmp_path, "of the merged", "--model.base", str(merged)) == pytest.approx(expected, abs=1e-4)
    before, after = weights(own), weights(merged)
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & before.keys():
        assert torch.equal(after[name][:OLD], before[name])
        assert torch.equal(
            after[name][OLD:], next(one for key, one in rows.items() if name.removesuffix(".weight") in key)
        )
    assert before.keys() == after.keys()


def test_the_untuned_model_has_the_rows_as_they_begin(base: Path, enlarged: Enlarged, fit: Fit, tmp_path: Path) -> None:
    run = fit(enlarged(model={"vocabulary": {"tokenizer": str(tmp_path / "larger"), "initialization": "mean"}}))
    model = AutoModelForCausalLM.from_pretrained(str(base))
    model.resize_token_embeddings(NEW, mean_resizing=False)
    with torch.no_grad():
        for end in (model.model.embed_tokens, model.lm_head):
            end.weight[OLD:] = end.weight[:OLD].double().mean(0)
    found = predicted(tmp_path, "without", "--run", str(run), "--untuned", "true")
    assert found == pytest.approx(likelihoods(model, run), abs=1e-4)
    direct = ["--model.base", str(base), "--model.vocabulary.tokenizer", str(run / "tokenizer")]
    assert predicted(tmp_path, "direct", *direct, "--model.vocabulary.initialization", "mean") == found


def test_a_stopped_run_ends_bit_for_bit_the_same(
    enlarged: Enlarged, fit: Fit, monkeypatch: pytest.MonkeyPatch, tied: Path
) -> None:
    settings: dict[str, Any] = {
        "model": {"base": str(tied), "vocabulary": {"special_tokens": ["<|x|>"], "initialization": "random"}},
        "trainer": {"max_epochs": -1, "max_steps": 6, "num_sanity_val_steps": 0},
        "checkpoint": {"every_n_train_steps": 2},
    }
    reference = fit(enlarged("reference", **settings))
    path = enlarged("stopped", **settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    interrupt(monkeypatch, path, at=3)
    torch.set_num_threads(threads)
    run = fit(path, "--ckpt_path", "last")
    assert [one["from_step"] for one in manifest(run)["sessions"]] == [0, 2]
    assert largest_difference(reference, run) == 0
    assert manifest(run)["vocabulary"] == manifest(reference)["vocabulary"]


@pytest.mark.slow
def test_a_checkpoint_of_another_vocabulary_is_refused(
    enlarged: Enlarged, fit: Fit, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(enlarged("first"))
    (checkpoint,) = run.glob("checkpoints/*.ckpt")
    other = {"tokenizer": str(tmp_path / "larger"), "initialization": "mean"}
    path = enlarged("second", model={"vocabulary": other})
    moved = checkpoint.rename(tmp_path / "moved.ckpt")  # in its run, the settings would be compared before
    assert main(["fit", "--config", str(path), "--ckpt_path", str(moved)]) == 2
    assert "--ckpt_path: the vocabulary that 'the checkpoint' was trained with" in capsys.readouterr().err


@pytest.mark.slow
def test_all_weights_leave_a_model_that_needs_nothing_more(
    enlarged: Enlarged, fit: Fit, config: Config, tmp_path: Path
) -> None:
    run = fit(enlarged(model={"adapter": None}))
    model = AutoModelForCausalLM.from_pretrained(str(run / "model"))
    assert model.config.vocab_size == NEW and len(AutoTokenizer.from_pretrained(str(run / "model"))) == NEW
    assert predicted(tmp_path, "predicted", "--run", str(run)) == pytest.approx(likelihoods(model, run), abs=1e-4)
    assert main(["merge", str(run), "--output", str(tmp_path / "merged"), "--num_prompts", "2"]) == 0
    second = fit(config("second", model={"base": str(run / "model"), "adapter": LORA}))
    assert manifest(second)["vocabulary"] is None
    assert predicted(tmp_path, "by the second", "--run", str(second))


@pytest.mark.parametrize("scheme", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_beside_quantized_weights(scheme: str, enlarged: Enlarged, fit: Fit, tmp_path: Path) -> None:
    run = fit(enlarged(model={"quantization": {"scheme": scheme}}))
    scores = predicted(tmp_path, "predicted", "--run", str(run))
    assert main(["merge", str(run), "--output", str(tmp_path / "merged"), "--num_prompts", "4"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    assert likelihoods(merged, run) == pytest.approx(scores, abs=2e-3)
    certificate = json.loads((tmp_path / "merged" / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["passed"]


@pytest.mark.slow
def test_rows_of_an_adapter_that_is_merged_before(
    base: Path, enlarged: Enlarged, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(enlarged("first"))
    second = fit(enlarged("second", model={"merged_adapters": [str(first)]}))
    assert main(["merge", str(first), "--output", str(tmp_path / "merged"), "--num_prompts", "2"]) == 0
    plain = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    expected = likelihoods(PeftModel.from_pretrained(plain, str(second / "adapter")), second)
    assert predicted(tmp_path, "predicted", "--run", str(second)) == pytest.approx(expected, abs=1e-4)
    capsys.readouterr()
    path = enlarged("third", model={"merged_adapters": [str(first)], "vocabulary": None})
    assert main(["fit", "--config", str(path)]) == 2
    assert "was trained with an enlarged vocabulary. Set model.vocabulary" in capsys.readouterr().err
    gone_on = fit(enlarged("fourth", model={"adapter": str(first)}))
    assert predicted(tmp_path, "gone on", "--run", str(gone_on))


@pytest.mark.slow
def test_the_stages_of_chinese_llama(enlarged: Enlarged, tmp_path: Path, base: Path, larger: Path) -> None:
    """Embeddings; LoRA with all rows on the model that they left; another LoRA on top, merged and gone on with."""
    stages = [
        {"name": "embeddings", "model": {"adapter": {"class_path": "embeddings"}}},
        {"name": "lora", "model": {"adapter": LORA, "vocabulary": {"train": "all"}}},
        {"name": "instructions", "start": "merge", "model": {"adapter": LORA}},
        {"name": "more"},
    ]
    path = enlarged("chain", stages=stages, model={"adapter": None})
    assert main(["fit", "--config", str(path), "--debug"]) == 0
    one, two, three, four = (tmp_path / "chain" / f"0{n}-{stage['name']}" for n, stage in enumerate(stages, 1))
    before, after = weights(base), weights(one / "model")
    moved = {name for name, value in after.items() if not torch.equal(value[: len(before[name])], before[name])}
    assert moved == {"model.embed_tokens.weight", "lm_head.weight"}
    assert after["lm_head.weight"].shape == (NEW, 32)
    assert manifest(two)["base"]["path"] == str((one / "model").resolve()) and manifest(two)["vocabulary"] is None
    saved = load_file(str(two / "adapter" / "adapter_model.safetensors"))
    assert sum(value.shape == (NEW, 32) for value in saved.values()) == 2
    for run in (three, four):
        assert predicted(tmp_path, run.name, "--run", str(run))


def test_a_template_gets_its_special_tokens(enlarged: Enlarged, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    vocabulary = {"special_tokens": ["<|im_start|>", "<|im_end|>"]}
    run = fit(enlarged(model={"vocabulary": vocabulary}, data={"template": "chatml", "global_batch_size": 16}))
    said = capsys.readouterr().err
    assert "2 new tokens (ids 420 to 421)" in said and "im_end" not in said
    tokenizer = AutoTokenizer.from_pretrained(str(run / "tokenizer"))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 421


def test_changed_tokenizers_are_refused(
    enlarged: Enlarged, fit: Fit, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model's cuts the pieces, and its fingerprint says nothing of it."""
    own = Path(shutil.copytree(base, tmp_path / "own"))
    run = fit(enlarged(model={"base": str(own)}))
    described = json.loads((own / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"]["merges"] = described["model"]["merges"][:20]
    (own / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    capsys.readouterr()
    assert main(["merge", str(run), "--output", str(tmp_path / "merged")]) == 2
    assert "RUN: the vocabulary that" in capsys.readouterr().err
    row = tmp_path / "row.jsonl"
    row.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n", encoding="utf-8")
    arguments = ["--run", str(run), "--data.path", str(row), "--output_dir", str(tmp_path / "out")]
    assert main(["predict", *arguments, *CPU]) == 2
    assert "run: the vocabulary that" in capsys.readouterr().err


def test_mistakes_are_told_before_weights_load(
    enlarged: Enlarged, base: Path, larger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(base, tmp_path / "own"))
    (own / "model.safetensors").write_bytes(b"no weights")
    moved = larger_tokenizer(base, tmp_path / "moved", 3)
    described = json.loads((moved / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"]
    one, other = sorted(vocabulary, key=lambda token: int(vocabulary[token]))[300:302]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (moved / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    for model, told in (
        ({"vocabulary": {"tokenizer": str(moved)}}, f"has the token '{one}' under id 301"),
        ({"vocabulary": {"tokenizer": str(tmp_path / "none")}}, "model.vocabulary.tokenizer: no folder"),
        ({"vocabulary": {"tokeniser": "x"}}, "tokenizer"),
        ({"vocabulary": {"tokenizer": str(larger), "train": "new"}, "adapter": "ia3"}, "ia3 cannot train single rows"),
        ({"adapter": {"class_path": "pissa", "init_args": {"r": 4}}}, "model.vocabulary.train to none"),
    ):
        path = enlarged(model={"base": str(own), **model})
        assert main(["fit", "--config", str(path)]) == 2
        message = capsys.readouterr().err
        assert told in message and "Traceback" not in message, message
        assert not path.with_suffix("").exists()


def test_nothing_new_is_said_so(enlarged: Enlarged, fit: Fit, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run = fit(enlarged(model={"vocabulary": {"tokenizer": str(base)}}))
    assert "the base model has all of its tokens already" in capsys.readouterr().err
    assert manifest(run)["vocabulary"] is None
    saved = load_file(str(run / "adapter" / "adapter_model.safetensors"))
    assert saved and all("lora_" in name for name in saved)


def test_a_budget_counts_the_rows(enlarged: Enlarged, fit: Fit) -> None:
    run = fit(enlarged(model={"adapter": {"class_path": "lora"}, "budget": 4000}))
    found = manifest(run)
    assert found["budget"]["trainable"] == found["parameters"]["trainable"]
    assert found["budget"]["trainable"] == 2 * (NEW - OLD) * 32 + 1024 * found["budget"]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("train", ["new", "all"])
def test_two_ranks_train_rows_as_one(train: str, enlarged: Enlarged, larger: Path, fit: Fit, start: Any) -> None:
    model: dict[str, Any] = {
        "adapter": {"class_path": "lora", "init_args": {"r": 4, "lora_dropout": 0.0}},  # masks depend on the rank
        "vocabulary": {"tokenizer": str(larger), "train": train},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
    }
    one = fit(enlarged("one", model=model))
    path = enlarged("two", model=model)
    process = start("fit", "--config", str(path), "--trainer.devices", "2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert largest_difference(one, path.with_suffix("")) < 1e-6
