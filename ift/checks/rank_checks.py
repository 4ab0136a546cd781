"""Invariants 3 to 5 on two ranks, and a run that is killed: cases that need processes of their own."""

import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ift.checks.findings import Findings
from ift.checks.rank_pair import Job, RankPair, end
from ift.checks.run_checks import (
    ROUNDING,
    plain_validation,
    resumed_gap,
    run_gap_from,
    unavailable,
    validation_gap,
    with_dropout,
)
from ift.checks.workbench import Changes, Recipe, Workbench, manifest_of, run_gap

STRATEGIES = ("ddp", "fsdp")
"""Strategies that run on two ranks of a CPU."""
_SECONDS_TO_A_CHECKPOINT = 300.0


@dataclass(frozen=True)
class RankCase:
    """A job of two ranks, and what it is held against."""

    invariant: int
    title: str
    job: Job
    recipe: Recipe
    run: Path
    """Run folder of the job."""
    reference: Path
    """Run that it must equal."""


class RankChecks:
    """Runs all cases of two ranks beside the checks of this process.

    Args:
        bench: writes configurations, and runs what they are held against.
        recipes: what is trained.
        findings: gain the cases.
        strategies: values of `trainer.strategy`.
        layouts: row layouts that are exact for what is trained; the first of them is held against the reference.
    """

    def __init__(
        self,
        bench: Workbench,
        recipes: list[Recipe],
        findings: Findings,
        *,
        strategies: tuple[str, ...] = STRATEGIES,
        layouts: tuple[str, ...] = ("packed", "flattened", "grouped"),
    ) -> None:
        self._bench, self._findings, self._layouts = bench, findings, layouts
        self._jobs: list[Job] = []
        self._cases: list[RankCase] = []
        self._pair = RankPair(bench.world.root / "ranks")
        if findings.wanted & {3, 4, 5}:
            for recipe in recipes:
                for strategy in strategies:
                    self._plan(recipe, strategy)

    def start(self) -> None:
        """Start the ranks, if there is anything for them to do."""
        if self._jobs:
            self._pair.start(self._jobs)

    def _plan(self, recipe: Recipe, strategy: str) -> None:
        if reason := unavailable(recipe):
            self._findings.omit(3, f"{recipe.name}, 2 ranks, {strategy}", reason)
            return
        two: Changes = {"trainer": {"devices": 2, "strategy": strategy}}
        layout = self._layouts[0]
        cut: Changes = {"data": {"row_layout": layout, "micro_batch_tokens": 2 * self._bench.world.longest}}
        wanted = self._findings.wanted
        if 3 in wanted:
            title = f"{recipe.name}, 2 ranks, {strategy}, {layout} rows"
            self._add(3, title, recipe, f"{recipe.name}-{strategy}", (two, cut))
        if 4 in wanted:
            self._add_validation(recipe, strategy, two)
        if 5 in wanted:
            name = f"{recipe.name}-{strategy}-dropout"
            self._add_resumed(recipe, name, (two, with_dropout(recipe)), strategy)

    def _add(self, invariant: int, title: str, recipe: Recipe, name: str, changes: tuple[Changes, ...]) -> None:
        path = self._bench.config(name, recipe.changes, *changes)
        run, reference = self._bench.folder(name), self._bench.folder(f"{recipe.name}-reference")
        job = self._planned(name, "fit", path)
        self._cases.append(RankCase(invariant, title, job, recipe, run, reference))

    def _add_validation(self, recipe: Recipe, strategy: str, two: Changes) -> None:
        """Shares of 7 examples, 2 at a time: the last step has one, so a rank has none."""
        name = f"{recipe.name}-{strategy}-validation"
        path = self._bench.config(name, recipe.changes, two, {"data": {"global_batch_size": 2}})
        job = self._planned(name, "validate", path)
        title = f"{recipe.name}, 2 ranks, {strategy}, uneven shares"
        self._cases.append(RankCase(4, title, job, recipe, self._bench.folder(name), self._bench.folder(name)))

    def _add_resumed(self, recipe: Recipe, name: str, changes: tuple[Changes, ...], strategy: str) -> None:
        whole = self._bench.config(name, recipe.changes, *changes)
        folder = self._bench.folder(name)
        resumed = f"{name}-resumed"
        path = self._bench.config(resumed, recipe.changes, *changes)
        start = ["--ckpt_path", str(folder / "checkpoints" / "step-00000006.ckpt")]
        self._planned(name, "fit", whole)
        job = self._planned(resumed, "fit", path, *start)
        title = f"{recipe.name}, 2 ranks, {strategy}, dropout, from the second epoch"
        self._cases.append(RankCase(5, title, job, recipe, self._bench.folder(resumed), folder))

    def _planned(self, name: str, command: str, config: Path, *arguments: str) -> Job:
        """Return a job that the ranks do after those before it."""
        job = Job(name, command, ["--config", str(config), *arguments])
        self._jobs.append(job)
        return job

    def finish(self) -> None:
        """Wait for the ranks and measure their cases."""
        for case in self._cases:
            self._measure(case)

    def close(self) -> None:
        """End the ranks, if they still run."""
        self._pair.close()

    def _measure(self, case: RankCase) -> None:
        allowed = 0.0 if case.invariant == 5 else ROUNDING
        told: dict[str, Any] = {"seconds": 0.0}
        collected = Findings(frozenset({case.invariant}), lambda _: None)

        def compute() -> float:
            told.update(self._pair.result(case.job.name))
            return 0.0 if told.get("refused") else self._deviation(case, told)

        quantity = "loss" if case.invariant == 4 else "weights and losses"
        collected.measure(case.invariant, case.title, compute, quantity=quantity, allowed=allowed)
        (found,) = collected.cases
        if told.get("refused"):
            self._findings.omit(case.invariant, case.title, f"refused: {told['refused']}")
        else:
            self._findings.add(replace(found, seconds=told["seconds"] or found.seconds))

    def _deviation(self, case: RankCase, told: dict[str, Any]) -> float:
        if case.invariant == 4:
            expected = plain_validation(self._bench, case.recipe, None)
            return validation_gap(SimpleNamespace(**told["result"]), expected)
        if manifest_of(case.run)["sessions"][0]["world_size"] != 2:
            return float("inf")
        return resumed_gap(case.reference, case.run) if case.invariant == 5 else self._against_one(case)

    def _against_one(self, case: RankCase) -> float:
        reference = self._bench.fit(case.reference.name, case.recipe.changes)
        return run_gap(reference, case.run)


