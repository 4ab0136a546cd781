"""A chain of stages in YAML: the list `stages`, beside the settings that all of them share. Starts without torch.

In: the arguments of `ift fit`. Out: for each stage a list of arguments that is a run of its own, in layers that later
ones overlay as `--config` files do: the files without `stages`, the stage's own keys, the options of the command line,
and what the stage starts from. Each layer is a YAML text that knows the lines it comes from, for errors.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast, get_args

import yaml

from ift.commands.config_file import ConfigFile, config_names, walk
from ift.errors import UserError, unknown_name

Start = Literal["continue", "merge", "fresh"]
OF_THE_CHAIN = {
    "run_dir": "each stage is a run folder inside the chain's run_dir",
    "ckpt_path": "a whole chain is continued, with --ckpt_path last",
    "stages": "stages hold no stages",
    "model.base": "a chain has one base model, or its losses could not be compared. Set it beside 'stages'",
}
"""Keys that no stage may set."""
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Layer:
    """Settings as a YAML text."""

    text: str
    places: Mapping[int, str]
    """Line of the text to `file line N`, as the user knows it."""


@dataclass(frozen=True)
class Stage:
    """One run of a chain."""

    number: int
    """From 1."""
    name: str
    start: Start
    place: str
    """`file line N`."""
    keys: Mapping[str, str]
    """The dotted keys that the stage sets itself, each with its place."""
    layer: Layer

    @property
    def key(self) -> str:
        """Where it stands in the configuration."""
        return f"stages[{self.number - 1}]"

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.number:02d}-{self.name}"

    def sets(self, key: str) -> str | None:
        """Return the place of a key that the stage itself sets, or of the first one below it."""
        return next((place for own, place in self.keys.items() if own == key or own.startswith(f"{key}.")), None)


@dataclass(frozen=True)
class Chain:
    """What the arguments of `ift fit` say."""

    layers: tuple[Layer, ...]
    stages: tuple[Stage, ...]
    options: tuple[str, ...]
    """Of the command line, for all stages; they win over the files and over a stage's own keys."""
    run_dir: Path
    resumes: bool
    print_config: str | None
    """The option as typed, where the configuration is only to be shown."""

    def folder(self, stage: Stage) -> Path:
        """Return the run folder of a stage."""
        return self.run_dir / stage.folder


def has_stages(arguments: Sequence[str]) -> bool:
    """Return whether a configuration file holds a chain.

    Raises:
        UserError: a file that cannot be read.
    """
    return any("stages" in ConfigFile(name).entries for name in config_names(list(arguments)))


def read_chain(arguments: Sequence[str]) -> Chain:
    """Return the chain that the arguments of `ift fit` describe.

    Raises:
        UserError: a wrong list of stages, with file and line; keys below `data`, `model` and so on are not looked at.
    """
    roots = [_composed(ConfigFile(name)) for name in config_names(list(arguments))]
    options, own = _split(arguments)
    top: dict[str, str] = {}
    listed: tuple[str, yaml.Node] | None = None
    layers = []
    for name, root in roots:
        for key, value in root.value:
            if key.value == "stages":
                listed = (f"{name} line {key.start_mark.line + 1}", value)
            elif isinstance(value, yaml.ScalarNode):
                top[key.value] = value.value
        layers.append(_layer(name, [pair for pair in root.value if pair[0].value != "stages"]))
    assert listed is not None
    top |= own
    if not top.get("run_dir"):
        raise UserError("run_dir: required, and not given. Set it in the YAML, or with --run_dir.")
    return Chain(
        layers=tuple(layers),
        stages=_stages(next(name for name, root in reversed(roots) if _holds(root)), *listed),
        options=options,
        run_dir=Path(top["run_dir"]).expanduser(),
        resumes=_resumes(top.get("ckpt_path")),
        print_config=own.get("print_config"),
    )


def _composed(file: ConfigFile) -> tuple[str, yaml.MappingNode]:
    """Compose a file that was read before without a mistake."""
    root = yaml.compose(Path(file.name).expanduser().read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return file.name, root if isinstance(root, yaml.MappingNode) else _mapping([])


def _holds(root: yaml.MappingNode) -> bool:
    return any(key.value == "stages" for key, _ in root.value)


def _mapping(pairs: list[tuple[yaml.Node, yaml.Node]]) -> yaml.MappingNode:
    return yaml.MappingNode("tag:yaml.org,2002:map", pairs)


def _layer(name: str, pairs: list[tuple[yaml.Node, yaml.Node]]) -> Layer:
    """Write a part of a file as a text of its own, and note which of its lines came from where."""
    node = _mapping(pairs)
    text = yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=1 << 20)
    again = yaml.compose(text, Loader=yaml.SafeLoader)
    assert again is not None
    lines = zip(walk(again, ""), walk(node, ""), strict=True)
    return Layer(text, {new.line: f"{name} line {old.line}" for (_, new), (_, old) in lines})


