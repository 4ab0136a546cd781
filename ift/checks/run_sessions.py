"""What a run went on with in later sessions, where that is not what it began with. Starts without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ift.artifacts import RunFolder, flat
from ift.checks.changes import Change, changes
from ift.training.decisive_settings import decisive_settings

_FACTS = ("code", "environment", "strategy", "versions", "row_layout", "attention")


@dataclass(frozen=True)
class LaterSession:
    """A session in which a run went on."""

    number: int
    """From 2."""
    from_step: int
    changes: tuple[Change, ...]
    """What is not as in the run's first session: settings that weights or losses may depend on, and facts."""


def session_facts(session: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of how a session computed, by dotted name."""
    return {name: value for part in _FACTS for name, value in flat({part: session.get(part)}).items()}


def later_sessions(run: RunFolder, manifest: Mapping[str, Any]) -> tuple[LaterSession, ...]:
    """Return the sessions after the first one.

    Args:
        run: the run folder.
        manifest: of it.

    Raises:
        UserError: a configuration that is damaged.
    """
    first, *others = manifest.get("sessions") or [{}]
    return tuple(
        LaterSession(
            number,
            session.get("from_step", 0),
            (*_changed_settings(run, number), *changes(session_facts(first), session_facts(session))),
        )
        for number, session in enumerate(others, 2)
    )


def _changed_settings(run: RunFolder, number: int) -> list[Change]:
    path = run.config.with_name(f"config.session-{number}.yaml")
    if not path.is_file() or not run.config.is_file():
        return []
    return changes(decisive_settings(run.read_config()), decisive_settings(run.read_config(path)))
