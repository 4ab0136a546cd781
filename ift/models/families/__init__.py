"""The Chinese checkpoints of 2023 that shipped with code of their own, read without it.

ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B, MOSS, Baichuan-7B and -13B, Baichuan2-7B and -13B and InternLM-7B name a module of
theirs (`auto_map`) that today's transformers cannot run; some of these compute NaN without an error. That code is never
executed. Each family is known by its `config.json`; its weights are renamed and split while they are read into a class
of transformers, or into a small class of ours where there is none. Nothing is converted on disk.

In: a `config.json`. Out: the family, and from it a native config and a class that reads the original files. What one
family is like stands in a file of its own.
"""

from collections.abc import Mapping
from typing import Any

from ift.errors import UserError, unknown_name
from ift.models.families.baichuan import BAICHUAN2_7B, BAICHUAN2_13B, BAICHUAN_7B, BAICHUAN_13B
from ift.models.families.chatglm2 import CHATGLM2
from ift.models.families.chatglm_config import CHATGLM
from ift.models.families.family import Config, Family
from ift.models.families.internlm import INTERNLM
from ift.models.families.moss import MOSS
from ift.models.families.normalized_head import with_normalized_head
from ift.models.families.reading import become_native

__all__ = [
    "FAMILIES",
    "FAMILY_KEY",
    "Config",
    "Family",
    "made_native",
    "native_config",
    "recognise",
    "register_own_classes",
]

_BAICHUAN = (BAICHUAN_7B, BAICHUAN2_7B, BAICHUAN_13B, BAICHUAN2_13B)
FAMILIES: tuple[Family, ...] = (*_BAICHUAN, CHATGLM, CHATGLM2, INTERNLM, MOSS)

FAMILY_KEY = "ift_family"
"""Key of a `config.json` that names the family where the other keys cannot tell."""

_MODEL_TYPES = frozenset({"baichuan", "chatglm", "internlm", "moss"})
"""That transformers does not know and these families share."""


def recognise(key: str, base: str, config: Mapping[str, Any]) -> Family | None:
    """Return the family of a checkpoint, or `None` where transformers knows it by itself.

    Args:
        key: the configuration key that named the base model, for errors.
        base: folder or hub id, for errors.
        config: its `config.json`.

    Raises:
        UserError: a variant that cannot be read exactly, or one that could be two.
    """
    named = config.get(FAMILY_KEY)
    if named is None and config.get("model_type") not in _MODEL_TYPES:
        return None
    place = f"{key}: config.json of '{base}'"
    if named is not None:
        known = {family.name: family for family in FAMILIES}
        if named not in known:
            raise unknown_name(f"{place}: {FAMILY_KEY}", str(named), sorted(known))
        found = [known[named]]
    else:
        found = [family for family in FAMILIES if family.recognises(config)]
    if len(found) != 1:
        raise UserError(f"{place} {_unclear(config, found)}")
    (family,) = found
    if reasons := [*_packed(config), *family.refusals(config)]:
        reason = "; ".join(reasons).rstrip(".")
        raise UserError(f"{place} is of a {family.title} that cannot be read exactly: {reason}.")
    return family


def register_own_classes() -> None:
    """Make model classes of ours known to transformers' auto classes; does nothing twice."""
    for family in FAMILIES:
        if family.native is None:
            family.reader()


def native_config(family: Family, config: Mapping[str, Any]) -> Any:
    """Return transformers' config of a checkpoint.

    Args:
        family: of `recognise`.
        config: its `config.json`.
    """
    register_own_classes()
    return family.native_config(config)


def made_native(model: Any, family: Family) -> None:
    """Let a model that a family's reader has read be what it is from now on.

    A normalised head goes on dividing its rows in every pass, until `settle_heads` knows that it is not trained.
    """
    if family.native is not None:
        become_native(model, family.native())
    if family.normalized_head:
        with_normalized_head(model)


def _unclear(config: Mapping[str, Any], found: list[Family]) -> str:
    names = ", ".join(f"{family.name} ({family.title})" for family in found or FAMILIES)
    what = "could be of more than one family" if found else "is of none of the known families"
    return (
        f"says model_type '{config.get('model_type')}', architectures {config.get('architectures')}, and {what}. Its "
        f'own code is not executed. If you know which it is, write "{FAMILY_KEY}" into that file: {names}.'
    )


def _packed(config: Mapping[str, Any]) -> list[str]:
    """Return why weights in fewer bits, each family's hub in a format of its own, cannot be read."""
    repair = "packed weights are in a format of its own. Take the checkpoint in half precision and model.quantization"
    stated = [f"{name} {config[name]}" for name in ("quantization_bit", "wbits") if _fewer_bits(config.get(name))]
    stated += ["quantization_config"] if config.get("quantization_config") else []
    return [f"it is quantized ({', '.join(stated)}), and {repair}"] if stated else []


def _fewer_bits(bits: Any) -> bool:
    return isinstance(bits, int) and 0 < bits < 16
