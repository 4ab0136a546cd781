"""How long to wait between attempts, and a pause that all threads keep when a server asks for one."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ift.errors import UserError

_WORTH_SAYING_SECONDS = 2.0


class StoppedError(Exception):
    """The run ends; this request is not made."""


@dataclass(frozen=True)
class Backoff:
    """Waits that double, each drawn at random from its upper half so that threads do not return together.

    M. Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015), "equal jitter".
    """

    attempts: int = 8
    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    longest_told_seconds: float = 900.0
    """A server that asks to wait longer ends the run, to be continued later."""

    def wait_seconds(self, attempt: int, told: float | None, generator: random.Random) -> float:
        """Return how long to wait after a failed attempt.

        Args:
            attempt: number of the attempt that failed, from 1.
            told: what the server asked for (`Retry-After`), which is never undercut.
            generator: of the jitter.

        Raises:
            UserError: the server asks for too long.
        """
        if told is not None and told > self.longest_told_seconds:
            raise UserError(
                f"--base-url: the server asks to wait {told:.0f} seconds. The same command continues later; what is "
                "answered is kept."
            )
        full = min(self.longest_seconds, self.first_seconds * 2.0 ** (attempt - 1))
        own = full / 2 + generator.random() * full / 2
        return own if told is None else max(told, own)


class Notices:
    """Says which failed attempts cost time; one line where several threads wait for the same reason."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._lock = say, threading.Lock()
        self._said_until: dict[str, float] = {}

    def failed(self, reason: str, *, attempt: int, attempts: int, wait_seconds: float, lost_seconds: float) -> None:
        """Say that another attempt follows, unless that costs hardly any time or is said already.

        Args:
            reason: of the failure.
            attempt: number of the attempt that failed, from 1.
            attempts: the most that there will be.
            wait_seconds: before the next one.
            lost_seconds: that the failed one took.
        """
        if max(wait_seconds, lost_seconds) < _WORTH_SAYING_SECONDS:
            return
        until = time.monotonic() + wait_seconds
        with self._lock:
            if until <= self._said_until.get(reason, 0.0):
                return
            self._said_until[reason] = until
        self._say(f"judge: retrying in {wait_seconds:.2g} s (attempt {attempt + 1} of {attempts}): {reason}")


class Pacer:
    """Keeps the requests of all threads back while a server wants quiet, and ends their waiting when the run stops."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._quiet_until = 0.0

    def stop(self) -> None:
        """End all waits; no further request is made."""
        self._stopped.set()

    def hold(self, seconds: float) -> None:
        """Let no thread ask before that many seconds have passed."""
        with self._lock:
            self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def wait(self, seconds: float = 0.0) -> None:
        """Wait that long, and then for the end of any quiet time.

        Raises:
            StoppedError: the run stops.
        """
        until = time.monotonic() + seconds
        while not self._stopped.is_set():
            with self._lock:
                left = max(until, self._quiet_until) - time.monotonic()
            if left <= 0:
                return
            self._stopped.wait(left)
        raise StoppedError
