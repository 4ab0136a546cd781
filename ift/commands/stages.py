"""`ift fit` on a chain of stages: each an ordinary run, and after each the losses on all validation sets so far.

RUN/stages.json      which stages are done, and every measurement; what a killed chain goes on from
RUN/01-NAME/, ...    the stages' run folders
RUN/forgetting.json  the losses and what was forgotten; the same as table (.md) and curves (.svg)
RUN/tensorboard/     `validation_of/NAME` and `forgetting/NAME` over the number of stages done

With one process, stages and validations run in this one, one after the other: nothing is imported twice. With several,
each is a program of its own, as Lightning starts the other processes by running the same command line again, which must
be that of a single run.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from ift.artifacts import RunFolder, write_json
from ift.commands.forgetting import Losses, Measurement, table, write_report, write_scalars
from ift.commands.stage_config import Chain, Stage, StageFiles, read_chain
from ift.commands.stage_start import CheckedStage, check_stage, key_of_model, model_keys, start_keys
from ift.commands.trainer import TrainingCLI, run_once
from ift.errors import UserError
from ift.interruptions import EXIT_INTERRUPTED, EXIT_SAVED, Interrupted

_STATE = "stages.json"
_PROCESSES = {"WORLD_SIZE": "torchrun", "SLURM_NTASKS": "SLURM", "OMPI_COMM_WORLD_SIZE": "mpirun"}
"""Environment variables that tell how many processes something else has started."""


def run_chain(arguments: Sequence[str]) -> None:
    """Check all stages, then train one after the other and measure after each; a killed chain goes on where it was.

    Args:
        arguments: of `ift fit`.

    Raises:
        UserError: a mistake in any stage, said before the first one trains.
    """
    chain = read_chain(arguments)
    with StageFiles(chain) as files:
        if chain.print_config is not None:
            _print(chain, files)
        _check_launch()
        state = _State(chain)
        checked = _check_all(chain, files, state)
        state.begin(checked)
        _Runner(chain, files, state, checked).run()


def _print(chain: Chain, files: StageFiles) -> None:
    """Show each stage as a YAML document, as configured: what it starts from is only there when it begins."""
    for stage in chain.stages:
        print(f"--- # {chain.folder(stage)}, start: {stage.start}", flush=True)
        with files.places(stage), suppress(SystemExit):
            TrainingCLI("fit", [*files.arguments(stage), str(chain.print_config)])
    raise SystemExit(0)


def _check_launch() -> None:
    """Refuse to be one of several processes: a chain starts those of each stage itself.

    Raises:
        UserError: with the variable that tells.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    for name, program in _PROCESSES.items():
        number = os.environ.get(name, "")
        if not number.isdecimal() or int(number) < 2 or (program == "SLURM" and not SLURMEnvironment.detect()):
            continue
        repair = f"in a batch script, 'env -u {name} ift fit ...' without srun" if program == "SLURM" else "without it"
        raise UserError(
            f"stages: {program} started {number} processes ({name}), and a chain starts those of each stage itself. "
            f"Start it once ({repair}), with trainer.devices; or train the stages one by one."
        )


def _check_all(chain: Chain, files: StageFiles, state: "_State") -> list[CheckedStage]:
    checked: list[CheckedStage] = []
    for stage in chain.stages:
        before = checked[-1] if checked else None
        finished = before is not None and state.is_finished(before.stage)
        checked.append(check_stage(chain, files, stage, before=before, finished=finished))
    return checked


