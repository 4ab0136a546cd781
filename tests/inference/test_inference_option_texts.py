"""How options and whole texts become tokens and windows, and that `ift predict` scores exactly these."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_level import make_byte_level
from predicting import Predicting, write_prompts
from tiny import make_llama, make_rows

from ift.data.conversation import Conversation, Message
from ift.data.encoding import Encoder, load_tokenizer
from ift.data.layouts import RowError
from ift.data.templates import TEMPLATES, Template
from ift.inference.windows import cut

CONTEXTS = (
    "请重复第3项：石头、灯光\nA. 河流\nB. 石头\n答案：", "Repeat item 7.\nAnswer:", "Repeat item 7.\nAnswer: ",
    "river stone\n", "第", "  blank first：", "a  ",
)  # fmt: skip
OPTIONS = ("A", " A", "B", " B", "河流", " river stone", "  A", "\nA", "绿色，音乐")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level base model whose merges reach over the border of a prompt and an option."""
    texts = [f"{row['instruction']}{row['output']}：A {row['input']} B" for row in make_rows(60)]
    return make_llama(make_byte_level(tmp_path_factory.mktemp("byte_level"), texts), 400)


def encoder_of(folder: Path, template: str = "raw") -> Encoder:
    return Encoder(load_tokenizer("base", str(folder)), TEMPLATES[template])


def asked(text: str) -> Conversation:
    return Conversation((Message("user", text),))


