"""The judge's client against a real server: nothing is lost, nothing is paid for twice, and the key is nowhere."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import Log, judge_server

from eval.judge_client import Asking, ask_judge
from eval.judge_endpoint import Connection, Endpoint, Reply, UnavailableError
from eval.judge_estimate import Estimate, Prices
from eval.judge_folder import JudgeFolder
from eval.judge_retry import Backoff
from ift.errors import UserError
from ift.records import Prediction, PromptRecord, read_predictions

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-test-3f9c0a7e51"
QUICK = Backoff(attempts=6, first_seconds=0.002, longest_seconds=0.01)


def prompts_of(*texts: str) -> list[PromptRecord]:
    return [
        PromptRecord(f"item-{place:03d}", ({"role": "user", "content": text},), meta={"place": place})
        for place, text in enumerate(texts)
    ]


def asking_of(url: str, folder: Path, **changes: object) -> Asking:
    endpoint = Endpoint(url, "judge-model", timeout_seconds=10)  # ample: a slow machine must not look like a failure
    usual = Asking(endpoint, KEY, folder / "cache", concurrency=4, backoff=QUICK)
    return replace(usual, **changes)


def agree(cost: Estimate) -> None:
    pass


def refuse(cost: Estimate) -> None:
    raise AssertionError(f"nothing should be left to pay for: {cost}")


def about(folder: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    return value


def assert_key_is_nowhere(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def assert_answered_once(log: Log, prompts: list[PromptRecord]) -> None:
    assert log.answered == {prompt.messages[0]["content"]: 1 for prompt in prompts}


def test_every_misbehaviour_ends_in_exactly_one_reply_each(tmp_path: Path) -> None:
    scripts = ["cut", "hang", "drip", "429after0", "500", "503,502", "junk", "odd", "empty", "cut,junk,500,empty,429"]
    prompts = prompts_of(*(f"q{number} fail:{script}" for number, script in enumerate(scripts)), "q good")
    with judge_server() as (url, log):
        endpoint = Endpoint(url, "judge-model", timeout_seconds=1.5)
        asking = asking_of(url, tmp_path, endpoint=endpoint)
        replies = ask_judge(prompts, tmp_path / "out", asking=asking, confirm=agree)
    assert_answered_once(log, prompts)
    assert [reply.id for reply in replies] == [prompt.id for prompt in prompts]
    assert replies == read_predictions(tmp_path / "out" / "predictions.jsonl")
    for prompt, reply, script in zip(prompts, replies, [*scripts, ""], strict=True):
        text = prompt.messages[0]["content"]
        attempts = len([one for one in script.split(",") if one]) + 1
        assert reply.response == f"得分：0.5\n{text[:20]}"
        assert reply.meta["place"] == prompt.meta["place"]
        assert (reply.meta["judge"]["attempts"], reply.finish_reason) == (attempts, "stop")
        assert log.asked[text] == attempts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "failures.jsonl",
        "judge.json",
        "predictions.jsonl",
        "prompts.jsonl",
    ]
    counts = about(tmp_path / "out")["counts"]
    assert counts == {
        "prompts": 11,
        "answered": 11,
        "from_cache": 0,
        "requests": sum(log.asked.values()),
        "prompt_tokens": 121,
        "completion_tokens": 77,
        "without_usage": 0,
        "failed": 0,
        "cost": None,
    }
    assert about(tmp_path / "out")["status"] == "finished"
    assert_key_is_nowhere(tmp_path)


def test_what_is_sent(tmp_path: Path) -> None:
    message = {"role": "user", "content": "judge", "context": "the input"}
    prompt = PromptRecord("a", ({"role": "system", "content": "be fair"}, message))
    with judge_server() as (url, log):
        endpoint = Endpoint(url + "/", "m", temperature=None, max_tokens=30, seed=4)
        ask_judge([prompt], tmp_path / "out", asking=asking_of(url, tmp_path, endpoint=endpoint), confirm=agree)
    assert log.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be fair"}, {"role": "user", "content": "judge\nthe input"}],
            "max_tokens": 30,
            "seed": 4,
        }
    ]
    assert log.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert log.paths == ["/v1/chat/completions"]


def test_concurrency_is_used_and_kept(tmp_path: Path) -> None:
    with judge_server(seconds=0.03) as (url, log):
        ask_judge(prompts_of(*map(str, range(20))), tmp_path / "o", asking=asking_of(url, tmp_path), confirm=agree)
    assert log.most_at_once == 4


def test_equal_prompts_are_asked_once(tmp_path: Path) -> None:
    prompts = prompts_of("same", "other", "same", "same")
    with judge_server() as (url, log):
        replies = ask_judge(prompts, tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree)
    assert log.asked == {"same": 1, "other": 1}
    assert [reply.meta["judge"]["cached"] for reply in replies] == [False, False, True, True]
    assert about(tmp_path / "out")["counts"]["prompt_tokens"] == 22  # type: ignore[index]


def test_retry_after_is_kept_by_all_threads(tmp_path: Path) -> None:
    slow = "slow fail:429after1"
    prompts = prompts_of("first", slow, *map(str, range(60)))
    with judge_server(seconds=0.01) as (url, log):
        ask_judge(prompts, tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree)
    refused = next(
        time for time, body in zip(log.times, log.bodies, strict=True) if body["messages"][0]["content"] == slow
    )
    assert not [time for time in log.times if refused + 0.4 < time < refused + 1]
    assert len([time for time in log.times if time >= refused + 1]) > 10
    with judge_server() as (url, log), pytest.raises(UserError, match="asks to wait 4000 seconds"):
        ask_judge(prompts_of("x fail:429after4000"), tmp_path / "b", asking=asking_of(url, tmp_path), confirm=agree)
    assert sum(log.asked.values()) == 1


@pytest.mark.parametrize("status", ["401", "403", "404", "402", "quota", "redirecthttp://elsewhere.example/v1"])
def test_what_no_retry_mends_stops_at_once(tmp_path: Path, status: str) -> None:
    prompts = prompts_of(*(f"{number} fail:{status},{status}" for number in range(20)))
    with judge_server() as (url, log), pytest.raises(UserError, match="--base-url") as raised:
        ask_judge(prompts, tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree)
    assert sum(log.asked.values()) == 1
    assert KEY not in str(raised.value) and KEY not in repr(raised.value.__cause__)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "the same folder takes the mended command"


def test_a_stop_in_the_middle_keeps_what_is_there_and_goes_on(tmp_path: Path) -> None:
    texts = [str(number) for number in range(30)]
    revoked = {"now": True}
    with judge_server(lambda text, number: "401" if revoked["now"] and text == "12" else "") as (url, log):
        asking = asking_of(url, tmp_path)
        with pytest.raises(UserError, match="HTTP 401"):
            ask_judge(prompts_of(*texts), tmp_path / "out", asking=asking, confirm=agree)
        kept = len(read_predictions(tmp_path / "out" / "predictions.jsonl"))
        assert 12 <= kept < 30 and kept == sum(log.answered.values())
        assert about(tmp_path / "out")["status"] == "running"
        revoked["now"] = False
        replies = ask_judge(prompts_of(*texts), tmp_path / "out", asking=asking, confirm=agree)
    assert_answered_once(log, prompts_of(*texts))
    assert [reply.id for reply in replies] == [f"item-{number:03d}" for number in range(30)]


def test_one_refused_prompt_is_a_failed_item(tmp_path: Path) -> None:
    prompts = prompts_of("a", "b fail:400,400,400", "c fail:filtered", "d")
    with judge_server() as (url, log):
        asking = asking_of(url, tmp_path)
        with pytest.raises(UserError, match="2 of 4 prompts have no reply"):
            ask_judge(prompts, tmp_path / "out", asking=asking, confirm=agree)
        lines = (tmp_path / "out" / "failures.jsonl").read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["id"] for line in lines} == {"item-001", "item-002"}
        replies = ask_judge(prompts, tmp_path / "out", asking=replace(asking, accept_failures=True), confirm=agree)
    assert log.asked["a"] == log.asked["d"] == 1 and log.asked[prompts[1].messages[0]["content"]] == 2
    assert [reply.response for reply in replies][1] == ""
    assert "HTTP 400" in replies[1].meta["judge"]["reason"] and "reason" not in replies[2].meta["judge"]
    counts = about(tmp_path / "out")["counts"]
    assert isinstance(counts, dict) and (counts["answered"], counts["failed"]) == (3, 1)
    assert_key_is_nowhere(tmp_path)


def test_refused_from_the_start_ends_after_three(tmp_path: Path) -> None:
    with (
        judge_server(lambda text, number: "400") as (url, log),
        pytest.raises(UserError, match="nothing is answered.*HTTP 400"),
    ):
        ask_judge(prompts_of(*map(str, range(50))), tmp_path / "o", asking=asking_of(url, tmp_path), confirm=agree)
    assert sum(log.asked.values()) == 3


def test_an_address_where_nobody_listens_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but not listening: the port refuses
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        asking, began = asking_of(url, tmp_path, backoff=Backoff()), time.monotonic()
        with pytest.raises(UserError, match=f"no connection to {url}: .*refused") as raised:
            ask_judge(prompts_of("a", "b"), tmp_path / "out", asking=asking, confirm=agree)
    assert time.monotonic() - began < 5 and KEY not in str(raised.value)
    with judge_server() as (url, _):  # the mended address may go into the same folder
        asking = asking_of(url, tmp_path)
        assert len(ask_judge(prompts_of("a", "b"), tmp_path / "out", asking=asking, confirm=agree)) == 2


def test_a_server_that_restarts_after_its_first_reply_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, refusals = Connection.ask, Counter[str]()

    def ask(self: Connection, messages: Sequence[Mapping[str, str]]) -> Reply:
        refusals[messages[0]["content"]] += 1
        if messages[0]["content"] == "b" and refusals["b"] <= 3:
            raise UnavailableError("refused", unreachable=True)
        return own(self, messages)

    monkeypatch.setattr(Connection, "ask", ask)
    with judge_server() as (url, _):
        replies = ask_judge(prompts_of("a", "b"), tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree)
    assert [reply.meta["judge"]["attempts"] for reply in replies] == [1, 4]


def test_a_long_wait_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge_server() as (url, _):
        prompts = prompts_of("a fail:500,429after3", "b")
        ask_judge(prompts, tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree)
    waits = [line for line in capsys.readouterr().err.splitlines() if "retrying" in line]
    assert waits == ["judge: retrying in 3 s (attempt 3 of 6): HTTP 429: slow"]


def test_an_outage_in_the_middle_ends_the_run(tmp_path: Path) -> None:
    texts = [str(number) for number in range(60)]
    asking_now = {"down": True}
    with judge_server(lambda text, number: "503" if asking_now["down"] and int(text) > 10 else "") as (url, log):
        asking = asking_of(url, tmp_path, backoff=replace(QUICK, attempts=2))
        with pytest.raises(UserError, match="in a row got no reply.*HTTP 503"):
            ask_judge(prompts_of(*texts), tmp_path / "o", asking=asking, confirm=agree)
        assert sum(log.asked.values()) < 60
        asking_now["down"] = False
        assert len(ask_judge(prompts_of(*texts), tmp_path / "o", asking=asking, confirm=agree)) == 60
    assert_answered_once(log, prompts_of(*texts))


def test_tables_rebuild_offline_from_the_cache(tmp_path: Path) -> None:
    prompts = prompts_of("a", "b", "c")
    with judge_server() as (url, _):
        first = ask_judge(prompts, tmp_path / "one", asking=asking_of(url, tmp_path), confirm=agree)
    offline = asking_of(url, tmp_path, offline=True, key=None)  # the server is gone
    again = ask_judge(prompts, tmp_path / "two", asking=offline, confirm=refuse)
    assert [reply.response for reply in again] == [reply.response for reply in first]
    assert about(tmp_path / "two")["counts"]["from_cache"] == 3  # type: ignore[index]
    with pytest.raises(UserError, match="--offline: 2 of 3 replies"):
        ask_judge(prompts_of("a", "x", "y"), tmp_path / "three", asking=offline, confirm=refuse)
    assert not (tmp_path / "three").exists()
    other = replace(offline, endpoint=replace(offline.endpoint, temperature=0.7))
    with pytest.raises(UserError, match="--offline: 3 of 3 replies"):
        ask_judge(prompts, tmp_path / "three", asking=other, confirm=refuse)


def test_a_finished_folder_is_only_read_and_another_task_is_refused(tmp_path: Path) -> None:
    prompts = prompts_of("a", "b")
    with judge_server() as (url, log):
        asking = asking_of(url, tmp_path)
        first = ask_judge(prompts, tmp_path / "out", asking=asking, confirm=agree)
        assert ask_judge(prompts, tmp_path / "out", asking=asking, confirm=refuse) == first
        with pytest.raises(UserError, match=r"another task \(differing: prompts_sha256\)"):
            ask_judge(prompts_of("a", "c"), tmp_path / "out", asking=asking, confirm=refuse)
        other = replace(asking, endpoint=replace(asking.endpoint, model="other"))
        with pytest.raises(UserError, match=r"differing: model\)"):
            ask_judge(prompts, tmp_path / "out", asking=other, confirm=refuse)
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "mine.txt").write_text("x")
        with pytest.raises(UserError, match="holds no judge's replies"):
            ask_judge(prompts, tmp_path / "notes", asking=asking, confirm=refuse)
    assert sum(log.asked.values()) == 2


def test_a_torn_last_line_is_mended_from_the_cache(tmp_path: Path) -> None:
    prompts = prompts_of("a", "b", "c")
    with judge_server() as (url, log):
        asking = asking_of(url, tmp_path)
        first = ask_judge(prompts, tmp_path / "out", asking=asking, confirm=agree)
        file = tmp_path / "out" / "predictions.jsonl"
        file.write_bytes(file.read_bytes()[:-20])
        facts = {**about(tmp_path / "out"), "status": "running"}
        (tmp_path / "out" / "judge.json").write_text(json.dumps(facts), encoding="utf-8")
        again = ask_judge(prompts, tmp_path / "out", asking=asking, confirm=refuse)
    assert [reply.response for reply in again] == [reply.response for reply in first]
    assert sum(log.asked.values()) == 3


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_eval_judge_client import agree, asking_of, prompts_of
from eval.judge_client import ask_judge
folder = Path({folder!r})
ask_judge(prompts_of(*map(str, range({count}))), folder / "out", asking=asking_of({url!r}, folder), confirm=agree)
"""


