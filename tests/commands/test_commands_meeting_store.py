"""Processes meet in a store that outlives them: nobody takes what earlier processes left there for an answer."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ift.commands import meeting
from ift.errors import UserError
from ift.launch import Launch
from ift.training.process_groups import LostProcessError

GROUP_KEY, OTHER_KEY = "default_pg/0//cpu//0/1", "torchelastic/other"


@dataclass(frozen=True)
class Address:
    """Of a store, as Lightning's environments tell it."""

    main_port: int
    main_address: str = "127.0.0.1"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store as torchrun keeps it."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(meeting, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(meeting, "_STORES", {})
    yield TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)


Start = Callable[[int], threading.Thread]


@pytest.fixture
def start(store: Any) -> Start:
    """Let a rank of three come to the meeting, in a thread."""

    def come(rank: int) -> threading.Thread:
        one = meeting.Meeting(Address(store.port), Launch("torchrun", rank, rank, num_processes=3))
        thread = threading.Thread(target=one.wait, kwargs={"longest_seconds": 20}, daemon=True)
        thread.start()
        return thread

    return come


def end(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_every_meeting_waits_for_all_whatever_earlier_ones_left(
    store: Any, start: Start, order: tuple[int, int, int]
) -> None:
    for _ in range(3):
        store.set(GROUP_KEY, "the address of a process that is gone")
        store.set(OTHER_KEY, "of somebody else")
        early = [start(rank) for rank in order[:2]]
        early[0].join(timeout=0.3)
        assert all(thread.is_alive() for thread in early)
        end([*early, start(order[2])])
        assert not store.check([GROUP_KEY]) and store.check([OTHER_KEY])


def test_who_waits_for_a_first_process_that_has_died_meets_the_next_one(store: Any, start: Start) -> None:
    dead = meeting.Meeting(Address(store.port), Launch("torchrun", 0, 0, num_processes=3))
    others = [start(1)]
    with pytest.raises(LostProcessError, match="1 processes have not prepared their data in 0.3 s"):
        dead.wait(longest_seconds=0.3)
    assert others[0].is_alive()
    end([*others, start(0), start(2)])


@pytest.mark.parametrize("refusing", [0, 2])
def test_what_one_refuses_all_refuse(store: Any, refusing: int) -> None:
    def come(rank: int) -> str:
        one = meeting.Meeting(Address(store.port), Launch("torchrun", rank, rank, num_processes=3))
        with pytest.raises(UserError) as refused:
            one.wait(refusal="damaged" if rank == refusing else "", longest_seconds=20)
        return str(refused.value)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(come, range(3))) == ["damaged"] * 3
        waits = [
            meeting.Meeting(Address(store.port), Launch("torchrun", rank, rank, num_processes=3)).wait
            for rank in range(3)
        ]
        list(pool.map(lambda wait: wait(longest_seconds=20), waits))  # the next meeting is another one