def pair_of_lm_eval(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokenize as lm-evaluation-harness does (api/model.py, `_encode_pair` of causal models)."""
    blanks = len(context) - len(context.rstrip())
    if blanks > 0:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    whole, start = tokenizer.encode(context + continuation), tokenizer.encode(context)
    return start, whole[len(start) :]


class TestJoined:
    @pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
    def test_prompt_and_option_are_those_of_lm_eval(self, kind: str, base: Path, byte_level: Path) -> None:
        encoder = encoder_of(base if kind == "sentencepiece" else byte_level)
        for context in CONTEXTS:
            # transformers' SentencePiece tokenizers lose the blank that a text begins with; ours does not.
            if kind == "sentencepiece" and context.startswith(" "):
                continue
            ids, options = encoder.option_ids(asked(context), OPTIONS)
            assert ids == encoder.prompt_ids(asked(context.rstrip()))
            for option, own in zip(OPTIONS, options, strict=True):
                assert (ids, own) == pair_of_lm_eval(encoder.tokenizer, context, option)

    def test_a_letter_with_and_without_a_blank_are_two_tokens(self, base: Path, byte_level: Path) -> None:
        """On their own, SentencePiece puts a blank before both; joined, each is what it says."""
        for folder, blank in ((base, "▁"), (byte_level, "Ġ")):
            encoder = encoder_of(folder)
            _, options = encoder.option_ids(asked("river："), ("r", " r"))
            bare, spaced = (encoder.tokenizer.convert_ids_to_tokens(own) for own in options)
            assert (bare, "".join(spaced)) == (["r"], f"{blank}r")
        encoder = encoder_of(base)
        apart = [encoder.tokenizer.convert_ids_to_tokens(encoder.response_ids(text)) for text in ("r", " r")]
        assert apart == [["▁r"], ["▁▁", "r"]]

    def test_special_tokens_of_a_template_stay_where_they_are(self, byte_level: Path) -> None:
        encoder = encoder_of(byte_level, "chatml")
        ids, (own,) = encoder.option_ids(asked("river"), (" A",))
        assert ids + own == encoder.prompt_ids(asked("river"))[:-1] + encoder.response_ids("\n A")

    def test_a_prompt_that_ends_with_a_special_token_is_joined_with_nothing(self, byte_level: Path) -> None:
        template = Template("own", user="{<|im_start|>}{text}{<|im_end|>}")
        encoder = Encoder(load_tokenizer("base", str(byte_level)), template)
        ids, (own,) = encoder.option_ids(asked("river"), (" A",))
        assert (ids, own) == (encoder.prompt_ids(asked("river")), encoder.response_ids(" A"))

    def test_an_option_inside_a_token_of_the_prompt_is_refused(self, tmp_path: Path) -> None:
        encoder = encoder_of(make_byte_level(tmp_path, ["答案A"] * 50))
        with pytest.raises(RowError, match="one token of the option 'A' and the text before it"):
            encoder.option_ids(asked("答案"), ("A",))


def rolling_of_lm_eval(ids: list[int], prefix: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """Return disjoint windows as lm-evaluation-harness's `get_rolling_token_windows` defines them, with one token of
    context."""
    first = min(longest, len(ids))
    windows = [([prefix], ids[:first])]
    done = first
    while done < len(ids):
        end = min(done + longest, len(ids))
        inputs, targets = ids[end - longest - 1 : end - 1], ids[done:end]
        windows.append((inputs[: len(inputs) - (len(targets) - 1)], targets))
        done = end
    return windows


class TestWindows:
    def test_with_the_whole_length_as_stride_they_are_those_of_lm_eval(self) -> None:
        for number in range(1, 60):
            for length in range(1, 20):
                ids = list(range(number))
                found = list(cut(ids, begin=[99], length=length, stride=length))
                assert found == rolling_of_lm_eval(ids, 99, length)

    def test_every_token_once_with_as_much_context_as_fits(self) -> None:
        rng = random.Random(0)
        for _ in range(500):
            ids, begin = list(range(rng.randrange(1, 80))), [99] * rng.randrange(1, 3)
            length = rng.randrange(2, 30)
            stride = rng.randrange(1, length + 1)
            windows = list(cut(ids, begin=begin, length=length, stride=stride))
            assert [token for _, own in windows for token in own] == ids
            for context, own in windows[1:]:
                assert 1 <= len(own) <= stride
                # The last token is predicted, not read; all else is what stands before it in the text.
                read = (context + own)[:-1]
                assert read == ids[max(0, own[-1] - length) : own[-1]]
                assert len(read) <= length
            first = windows[0]
            assert first[0] == begin and len(first[0] + first[1]) - 1 <= length


def text_score(model: Any, ids: list[int], windows: list[tuple[list[int], list[int]]]) -> float:
    total = 0.0
    for context, own in windows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + own]), use_cache=False).logits[0].double()
        likelihood = torch.log_softmax(logits, dim=-1)[-len(own) - 1 : -1]
        total += sum(float(likelihood[place, token]) for place, token in enumerate(own))
    return total


class TestPredict:
    @pytest.fixture
    def ranked(self, base: Path, predict: Predicting) -> Predicting:
        return Predicting(predict.capture, [f"--model.base={base}", *predict.arguments[2:], "--data.template=raw"])

    def load(self, base: Path) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(str(base))

    def test_joined_options_have_the_scores_of_lm_evals_tokens(
        self, ranked: Predicting, base: Path, tmp_path: Path
    ) -> None:
        contexts = [context for context in CONTEXTS if not context.startswith(" ")]
        rows = [
            {"messages": [{"role": "user", "content": context}], "options": list(OPTIONS)} for context in contexts * 3
        ]
        path = write_prompts(tmp_path / "ranked.jsonl", rows)
        found = ranked.lines(tmp_path / "out", f"--data.path={path}", "--data.join_options=true")
        apart = ranked.lines(tmp_path / "apart", f"--data.path={path}")
        model, tokenizer = self.load(base)
        for one, context in zip(found, contexts * 3, strict=True):
            assert one["prompt"] == tokenizer.decode(tokenizer.encode(context.rstrip()))
            for option, score, number in zip(OPTIONS, one["option_scores"], one["option_num_tokens"], strict=True):
                start, own = pair_of_lm_eval(tokenizer, context, option)
                assert number == len(own)
                assert score == pytest.approx(text_score(model, own, [(start, own)]), abs=1e-4)
        assert [one["option_scores"] for one in apart] != [one["option_scores"] for one in found]
        identity = json.loads((tmp_path / "out" / "predict.json").read_text(encoding="utf-8"))["identity"]
        assert identity["join_options"] is True
        path = write_prompts(tmp_path / "saying.jsonl", [row | {"meta": {"join_options": True}} for row in rows])
        saying = ranked.lines(tmp_path / "saying", f"--data.path={path}")
        assert [one["option_scores"] for one in saying] == [one["option_scores"] for one in found]
        against = ranked.lines(tmp_path / "against", f"--data.path={path}", "--data.join_options=false")
        assert [one["option_scores"] for one in against] == [one["option_scores"] for one in apart]

    @pytest.mark.parametrize("stride", [None, 5, 16])
    def test_texts_of_any_length_are_scored_in_windows(
        self, stride: int | None, ranked: Predicting, base: Path, tmp_path: Path
    ) -> None:
        """Whatever the template; a window is shorter than most texts here."""
        texts = [
            "river",
            "河流",
            *(f"{row['instruction']} {row['output']}\n{row['input']}" * 3 for row in make_rows(6)),
        ]
        rows = [
            {"id": f"t{number}", "messages": [{"role": "assistant", "content": ""}], "options": [text]}
            for number, text in enumerate(texts)
        ]
        path = write_prompts(tmp_path / "texts.jsonl", rows)
        flags = [f"--data.path={path}", "--model.windows.length=16"]
        flags += [f"--model.windows.stride={stride}"] if stride else []
        found = ranked.lines(tmp_path / "out", *flags, "--data.template=alpaca")
        model, tokenizer = self.load(base)
        for one, text in zip(found, texts, strict=True):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            windows = list(cut(ids, begin=[tokenizer.bos_token_id], length=16, stride=stride or 16))
            assert (one["prompt"], one["option_num_tokens"], one["reference"]) == ("<s>", [len(ids)], None)
            assert one["option_scores"] == pytest.approx([text_score(model, ids, windows)], abs=1e-3)
            if stride is None:
                assert windows == rolling_of_lm_eval(ids, tokenizer.bos_token_id, 16)

    def test_a_tokenizer_without_begin_of_text_begins_with_its_end(
        self, predict: Predicting, byte_level: Path, tmp_path: Path
    ) -> None:
        rows = [{"messages": [{"role": "assistant", "content": ""}], "options": ["river stone"]}]
        path = write_prompts(tmp_path / "texts.jsonl", rows)
        arguments = [f"--model.base={byte_level}", f"--data.path={path}", *predict.arguments[2:]]
        (found,) = Predicting(predict.capture, arguments).lines(tmp_path / "out", "--data.template=raw")
        assert found["prompt"] == "<|endoftext|>"
        model, tokenizer = self.load(byte_level)
        ids = tokenizer("river stone").input_ids
        expected = text_score(model, ids, [([tokenizer.eos_token_id], ids)])
        assert found["option_scores"] == pytest.approx([expected], abs=1e-4)
        assert math.isfinite(expected)

    def test_windows_that_cannot_be(self, ranked: Predicting, tmp_path: Path) -> None:
        rows = [{"messages": [{"role": "assistant", "content": ""}], "options": ["river"]}]
        path = f"--data.path={write_prompts(tmp_path / 'texts.jsonl', rows)}"
        out = tmp_path / "out"
        assert "model.windows.length: 513 is more than the 512 positions" in ranked.refused(
            out, path, "--model.windows.length=513"
        )
        assert "model.windows.stride: 9 is more than the window's length, 8" in ranked.refused(
            out, path, "--model.windows.length=8", "--model.windows.stride=9"
        )

    def test_a_text_to_answer_before_no_request_is_refused(self, ranked: Predicting, tmp_path: Path) -> None:
        rows = [{"messages": [{"role": "assistant", "content": "a"}], "options": ["river"]}]
        path = write_prompts(tmp_path / "texts.jsonl", rows)
        assert "the row holds no request" in ranked.refused(tmp_path / "out", f"--data.path={path}")


def test_ranked_prompts_go_together_in_large_batches(base: Path, tmp_path: Path) -> None:
    """Parts depend on the file only; one that holds a prompt to answer is as small as it was."""
    from ift.inference.prompts import PromptDataModule

    message = {"role": "user", "content": "river"}
    rows: list[dict[str, Any]] = [{"messages": [message], "options": ["a"]} for _ in range(150)]
    del rows[9]["options"]
    rows[140] = {"messages": [{"role": "assistant", "content": ""}], "options": ["river"]}
    module = PromptDataModule(str(write_prompts(tmp_path / "p.jsonl", rows)), str(base), batch_size=4)
    module.load()
    batches = list(module.predict_dataloader())
    assert [len(batch.prompts) for batch in batches] == [9, 4, 64, 63, 4, 6]
    assert [prompt.id for batch in batches for prompt in batch.prompts] == [prompt.id for prompt in module.prompts]
