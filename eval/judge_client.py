"""Asks a judge all prompts through an OpenAI-compatible endpoint: parallel, patient, and never twice for one reply.

In come the prompts; out goes a folder (`eval/judge_folder.py`). A reply is in the cache and in the folder before the
next request of its thread starts, so that a kill loses at most the requests in flight. The first prompts are asked
alone, so that a wrong key or model costs one request.
"""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.judge_cache import ReplyCache, reply_key
from eval.judge_endpoint import Connection, Endpoint, RejectedError, Reply, UnavailableError
from eval.judge_estimate import Estimate, Prices, estimate
from eval.judge_folder import Failure, JudgeFolder
from eval.judge_retry import Backoff, Notices, Pacer
from eval.judge_usable import quoted
from eval.output import prompts_hash
from ift.errors import UserError
from ift.records import Prediction, PromptRecord

_FIRST_FAILURES = 3
"""So many failures before any success end the run: then the fault is hardly in the prompts."""
_ATTEMPTS_TO_CONNECT = 2
"""So many where nobody has ever answered: then the address is wrong or no server runs."""


@dataclass(frozen=True)
class Asking:
    """How the prompts are asked."""

    endpoint: Endpoint
    key: str | None = field(repr=False)
    cache: Path
    concurrency: int = 8
    backoff: Backoff = field(default_factory=Backoff)
    prices: Prices = field(default_factory=Prices)
    offline: bool = False
    """Take every reply from the cache."""
    accept_failures: bool = False
    """Finish though prompts have no reply; theirs is then empty, which no parser reads as a score."""

    def identity(self, prompts: Sequence[PromptRecord]) -> dict[str, Any]:
        """Return all that decides the replies."""
        return {
            "judge": "endpoint",
            "base_url": self.endpoint.base_url,
            "model": self.endpoint.model,
            "sampling": self.endpoint.sampling(),
            "prompts": len(prompts),
            "prompts_sha256": prompts_hash(prompts),
        }


@dataclass(frozen=True)
class _Job:
    """One question to the judge, and the prompts that ask it word by word."""

    key: str
    prompts: tuple[PromptRecord, ...]

    @property
    def messages(self) -> Sequence[Mapping[str, str]]:
        return chat(self.prompts[0])


def chat(prompt: PromptRecord) -> list[dict[str, str]]:
    """Return the messages to send; a `context` goes behind its message, as the alpaca templates put it."""
    return [
        {"role": one["role"], "content": "\n".join(filter(None, (one["content"], one.get("context"))))}
        for one in prompt.messages
    ]


def ask_judge(
    prompts: Sequence[PromptRecord], output: Path, *, asking: Asking, confirm: Callable[[Estimate], None]
) -> list[Prediction]:
    """Ask what is not answered yet, and return one reply per prompt, in their order.

    Args:
        prompts: with unique ids.
        output: new folder, one to continue, or a finished one of the same task, which is only read.
        asking: whom and how.
        confirm: called once before anything is paid for; raises to stop.

    Raises:
        UserError: the folder belongs to another task, the endpoint refuses, or prompts stay without a reply; what is
            answered is kept and the same command continues.
    """
    if asking.concurrency < 1:
        raise UserError(f"--concurrency: {asking.concurrency} is less than 1.")
    folder, identity = JudgeFolder(output), asking.identity(prompts)
    done = folder.answered(identity)
    if folder.is_finished():
        return folder.replies()
    cache = ReplyCache(asking.cache)
    jobs = _jobs([prompt for prompt in prompts if prompt.id not in done], asking.endpoint)
    known = [(job, reply) for job in jobs if (reply := cache.get(job.key)) is not None]
    have = {job.key for job, _ in known}
    missing = [job for job in jobs if job.key not in have]
    if missing and asking.offline:
        count = sum(len(job.prompts) for job in missing)
        raise UserError(
            f"--offline: {count} of {len(prompts)} replies are not in '{asking.cache}'. Ask without --offline, or give "
            "the --cache and the settings that they were asked with."
        )
    if missing:
        max_tokens = asking.endpoint.max_tokens
        confirm(estimate((job.messages for job in missing), asking.prices, max_tokens=max_tokens))
    with folder.open(identity, prompts):
        for job, reply in known:
            folder.add([_prediction(prompt, reply, key=job.key, attempts=0) for prompt in job.prompts])
        run = _Run(folder, cache, asking)
        try:
            run.ask(missing)
        except BaseException:
            folder.note_counts({"prompts": len(prompts), **run.counts()}, status="running")
            if not run.failures:
                folder.discard()
            raise
        folder.note_counts({"prompts": len(prompts), **run.counts()}, status="running")
        if run.failures and not asking.accept_failures:
            raise UserError(_told(run.failures, len(prompts), folder))
        order = [prompt.id for prompt in prompts]
        folder.add([_failed(prompt, run.failures[prompt.id]) for prompt in prompts if prompt.id in run.failures])
        folder.finish(order, {"prompts": len(prompts), **run.counts()})
    return folder.replies()


