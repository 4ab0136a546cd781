"""Whether two runs drew other dropout masks because their steps were cut otherwise. Starts without torch.

Masks are drawn for each micro-batch on each rank, so that they depend on how a step is cut, by design.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ift.artifacts import RunFolder

_CUTTING = {
    "data.micro_batch_tokens": "data.micro_batch_tokens",
    "data.row_layout": "data.row_layout",
    "row_layout.layout": "data.row_layout",
    "strategy.world_size": "the number of ranks",
}
"""What cuts a step, by the name of what differs."""
_OF_OTHER_HEADS = ("classifier", "summary")
"""In a base model's config.json, dropout that no language model applies."""


def masks_hint(
    runs: Iterable[tuple[RunFolder, Mapping[str, Any]]], differing: Iterable[str], *, recut: bool
) -> str | None:
    """Return a sentence on dropout masks that differ by design, or `None` where they do not.

    Args:
        runs: both run folders with their manifests.
        differing: names of the settings and facts that are not the same.
        recut: whether a run lowered its budget where memory ran out.
    """
    reasons = [_CUTTING[name] for name in differing if name in _CUTTING]
    reasons += ["the budget, lowered where memory ran out"] if recut else []
    dropouts = [_dropout(run, manifest) for run, manifest in runs]
    if not reasons or not any(dropouts):
        return None
    named = ", ".join(dict.fromkeys(dropout for dropout in dropouts if dropout))
    return (
        f"dropout is on ({named}), and its masks are drawn for each micro-batch and rank: with another cut of the "
        f"steps ({', '.join(dict.fromkeys(reasons))}) they differ by design, and so do the losses, beyond rounding. "
        "Without dropout the cut changes nothing but rounding."
    )


def _dropout(run: RunFolder, manifest: Mapping[str, Any]) -> str | None:
    """Return name and share of the first dropout of a run, of its adapter or of its base model."""
    config = run.read_config() if run.config.is_file() else {}
    base = (manifest.get("base") or {}).get("path")
    files = [run.adapter / "adapter_config.json", run.model / "config.json"]
    files += [Path(base) / "config.json"] if base else []
    settings = [(config.get("model") or {}).get("adapter"), *map(_read, files)]
    return next((one for value in settings for one in _dropouts(value)), None)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of a base model that lies elsewhere now, or has no such file
        return None


def _dropouts(value: Any) -> Iterator[str]:
    for name, one in value.items() if isinstance(value, Mapping) else ():
        if isinstance(one, Mapping):
            yield from _dropouts(one)
        elif "drop" in name and not name.startswith(_OF_OTHER_HEADS) and isinstance(one, float) and one > 0:
            yield f"{name} {one:g}"
