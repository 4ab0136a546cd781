"""Input ids and labels of the 2023 checkpoints, with tokenizers like theirs, as their own scripts build them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import old_checkpoints as old
import pytest
from sentencepiece_training import processor

from ift.data.conversation import Conversation, Message, supervise
from ift.data.encoding import IGNORE_INDEX, Encoder, load_tokenizer
from ift.data.templates import TEMPLATES

Q1, A1, Q2, A2 = "晚上睡不着应该怎么办", "你好，有什么我可以帮助你的吗？", "Alice\n  was late", "举头望明月"


def talk(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Message(roles[place % 2], text) for place, text in enumerate(texts))  # type: ignore[arg-type]
    return supervise(Conversation(turns), "outputs")


def encoder(folder: Path, template: str) -> Encoder:
    made = Encoder(load_tokenizer("model.base", str(folder)), TEMPLATES[template])
    assert made.missing_tokens() == {}
    return made


def example(made: Encoder, *texts: str) -> tuple[list[int], list[int]]:
    """Return input ids and labels; the first label counts for nothing."""
    (found,) = made.encode([made.template.render(talk(*texts))])
    return found.input_ids.tolist(), [IGNORE_INDEX, *found.labels.tolist()[1:]]


def hidden(number: int) -> list[int]:
    return [IGNORE_INDEX] * number


def test_chatglm(tmp_path: Path) -> None:
    """`[gMASK]` and `<sop>` after the prompt; loss from `<sop>` on."""
    folder = old.write_chatglm(tmp_path / "base", images=50)
    encode = old.OriginalChatGLM(folder, images=50).encode
    made = encoder(folder, "chatglm")
    gmask, sop, eop = made.tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>", "<eop>"])
    prompt, answer = [*encode(Q1), gmask], encode(A1)
    assert example(made, Q1, A1) == (
        [*prompt, sop, *answer, eop],
        [*hidden(len(prompt)), sop, *answer, eop],
    )
    assert made.prompt_ids(talk(Q1, A1)) == [*prompt, sop]
    first, rest = f"[Round 0]\n问：{Q1}\n答：", f"\n[Round 1]\n问：{Q2}\n答："
    # The original joins all rounds into one text; here each text stands on its own, and begins with a blank.
    assert made.prompt_ids(talk(Q1, A1, Q2, A2)) == [*encode(first), *encode(A1), *encode(rest), gmask, sop]
    assert made.stop_token_ids == [eop]


def test_chatglm2(tmp_path: Path) -> None:
    """`[gMASK]` and `sop` before the prompt; loss on the answer and end-of-text."""
    folder = old.write_chatglm2(tmp_path / "base")
    encode = processor((folder / "tokenizer.model").read_bytes()).encode
    made = encoder(folder, "chatglm2")
    size = len(made.tokenizer)
    prompt = [size - 4, size - 2, *encode(f"[Round 1]\n\n问：{Q1}\n\n答：")]
    assert example(made, Q1, A1) == ([*prompt, *encode(A1), 2], [*hidden(len(prompt)), *encode(A1), 2])
    assert made.stop_token_ids == [2]


def test_chatglm3(tmp_path: Path) -> None:
    """Each message as its class builds it: the role's token, a newline, the text, the last two tokenized apart."""
    folder = old.write_chatglm2(tmp_path / "base", number=3)
    encode = processor((folder / "tokenizer.model").read_bytes()).encode
    made = encoder(folder, "chatglm3")
    ids = made.tokenizer.convert_tokens_to_ids

    def message(role: str, text: str) -> list[int]:
        return [ids(f"<|{role}|>"), *encode("\n"), *encode(text)]

    prompt = [ids("[gMASK]"), ids("sop"), *message("user", Q1), *message("assistant", A1), *message("user", Q2)]
    newline = [ids("<|assistant|>"), *encode("\n")]
    assert made.prompt_ids(talk(Q1, A1, Q2, A2)) == [*prompt, *newline]
    assert example(made, Q1, A1)[0] == [ids("[gMASK]"), ids("sop"), *message("user", Q1), *message("assistant", A1), 2]