def _jobs(prompts: Sequence[PromptRecord], endpoint: Endpoint) -> list[_Job]:
    groups: dict[str, list[PromptRecord]] = {}
    for prompt in prompts:
        groups.setdefault(reply_key(endpoint, chat(prompt)), []).append(prompt)
    return [_Job(key, tuple(own)) for key, own in groups.items()]


class _Run:
    """The requests of one call of the command."""

    def __init__(self, folder: JudgeFolder, cache: ReplyCache, asking: Asking) -> None:
        self.failures: dict[str, Failure] = {}
        self._folder, self._cache, self._asking = folder, cache, asking
        self._pacer, self._lock, self._random = Pacer(), threading.Lock(), random.Random()
        self._local = threading.local()
        self._notices = Notices(_say)
        self._in_a_row = 0
        self._reached = self._shown = False
        self._totals: Counter[str] = Counter()
        for prediction in folder.replies():
            self._totals.update(_charged(prediction))

    def ask(self, jobs: Sequence[_Job]) -> None:
        """Ask all of them, the first alone until one is answered."""
        left = list(jobs)
        # `disable=None`: no bar where nobody watches.
        with tqdm(total=len(jobs), unit="reply", disable=None, desc="judge") as bar:
            while left and not self._one(left.pop(0), bar):
                if len(self.failures) >= _FIRST_FAILURES:
                    raise UserError(f"--base-url: nothing is answered. {self._last_reason()}")
            with ThreadPoolExecutor(self._asking.concurrency) as pool:
                futures = [pool.submit(self._answer, job) for job in left]
                try:
                    for future in as_completed(futures):
                        self._count(future.result(), bar)
                except BaseException:
                    # Requests in flight are paid for: they end, and their replies are kept.
                    self._pacer.stop()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise

    def _one(self, job: _Job, bar: Any) -> bool:
        answered = self._answer(job)
        self._count(answered, bar)
        return answered

    def _count(self, answered: bool, bar: Any) -> None:
        bar.update()
        counts = self.counts()
        bar.set_postfix(tokens=counts["prompt_tokens"] + counts["completion_tokens"], cost=counts["cost"])
        self._in_a_row = 0 if answered else self._in_a_row + 1
        if self._in_a_row >= max(_FIRST_FAILURES, 2 * self._asking.concurrency):
            raise UserError(f"--base-url: {self._in_a_row} prompts in a row got no reply. {self._last_reason()}")

    def _answer(self, job: _Job) -> bool:
        """Ask one question until it is answered, given up or refused; return whether it is answered."""
        backoff, reason = self._asking.backoff, ""
        for attempt in range(1, backoff.attempts + 1):
            self._pacer.wait()
            began = time.monotonic()
            try:
                reply = self._connection().ask(job.messages)
            except RejectedError as error:
                return self._fail(job, str(error), attempt)
            except UnavailableError as error:
                reason = str(error)
                self._check_reached(error, attempt)
                if attempt == backoff.attempts:
                    break
                self._wait(error, attempt, lost_seconds=time.monotonic() - began)
            else:
                self._keep(job, reply, attempt)
                return True
        return self._fail(job, reason, backoff.attempts)

    def _check_reached(self, error: UnavailableError, attempt: int) -> None:
        self._reached = self._reached or not error.unreachable
        if not self._reached and attempt >= _ATTEMPTS_TO_CONNECT:
            raise UserError(
                f"--base-url: no connection to {self._asking.endpoint.base_url}: {error}. Start the server there, or "
                "mend the address."
            )

    def _wait(self, error: UnavailableError, attempt: int, *, lost_seconds: float) -> None:
        backoff = self._asking.backoff
        seconds = backoff.wait_seconds(attempt, error.wait_seconds, self._random)
        if error.wait_seconds is not None:
            self._pacer.hold(error.wait_seconds)
        self._notices.failed(
            str(error), attempt=attempt, attempts=backoff.attempts, wait_seconds=seconds, lost_seconds=lost_seconds
        )
        self._pacer.wait(seconds)

    def _connection(self) -> Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = Connection(self._asking.endpoint, self._asking.key)
        connection: Connection = self._local.connection
        return connection

    def _keep(self, job: _Job, reply: Reply, attempts: int) -> None:
        self._cache.put(job.key, reply, endpoint=self._asking.endpoint, messages=job.messages)
        predictions = [
            _prediction(prompt, reply, key=job.key, attempts=attempts if first else 0)
            for first, prompt in zip([True] + [False] * len(job.prompts), job.prompts, strict=False)
        ]
        with self._lock:
            self._reached = True
            if not self._shown:  # whoever sees at once that it is no judgement need not pay for the rest
                self._shown = True
                _say(f"judge: the first reply: {quoted(reply.text)}")
            self._folder.add(predictions)
            for prediction in predictions:
                self._totals.update(_charged(prediction))

    def _fail(self, job: _Job, reason: str, attempts: int) -> bool:
        failures = [Failure(prompt.id, reason, attempts) for prompt in job.prompts]
        with self._lock:
            self._folder.fail(failures)
            self.failures.update({failure.id: failure for failure in failures})
        return False

    def counts(self) -> dict[str, Any]:
        """Return what was answered and charged, by this run and those that it continues."""
        with self._lock:
            totals = Counter(self._totals)
            names = ("answered", "from_cache", "requests", "prompt_tokens", "completion_tokens", "without_usage")
            counts: dict[str, Any] = {name: totals[name] for name in names} | {"failed": len(self.failures)}
        cost = self._asking.prices.cost(totals["prompt_tokens"], totals["completion_tokens"])
        return counts | {"cost": None if cost is None else round(cost, 6)}

    def _last_reason(self) -> str:
        last = next(reversed(self.failures.values()))
        return f"The last reason: {last.reason} (after {last.attempts} attempts). What is answered is kept."


