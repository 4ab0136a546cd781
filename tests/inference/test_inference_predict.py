"""`ift predict`: answers equal to transformers' own, in the order of the prompts, from any kind of run."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_level import make_byte_level
from predicting import CPU, Predicting, fit, read, run_settings, write_prompts
from tiny import make_llama, make_rows, write_json

from ift.data.datamodule import InstructionDataModule
from ift.data.rows import Source
from ift.errors import UserError
from ift.inference.generation import Decoding, generate
from ift.records import read_predictions

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)


def load(base: Path, adapter: Path | None) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    return model.eval(), AutoTokenizer.from_pretrained(str(base))


def prompt_of(tokenizer: Any, prompt: dict[str, Any]) -> torch.Tensor:
    return tokenizer(PROMPT.format(prompt["messages"][0]["content"]), return_tensors="pt").input_ids


def expected_response(model: Any, tokenizer: Any, prompt: dict[str, Any]) -> tuple[str, str]:
    """Return text and reason of the end, from transformers' own greedy search over the one prompt without padding."""
    ids = prompt_of(tokenizer, prompt)
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
    reason = "stop" if tokenizer.eos_token_id in output else "length"
    return tokenizer.decode([token for token in output if token != tokenizer.eos_token_id]), reason


def expected_scores(model: Any, tokenizer: Any, prompt: dict[str, Any]) -> list[float]:
    """Return the log likelihood of each option, from all logits of prompt and option alone."""
    start, scores = prompt_of(tokenizer, prompt), []
    for option in prompt["options"]:
        # In a SentencePiece tokenizer with a blank in front of every text, a response is a text of its own.
        ids = tokenizer(option, return_tensors="pt", add_special_tokens=False).input_ids
        whole = torch.cat((start, ids), dim=1)
        with torch.no_grad():
            likelihood = torch.log_softmax(model(input_ids=whole).logits[0].double(), dim=-1)
        scores.append(sum(float(likelihood[start.shape[1] - 1 + k, token]) for k, token in enumerate(ids[0])))
    return scores


def check(predictions: list[dict[str, Any]], prompts_file: Path, model: Any, tokenizer: Any) -> None:
    prompts = [json.loads(line) for line in prompts_file.read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in predictions] == [prompt["id"] for prompt in prompts]
    for one, prompt in zip(predictions, prompts, strict=True):
        assert one["prompt"] == "<s> " + PROMPT.format(prompt["messages"][0]["content"])
        assert (one["reference"], one["meta"]) == (prompt["reference"], prompt["meta"])
        if "options" in prompt:
            assert one["options"] == prompt["options"] and one["response"] is None
            assert one["option_scores"] == pytest.approx(expected_scores(model, tokenizer, prompt), abs=1e-5)
            assert len(one["option_num_tokens"]) == len(prompt["options"])
        else:
            assert (one["response"], one["finish_reason"]) == expected_response(model, tokenizer, prompt)
            assert one["options"] == one["option_scores"] == []


def test_from_a_run_folder(predict: Predicting, trained: Path, base: Path, prompts_file: Path, tmp_path: Path) -> None:
    check(predict.lines(tmp_path / "out"), prompts_file, *load(base, trained / "adapter"))
    about = json.loads((tmp_path / "out" / "predict.json").read_text(encoding="utf-8"))
    assert (about["status"], about["predictions"]) == ("finished", 30)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predict.json", "predictions.jsonl"]
    assert len(read_predictions(tmp_path / "out" / "predictions.jsonl")) == 30


def test_from_a_base_model_alone(base: Path, predict: Predicting, prompts_file: Path, tmp_path: Path) -> None:
    alone = Predicting(predict.capture, [f"--model.base={base}", *predict.arguments[1:]])
    found = alone.lines(tmp_path / "out")
    check(found, prompts_file, *load(base, None))
    assert found != predict.lines(tmp_path / "tuned")  # else the adapter would be idle, and the tests above too


@pytest.mark.parametrize("size", [1, 30])
def test_the_batch_size_changes_no_answer(size: int, predict: Predicting, tmp_path: Path) -> None:
    usual, other = predict.lines(tmp_path / "usual"), predict.lines(tmp_path / "other", f"--data.batch_size={size}")
    for one, two in zip(usual, other, strict=True):
        assert two.pop("option_scores") == pytest.approx(one.pop("option_scores"), abs=1e-5)
        assert one == two


def test_sampling_is_seeded(predict: Predicting, tmp_path: Path) -> None:
    sampling = ["--model.decoding.do_sample=true", "--model.decoding.temperature=2", "--model.decoding.top_k=50"]
    first = predict.lines(tmp_path / "1", *sampling)
    assert predict.lines(tmp_path / "2", *sampling) == first
    assert predict.lines(tmp_path / "3", *sampling, "--seed_everything=1") != first


