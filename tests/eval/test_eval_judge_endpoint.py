"""Keys, addresses, waits and estimates of the judge's client, each on its own."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import judge_server

from eval.judge_client import Asking
from eval.judge_endpoint import Connection, Endpoint, UnavailableError, check_library, read_key, retry_after
from eval.judge_estimate import Prices, count_tokens, estimate
from eval.judge_retry import Backoff, Notices
from ift.errors import UserError

KEY = "sk-test-3f9c0a7e51"


def test_waits_double_are_drawn_and_never_undercut_the_server() -> None:
    backoff, generator = Backoff(first_seconds=1, longest_seconds=10), random.Random(0)
    for attempt, full in enumerate([1, 2, 4, 8, 10, 10], 1):
        waits = [backoff.wait_seconds(attempt, None, generator) for _ in range(200)]
        assert full / 2 <= min(waits) < 0.6 * full and 0.9 * full < max(waits) <= full
    assert backoff.wait_seconds(1, 30.0, generator) == 30.0


def test_waits_worth_knowing_of_are_said_once_for_all_threads() -> None:
    said: list[str] = []
    notices = Notices(said.append)
    notices.failed("busy", attempt=1, attempts=8, wait_seconds=1.0, lost_seconds=0.2)
    assert not said
    notices.failed("busy", attempt=1, attempts=8, wait_seconds=30.0, lost_seconds=0.2)
    notices.failed("busy", attempt=3, attempts=8, wait_seconds=20.0, lost_seconds=0.2)  # ends within the other's
    notices.failed("busy", attempt=3, attempts=8, wait_seconds=60.0, lost_seconds=0.2)
    notices.failed("no reply", attempt=1, attempts=8, wait_seconds=0.7, lost_seconds=120.0)
    assert said == [
        "judge: retrying in 30 s (attempt 2 of 8): busy",
        "judge: retrying in 60 s (attempt 4 of 8): busy",
        "judge: retrying in 0.7 s (attempt 2 of 8): no reply",
    ]


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert retry_after("7", now=0) == 7.0
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", now=40) == 60.0
    assert retry_after("Thu, 01 Jan 1970 00:00:10 GMT", now=40) == 0.0
    assert retry_after("soon", now=0) is None and retry_after(None, now=0) is None


def test_a_netrc_file_does_not_replace_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with judge_server() as (url, log):
        Connection(Endpoint(url, "m"), KEY).ask([{"role": "user", "content": "a"}])
        Connection(Endpoint(url, "m"), None).ask([{"role": "user", "content": "b"}])
    assert [headers.get("Authorization") for headers in log.headers] == [f"Bearer {KEY}", None]


def test_only_a_connection_never_made_is_unreachable() -> None:
    with judge_server() as (url, _):
        for script in ("cut", "500", "hang"):
            with pytest.raises(UnavailableError) as raised:
                Connection(Endpoint(url, "m", timeout_seconds=0.5), KEY).ask(
                    [{"role": "user", "content": f"{script} fail:{script}"}]
                )
            assert not raised.value.unreachable, script


def test_no_server_is_unavailable_and_says_nothing_of_the_key() -> None:
    with pytest.raises(UnavailableError) as raised:
        Connection(Endpoint("http://127.0.0.1:9/v1", "m", timeout_seconds=0.5), KEY).ask([])
    assert raised.value.unreachable and "Connection refused" in str(raised.value)
    assert KEY not in repr(raised.value) and raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:hunter2@host/v1", "no place in it"),
        ("https://host/v1?api_key=hunter2", "no place in it"),
        ("me:hunter2@host/v1", "no http"),
        ("host/v1", "no http"),
        ("https://host/v1/chat/completions", "is added to it. Give 'https://host/v1'"),
        ("https://host/v1/chat/completions/", "is added to it. Give 'https://host/v1'"),
    ],
)
def test_base_urls_without_secrets(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Endpoint(url, "m")
    assert "hunter2" not in str(raised.value)


def test_where_the_key_may_come_from_and_go(tmp_path: Path) -> None:
    local, far, safe = (Endpoint(url, "m") for url in ("http://localhost:8000/v1", "http://host/v1", "https://host/v1"))
    assert read_key("KEY", local, {"KEY": f" {KEY}\n"}) == KEY == read_key("KEY", safe, {"KEY": KEY})
    assert read_key("KEY", local, {}) is None and read_key("", far, {"KEY": KEY}) is None
    assert read_key("KEY", replace(far, insecure_key=True), {"KEY": KEY}) == KEY
    for variable, endpoint, environment, message in [
        ("KEY", far, {"KEY": KEY}, "plain http"),
        ("KEY", safe, {}, "not set or empty"),
        ("KEY", safe, {"KEY": f"{KEY}\r\nX: y"}, "holds blanks"),
        ("KEY", safe, {"KEY": f"{KEY} ключ"}, "holds blanks"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            read_key(variable, endpoint, environment)
        assert KEY not in str(raised.value)
    assert KEY not in repr(Asking(local, KEY, tmp_path))


def test_token_estimates_are_of_the_right_size() -> None:
    assert count_tokens("") == 0
    assert count_tokens("The quick brown fox jumps over the lazy dog.") == 11  # cl100k_base: 10
    assert count_tokens("人工智能是计算机科学") == 11  # cl100k_base: 10 to 13
    assert estimate([], Prices(), max_tokens=None).cost is None
    assert estimate([[{"role": "user", "content": "a"}]], Prices(), max_tokens=20).completion_tokens == 20
    for prices in ((1.0, None), (None, 1.0), (-1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(UserError, match="--price-input"):
            Prices(*prices)


def test_without_requests_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(UserError, match=r"pip install 'ift\[eval\]'"):
        check_library()
