"""What a benchmark is, and how the command finds all there are: by looking into this folder."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import eval as benchmarks_folder
from eval.report import Report
from ift.errors import UserError, unknown_name
from ift.records import Prediction, PromptRecord

Prepare = Callable[..., Iterable[PromptRecord]]
"""`prepare(path)`, or `prepare(path, shots=k)` where the benchmark knows shots."""
Score = Callable[..., Report]
"""`score(predictions, path)`, or `score(predictions, path, scoring=name)` where the benchmark offers several rules."""
Systems = Mapping[str, Sequence[Prediction]]
"""Names of systems to their predictions, each in the order of the data."""


@dataclass(frozen=True)
class Judge:
    """How a judge is asked about answers, and how its replies become scores."""

    ask: Callable[[Systems, Path, int], Iterable[PromptRecord]]
    """From the systems, the data and a seed (of the systems' order) to the judge's prompts; ids are unique, and `meta`
    says which system stands where."""
    score: Callable[[Sequence[Prediction], Systems, Path], Mapping[str, Report]]
    """From the judge's raw replies, one per prompt and in their order, the systems and the data to a report per
    system."""
    single: bool = True
    """Whether each message is about one system; otherwise it compares all of them."""


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
    """From the data (a file, a folder, or an id on a hub) to one prompt per row, excluded rows too; ids are stable and
    unique."""
    score: Score | None = None
    """From predictions, one per prompt and in the order of the data, and the data to the report; none where only a
    judge can tell."""
    modes: Mapping[str, Prepare] = field(default_factory=dict)
    """Further ways to ask, by the name that `--mode` takes; empty where there is one way only."""
    shots: Sequence[int] = ()
    """The numbers of worked examples that `prepare` can put before a question, the default first; empty: none."""
    scorings: Sequence[str] = ()
    """The rules by which `score` can choose from likelihoods, by the name that `--scoring` takes; empty: one only."""
    protocols: Mapping[str, "Benchmark"] = field(default_factory=dict)
    """Other protocols of the same benchmark, by the name that `--protocol` takes."""
    judge: Judge | None = None
    """How a judge scores the answers, where one does."""
    published: Callable[[Path], Report] | None = None
    """Scores a result file as others published it, which holds answers and labels, so that no data is needed."""
    template: str | None = None
    """The template of `ift predict` without which the prompts are not the protocol's own (`raw`: bare text); none where
    any will do. `run` asks a base model under it unless another is given; `score` notes where another was used."""

    def all_protocols(self) -> dict[str, "Benchmark"]:
        """Return this one and its other protocols, by protocol name, the default first."""
        return {self.protocol: self, **self.protocols}


@dataclass(frozen=True)
class Asked:
    """How the prompts of a file were made; stands in every prompt's `meta` under `asked`."""

    benchmark: str
    protocol: str
    version: int
    mode: str | None = None
    shots: int | None = None


def prompts_of(benchmark: Benchmark, path: Path, asked: Asked) -> Iterator[PromptRecord]:
    """Yield the prompts, each with what `asked` says in its `meta`."""
    prepare = benchmark.modes[asked.mode] if asked.mode is not None else benchmark.prepare
    prompts = prepare(path) if asked.shots is None else prepare(path, shots=asked.shots)
    facts = {key: value for key, value in vars(asked).items() if value is not None}
    for prompt in prompts:
        yield replace(prompt, meta={**prompt.meta, "asked": facts})


def how_asked(benchmark: Benchmark, *, mode: str | None, shots: int | None) -> Asked:
    """Return how the prompts are to be made, defaults filled in.

    Raises:
        UserError: no such mode or number of shots.
    """
    if mode is not None and mode not in benchmark.modes:
        if not benchmark.modes:
            raise UserError(
                f"--mode: '{mode}': {benchmark.name} under protocol {benchmark.protocol} has one way to ask only. "
                f"Leave --mode out{_protocols_with(benchmark, mode)}."
            )
        raise unknown_name("--mode", mode, benchmark.modes)
    if shots is not None and shots not in benchmark.shots:
        known = ", ".join(map(str, benchmark.shots)) or "none"
        raise UserError(f"--shots: {shots}: {_named(benchmark)} knows these numbers of worked examples: {known}.")
    if mode is None and benchmark.modes:
        mode = next((name for name, own in benchmark.modes.items() if own is benchmark.prepare), None)
    if shots is None and benchmark.shots:
        shots = benchmark.shots[0]
    return Asked(benchmark.name, benchmark.protocol, benchmark.version, mode, shots)


def find_benchmarks() -> dict[str, Benchmark]:
    """Return the benchmarks of this folder by name."""
    found: dict[str, Benchmark] = {}
    for module in pkgutil.iter_modules(benchmarks_folder.__path__):
        if module.name.startswith("_") or module.ispkg:  # a package is no benchmark, and may need torch
            continue
        benchmark = getattr(importlib.import_module(f"eval.{module.name}"), "BENCHMARK", None)
        if not isinstance(benchmark, Benchmark):
            continue
        if benchmark.name in found:
            raise UserError(f"eval/{module.name}.py: the benchmark name '{benchmark.name}' is taken. Choose another.")
        found[benchmark.name] = benchmark
    return dict(sorted(found.items()))


def get_benchmark(name: str, protocol: str | None = None) -> Benchmark:
    """Return the benchmark of that name, under a protocol or its default one.

    Raises:
        UserError: no such benchmark or protocol; names the nearest and the known ones.
    """
    benchmarks = find_benchmarks()
    if name not in benchmarks:
        raise unknown_name("benchmark", name, benchmarks, hint="`python -m eval list` describes them.")
    protocols = benchmarks[name].all_protocols()
    if protocol is None:
        return benchmarks[name]
    if protocol not in protocols:
        raise unknown_name("--protocol", protocol, protocols, hint="`python -m eval list` describes them.")
    return protocols[protocol]


def _protocols_with(benchmark: Benchmark, mode: str) -> str:
    """Return under which other protocols a mode is known, as the end of an advice."""
    outer = find_benchmarks().get(benchmark.name, benchmark)
    names = [name for name, own in outer.all_protocols().items() if mode in own.modes]
    return f", or give --protocol {' or '.join(names)}, which has it" if names else ""


def _named(benchmark: Benchmark) -> str:
    return f"{benchmark.name} ({benchmark.protocol})" if benchmark.protocols else benchmark.name