def test_baichuan2_chat(tmp_path: Path) -> None:
    """No begin-of-text, no end-of-text between the rounds: the label on the next user token is end-of-text."""
    folder = old.write_baichuan(tmp_path / "base", add_bos_token=False)
    encode = processor((folder / "tokenizer.model").read_bytes()).encode
    made = encoder(folder, "baichuan2_chat")
    user, assistant = made.tokenizer.convert_tokens_to_ids(["<reserved_106>", "<reserved_107>"])
    q1, a1, q2, a2 = map(encode, (Q1, A1, Q2, A2))
    assert example(made, Q1, A1, Q2, A2) == (
        [user, *q1, assistant, *a1, user, *q2, assistant, *a2, 2],
        [*hidden(len(q1) + 2), *a1, 2, *hidden(len(q2) + 1), *a2, 2],
    )


def test_baichuan_13b_chat(tmp_path: Path) -> None:
    folder = old.write_baichuan(tmp_path / "base", add_bos_token=False)
    encode = processor((folder / "tokenizer.model").read_bytes()).encode
    made = encoder(folder, "baichuan_chat")
    user, assistant = made.tokenizer.convert_tokens_to_ids(["<reserved_102>", "<reserved_103>"])
    q1, a1, q2 = map(encode, (Q1, A1, Q2))
    assert made.prompt_ids(talk(Q1, A1, Q2, A2)) == [user, *q1, assistant, *a1, 2, user, *q2, assistant]


def test_internlm_chat(tmp_path: Path) -> None:
    """The text of its chat model, tokenized as a whole: its symbols are cut out, so that segments change nothing."""
    folder = old.write_internlm(tmp_path / "base")
    encode = processor((folder / "tokenizer.model").read_bytes()).encode
    made = encoder(folder, "internlm_chat")
    prompt = [1, *encode(f"<|User|>:{Q1}<eoh>\n<|Bot|>:")]
    answer = [*encode(f"{A1}<eoa>\n"), 2]
    assert example(made, Q1, A1) == ([*prompt, *answer], [*hidden(len(prompt)), *answer])
    assert made.stop_token_ids == sorted([2, *encode("<eoa>")])


def test_moss(tmp_path: Path) -> None:
    folder = old.write_moss(tmp_path / "base")
    encode = old.OriginalMoss(folder).encode
    made = encoder(folder, "moss")
    eoh, eom = made.tokenizer.convert_tokens_to_ids(["<eoh>", "<eom>"])
    system = str(TEMPLATES["moss"].system)
    prompt = [*encode(f"{system}<|Human|>: {Q1}"), eoh, *encode("\n<|MOSS|>:")]
    assert example(made, Q1, A1) == ([*prompt, *encode(A1), eom], [*hidden(len(prompt)), *encode(A1), eom])


WAYS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "alpaca_chatglm": (old.write_chatglm, old.OriginalChatGLM),
    "alpaca_chatglm2": (old.write_chatglm2, lambda f: processor((f / "tokenizer.model").read_bytes())),
}


@pytest.mark.parametrize("name", WAYS)
def test_alpacas_prompts_with_the_tokens_of_chatglm(name: str, tmp_path: Path) -> None:
    """As Alpaca-CoT trains ChatGLM: the prompt with the tokens that the tokenizer adds, the answer, end-of-text."""
    write, original = WAYS[name]
    folder = write(tmp_path / "base")
    made, encode = encoder(folder, name), original(folder).encode
    system = str(TEMPLATES["alpaca"].system)
    text = encode(f"{system}\n\n### Instruction:\n{Q1}\n\n### Response:")
    ids = made.tokenizer.convert_tokens_to_ids
    behind, before = ids(["[gMASK]", "<sop>"]), ids(["[gMASK]", "sop"])
    prompt = [*text, *behind] if name == "alpaca_chatglm" else [*before, *text]
    assert made.prompt_ids(talk(Q1, A1)) == prompt
    assert example(made, Q1, A1)[0] == [*prompt, *encode(A1), made.end_token_id]
