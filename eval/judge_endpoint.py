"""One request to an OpenAI-compatible chat endpoint: what is sent, and what each kind of answer means.

The key comes from an environment variable, goes into one header, and is nowhere else: not in a file, a message or an
exception, and not in what the server sends back. Over plain HTTP it is sent to this machine only, and never follows a
redirect.
"""

import ipaddress
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from ift.errors import UserError

_RETRIED = {408, 409, 425, 429}
"""Client errors that may pass by themselves: timeout, conflict, too early, too many requests."""
_ONE_ITEM = {400, 413, 422}
"""Client errors that can be the fault of one prompt: malformed, too long, refused by a filter."""
_SHOWN_CHARACTERS = 300
_COMPLETIONS = "/chat/completions"
_CONNECT_SECONDS = 10.0
"""Ample for a connection alone; what takes longer is an address where nobody is."""
_CHUNK_BYTES = 32
"""Small, for the deadline of a request is looked at between chunks and a slow server fills them slowly."""


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is, and how it samples."""

    base_url: str
    """Up to and without `/chat/completions`: `https://api.openai.com/v1`."""
    model: str
    temperature: float | None = 0.0
    """`None`: not sent, for models that take none."""
    max_tokens: int | None = None
    seed: int | None = None
    timeout_seconds: float = 120.0
    """For one request, from connecting to the last byte."""
    insecure_key: bool = False
    """Whether the key may go over plain HTTP to another machine."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--base-url: '{_shown(self.base_url)}' is no http(s) address such as https://host/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                f"--base-url: name and password, query or fragment have no place in it (host {parts.hostname}). Put "
                "the key into an environment variable and name that with --key-variable."
            )
        address = self.base_url.rstrip("/")
        if address.endswith(_COMPLETIONS):
            raise UserError(
                f"--base-url: '{self.base_url}': {_COMPLETIONS} is added to it. Give "
                f"'{address.removesuffix(_COMPLETIONS)}'."
            )
        for name, value in (("temperature", self.temperature), ("timeout", self.timeout_seconds)):
            if value is not None and (not math.isfinite(value) or value < 0):
                raise UserError(f"--{name}: {value} is not a number from 0.")

    def sampling(self) -> dict[str, float | int]:
        """Return the settings that are sent beside model and messages."""
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        return {name: value for name, value in settings.items() if value is not None}

    def body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Return what is posted."""
        return {"model": self.model, "messages": [dict(message) for message in messages], **self.sampling()}

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True)
class Reply:
    """What the judge wrote, and what it was charged for."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class UnavailableError(Exception):
    """No reply this time; another attempt may bring one."""

    def __init__(self, reason: str, wait_seconds: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        """What the server asked to wait."""
        self.unreachable = unreachable
        """Whether there was not even a connection."""


class RejectedError(Exception):
    """The server refuses this prompt and will again."""


def read_key(variable: str, endpoint: Endpoint, environment: Mapping[str, str]) -> str | None:
    """Return the key, `None` where the variable is not set and a server on this machine needs none.

    Raises:
        UserError: no key, one that no header can carry, or one that would go over plain HTTP to another machine.
    """
    key = environment.get(variable, "").strip()
    if not key:
        if endpoint.is_loopback or variable == "":
            return None
        raise UserError(
            f"--key-variable: the environment variable {variable} is not set or empty. Set it to the key, or name "
            "another variable; with --key-variable '' no key is sent."
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"--key-variable: {variable} holds blanks or signs that no key has. Set it to the key alone.")
    if urlsplit(endpoint.base_url).scheme == "http" and not endpoint.is_loopback and not endpoint.insecure_key:
        raise UserError(
            f"--base-url: the key in {variable} would go over plain http to {urlsplit(endpoint.base_url).hostname}, "
            "readable on the way. Use https, send no key (--key-variable ''), or allow it with --insecure-key."
        )
    return key


def check_library() -> None:
    """Refuse to begin where the library for requests is not installed.

    Raises:
        UserError: it is not.
    """
    _library()


def _library() -> Any:
    try:
        import requests
    except ImportError as error:
        raise UserError("judge: asking an endpoint needs requests. Install it: pip install 'ift[eval]'.") from error
    return requests


class Connection:
    """Asks one endpoint; one per thread."""

    def __init__(self, endpoint: Endpoint, key: str | None) -> None:
        self._endpoint, self._key = endpoint, key
        self._requests = _library()
        self._session = self._requests.Session()
        # No proxy between this machine and itself. The key is set by `auth`, which also keeps a .netrc out.
        self._session.trust_env = not endpoint.is_loopback
        self._url = endpoint.base_url.rstrip("/") + _COMPLETIONS

    def ask(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """Post one chat and return the reply.

        Raises:
            UnavailableError: another attempt may succeed.
            RejectedError: this prompt is refused.
            UserError: nothing will succeed until the user repairs something.
        """
        status, headers, content = self._post(messages)
        if status == 200:
            return self._read(content)
        raise self._failure(status, headers, content)

    def _post(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, Mapping[str, str], bytes]:
        deadline = time.monotonic() + self._endpoint.timeout_seconds
        try:
            with self._session.post(
                self._url,
                json=self._endpoint.body(messages),
                auth=self._authorize,
                timeout=(min(_CONNECT_SECONDS, self._endpoint.timeout_seconds), self._endpoint.timeout_seconds),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = bytearray()
                for chunk in response.iter_content(_CHUNK_BYTES):
                    content += chunk
                    if time.monotonic() > deadline:
                        raise UnavailableError(f"no whole reply within {self._endpoint.timeout_seconds:g} seconds")
                return response.status_code, response.headers, bytes(content)
        except self._requests.exceptions.SSLError as error:
            raise UserError(f"--base-url: no safe connection to {self._url}: {self._scrub(str(error))}") from None
        except (self._requests.exceptions.RequestException, OSError) as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> UnavailableError:
        """Return what an exception of the connection means, in as few words as tell it."""
        # `requests` wraps the error of urllib3 that tells a connection never made from one that broke.
        cause = getattr(error.args[0], "reason", None) if error.args else None
        if type(cause).__name__ in ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError"):
            text = str(cause)  # "HTTPConnection(host=…): Failed to establish …"
            return UnavailableError(self._scrub(text.partition("): ")[2] or text), unreachable=True)
        return UnavailableError(f"{type(error).__name__}: {self._scrub(str(error))}")

    def _authorize(self, request: Any) -> Any:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _read(self, content: bytes) -> Reply:
        try:
            value = json.loads(content)
            choice = value["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise UnavailableError(f"no chat completion: {self._start(content)}") from None
        reason = choice.get("finish_reason")
        if reason == "content_filter" and not text:
            raise RejectedError("the server's content filter let no reply through")
        if not isinstance(text, str) or not text.strip():
            raise UnavailableError("an empty reply")
        usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt_tokens, completion_tokens = (count if isinstance(count, int) else None for count in counts)
        return Reply(self._scrub(text), reason, prompt_tokens, completion_tokens)

    def _failure(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
        told = f"HTTP {status}: {self._start(content)}"
        if status == 429 and b"insufficient_quota" in content:
            return UserError(f"--base-url: the account has no quota left ({told}). The same command continues later.")
        if status in _RETRIED or status >= 500:
            return UnavailableError(told, retry_after(headers.get("Retry-After"), now=time.time()))
        if status in _ONE_ITEM:
            return RejectedError(told)
        if 300 <= status < 400:
            target = urlsplit(headers.get("Location", "")).hostname or "another path"
            return UserError(
                f"--base-url: {self._url} redirects to {target} (HTTP {status}), where the key is not sent. Give the "
                "address that it redirects to, if you trust it."
            )
        repair = {
            401: "Check the key in the environment variable that --key-variable names.",
            403: "The key may not use this model or address.",
            404: "Check --base-url (with /v1, where the server has it) and --model.",
        }.get(status, "Check --base-url, --model and the settings.")
        return UserError(f"--base-url: {self._url} answers {told}. {repair}")

    def _start(self, content: bytes) -> str:
        """Return the start of a body, or the message in it, without the key."""
        text = self._scrub(content.decode("utf-8", errors="replace"))
        try:
            error = json.loads(text)["error"]
            text = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, TypeError):
            pass
        return " ".join(str(text).split())[:_SHOWN_CHARACTERS] or "an empty body"

    def _scrub(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "[key]")


def retry_after(header: str | None, *, now: float) -> float | None:
    """Return the seconds that a `Retry-After` header asks to wait: a number, or a date (RFC 9110, 10.2.3).

    Args:
        header: its text.
        now: seconds since the epoch.
    """
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, TypeError, IndexError):
        return None


def _shown(url: str) -> str:
    """Return an address without what stands before an @, which may be a password."""
    return url.rpartition("@")[2]
