"""Short names of methods in configuration files and on the command line: `lora` for the function that makes it."""

import difflib
from typing import Any

import yaml

from ift.errors import UserError

KEY = "model.adapter"
_MODULE = "ift.models.methods"


def class_path_of(key: str, name: str | None) -> str | None:
    """Return the class path that a value of `class_path` stands for.

    Args:
        key: the key above it.
        name: as typed.
    """
    if key != KEY or name is None or "." in name:
        return name
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import ift.models.bottleneck  # noqa: F401 (PEFT then knows its configuration)
    from ift.models.methods import METHODS

    if name in METHODS:
        return f"{_MODULE}.{name}"
    configs = {config.__name__: config for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    if name not in configs:
        nearest = difflib.get_close_matches(name, [*METHODS, *configs], n=1, cutoff=0.5)
        suggestion = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise UserError(
            f"{KEY}: unknown name '{name}'.{suggestion} Known: {', '.join(METHODS)}; "
            f"of PEFT, {', '.join(sorted(configs))}. "
            "A folder of a trained adapter is written with a '/'."
        )
    return f"{configs[name].__module__}.{name}"


def adapter_setting(value: Any) -> Any:
    """Return the value of `model.adapter` as jsonargparse reads it, with the class path in full.

    Raises:
        UserError: an unknown name.
    """
    if isinstance(value, dict):
        if set(value) - {"class_path", "init_args", "dict_kwargs"}:
            one = next(iter(set(value) - {"class_path", "init_args", "dict_kwargs"}))
            raise UserError(
                f"{KEY}: unknown key '{one}'. Give a method's name, or its settings as "
                "{class_path: lora, init_args: {r: 16}}."
            )
        named = {"class_path": class_path_of(KEY, value["class_path"])} if "class_path" in value else {}
        return {**value, **named}
    if not isinstance(value, str):
        return value
    if "/" in value:
        return {"class_path": f"{_MODULE}.trained", "init_args": {"folder": value}}
    return {"class_path": class_path_of(KEY, value)}


def with_class_paths(content: str) -> str:
    """Return a configuration file's text with short names of methods in full."""
    try:
        config = yaml.safe_load(content)
    except yaml.YAMLError:  # the parser says what is wrong
        return content
    if not isinstance(config, dict) or not isinstance(model := config.get("model"), dict) or not model.get("adapter"):
        return content
    model["adapter"] = adapter_setting(model["adapter"])
    return yaml.safe_dump(config, allow_unicode=True, sort_keys=False)


def full_arguments(arguments: list[str]) -> list[str]:
    """Return arguments with the short name behind `--model.adapter` in full."""
    full: list[str] = []
    for argument in arguments:
        if full and full[-1] == f"--{KEY}":
            full[-1:] = _adapter_arguments(argument)
        elif argument.startswith(f"--{KEY}="):
            full += _adapter_arguments(argument.partition("=")[2])
        else:
            full.append(argument)
    return full


def _adapter_arguments(value: str) -> list[str]:
    try:
        setting = adapter_setting(yaml.safe_load(value))
    except yaml.YAMLError:
        setting = value
    return [f"--{KEY}", yaml.safe_dump(setting, default_flow_style=True) if isinstance(setting, dict) else value]