class KilledRun:
    """A run in a process of its own that is killed at a random moment, and then resumed here.

    Args:
        bench: writes its configuration, and resumes it.
        recipe: what is trained.
        findings: gain the case.
    """

    def __init__(self, bench: Workbench, recipe: Recipe, findings: Findings) -> None:
        self._bench, self._recipe, self._findings = bench, recipe, findings
        self._process: subprocess.Popen[bytes] | None = None
        self._missed: str | None = None
        # Beside the other checks: the run would be over before the first of them are.
        self._killer = threading.Thread(target=self._wait_and_kill, daemon=True)
        # The log of every step is written at once, so that its end can be anywhere.
        self._changes: tuple[Changes, ...] = (recipe.changes, with_dropout(recipe), {"trainer": {"max_epochs": 12}})

    def start(self) -> None:
        """Start the run, if it is wanted and its method is available."""
        if 5 not in self._findings.wanted or unavailable(self._recipe):
            return
        path = self._bench.config("killed", *self._changes)
        log = self._bench.world.root / "killed.log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ift", "fit", "--config", str(path)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )
        self._killer.start()

    def _wait_and_kill(self) -> None:
        """Kill it at a random moment after its third checkpoint."""
        assert self._process is not None
        deadline = time.monotonic() + _SECONDS_TO_A_CHECKPOINT
        run = self._bench.folder("killed")
        folder = run / "checkpoints"
        while len(list(folder.glob("step-*.ckpt"))) < 3 and self._process.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        time.sleep(random.random() * 0.3)
        num_checkpoints = len(list(folder.glob("step-*.ckpt")))
        if self._process.poll() is not None:
            self._missed = f"it ended by itself with {self._process.returncode} before it could be killed"
        elif num_checkpoints < 3:
            self._missed = f"it had no third checkpoint within {_SECONDS_TO_A_CHECKPOINT:.0f} s"
        end(self._process)
        if self._missed is None and manifest_of(run)["status"] == "finished":
            self._missed = "it had finished before it could be killed"  # and is not resumed any more

    def finish(self) -> None:
        """Resume the run, and compare it with one that was not killed."""
        if self._process is None:
            return
        self._killer.join()
        title = f"{self._recipe.name}, killed at a random moment"
        if self._missed is not None:
            self._findings.omit(5, title, self._missed)
            return

        def compute() -> float:
            reference = self._bench.fit("unbroken", *self._changes)
            resumed = self._bench.fit("killed", *self._changes, arguments=("--ckpt_path", "last"))
            sessions = manifest_of(resumed)["sessions"]
            if len(sessions) != 2 or sessions[1]["from_step"] < 6:
                return float("inf")
            return run_gap_from(reference, resumed, 0)

        self._findings.measure(5, title, compute, quantity="weights and losses", allowed=0.0)

    def close(self) -> None:
        """End the process, if it still runs."""
        if self._process is not None:
            end(self._process)
