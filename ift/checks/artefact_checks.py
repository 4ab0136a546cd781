"""What a run left behind, held against its manifest: weights, template, labels, and the responses in them."""

from collections.abc import Iterable, Mapping
from typing import Any

from ift.artifacts import RunFolder, file_hashes
from ift.checks.findings import ARTEFACTS, Findings
from ift.checks.text_checks import conversation_of, decoded
from ift.checks.tiny_data import talks
from ift.data.conversation import Conversation
from ift.data.encoding import Encoder

_MOST_EXAMPLES = 200


def check_files(run: RunFolder, manifest: Mapping[str, Any], findings: Findings) -> None:
    """Compare the hashes of the trained weights with those that the run wrote down."""
    recorded = manifest.get("exported")
    if not recorded:
        findings.omit(ARTEFACTS, "trained weights", f"the run is {manifest.get('status')} and has exported none")
        return

    def differing() -> int:
        folder = run.adapter if run.adapter.is_dir() else run.model
        found = file_hashes(folder) if folder.is_dir() else {}
        return sum(recorded.get(name) != found.get(name) for name in recorded.keys() | found.keys())

    findings.measure(ARTEFACTS, "trained weights", differing, quantity="files changed", allowed=0)


def check_losses(run: RunFolder, manifest: Mapping[str, Any], findings: Findings) -> None:
    """Compare the record of losses with the number of steps of a finished run: each step once."""
    from ift.checks.loss_curves import recorded_losses

    if not run.losses.is_file() or manifest.get("status") != "finished":
        findings.omit(ARTEFACTS, "recorded losses", "the run is not finished, or older than the record")
        return

    def wrong() -> int:
        lines = run.losses.read_text(encoding="utf-8").splitlines()
        losses = recorded_losses(run)
        return abs(len(lines) - len(losses)) + len(set(losses) ^ set(range(1, int(manifest["steps"]) + 1)))

    findings.measure(ARTEFACTS, "recorded losses", wrong, quantity="steps missing or doubled", allowed=0)


def check_template(saved: Encoder, configured: Encoder, findings: Findings) -> None:
    """Compare the prompts of the run folder's tokenizer and template with those of the configuration's.

    Args:
        saved: of the run folder.
        configured: of base model and configuration.
        findings: gain the case.
    """

    def differing() -> int:
        conversations = [conversation_of(talk) for talk in talks(24)]
        return sum(saved.prompt_ids(one) != configured.prompt_ids(one) for one in conversations)

    findings.measure(ARTEFACTS, "template and tokenizer", differing, quantity="prompts differ", allowed=0)


def check_store(data: Any, manifest: Mapping[str, Any], findings: Findings) -> None:
    """Compare the labels that the data give now with those that the run was trained on."""
    recorded = manifest["data"].get("labels")
    if recorded is None:
        findings.omit(ARTEFACTS, "labels", "the manifest of an older version of ift knows no hash of them")
        return
    findings.measure(
        ARTEFACTS, "labels", lambda: data.store.labels_hash != recorded, quantity="hashes differ", allowed=0
    )


def check_responses(
    data: Any, conversations: Iterable[tuple[tuple[str, int], Conversation]], findings: Findings
) -> None:
    """Decode the supervised tokens of the run's own examples, and compare them with the responses in its files.

    Args:
        data: data module of the run.
        conversations: of its files, each with file and line.
        findings: gain the case.
    """

    def wrong() -> int:
        """Return how many examples differ; all of them where none could be compared."""
        by_place = dict(conversations)
        encoder, stops = data.encoder, set(data.encoder.stop_token_ids)
        wrong = compared = 0
        for index in range(min(_MOST_EXAMPLES, len(data.store))):
            conversation = by_place.get(data.store.place(index))
            if conversation is not None:
                compared += 1
                found = decoded(encoder, data.store[index].labels.tolist(), stops)
                expected = [one.text for one in conversation.messages if one.role == "assistant"]
                wrong += found[-1:] != tuple(expected[-1:])
        return wrong if compared else _MOST_EXAMPLES

    findings.measure(ARTEFACTS, "supervised tokens of its data", wrong, quantity="texts wrong", allowed=0)
