"""Where the processes of a job meet before any process group is: who prepares data longer is waited for.

A process group waits for `process_group_timeout_seconds`, and preparing data may take hours, once on each node.
"""

import os
import socket
import sys
import time
from datetime import timedelta
from itertools import count
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
_NUMBERS = count()
"""Of the meetings of this process; all processes have the same ones in the same order."""


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
        started = told = time.monotonic()
        missing = self._place.num_processes
        try:
            if self._store is None:
                self._await_store(started + longest_seconds)
            key = f"ift/prepared/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_NUMBERS)}"
            if refusal:
                self._store.set(f"{key}/refusal", refusal)
            self._store.add(key, 1)
            while (missing := self._place.num_processes - self._store.add(key, 0)) > 0:
                now = time.monotonic()
                if now - started > longest_seconds:
                    raise LostProcessError(
                        f"{missing} processes have not prepared their data in {longest_seconds:g} s."
                    )
                if self._place.is_first and now - told > _BETWEEN_NEWS_SECONDS:
                    told = now
                    print(f"waiting for {missing} processes, which prepare their data", file=sys.stderr, flush=True)
                time.sleep(_PAUSE_SECONDS)
            if self._store.check([f"{key}/refusal"]):
                raise UserError(refusal or self._store.get(f"{key}/refusal").decode())
        except RuntimeError as error:  # torch has many names for a store that is gone
            raise LostProcessError(
                f"the first process of this run, at {self._address[0]}, is gone before training began: {error}"
            ) from error

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
