"""`ift check --run RUN` and `--config FILE`: the checks on a small model like that of a run, and on its own files."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import yaml

from ift.artifacts import RunFolder
from ift.checks.artefact_checks import check_files, check_losses, check_responses, check_store, check_template
from ift.checks.findings import ARTEFACTS, Findings
from ift.checks.workbench import quiet
from ift.commands.inspect_config import InspectCLI, configured_data
from ift.commands.merge_prompts import encoder_of
from ift.commands.stage_config import has_stages
from ift.data.conversation import Conversation
from ift.data.layouts import RowError
from ift.data.row_conversations import resolve_source, to_conversations
from ift.data.rows import read_rows
from ift.errors import UserError

_MOST_ROWS = 200


class _ResolveCLI(InspectCLI):
    """Parses and builds nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""


def config_of_run(folder: str) -> dict[str, Any]:
    """Return the resolved configuration of a run.

    Raises:
        UserError: no run folder.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(f"--run: '{folder}' is no run folder: it holds no config.yaml. Name one that ift fit wrote.")
    return run.read_config()


def config_of_file(path: str) -> dict[str, Any]:
    """Return a configuration file with everything that it leaves open filled in.

    Raises:
        UserError: as `ift fit` does for a wrong key or value.
    """
    arguments = ["--config", path]
    if has_stages(arguments):
        raise UserError(
            "--config: stages are several runs. 'ift fit --config ... --print_config' shows each; give one of them."
        )
    cli = _ResolveCLI("fit", arguments)
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    return config


def check_own_files(folder: str, findings: Findings) -> None:
    """Hold what a run left behind against its manifest."""
    run = RunFolder(folder)
    if not run.manifest.is_file():
        findings.omit(ARTEFACTS, "all of them", "the run has no manifest")
        return
    manifest = run.read_manifest()
    check_files(run, manifest, findings)
    check_losses(run, manifest, findings)
    try:
        with quiet():
            data = configured_data(["--config", str(run.config)])
            data.look(validation=False)
    except (UserError, OSError) as error:
        findings.omit(ARTEFACTS, "its data", f"they cannot be read any more: {' '.join(str(error).split())[:200]}")
        return
    check_template(_saved_encoder(run), data.encoder, findings)
    check_store(data, manifest, findings)
    if data.train_on == "everything" or data.text_blocks or data.over_long != "drop":
        findings.omit(ARTEFACTS, "supervised tokens of its data", "more, or less, than responses is learned there")
        return
    check_responses(data, _conversations(data), findings)


def _saved_encoder(run: RunFolder) -> Any:
    from ift.data.templates import Template

    described = json.loads(run.template.read_text(encoding="utf-8"))
    template = "tokenizer" if "chat_template" in described else Template(**described)
    return encoder_of(run, template, described.get("options") or {})


def _conversations(data: Any) -> Iterator[tuple[tuple[str, int], Conversation]]:
    """Yield the only conversation of each of the first rows of a run's files, with its file and line."""
    for number, source in enumerate(data.sources):
        key = f"data.sources[{number}]"
        function = resolve_source(key, source).function
        for row in islice(read_rows(source, key=key), _MOST_ROWS):
            found = list(to_conversations(row, function, needs_response=True))
            if len(found) == 1 and not isinstance(found[0], RowError):
                yield (row.file or source.path, row.line), found[0]
