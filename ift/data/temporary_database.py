"""A private database for more than memory should hold; gone when its object is."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ift.errors import UserError

CACHE_KIBIBYTES = 16_384
"""Memory of one database; beyond it, SQLite writes to the folder for temporary files."""


class TemporaryDatabase:
    """A database that SQLite keeps in memory up to a bound and on disk beyond it, and deletes by itself.

    The order of statements decides its content and nothing else does; threads may share it if they take turns.
    """

    def __init__(self) -> None:
        # The empty name makes it private and temporary; nothing of it must survive, so there is no journal.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIBIBYTES}"):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute("BEGIN")

    def execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Execute a statement."""
        with _room_needed():
            return self._connection.execute(statement, values)

    def execute_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Execute a statement for each of several rows."""
        with _room_needed():
            self._connection.executemany(statement, rows)


@contextmanager
def _room_needed() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise UserError(
            f"the temporary database of seen conversations cannot be written: {error}. Name a folder with more room in "
            "the environment variable SQLITE_TMPDIR."
        ) from error