def test_killed_and_resumed_pays_for_no_recorded_reply_again(tmp_path: Path) -> None:
    count, concurrency = 60, 4
    with judge_server(seconds=0.01) as (url, log):
        program = PROGRAM.format(tests=str(ROOT / "tests" / "eval"), folder=str(tmp_path), count=count, url=url)
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        deadline = time.monotonic() + 20
        while sum(log.answered.values()) < count // 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        recorded = JudgeFolder(tmp_path / "out").answered(about(tmp_path / "out")["identity"])  # type: ignore[arg-type]
        assert 0 < len(recorded) < count
        before = dict(log.asked)
        replies = ask_judge(
            prompts_of(*map(str, range(count))), tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree
        )
    assert [reply.id for reply in replies] == [f"item-{number:03d}" for number in range(count)]
    assert sum(log.asked.values()) <= count + concurrency
    for name in recorded:
        text = str(int(name.removeprefix("item-")))
        assert log.asked[text] == before[text] == 1
    assert_key_is_nowhere(tmp_path)


def test_two_processes_do_not_ask_for_one_folder(tmp_path: Path) -> None:
    prompts = prompts_of("a")
    asking = asking_of("http://127.0.0.1:9/v1", tmp_path)
    folder = JudgeFolder(tmp_path / "out")
    with folder.open(asking.identity(prompts), prompts), pytest.raises(UserError, match="another process"):
        ask_judge(prompts, tmp_path / "out", asking=asking, confirm=agree)


