"""Where a check runs its tiny runs: settings of a world, changed from case to case, through the commands themselves."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ift.artifacts import RunFolder
from ift.checks.findings import SMALLEST, largest_of
from ift.checks.loss_curves import compare_losses
from ift.checks.weight_difference import compare_weights

Changes = Mapping[str, Any]


class Commands(Protocol):
    """The commands that a check runs, in this process."""

    def run(self, command: str, arguments: list[str]) -> Any:
        """Run `fit` or `validate`; returns the result of `validate`."""
        ...

    def prepare(self, arguments: list[str]) -> tuple[Any, Any]:
        """Return module and data module of a `fit` that is ready to begin; the weights are not loaded yet."""
        ...


@dataclass(frozen=True)
class World:
    """Tiny things that a check is made of."""

    root: Path
    """Holds all of them."""
    settings: Mapping[str, Any]
    """Of a run, without its method."""
    longest: int
    """Tokens of the longest example."""
    tokenizers: Mapping[str, Path]
    """Folders of tokenizers, for what needs no model."""
    families: Mapping[str, Path] = field(default_factory=dict)
    """Folders of models of several families, by model type."""

    @property
    def base(self) -> Path:
        """The base model."""
        return Path(self.settings["model"]["base"])


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how: laid over the settings of the world."""

    name: str
    changes: Changes
    quantized: bool = False
    whole: bool = False
    """Whether weights of the base model itself are trained."""
    resumed_with: Mapping[str, Any] | None = None
    """Optimizer of runs that are resumed; none for AdamW."""


def merged(*settings: Changes) -> dict[str, Any]:
    """Return settings with later ones laid over earlier ones; a class with arguments is replaced as a whole."""
    result: dict[str, Any] = {}
    for one in settings:
        for key, value in one.items():
            old = result.get(key)
            if _is_section(value) and _is_section(old):
                result[key] = merged(old, value)  # type: ignore[arg-type]
            else:
                result[key] = copy.deepcopy(value)
    return result


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" not in value


class Workbench:
    """Runs commands on settings of a world.

    Args:
        world: of the check.
        commands: that it runs.
        accelerator: that all runs here take.
    """

    def __init__(self, world: World, commands: Commands, *, accelerator: str = "cpu") -> None:
        self.world, self._commands, self.accelerator = world, commands, accelerator
        self._folder = world.root / "runs" / accelerator

    def config(self, name: str, *changes: Changes) -> Path:
        """Write the configuration of a run and return its file."""
        import yaml

        own = {"run_dir": str(self._folder / name), "trainer": {"accelerator": self.accelerator}}
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.yaml"
        settings = merged(self.world.settings, own, *changes)
        path.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return path

    def folder(self, name: str) -> Path:
        """Return the run folder of a name."""
        return self._folder / name

    def fit(self, name: str, *changes: Changes, arguments: tuple[str, ...] = ()) -> Path:
        """Train, unless a run of that name is there already, and return the run folder."""
        path = self.config(name, *changes)
        if arguments or not self.folder(name).is_dir():
            with quiet():
                self._commands.run("fit", ["--config", str(path), *arguments])
        return self.folder(name)

    def validate(self, name: str, *changes: Changes, arguments: tuple[str, ...] = ()) -> Any:
        """Return the result of validation."""
        with quiet():
            return self._commands.run("validate", ["--config", str(self.config(name, *changes)), *arguments])

    def open(self, name: str, *changes: Changes) -> tuple[Any, Any]:
        """Return module, with its model, and data module as a run of these settings has them before its first step."""
        with quiet():
            module, data = self._commands.prepare(["--config", str(self.config(name, *changes))])
            module.configure_model()
        return module, data


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what the commands and the libraries print; a check prints its own findings."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "transformers")
    levels = {name: logging.getLogger(name).level for name in names}
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        try:
            for name in names:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def manifest_of(run: Path) -> Any:
    """Return the manifest of a run."""
    return json.loads((run / "manifest.json").read_text(encoding="utf-8"))


def run_gap(one: Path, two: Path) -> float:
    """Return the largest difference between two runs: of a final weight, or as a share of it, a loss or the last norm.

    The norm of the gradient is that before clipping: where every step is clipped, weights do not tell a gradient that
    is wrong by a factor. Infinite where they are not of the same tensors, steps or validations, and never 0 unless all
    bits agree.
    """
    first, second = RunFolder(one), RunFolder(two)
    weights, losses = compare_weights(first, second), compare_losses(first, second)
    validations = [
        [(result["step"], result["loss"], result["supervised_tokens"]) for result in manifest_of(run)["validation"]]
        for run in (one, two)
    ]
    counted = [[(step, tokens) for step, _, tokens in results] for results in validations]
    if weights.only_one or weights.missing or losses.steps[0] != losses.steps[1] or counted[0] != counted[1]:
        return float("inf")
    norms = [manifest_of(run)["last_logged"].get("train/gradient_norm", 0.0) for run in (one, two)]
    pairs = [norms, *((a[1], b[1]) for a, b in zip(*validations, strict=True))]
    gaps = [abs(a - b) / max(1.0, abs(a)) for a, b in pairs]
    largest = largest_of([weights.largest, losses.largest_share, *gaps])
    return largest or (0.0 if weights.same and losses.same else SMALLEST)
