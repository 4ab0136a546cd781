"""Signals that ask a command to end before its time: noted at once, acted on where nothing is lost.

SIGUSR1 is SLURM's warning that the time is nearly over: save, requeue, leave. SIGTERM asks to leave: save, leave, and
requeue where the job itself goes on. SIGINT is Ctrl-C: save, leave; a second one leaves at once.

From the first line of a command on, a signal raises `Interrupted` in the main thread, as Ctrl-C does in every Python
program: while nothing is trained, there is nothing to save. While steps are trained (`deferred`), it is only noted, and
`ift.training.preemption` looks at the note between steps. Starts without torch.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ift.launch import launch

EXIT_SAVED = 75
"""Exit code after SIGUSR1 or SIGTERM: EX_TEMPFAIL, "try again later"; no error of Python, torchrun or SLURM has it."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell's own."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""From the one that asks for least to the one that asks for most."""
_WAIT_SECONDS = {signal.SIGUSR1: 60.0, signal.SIGTERM: 10.0}
"""How long a process waits for the first one to requeue their job, which ends them all."""
_STUCK_SECONDS = 30.0
"""How long a signal may go unheard before there is training: libraries that wait for other processes do not return to
Python, which alone can raise."""


class Interrupted(BaseException):
    """A signal asks to leave. No `Exception`, so that no library takes it for a failure of its own.

    Args:
        signum: the signal.
        saved: what was done for the way back, as a sentence.
        requeued: whether the job has been requeued already, or cannot be.
    """

    def __init__(self, signum: int, saved: str = "", *, requeued: bool = False) -> None:
        super().__init__(signum, saved)
        self.signum, self.saved, self.requeued = signal.Signals(signum), saved, requeued


class _Note:
    """What has been received in this process, and whether it is acted on later."""

    def __init__(self) -> None:
        self.received = 0
        self.is_deferred = False

    def take(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal; the handler of all of them."""
        level = SIGNALS.index(signal.Signals(signum)) + 1
        again = signum == signal.SIGINT and self.received == level
        self.received = max(self.received, level)
        if not self.is_deferred or again:
            self.is_deferred = True  # what follows on the way out changes nothing
            raise Interrupted(signum, requeued=again)


_note = _Note()


def received() -> int:
    """Return 0, or the number from 1 of the most asking signal in `SIGNALS` that was received."""
    return _note.received


def defer(deferred: bool) -> None:
    """Begin, or end, a time in which signals are only noted."""
    _note.is_deferred = deferred


@contextmanager
def watched(*, is_program: bool = False) -> Iterator[None]:
    """Note signals within; the handlers from before come back afterwards.

    Args:
        is_program: the process ends afterwards. Requests to end are ignored from then on, so that a second one, while
            libraries are torn down, does not take the place of the exit code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _note.__init__()  # type: ignore[misc]
    earlier = {signum: signal.signal(signum, _note.take) for signum in SIGNALS}
    try:
        with _leaving_where_stuck():
            yield
    finally:
        for signum, handler in earlier.items():
            if is_program and signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_IGN)
            else:
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def _leaving_where_stuck() -> Iterator[None]:
    """End the process where its main thread does not come back to hear a signal, and no step is trained yet."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_if_stuck, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(writing)  # which ends the thread


def _end_if_stuck(reading: int) -> None:
    """Wait for signals, which Python writes here at once, whatever the main thread does."""
    while number := os.read(reading, 1):
        if number[0] not in SIGNALS:
            continue
        signum = signal.Signals(number[0])
        deadline = time.monotonic() + _STUCK_SECONDS
        while not _note.received and not _note.is_deferred and time.monotonic() < deadline:
            time.sleep(0.2)
        if not _note.received and not _note.is_deferred:
            code = leave(Interrupted(signum, "It waited for other processes; nothing had been trained."))
            os._exit(code)
    os.close(reading)


def leave(interrupted: Interrupted) -> int:
    """Requeue the job where that is still to be done, say what happened, and return the exit code."""
    defer(True)
    place = launch()
    name = interrupted.signum.name
    if not interrupted.requeued:
        if place.is_first:
            if told := requeue(interrupted.signum):
                interrupted.saved = f"{interrupted.saved} {told}".strip()
        elif job_id() is not None:
            # srun ends the job with the first process that fails, and the first one has to ask SLURM before.
            time.sleep(_WAIT_SECONDS.get(interrupted.signum, 0.0))
    if place.is_first:
        said = "interrupted" if interrupted.signum == signal.SIGINT else f"{name} received"
        print(f"{said}{'. ' if interrupted.saved else ''}{interrupted.saved}", file=sys.stderr, flush=True)
    if place.program is None and place.local_rank:
        return 0  # Lightning would kill the process that has started this one, which has its own way out
    return exit_code_of(interrupted.signum)


def exit_code_of(signum: int) -> int:
    """Return the exit code after a signal."""
    return EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_SAVED


def job_id(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the job of SLURM that this process belongs to, as `scontrol` wants it, or `None`."""
    found = os.environ if environment is None else environment
    array = found.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{found.get('SLURM_ARRAY_TASK_ID')}" if array else found.get("SLURM_JOB_ID", "")
    return job if re.fullmatch(r"\d+(_\d+)?", job) else None


def requeue(signum: int) -> str:
    """Ask SLURM to start this job again; nothing is done outside of one.

    A SIGTERM may also be the end of a job that was cancelled, which must stay so, or that SLURM requeues by itself: the
    state of the job tells.

    Args:
        signum: why.

    Returns:
        What came of it, as a sentence, or nothing.
    """
    job = job_id()
    if job is None or signum == signal.SIGINT:
        return ""
    if signum == signal.SIGTERM and (state := _state_of(job)) not in ("RUNNING", "TIMEOUT"):
        return f"Job {job} is not requeued, as SLURM has it {state.lower() or 'in no known state'}."
    ended = _scontrol("requeue", job)
    if ended is None or ended.returncode:
        reason = ended.stderr.strip() if ended is not None else "scontrol cannot be run"
        return f"Job {job} could not be requeued ({reason}); submit it again."
    return f"Job {job} is requeued."


def _state_of(job: str) -> str:
    ended = _scontrol("show", "job", "--oneliner", job)
    found = re.search(r"\bJobState=(\w+)", ended.stdout) if ended is not None else None
    return found.group(1) if found else ""


def _scontrol(*arguments: str) -> Any:
    """Return what SLURM's command has answered, or `None` where there is none."""
    import subprocess

    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None


def ignore_in_worker(_: Any = None) -> None:
    """Ignore these signals in a process that only helps another, which decides for both.

    SLURM signals every process of a job, and a terminal every process in front: a loader that dies of it takes the step
    that is to be finished with it.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def way_back(checkpoint: Path, step: int) -> str:
    """Return the sentence that says what was saved and how to go on."""
    return f"Step {step} is saved in '{checkpoint}'. Go on with the same command and --ckpt_path last."
