"""Measures how long `ift --version` and `ift --help` take against a bare interpreter start.

usage: python scripts/bench/startup.py [ROUNDS]

The commands take turns, so that whatever else the machine does hits all of them alike; the median of each counts. Exits
with 1 where one of them takes more than LIMIT times the bare start.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 6.0
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "ift --version": ("-m", "ift", "--version"),
    "ift --help": ("-m", "ift", "--help"),
}


def seconds_of(arguments: tuple[str, ...]) -> float:
    """Return how long a fresh interpreter takes, from start to exit."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, float]:
    """Return the median seconds of each command; a first round, which fills the caches, does not count."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds_of(arguments))
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def main(rounds: int) -> int:
    """Print medians and ratios, and return the exit code."""
    medians = measure(rounds)
    bare = next(iter(medians.values()))
    for name, seconds in medians.items():
        print(f"{name:<15} {1000 * seconds:7.1f} ms  {seconds / bare:5.2f} x")
    slow = [name for name, seconds in medians.items() if seconds > LIMIT * bare]
    if slow:
        print(f"slower than {LIMIT:g} bare starts: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 15))
