"""Where the processes of a job meet before any process group is: each waits for those that still prepare data.

A process group waits for `process_group_timeout_seconds`, and preparing data may take hours, once on each node.

torchrun keeps one store while it starts its processes again and again, so what earlier ones have written is still
there. The first process therefore opens a meeting under a mark of its own, the others answer it with theirs, and each
goes on when its very answer comes back.
"""

import os
import secrets
import socket
import sys
import time
from datetime import timedelta
from typing import Any

from ift.errors import UserError
from ift.launch import Launch, launch
from ift.training.process_groups import LostProcessError

_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Tells torch that the store at MASTER_ADDR and MASTER_PORT is there already, and to connect to it."""
_ANSWER_SECONDS = 60
_PAUSE_SECONDS = 0.2
_BETWEEN_NEWS_SECONDS = 60.0
LONGEST_PREPARATION_SECONDS = 24 * 3600.0
_STORES: dict[tuple[str, int], Any] = {}
"""Open stores by address, for the life of the process: it may meet the others several times, and whoever hosts a store
that is let go leaves them waiting."""
_OPENED, _ANSWER, _RETURNED = "ift/opened", "ift/answer/{}", "ift/returned/{}"
"""Keys of a meeting: the first process's mark; that with the mark of a rank; the same, as the first one has seen it."""
_REFUSAL = "ift/refusal/{}"
"""Why the process of a mark refuses to go on; once it has been let go, why any of them does."""
_HEARD = "ift/heard/{}"
"""That the process of a mark has heard of a refusal."""
_GROUPS = "default_pg/"
"""Begins the keys under which torch's process groups exchange addresses."""


class Meeting:
    """A store of torch's that counts who has come; nothing where this process is alone.

    Args:
        environment: of Lightning's Trainer; names the address.
        place: of this process.
    """

    def __init__(self, environment: Any, place: Launch | None = None) -> None:
        self._place = place or launch()
        self._store: Any = None
        self._is_needed = self._place.program is not None and self._place.num_processes > 1
        if not self._is_needed:
            return
        self._address = (str(environment.main_address), int(environment.main_port))
        self._store = _STORES.get(self._address)
        if self._store is not None:
            return
        hosted = os.environ.get(_AGENT_STORE) == "True"  # by torchrun
        os.environ[_AGENT_STORE] = "True"
        if not hosted and self._place.is_first:
            try:
                self._store = self._open(is_master=True)
            except RuntimeError as error:
                address, port = self._address
                raise UserError(
                    f"MASTER_PORT: {port} on {address} cannot be listened on ({str(error).splitlines()[0]}). Set "
                    "MASTER_PORT to a free one, the same for all processes."
                ) from error

    def _open(self, *, is_master: bool) -> Any:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        timeout = timedelta(seconds=_ANSWER_SECONDS)
        store = TCPStore(*self._address, is_master=is_master, timeout=timeout, wait_for_workers=False)
        return _STORES.setdefault(self._address, store)

    def wait(self, *, refusal: str = "", longest_seconds: float = LONGEST_PREPARATION_SECONDS) -> None:
        """Wait for all others, and hear whether any of them refuses to go on.

        Args:
            refusal: why this process refuses, if it does.
            longest_seconds: for the others to come.

        Raises:
            UserError: this process refuses, or another one.
            LostProcessError: the others have not come.
        """
        if not self._is_needed:
            if refusal:
                raise UserError(refusal)
            return
        deadline = time.monotonic() + longest_seconds
        try:
            if self._store is None:
                self._await_store(deadline)
            mark = secrets.token_hex(8)
            if refusal:
                self._store.set(_REFUSAL.format(mark), refusal)
            missing = self._receive(mark, deadline) if self._place.is_first else self._join(mark, deadline)
            said = refusal or self._read(_REFUSAL.format(mark))
            if said and not self._place.is_first:
                self._store.set(_HEARD.format(mark), "")
        except RuntimeError as error:  # torch has many names for a store that is gone
            raise LostProcessError(
                f"the first process of this run, at {self._address[0]}, is gone before training began: {error}"
            ) from error
        if missing:
            raise LostProcessError(f"{missing} processes have not prepared their data in {longest_seconds:g} s.")
        if said:
            raise UserError(said)

    def _receive(self, mark: str, deadline: float) -> int:
        """Open a meeting as the first process, and let the others go when all are there; return how many are not."""
        self._store.set(_OPENED, mark)
        answers: dict[int, str] = {}
        told = time.monotonic()
        while True:
            for rank in range(1, self._place.num_processes):
                if rank not in answers and (answer := self._read(_ANSWER.format(rank))).startswith(mark):
                    answers[rank] = answer
            if not (missing := self._place.num_processes - 1 - len(answers)):
                break
            if (now := time.monotonic()) > deadline:
                return missing
            if now - told > _BETWEEN_NEWS_SECONDS:
                told = now
                print(f"waiting for {missing} processes, which prepare their data", file=sys.stderr, flush=True)
            time.sleep(_PAUSE_SECONDS)
        self._forget_groups()
        marks = [mark, *(answer.split()[1] for answer in answers.values())]
        if said := next(filter(None, (self._read(_REFUSAL.format(one)) for one in marks)), ""):
            for one in marks:
                self._store.set(_REFUSAL.format(one), said)
        for rank, answer in answers.items():
            self._store.set(_RETURNED.format(rank), answer)
        if said:  # the store may end with this process: not before the others have heard
            heard = [_HEARD.format(one) for one in marks[1:]]
            until = min(deadline, time.monotonic() + _ANSWER_SECONDS)
            while not all(self._store.check([one]) for one in heard) and time.monotonic() < until:
                time.sleep(_PAUSE_SECONDS)
        return 0

    def _join(self, mark: str, deadline: float) -> int:
        """Answer the first process as often as it opens a meeting, until it has seen the answer; return 0 then."""
        rank, answered = self._place.rank, ""
        while time.monotonic() < deadline:
            opened = self._read(_OPENED)  # before the next line: a meeting that has ended is not answered again
            if self._read(_RETURNED.format(rank)).endswith(mark):
                return 0
            if opened and opened != answered:
                self._store.set(_ANSWER.format(rank), f"{opened} {mark}")
                answered = opened
            time.sleep(_PAUSE_SECONDS)
        return self._place.num_processes - 1

    def _forget_groups(self) -> None:
        """Delete what process groups of earlier meetings left: one takes addresses of processes that are gone from it.

        Stores cannot list their keys before torch 2.10; restarts of torchrun may fail there.
        """
        for key in getattr(self._store, "list_keys", list)():
            if key.startswith(_GROUPS):
                self._store.delete_key(key)

    def _read(self, key: str) -> str:
        """Return what stands under a key, or nothing, without waiting for it."""
        return str(self._store.get(key).decode()) if self._store.check([key]) else ""

    def _await_store(self, deadline: float) -> None:
        """Connect to the store of the first process, which may still be starting."""
        while True:
            try:
                with socket.create_connection(self._address, timeout=5):
                    break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LostProcessError(f"no process answers at {self._address[0]}: {error}.") from error
                time.sleep(_PAUSE_SECONDS)
        self._store = self._open(is_master=False)
