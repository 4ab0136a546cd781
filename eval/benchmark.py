"""What a benchmark is, and how the command finds all there are: by looking into this folder."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import eval as benchmarks_folder
from eval.report import Report
from ift.errors import UserError, unknown_name
from ift.records import Prediction, PromptRecord

Prepare = Callable[[Path], Iterable[PromptRecord]]


@dataclass(frozen=True)
class Benchmark:
    """A data layout, the prompts it makes and the way their answers are scored.

    A module of this folder that holds one as `BENCHMARK` is a benchmark; nothing else has to know it.
    """

    name: str
    """As typed on the command line."""
    protocol: str
    """Prompt wording, answer reading and aggregation under one name."""
    version: int
    """Raised with every change that can change a score."""
    description: str
    """One line for `python -m eval list`."""
    prepare: Prepare
    """From the data file to one prompt per row, excluded rows too; ids are stable and unique."""
    score: Callable[[Sequence[Prediction], Path], Report]
    """From predictions, one per prompt and in the order of the data, and the data file to the report."""
    modes: Mapping[str, Prepare] = field(default_factory=dict)
    """Further ways to ask, by the name that `--mode` takes; empty where there is one way only."""


def find_benchmarks() -> dict[str, Benchmark]:
    """Return the benchmarks of this folder by name."""
    found: dict[str, Benchmark] = {}
    for module in pkgutil.iter_modules(benchmarks_folder.__path__):
        if module.name.startswith("_"):
            continue
        benchmark = getattr(importlib.import_module(f"eval.{module.name}"), "BENCHMARK", None)
        if not isinstance(benchmark, Benchmark):
            continue
        if benchmark.name in found:
            raise UserError(f"eval/{module.name}.py: the benchmark name '{benchmark.name}' is taken. Choose another.")
        found[benchmark.name] = benchmark
    return dict(sorted(found.items()))


def get_benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name.

    Raises:
        UserError: no such benchmark; names the nearest and the known ones.
    """
    benchmarks = find_benchmarks()
    if name not in benchmarks:
        raise unknown_name("benchmark", name, benchmarks, hint="`python -m eval list` describes them.")
    return benchmarks[name]