def test_a_server_that_sends_the_key_back_does_not_get_it_into_a_file(tmp_path: Path) -> None:
    with judge_server(lambda text, number: "echo") as (url, _):
        (reply,) = ask_judge(prompts_of("a"), tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree)
    assert reply.response == "得分：0.5 Bearer [key]"
    assert_key_is_nowhere(tmp_path)


def test_the_key_follows_no_redirect(tmp_path: Path) -> None:
    with (
        judge_server() as (other, elsewhere),
        judge_server(lambda text, number: f"redirect{other}/chat/completions") as (url, _),
        pytest.raises(UserError, match="redirects to 127.0.0.1"),
    ):
        ask_judge(prompts_of("a"), tmp_path / "out", asking=asking_of(url, tmp_path), confirm=agree)
    assert not elsewhere.asked


def test_the_estimate_counts_only_what_is_left(tmp_path: Path) -> None:
    seen: list[Estimate] = []
    with judge_server() as (url, _):
        asking = asking_of(url, tmp_path, prices=Prices(1.0, 2.0))
        ask_judge(prompts_of("a"), tmp_path / "one", asking=asking, confirm=seen.append)
        ask_judge(prompts_of("a", "中文四字"), tmp_path / "two", asking=asking, confirm=seen.append)
    # By hand: 4 tokens of the message + 4 characters * 1.1 = 8; a reply is taken as 250 tokens.
    assert seen[1] == Estimate(1, 8, 250, (8 * 1.0 + 250 * 2.0) / 1e6)
    assert "1 requests" in seen[1].sentence() and "estimated" in seen[1].sentence()
    assert about(tmp_path / "two")["counts"]["cost"] == round((11 * 1 + 7 * 2) / 1e6, 6)  # type: ignore[index]


def test_predictions_can_hold_half_a_surrogate_pair(tmp_path: Path) -> None:
    """A model may write what UTF-8 cannot say; the files stay readable."""
    folder = JudgeFolder(tmp_path / "out")
    prompts = prompts_of("a")
    with folder.open({}, prompts):
        folder.add([Prediction("item-000", "", "\ud83d", meta={"judge": {}})])
        folder.finish(["item-000"], {})
    assert folder.replies()[0].response == "\ud83d"
