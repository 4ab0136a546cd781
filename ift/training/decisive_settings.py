"""Which settings of a run its weights and losses may depend on. Starts without torch.

A setting does not count where it provably changes neither: it says where something lies whose content has a hash of its
own, how many processes prepare the same data, or what is told, drawn and kept. All others under `seed_everything`,
`model` and `data` count, and what of `trainer` says how long is trained, when is validated and how is computed.
"""

from collections.abc import Mapping
from typing import Any

from ift.artifacts import flat

_WITHOUT_EFFECT = frozenset(
    {
        "model.base",  # the part `base` is a hash of its files
        "data.base",
        "data.cache_dir",
        "data.num_workers",
        "data.max_rejected",  # a run ends, or is as with another limit
    }
)
_COUNTED = ("seed_everything", "model", "data")
_TRAINER = (
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "val_check_interval",
    "check_val_every_n_epoch",
    "limit_val_batches",
    "benchmark",
    "sync_batchnorm",
    "plugins",
)
OF_OTHER_PARTS = frozenset(
    f"trainer.{name}" for name in ("accelerator", "strategy", "devices", "num_nodes", "precision", "deterministic")
)
"""What they lead to is in the parts `strategy` and `environment` of a fingerprint."""


def decisive_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that weights or losses may depend on, by dotted key.

    Args:
        config: of a run, resolved, as plain values.
    """
    trainer = dict(config.get("trainer") or {})
    if not trainer.get("callbacks"):  # which may look at anything, and do anything
        begins_with_result = trainer.get("num_sanity_val_steps") == -1  # other numbers are a few batches, and forgotten
        trainer = {name: trainer.get(name) for name in _TRAINER} | {"num_sanity_val_steps": begins_with_result}
    counted = {**{name: config.get(name) for name in _COUNTED}, "trainer": trainer}
    found = {key: value for key, value in flat(counted).items() if key not in _WITHOUT_EFFECT}
    for key in ("data.sources", "data.validation"):
        if isinstance(found.get(key), list):
            found[key] = [_without_place(source) for source in found[key]]
    return found


def _without_place(source: Any) -> Any:
    """Return a source without its path, where its content has a hash of its own: not that of a stream."""
    if not isinstance(source, Mapping) or source.get("stream"):
        return source
    return {name: value for name, value in source.items() if name != "path"}


def is_decisive(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a setting that differs between two runs may be why their weights or losses do.

    Args:
        name: its dotted key, or that of several.
        one: `decisive_settings` of a run.
        other: of the other one.
    """
    differing = (key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return name in OF_OTHER_PARTS or any(
        f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for key in differing
    )
