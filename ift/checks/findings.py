"""What a check found: cases of the ten invariants, how far each is off, and the table of all. Starts without torch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

INVARIANTS = {
    1: "supervised tokens are the responses",
    2: "prompt ids are equal everywhere",
    3: "how a step is cut changes nothing",
    4: "validation does not depend on batches",
    5: "a resumed run ends as a whole one",
    6: "packed examples are as those alone",
    7: "the output-only loss is the plain one",
    8: "adapters: fresh, saved, merged",
    9: "an enlarged vocabulary survives",
    10: "every row is accounted for",
}
"""What must stay true, by number."""
ARTEFACTS = 11
"""Not an invariant of the engine: what a run left behind is what its manifest says."""
SMALLEST = math.ulp(0.0)
"""A deviation of things that differ in some bit although no number of theirs does: -0.0 and 0.0."""
TITLES = {**INVARIANTS, ARTEFACTS: "the run's own files"}


def largest_of(values: Iterable[float]) -> float:
    """Return the largest of values that are 0 or more; not a number where one of them is none (`max` drops it)."""
    found = list(values)
    return math.nan if any(math.isnan(one) for one in found) else max(found, default=0.0)


@dataclass(frozen=True)
class Case:
    """One measurement."""

    invariant: int
    name: str
    quantity: str
    """What is compared: weights, losses, logits, texts, ids, rows."""
    deviation: float
    """How far it is off; a number of things, or a difference of numbers."""
    allowed: float
    seconds: float
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the deviation is allowed; one that is not a number never is."""
        return self.deviation <= self.allowed

    @property
    def excess(self) -> float:
        """The deviation in units of what is allowed, to find the worst case by."""
        if math.isnan(self.deviation):
            return math.inf
        return self.deviation / self.allowed if self.allowed else math.inf if self.deviation else 0.0

    def text(self) -> str:
        """Return one line for people."""
        verdict = "" if self.holds else "  VIOLATED"
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}: {_number(self.deviation)} {self.quantity}, allowed {_number(self.allowed)}{verdict}{note}"


@dataclass(frozen=True)
class Omission:
    """A case that this machine or this configuration does not have."""

    invariant: int
    name: str
    reason: str


@dataclass(frozen=True)
class Part:
    """A stretch of a check, by which its progress is counted."""

    invariants: frozenset[int]
    """Those that it has cases of."""
    seconds: float
    """About how long it takes on one of two CPU cores, the other being busy with the two ranks."""
    run: Callable[[], None]


class Findings:
    """Collects cases while checks run.

    Args:
        wanted: numbers of the invariants that are checked.
        tell: is told of every case.
    """

    def __init__(self, wanted: frozenset[int], tell: Callable[[str], None]) -> None:
        self.wanted = wanted
        self.cases: list[Case] = []
        self.omissions: list[Omission] = []
        self._tell, self._started, self._progress = tell, time.monotonic(), ""

    def run(self, parts: Sequence[Part]) -> None:
        """Say how much there is to do, and do it; what is told on the way says how far it is."""
        wanted = [part for part in parts if part.invariants & self.wanted]
        self.say(f"{len(wanted)} parts, {_roughly(sum(part.seconds for part in wanted))} on two CPU cores")
        for number, part in enumerate(wanted, 1):
            self._progress = f", {number:>{len(str(len(wanted)))}} of {len(wanted)}"
            part.run()
        self._progress = ""

    def measure(
        self, invariant: int, name: str, compute: Callable[[], float], *, quantity: str, allowed: float
    ) -> None:
        """Measure one case; an error in it is a violation, too.

        Args:
            invariant: its number.
            name: of the case, for people.
            compute: returns the deviation.
            quantity: what is compared.
            allowed: largest deviation that is none.
        """
        if invariant not in self.wanted:
            return
        started, note = time.monotonic(), ""
        try:
            deviation = float(compute())
        except Exception as error:  # whatever it is, the promise is not kept
            deviation, note = math.inf, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.add(Case(invariant, name, quantity, deviation, allowed, time.monotonic() - started, note))

    def add(self, case: Case) -> None:
        """Keep a case, and tell of it."""
        self.cases.append(case)
        self.say(f"{case.invariant:>2}  {case.text()}")

    def omit(self, invariant: int, name: str, reason: str) -> None:
        """Say that a case cannot be had here."""
        if invariant in self.wanted:
            self.omissions.append(Omission(invariant, name, reason))
            self.say(f"{invariant:>2}  {name}: left out, {reason}")

    def say(self, text: str) -> None:
        """Tell how far the check is."""
        self._tell(f"[{time.monotonic() - self._started:5.1f} s{self._progress}] {text}")

    @contextmanager
    def guarded(self, invariant: int, name: str) -> Iterator[None]:
        """Let what is prepared for several cases fail as one of them."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:  # whatever it is, none of the cases can be had
            note = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            seconds = time.monotonic() - started
            if invariant in self.wanted:
                self.add(Case(invariant, name, "errors", math.inf, 0.0, seconds, note))

    @property
    def holds(self) -> bool:
        """Whether nothing is violated, and something was measured."""
        return bool(self.cases) and all(case.holds for case in self.cases)

    def describe(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "holds": self.holds,
            "seconds": round(time.monotonic() - self._started, 3),
            "invariants": list(self._rows()),
            "cases": [{**asdict(case), "holds": case.holds} for case in self.cases],
            "omissions": [asdict(one) for one in self.omissions],
        }

    def table(self) -> str:
        """Return the table of all invariants, and below it what is violated or left out."""
        head = ["", "invariant", "cases", "largest deviation", "allowed", "seconds", "verdict"]
        shown = {row["number"]: [str(value) for value in _shown(row)] for row in self._rows()}
        shown |= {
            one.invariant: [str(one.invariant), TITLES[one.invariant], "0", "", "", "", "left out"]
            for one in self.omissions
            if one.invariant not in shown
        }
        lines = [head, *(shown[number] for number in sorted(shown))]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        text.insert(1, "  ".join("-" * width for width in widths))
        broken = [f"violated: {case.invariant} {case.text()}" for case in self.cases if not case.holds]
        left_out = [f"left out: {one.invariant} {one.name}: {one.reason}" for one in self.omissions]
        return "\n".join([*text, *broken, *left_out])

    def _rows(self) -> Iterator[dict[str, Any]]:
        for number, title in TITLES.items():
            cases = [case for case in self.cases if case.invariant == number]
            if not cases:
                continue
            worst = max(cases, key=lambda case: (case.excess, case.deviation))
            yield {
                "number": number,
                "invariant": title,
                "cases": len(cases),
                "largest_deviation": worst.deviation,
                "quantity": worst.quantity,
                "allowed": worst.allowed,
                "seconds": round(sum(case.seconds for case in cases), 1),
                "holds": all(case.holds for case in cases),
            }


def _shown(row: dict[str, Any]) -> list[Any]:
    return [
        row["number"],
        row["invariant"],
        row["cases"],
        f"{_number(row['largest_deviation'])} {row['quantity']}",
        _number(row["allowed"]),
        row["seconds"],
        "holds" if row["holds"] else "VIOLATED",
    ]


def _roughly(seconds: float) -> str:
    return f"about {max(10, round(seconds, -1)):.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} minutes"


def _number(value: float) -> str:
    whole = math.isfinite(value) and value == int(value)
    return f"{value:.0f}" if whole else f"{value:.1e}"