def _say(line: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(line, file=sys.stderr)


def _prediction(prompt: PromptRecord, reply: Reply, *, key: str, attempts: int) -> Prediction:
    """Return the record of a reply; `attempts` is 0 where this prompt cost nothing."""
    read = "\n\n".join(f"{message['role']}: {message['content']}" for message in chat(prompt))
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    judge = {"key": key, "attempts": attempts, "cached": attempts == 0, **usage}
    reason = reply.finish_reason
    return Prediction(
        prompt.id,
        read,
        reply.text,
        "stop" if reason == "stop" else "length" if reason == "length" else None,
        reference=prompt.reference,
        meta={**prompt.meta, "judge": judge},
    )


def _failed(prompt: PromptRecord, failure: Failure) -> Prediction:
    return Prediction(prompt.id, "", "", reference=prompt.reference, meta={**prompt.meta, "judge": asdict(failure)})


def _charged(prediction: Prediction) -> dict[str, int]:
    """Return what a reply adds to the counts."""
    judge = prediction.meta["judge"]
    if "reason" in judge:
        return {}
    if judge["cached"]:
        return {"answered": 1, "from_cache": 1}
    names = ("prompt_tokens", "completion_tokens")
    known = all(judge[name] is not None for name in names)
    tokens = {name: judge[name] or 0 for name in names}
    return {"answered": 1, "requests": judge["attempts"], "without_usage": 0 if known else 1, **tokens}


def _told(failures: Mapping[str, Failure], total: int, folder: JudgeFolder) -> str:
    reasons = Counter(failure.reason for failure in failures.values()).most_common(1)[0][0]
    return (
        f"--output: {len(failures)} of {total} prompts have no reply ({folder.failures} names them; most often: "
        f"{reasons}). The same command asks these again; --accept-failures finishes without them: they count as unread."
    )
