import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.conversations import answers_of, first_prompt, join, main, next_prompts
from ift.errors import UserError
from ift.records import Prediction, PromptRecord, read_predictions, write_jsonl


def predict(prompts: Sequence[PromptRecord]) -> list[Prediction]:
    """Stand in for `ift predict`: the answer names the number of messages that were read."""
    return [
        Prediction(one.id, "…", f"{one.id}: {len(one.messages)}", "stop", reference=one.reference, meta=one.meta)
        for one in prompts
    ]


PROMPTS = [
    first_prompt("single", ["Hello"], {"category": "x", "asked": {"benchmark": "b"}}),
    first_prompt("double", ["Hello", "And?"], {"category": "y"}),
    first_prompt("triple", ["1", "2", "3"], {"category": "z"}),
]


def test_every_pass_asks_the_next_turn_after_the_models_own_answers() -> None:
    first = predict(PROMPTS)
    prompts = list(next_prompts(first))
    assert [(one.id, [message["content"] for message in one.messages]) for one in prompts] == [
        ("double", ["Hello", "double: 1", "And?"]),
        ("triple", ["1", "triple: 1", "2"]),
    ]
    assert [message["role"] for message in prompts[0].messages] == ["user", "assistant", "user"]
    joined = join([first, predict(prompts)])
    last = list(next_prompts(joined))
    assert [message["content"] for message in last[0].messages] == ["1", "triple: 1", "2", "triple: 3", "3"]
    everything = join([first, predict(prompts), predict(last)])
    assert [one.id for one in everything] == ["single", "double", "triple"], "in the order of the data"
    assert [answers_of(one) for one in everything] == [
        ["single: 1"],
        ["double: 1", "double: 3"],
        ["triple: 1", "triple: 3", "triple: 5"],
    ]
    assert list(next_prompts(everything)) == []
    assert everything[0].meta["asked"] == {"benchmark": "b"}


def test_passes_that_do_not_follow_from_each_other_are_refused() -> None:
    first = predict(PROMPTS)
    second = predict(list(next_prompts(first)))
    third = predict(list(next_prompts(join([first, second]))))
    for wrong in ([first, third], [second, first], [first, second, second], [first[:1], second]):
        with pytest.raises(UserError, match="does not follow from the files before it"):
            join(wrong)


def test_ranked_answers_are_no_conversation() -> None:
    with pytest.raises(UserError, match="'x' has no 'response'"):
        answers_of(Prediction("x", "?", options=("a",), option_scores=(0.0,)))


def test_the_commands_write_what_predict_and_score_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{number}.jsonl" for number in range(3)]
    write_jsonl(files[0], predict(PROMPTS))
    assert main(["next", "--predictions", str(files[0]), "--output", str(tmp_path / "prompts.jsonl")]) == 0
    lines = (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    write_jsonl(files[1], predict([PromptRecord(**json.loads(line)) for line in lines]))
    both = [str(files[0]), str(files[1])]
    assert main(["join", "--predictions", *both, "--output", str(tmp_path / "all.jsonl")]) == 0
    assert "3 predictions, 1 of them with turns that are not asked yet" in capsys.readouterr().out
    assert [len(answers_of(one)) for one in read_predictions(tmp_path / "all.jsonl")] == [1, 2, 2]
    write_jsonl(files[2], predict(PROMPTS[:1]))
    assert main(["next", "--predictions", str(files[2]), "--output", str(tmp_path / "none.jsonl")]) == 2
    assert "every conversation is finished" in capsys.readouterr().err
