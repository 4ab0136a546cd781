"""A real HTTP server on loopback that answers like a chat endpoint, or misbehaves as a test tells it to."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SCRIPT = "fail"
"""In a prompt, `fail:a,b` asks for these misbehaviours before the good reply."""


@dataclass
class Log:
    """What the server saw and did."""

    asked: Counter[str] = field(default_factory=Counter)
    """Requests per prompt text."""
    answered: Counter[str] = field(default_factory=Counter)
    """Good replies sent per prompt text."""
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


Misbehave = Callable[[str, int], str]
"""From a prompt's text and the number of its request (from 1) to what to do; empty: answer."""


def scripted(text: str, number: int) -> str:
    """Follow the prompt's own script."""
    script = text.partition(f"{SCRIPT}:")[2].split()[0].split(",") if f"{SCRIPT}:" in text else []
    return script[number - 1] if number <= len(script) else ""


@contextmanager
def judge_server(
    misbehave: Misbehave = scripted,
    *,
    seconds: float = 0.0,
    respond: Callable[[str], str] = lambda text: f"得分：0.5\n{text[:20]}",
) -> Iterator[tuple[str, Log]]:
    """Yield base URL and log of a running server; each good reply takes that many seconds."""
    log = Log()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            with log.lock:
                log.asked[text] += 1
                number = log.asked[text]
                log.headers.append(dict(self.headers))
                log.bodies.append(body)
                log.times.append(time.monotonic())
                log.paths.append(self.path)
                log.at_once += 1
                log.most_at_once = max(log.most_at_once, log.at_once)
            try:
                self.behave(misbehave(text, number), text)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with log.lock:
                    log.at_once -= 1

        def behave(self, what: str, text: str) -> None:
            if what == "cut":  # in the middle of the body
                self.send_response(200)
                self.send_header("Content-Length", "4000")
                self.end_headers()
                self.wfile.write(b'{"choices": [{"mess')
                self.close_connection = True
            elif what == "hang":
                time.sleep(2.5)
                self.close_connection = True
            elif what == "drip":  # bytes keep coming, the reply never ends
                self.send_response(200)
                self.send_header("Content-Length", "4000")
                self.end_headers()
                for _ in range(60):
                    self.wfile.write(b" " * 32)
                    self.wfile.flush()
                    time.sleep(0.05)
                self.close_connection = True
            elif what.isdigit():
                self.reply(int(what), {"error": {"message": f"status {what}, {self.headers.get('Authorization')}"}})
            elif what.startswith("429after"):
                self.reply(429, {"error": {"message": "slow"}}, {"Retry-After": what.removeprefix("429after")})
            elif what == "quota":
                self.reply(429, {"error": {"message": "pay", "code": "insufficient_quota"}})
            elif what.startswith("redirect"):
                self.reply(307, {}, {"Location": what.removeprefix("redirect")})
            elif what == "junk":
                self.send(200, b"<html>busy</html>", {})
            elif what == "odd":
                self.reply(200, {"choices": [{"message": {}}]})
            elif what == "empty":
                self.reply(200, completion(""))
            elif what == "filtered":
                self.reply(200, completion("", "content_filter"))
            elif what == "echo":
                self.reply(200, completion(f"得分：0.5 {self.headers.get('Authorization')}"))
            else:
                time.sleep(seconds)
                with log.lock:
                    log.answered[text] += 1
                self.reply(200, completion(respond(text)))

        def reply(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
            self.send(status, json.dumps(value, ensure_ascii=False).encode(), headers or {})

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str, reason: str = "stop") -> dict[str, object]:
    """Return the body of a good reply."""
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7},
    }
