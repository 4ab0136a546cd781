"""How the modules of original files are called natively, and which of them are parts of one.

One table serves reading (transformers' conversions), writing the original layout back, and adapters that were trained
on the original modules.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """A module inside of a layer, by its path from there."""

    original: str
    native: tuple[str, ...]
    """Several share the rows of the original, in this order."""


@dataclass(frozen=True)
class Naming:
    """Names of modules, from the original to the native and back."""

    beginnings: Mapping[str, str] = field(default_factory=dict)
    """Of paths, original to native."""
    modules: tuple[Renamed, ...] = ()

    def native(self, module: str) -> tuple[str, ...]:
        """Return the native paths of an original module; several where its rows are theirs, in this order."""
        for old, new in self.beginnings.items():
            if f"{module}.".startswith(f"{old}."):
                module = new + module.removeprefix(old)
                break
        for one in self.modules:
            if f".{module}".endswith(f".{one.original}"):
                return tuple(module.removesuffix(one.original) + part for part in one.native)
        return (module,)

    def original(self, module: str) -> tuple[str, int]:
        """Return the original path of a native module, and the number of its part there."""
        number = 0
        for one in self.modules:
            for place, part in enumerate(one.native):
                if f".{module}".endswith(f".{part}"):
                    module, number = module.removesuffix(part) + one.original, place
        for old, new in self.beginnings.items():
            if f"{module}.".startswith(f"{new}."):
                return old + module.removeprefix(new), number
        return module, number

    def num_parts(self, module: str) -> int:
        """Return how many native modules share the rows of an original one."""
        return len(self.native(module))

    def conversions(self) -> list[Any]:
        """Return these names as transformers reads files by them."""
        from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

        result = [WeightRenaming(rf"^{re.escape(old)}\.", f"{new}.") for old, new in self.beginnings.items()]
        for one in self.modules:
            if len(one.native) == 1:
                result.append(WeightRenaming(rf"\.{re.escape(one.original)}\.", f".{one.native[0]}."))
        for one in self.modules:
            if len(one.native) > 1:
                for kind in ("weight", "bias"):
                    parts = [f".{part}.{kind}" for part in one.native]
                    result.append(WeightConverter(f".{one.original}.{kind}", parts, operations=[Split(dim=0)]))
        return result


SAME_NAMES = Naming()
"""Of families whose modules are called as the native ones are."""