def test_batches_draw_on_their_own(predict: Predicting, tmp_path: Path) -> None:
    """The same prompt in several batches is answered in several ways."""
    messages = [{"role": "user", "content": "Repeat: river"}]
    path = write_prompts(tmp_path / "same.jsonl", [{"messages": messages}] * 6)
    sampling = ["--model.decoding.do_sample=true", "--model.decoding.temperature=4", "--data.batch_size=1"]
    found = predict.lines(tmp_path / "out", *sampling, f"--data.path={path}")
    assert len({one["response"] for one in found}) == 6


@pytest.mark.parametrize("pad", [0, 2, 64, 358])
def test_padding_is_masked_by_position(pad: int, trained: Path, base: Path) -> None:
    """Also where the padding is end-of-text, or a token that prompts hold."""
    model, tokenizer = load(base, trained / "adapter")
    prompts = [tokenizer(text).input_ids for text in ("river", "Repeat: stone lamp cloud </s>", "a b c d e f g h")]
    arguments: dict[str, Any] = {"decoding": Decoding(max_new_tokens=8), "stop_token_ids": [2], "pad_token_id": pad}
    together = generate(model, prompts, **arguments)
    assert together == [generate(model, [prompt], **arguments)[0] for prompt in prompts]


def test_no_run_of_tokens_occurs_twice(trained: Path, base: Path) -> None:
    """As transformers understands it: runs of the prompt count too; without it, greedy search repeats itself."""
    model, tokenizer = load(base, trained / "adapter")
    prompt = tokenizer("Repeat: river stone lamp").input_ids

    def repeated(size: int) -> int:
        decoding = Decoding(max_new_tokens=40, no_repeat_ngram_size=size)
        found = generate(model, [prompt], decoding=decoding, stop_token_ids=[], pad_token_id=0)[0].ids
        runs = Counter(zip(*([*prompt, *found][start:] for start in range(3)), strict=False))
        return sum(count > 1 for count in runs.values())

    assert repeated(0) > 0
    assert repeated(3) == 0


def test_a_negative_run_of_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.decoding\.no_repeat_ngram_size: -1 is negative"):
        Decoding(no_repeat_ngram_size=-1)


def test_a_training_source_gives_references(predict: Predicting, rows_file: Path, tmp_path: Path) -> None:
    found = predict.lines(tmp_path / "out", f"--data.path={rows_file}", "--data.layout=alpaca")
    rows = json.loads(rows_file.read_text(encoding="utf-8"))
    assert [one["reference"] for one in found] == [row["output"] for row in rows]
    assert [one["id"] for one in found[:2]] == ["rows-000000", "rows-000001"]


def test_from_a_run_of_all_weights(base: Path, predict: Predicting, prompts_file: Path, tmp_path: Path) -> None:
    rows = write_json(tmp_path / "rows.json", make_rows(8))
    run = fit(tmp_path / "full", run_settings(tmp_path / "full", base, rows, adapter=None))
    shutil.rmtree(tmp_path / "cache")
    found = predict.lines(tmp_path / "out", f"--run={run}")
    check(found, prompts_file, *load(run / "model", None))