class _State:
    """`stages.json`: what of a chain is done.

    Args:
        chain: as read.

    Raises:
        UserError: a folder that is not this chain's, or a chain that has changed where it has been trained.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain, self._path = chain, chain.run_dir / _STATE
        self._exported: dict[str, dict[str, str]] = {}
        self.measurements: list[Measurement] = []
        if not chain.resumes:
            RunFolder(chain.run_dir).check_new()
        elif self._path.is_file():
            self._read()
        elif chain.run_dir.exists() and any(path.name != f"{_STATE}.tmp" for path in chain.run_dir.iterdir()):
            raise UserError(
                f"run_dir: '{chain.run_dir}' holds files but no {_STATE}, so it is no chain of stages to continue. "
                "Give another run_dir."
            )

    def _read(self) -> None:
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"'{self._path}' is damaged: {error}.") from error
        now = [(stage.folder, stage.start) for stage in self._chain.stages]
        begun = [one for one in kept["stages"] if (self._chain.run_dir / one["folder"]).exists()]
        for number, one in enumerate(begun):
            if number >= len(now) or now[number] != (one["folder"], one["start"]):
                found = "'{}' (start: {})".format(*now[number]) if number < len(now) else "nothing"
                raise UserError(
                    f"stages[{number}]: '{self._chain.run_dir}' has trained '{one['folder']}' (start: {one['start']}) "
                    f"there, and here stands {found}. "
                    "Restore it, or begin a new run_dir; stages may be added after those that have begun."
                )
        self._exported = {one["name"]: one["exported"] for one in begun if one["exported"]}
        self.measurements = [Measurement(**one) for one in kept["measurements"]]
        for stage in self._chain.stages:
            self._check_unchanged(stage)

    def _check_unchanged(self, stage: Stage) -> None:
        """Refuse a finished stage whose trained weights are not those that were measured and gone on with."""
        from ift.models.trained_run import open_trained

        if stage.name not in self._exported:
            return
        trained = open_trained(stage.key, str(self._chain.folder(stage)))
        if trained.manifest["exported"] != self._exported[stage.name]:
            raise UserError(
                f"{stage.key}: '{self._chain.folder(stage)}' has been trained further since it was measured. "
                "Begin a new run_dir."
            )

    def is_finished(self, stage: Stage) -> bool:
        """Return whether a stage has been trained to its end."""
        run = RunFolder(self._chain.folder(stage))
        return run.manifest.is_file() and run.read_manifest()["status"] == "finished"

    def begin(self, checked: Sequence[CheckedStage]) -> None:
        """Write the state for the first time, once nothing is wrong."""
        self._checked = checked
        self._chain.run_dir.mkdir(parents=True, exist_ok=True)
        self.write()

    def finish(self, stage: Stage) -> None:
        """Note what a stage has trained."""
        self._exported[stage.name] = RunFolder(self._chain.folder(stage)).read_manifest()["exported"]
        self.write()

    def measured(self, measurement: Measurement) -> None:
        """Note a measurement in the place of an older one."""
        same = (measurement.after, measurement.on)
        self.measurements = [one for one in self.measurements if (one.after, one.on) != same] + [measurement]
        self.write()

    def write(self) -> None:
        """Write the file."""
        stages = [
            {
                "name": one.stage.name,
                "folder": one.stage.folder,
                "start": one.stage.start,
                "learning_rate": one.learning_rate,
                "status": "finished" if one.stage.name in self._exported else "unfinished",
                "exported": self._exported.get(one.stage.name),
            }
            for one in self._checked
        ]
        write_json(self._path, {"stages": stages, "measurements": [asdict(one) for one in self.measurements]})


class _Runner:
    """Trains and measures what is not done yet."""

    def __init__(self, chain: Chain, files: StageFiles, state: _State, checked: Sequence[CheckedStage]) -> None:
        self._chain, self._files, self._state, self._checked = chain, files, state, checked

    def run(self) -> None:
        """Train all stages in order."""
        measured = [self._measure(None, on=one) for one in self._checked]
        if any(measured):
            self._report()
        for number, one in enumerate(self._checked, 1):
            before = self._checked[number - 2] if number > 1 else None
            if not self._state.is_finished(one.stage):
                self._train(one, before)
            self._state.finish(one.stage)
            measured = [self._measure(one, on=earlier) for earlier in self._checked[:number]]
            if any(measured) or one is self._checked[-1]:
                self._report()
        run_dir = self._chain.run_dir
        print(f"chain of stages: {run_dir}\ntensorboard --logdir {run_dir}", file=sys.stderr)

    def _train(self, one: CheckedStage, before: CheckedStage | None) -> None:
        stage = one.stage
        print(f"stage {stage.number} of {len(self._checked)}: {stage.name}, start: {stage.start}", file=sys.stderr)
        last = start_keys(stage, RunFolder(self._chain.folder(before.stage)), before.method) if before else None
        self._call("fit", stage, self._files.arguments(stage, last, resume=True), one.num_processes)
        if not self._state.is_finished(stage):  # a signal ends Lightning's training without an error
            raise UserError(f"stage '{stage.name}' was interrupted. Go on with --ckpt_path last.")

    def _measure(self, after: CheckedStage | None, *, on: CheckedStage) -> bool:
        """Validate a model on a stage's validation set, unless that has been done; returns whether it had not."""
        run = RunFolder(self._chain.folder(after.stage)) if after is not None else None
        settings = model_keys(after or self._checked[0], run)
        key = f"{on.data_key[:16]}{key_of_model(settings, run.read_manifest()['exported'] if run else None)[:16]}"
        name = after.stage.name if after is not None else None
        same = [one for one in self._state.measurements if one.key == key]
        if any((one.after, one.on) == (name, on.stage.name) for one in same):
            return False
        if same:  # another stage has the same validation set
            self._state.measured(replace(same[0], after=name, on=on.stage.name))
            return True
        print(f"validation of '{on.stage.name}' {f'after {name!r}' if name else 'before all stages'}", file=sys.stderr)
        settings["trainer"] = {"limit_val_batches": 1.0}
        result = self._call("validate", on.stage, self._files.arguments(on.stage, settings), on.num_processes)
        if not result:
            raise UserError(f"the validation of '{on.stage.name}' was interrupted. Go on with --ckpt_path last.")
        self._state.measured(
            Measurement(name, on.stage.name, result["loss"], result["perplexity"], result["supervised_tokens"], key)
        )
        return True

    def _report(self) -> None:
        losses = Losses.of([stage.name for stage in self._chain.stages], self._state.measurements)
        write_report(losses, self._chain.run_dir)
        write_scalars(losses, RunFolder(self._chain.run_dir).tensorboard)
        print(f"\n{table(losses)}\n", flush=True)

    def _call(self, command: str, stage: Stage, arguments: list[str], num_processes: int) -> dict[str, Any]:
        """Train or validate; returns the result of a validation."""
        with self._files.places(stage):
            if num_processes > 1:
                return _run_program([command, *arguments])
            result = run_once(command, arguments, tell=command == "fit")[1]  # and nothing that holds the model
        _release()
        return asdict(result) if result is not None else {}


def _release() -> None:
    """Give back the memory of a model that is no longer needed."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _run_program(arguments: list[str]) -> dict[str, Any]:
    """Run `ift` in a process of its own, which may start others; returns the JSON that it prints last, if any.

    Raises:
        UserError: it failed, and has said why.
    """
    process = subprocess.Popen([sys.executable, "-m", "ift", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    except BaseException:  # a signal, perhaps to this process alone: the other saves and ends
        process.terminate()
        process.wait()
        raise
    if process.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if process.returncode == EXIT_SAVED:
        raise Interrupted(signal.SIGTERM, "The chain goes on with --ckpt_path last.", requeued=True)
    if process.returncode:
        raise UserError(f"'ift {arguments[0]}' ended with code {process.returncode}; what it said stands above.")
    last = output.strip().splitlines()[-1:]
    return dict(json.loads(last[0])) if arguments[0] == "validate" and last else {}