def _split(arguments: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Part the options that stages share from those that are the chain's."""
    shared: list[str] = []
    own: dict[str, str] = {}
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument in ("--config", "-c", "--run_dir", "--ckpt_path"):
            if not (value := next(left, "")):
                raise UserError(f"{argument}: needs a value.")
            own[name] = value
        elif argument.startswith("--") and equals and name in ("config", "run_dir", "ckpt_path"):
            own[name] = value
        elif argument.startswith("--print_config"):
            own["print_config"] = argument
        else:
            shared.append(argument)
    return tuple(shared), own


def _resumes(checkpoint: str | None) -> bool:
    if checkpoint in (None, "null", "~", ""):
        return False
    if checkpoint != "last":
        raise UserError(
            f"--ckpt_path: '{checkpoint}' is one checkpoint, and a chain of stages is continued as a whole: with "
            "--ckpt_path last. To begin from a trained adapter, name its folder as model.adapter."
        )
    return True


def _stages(file: str, place: str, node: yaml.Node) -> tuple[Stage, ...]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise UserError(f"{place}: stages: expected a list with at least one stage, as in '- name: first'.")
    stages: list[Stage] = []
    for number, value in enumerate(node.value, 1):
        stage = _stage(file, number, value)
        for other in stages:
            if other.name.casefold() == stage.name.casefold():
                raise UserError(f"{stage.place}: {stage.key}.name: '{stage.name}' is the name of {other.key} already.")
        stages.append(stage)
    return tuple(stages)


def _stage(file: str, number: int, node: yaml.Node) -> Stage:
    key, place = f"stages[{number - 1}]", f"{file} line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{place}: {key}: expected keys and values, beginning with '- name: ...'.")
    own = {one.value: (f"{file} line {one.start_mark.line + 1}", value) for one, value in node.value}
    pairs = [pair for pair in node.value if pair[0].value not in ("name", "start")]
    keys = {path: f"{file} line {entry.line}" for path, entry in walk(_mapping(pairs), "")}
    name = _scalar(own, "name")
    if not name:
        raise UserError(f"{place}: {key}.name: required, and not given. It names the stage's run folder.")
    if not _NAME.fullmatch(name):
        raise UserError(f"{own['name'][0]}: {key}.name: '{name}' may hold letters of a to z, digits, '-' and '_' only.")
    for refused, reason in OF_THE_CHAIN.items():
        if refused in keys:
            raise UserError(f"{keys[refused]}: {key}.{refused}: not possible in a stage; {reason}.")
    start = _scalar(own, "start")
    if "start" in own and start not in get_args(Start):
        raise UserError(f"{own['start'][0]}: {unknown_name(f'{key}.start', str(start), get_args(Start))}")
    if number == 1 and start in ("continue", "merge"):
        raise UserError(
            f"{own['start'][0]}: {key}.start: '{start}' needs a stage before it, and this is the first. Leave it out; "
            "to begin from a trained adapter, name its folder as model.adapter."
        )
    chosen = cast(Start, start or ("fresh" if number == 1 else "continue"))
    return Stage(number, name, chosen, place, keys, _layer(file, pairs))


def _scalar(own: Mapping[str, tuple[str, yaml.Node]], key: str) -> str | None:
    node = own[key][1] if key in own else None
    return str(node.value) if isinstance(node, yaml.ScalarNode) else None


class StageFiles:
    """The layers of a chain as files, for as long as it is used as a context manager.

    Args:
        chain: as read.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def __enter__(self) -> "StageFiles":
        self._folder = TemporaryDirectory(prefix="ift-stages-")
        self._places: dict[str, Mapping[int, str]] = {}
        self._shared = [self._write(f"shared-{n}", layer) for n, layer in enumerate(self._chain.layers)]
        self._own = {stage.name: self._write(stage.folder, stage.layer) for stage in self._chain.stages}
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def _write(self, name: str, layer: Layer) -> str:
        path = str(Path(self._folder.name) / f"{name}.yaml")
        Path(path).write_text(layer.text, encoding="utf-8")
        self._places[path] = layer.places
        return path

    def arguments(self, stage: Stage, last: Mapping[str, Any] | None = None, *, resume: bool = False) -> list[str]:
        """Return the arguments of a run.

        Args:
            stage: whose settings and data it has.
            last: settings that win over all others.
            resume: whether to go on with a run that has begun.
        """
        folder = self._chain.folder(stage)
        # The configuration that a run keeps should name no checkpoint where there was none.
        checkpoint = "last" if resume and folder.exists() else "null"
        shared = [part for name in self._shared for part in ("--config", name)]
        given = [*shared, "--config", self._own[stage.name], *self._chain.options]
        if last is not None:
            text = yaml.safe_dump(dict(last), allow_unicode=True, sort_keys=False)
            given += ["--config", self._write(f"{stage.folder}-start", Layer(text, {}))]
        return [*given, "--run_dir", str(folder), "--ckpt_path", checkpoint]

    @contextmanager
    def places(self, stage: Stage) -> Iterator[None]:
        """Tell an error's lines as the user knows them, and the stage that it is about."""
        try:
            yield
        except UserError as error:
            text = str(error)
            for path, places in self._places.items():
                pattern = re.escape(path) + r" line (\d+)"
                text = re.sub(pattern, lambda match, of=places: of.get(int(match[1]), "its start"), text)  # type: ignore[misc]
            raise UserError(f"stage '{stage.name}': {text}") from error
