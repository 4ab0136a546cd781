"""What the user did wrong, said so that they can mend it; the command line shows these without a traceback."""

import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import ClassVar

from ift.interruptions import defer, received
from ift.launch import launch

_PATIENCE_SECONDS = 5.0


class UserError(ValueError):
    """A mistake in configuration, data or files that the user can repair.

    The message holds the key as typed, the value found, the rule and the repair. Raised before weights load wherever
    the mistake can be seen by then.
    """

    exit_code: ClassVar[int] = 2


class LocalError(UserError):
    """A mistake or fault that this process has met, while errors of the others only refer to what it says."""


def unknown_name(key: str, value: str, known: Iterable[str], *, hint: str = "") -> UserError:
    """Return the error for a name that is not one of the known ones, with the nearest of them.

    Args:
        key: the key or place as the user typed it.
        value: the unknown name.
        known: the names that would have been right.
        hint: what else could stand there, as a sentence.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    suggestion = f" Did you mean '{nearest[0]}'?" if nearest else ""
    tail = f" {hint}" if hint else ""
    return UserError(f"{key}: unknown name '{value}'.{suggestion} Known: {', '.join(names)}.{tail}")


def exit_code(run: Callable[[], int | None], *, debug: bool) -> int:
    """Run a command and return its exit code, with one line on stderr for what the user can repair.

    Args:
        run: the command; may return an exit code, and none is 0.
        debug: whether to let errors through with their traceback.

    Returns:
        That of the command; 2 for a `UserError` (some have another) or a file that cannot be read or written; 130 after
        an interruption.
    """
    try:
        return run() or 0
    except (UserError, OSError) as error:  # OSError: a full disk, a read-only folder, a vanished mount
        if debug:
            raise
        _tell(str(error), at_once=isinstance(error, LocalError))
        return error.exit_code if isinstance(error, UserError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _tell(message: str, *, at_once: bool) -> None:
    """Write an error once, and not as often as there are processes that have met it.

    Any other process than the first gives that one time to say the same, by which whatever started them ends them all.
    What one of them alone has met is said by it, and at once where the first one's error refers to it.
    """
    place = launch()
    if place.is_first:
        print(f"error: {message}", file=sys.stderr, flush=True)
        return
    defer(True)  # a SIGTERM, as srun sends it when another process fails, changes nothing of the exit code
    parent, deadline = os.getppid(), time.monotonic() + _PATIENCE_SECONDS
    while not at_once and time.monotonic() < deadline:
        if received() or os.getppid() != parent:  # whoever started this process ends it; the first one has said it
            return
        time.sleep(0.1)
    print(f"error (rank {place.rank}): {message}", file=sys.stderr, flush=True)