def test_from_a_run_with_the_tokenizers_own_template(predict: Predicting, tmp_path: Path) -> None:
    """The template travels with the run, so that prompts have the ids of training."""
    rows = make_rows(16)
    base = make_llama(make_byte_level(tmp_path / "base", [row["output"] for row in rows]), 400)
    source = write_json(tmp_path / "rows.json", rows)
    settings = run_settings(tmp_path / "run", base, source)
    settings["data"] |= {"template": "tokenizer", "validation": [{"path": str(source), "layout": "alpaca"}]}
    run = fit(tmp_path / "run", settings)
    module = InstructionDataModule(
        [Source(str(source), "alpaca")],
        str(base),
        256,
        8,
        256,
        template="tokenizer",
        validation=[Source(str(source), "alpaca")],
        cache_dir=str(tmp_path / "cache"),
    )
    module.load()
    trained = [module.encoder.tokenizer.decode(prompt) for prompt, _ in module.validation_prompts(16)]
    found = predict.lines(tmp_path / "out", f"--run={run}", f"--data.path={source}", "--data.layout=alpaca")
    assert [one["prompt"] for one in found] == trained
    assert found[0]["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert all("<|" not in one["response"] for one in found)


class TestRunFolder:
    def copied(self, trained: Path, tmp_path: Path, **changes: Any) -> Path:
        shutil.copytree(trained, tmp_path / "copy")
        manifest = json.loads((trained / "manifest.json").read_text(encoding="utf-8"))
        (tmp_path / "copy" / "manifest.json").write_text(json.dumps({**manifest, **changes}), encoding="utf-8")
        return tmp_path / "copy"

    def test_that_is_none(self, predict: Predicting, tmp_path: Path) -> None:
        said = predict.refused(tmp_path / "out", f"--run={tmp_path / 'none'}")
        assert said.startswith(f"error: run: '{tmp_path / 'none'}' is no run folder: it holds no manifest.json")

    def test_that_is_not_finished(self, predict: Predicting, trained: Path, tmp_path: Path) -> None:
        run = self.copied(trained, tmp_path, status="running")
        said = predict.refused(tmp_path / "out", f"--run={run}")
        assert f"run: '{run}' is not finished. Continue it with ift fit --ckpt_path last." in said

    def test_whose_base_model_has_changed(self, predict: Predicting, trained: Path, base: Path, tmp_path: Path) -> None:
        shutil.copytree(base, tmp_path / "base")
        about = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "base" / "config.json").write_text(json.dumps({**about, "rope_theta": 5.0}), encoding="utf-8")
        manifest = json.loads((trained / "manifest.json").read_text(encoding="utf-8"))
        place = str(tmp_path / "base")
        run = self.copied(trained, tmp_path, base={**manifest["base"], "name": place, "path": place})
        said = predict.refused(tmp_path / "out", f"--run={run}")
        assert f"run: the base model '{place}' is not the one that '{run}' was trained on" in said
        shutil.rmtree(tmp_path / "base")
        assert f"run: the base model of '{run}' is gone" in predict.refused(tmp_path / "out", f"--run={run}")

    @pytest.mark.parametrize(
        "flag", ["--model.base=other", "--model.adapter=null", "--data.template=plain", "--data.tokenizer=other"]
    )
    def test_decides_what_belongs_to_it(self, flag: str, predict: Predicting, tmp_path: Path) -> None:
        said = predict.refused(tmp_path / "out", flag)
        assert said.startswith(f"error: {flag[2:].partition('=')[0]}: with --run ") and "Leave one of the two" in said
        assert not (tmp_path / "out").exists()

    def test_is_named_on_the_command_line(self, predict: Predicting, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text(f"run: {trained}\n", encoding="utf-8")
        own = Predicting(predict.capture, [*predict.arguments[1:], f"--config={tmp_path / 'p.yaml'}"])
        assert "run: name the run folder on the command line (--run RUN)" in own.refused(
            tmp_path / "out", "--model.base=x"
        )


BAD_PROMPTS: list[tuple[Any, str]] = [
    ("{broken", "not valid JSON"),
    ([1], "a row must be a JSON object, found list"),
    ({"prompt": "a"}, "layout 'messages' needs a list 'messages'; found 'prompt'"),
    ({"messages": []}, "the row holds no message"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "the row holds no request"),
    ({"messages": [{"role": "user", "content": "a"}], "options": "ABCD"}, "'options' must be a list of texts"),
    ({"messages": [{"role": "user", "content": "a"}], "options": ["A", ""]}, "'options' must be a list of texts"),
    ({"messages": [{"role": "user", "content": "a"}], "reference": 3}, "'reference' must be text, found int"),
    ({"id": "item-000-0", "messages": [{"role": "user", "content": "a"}]}, "the id 'item-000-0' occurs twice"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_PROMPTS, ids=[reason[:25] for _, reason in BAD_PROMPTS])
def test_a_bad_prompt_is_named_with_its_line(
    row: Any, reason: str, predict: Predicting, prompts_file: Path, tmp_path: Path
) -> None:
    good = prompts_file.read_text(encoding="utf-8")
    path = tmp_path / "prompts.jsonl"
    path.write_text(good + (row if isinstance(row, str) else json.dumps(row)) + "\n" + "{}\n", encoding="utf-8")
    said = predict.refused(tmp_path / "out", f"--data.path={path}")
    assert said.startswith(f"error: data.path: {path} line 31: ") and reason in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.path=none.jsonl"], "data.path: no file 'none.jsonl' (looked in "),
        (["--data.layout=mesages"], "data.layout: unknown name 'mesages'. Did you mean 'messages'?"),
        (["--data.batch_size=0"], "data.batch_size: 0 is less than 1"),
        (["--model.decoding.max_new_tokens=0"], "model.decoding.max_new_tokens: 0 is less than 1"),
        (["--model.decoding.temperature=0.5"], "have no effect without do_sample"),
        (["--model.decoding.do_sample=true", "--model.decoding.temperature=0"], "model.decoding.temperature: 0.0 is"),
        (["--model.decoding.beams=2"], "unknown option '--model.decoding.beams=2'"),
        (["--model.decoding.max_new_tokens=500"], "model.decoding.max_new_tokens: 20 of 30 prompts with their respon"),
    ],
)
def test_what_cannot_be_asked(flags: list[str], message: str, predict: Predicting, tmp_path: Path) -> None:
    assert message in predict.refused(tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_options_count_toward_the_models_positions(predict: Predicting, tmp_path: Path) -> None:
    prompt = {"id": "long", "messages": [{"role": "user", "content": "a"}], "options": ["A", "stone " * 600]}
    path = write_prompts(tmp_path / "prompts.jsonl", [prompt])
    said = predict.refused(tmp_path / "out", f"--data.path={path}")
    assert said.startswith("error: data.path: 1 of 1 prompts with their options are longer than the model's 512 posi")
    assert "first 'long' with" in said and "fewer worked examples" in said and "max_new_tokens" not in said


def test_advice_for_long_prompts_can_be_followed(predict: Predicting, tmp_path: Path) -> None:
    """The number of new tokens that it names is accepted and one more is not; where none fits, none is named."""
    prompts = [{"id": f"p{n}", "messages": [{"role": "user", "content": "a " * n}]} for n in (1, 20, 60)]
    path = f"--data.path={write_prompts(tmp_path / 'prompts.jsonl', prompts)}"
    said = predict.refused(tmp_path / "out", path, "--model.decoding.max_new_tokens=512")
    assert said.startswith("error: model.decoding.max_new_tokens: 3 of 3 prompts with their responses")
    most = int(said.partition("to at most ")[2].partition(",")[0])
    said = predict.refused(tmp_path / "out", path, f"--model.decoding.max_new_tokens={most + 1}")
    assert "1 of 3 prompts" in said and "first 'p60' with 513 tokens" in said and f"at most {most}," in said
    assert predict(tmp_path / "out", path, f"--model.decoding.max_new_tokens={most}")[0] == 0
    path = f"--data.path={write_prompts(tmp_path / 'longer.jsonl', [{**prompts[0], 'id': 'x'}, LONGER])}"
    said = predict.refused(tmp_path / "none", path, "--model.decoding.max_new_tokens=1")
    assert said.startswith("error: data.path: 1 of 2 prompts with their responses") and "max_new_tokens" not in said


LONGER = {"id": "longer", "messages": [{"role": "user", "content": "stone " * 600}]}


def test_no_prompt_at_all(predict: Predicting, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n\n", encoding="utf-8")
    said = predict.refused(tmp_path / "out", f"--data.path={tmp_path / 'none.jsonl'}")
    assert f"data.path: no prompt in '{tmp_path / 'none.jsonl'}'" in said


def test_an_adapter_that_does_not_fit_leaves_no_folder(
    predict: Predicting, trained: Path, prompts_file: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    other = make_llama(tmp_path / "other", 420, hidden_size=16)
    AutoTokenizer.from_pretrained(str(trained / "tokenizer")).save_pretrained(str(other))
    flags = [f"--model.base={other}", f"--model.adapter={trained / 'adapter'}", f"--data.path={prompts_file}"]
    said = Predicting(predict.capture, [*flags, *CPU]).refused(tmp_path / "out", "--model.decoding.max_new_tokens=2")
    assert f"model.adapter: the adapter '{trained / 'adapter'}' does not fit the base model" in said
    assert not (tmp_path / "out").exists()


def test_scores_of_a_quiz(predict: Predicting, tmp_path: Path) -> None:
    """prepare, predict, score: the whole way to a report."""
    from eval.__main__ import main as evaluate

    answers = "ABCDABCA"
    rows = [
        {"类别": f"类{i % 2}", "题目": f"第{i}题", "选项": "A:河流\nB:石头\nC:灯光\nD:云彩", "答案": answer}
        for i, answer in enumerate(answers)
    ]
    quiz = write_json(tmp_path / "quiz.json", rows)
    prompts, report = tmp_path / "prompts.jsonl", tmp_path / "report"
    assert evaluate(["prepare", "quiz", "--data", str(quiz), "--output", str(prompts)]) == 0
    found = predict.lines(tmp_path / "out", f"--data.path={prompts}")
    predictions = tmp_path / "out" / "predictions.jsonl"
    score = ["score", "quiz", "--data", str(quiz), "--predictions", str(predictions), "--output", str(report)]
    assert evaluate(score) == 0
    facts = json.loads((report / "report.json").read_text(encoding="utf-8"))
    best = ["ABCD"[max(range(4), key=lambda k, s=one["option_scores"]: s[k])] for one in found]
    right = sum(letter == answer for letter, answer in zip(best, answers, strict=True))
    assert facts["overall"]["n"] == 8 and facts["overall"]["score"] == right / 8
    assert read(tmp_path / "out")[0]["meta"]["category"] == "类0"
    assert (report / "report.md").is_file()
