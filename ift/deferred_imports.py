"""Packages that libraries import only to have them at hand, loaded when something of them is first used.

PEFT imports bitsandbytes, which brings torch's compiler along (1 to 2 seconds), and torchmetrics imports `scipy.signal`
for a name that some other package may miss. A placeholder in `sys.modules` takes their place and turns into the module
itself at the first use, so that nobody sees a difference but in time. Meanwhile garbage is not collected.
"""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any


class DeferredModule(ModuleType):
    """Stands for a module that is not imported yet.

    Args:
        name: of the module, with dots; it must be installed.
        known: attributes that are answered without importing it.
    """

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        spec = find_spec(name)
        assert spec is not None
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        self.__package__ = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        self.__dict__.update(known)
        self.__dict__["_known"] = tuple(known)

    def __getattr__(self, name: str) -> Any:
        # Tools ask every module for such names, and want no module of it; but submodules are found by __path__.
        if name.startswith("__") and name not in ("__path__", "__version__", "__all__"):
            raise AttributeError(name)
        return getattr(self._imported(), name)

    def forget_known(self) -> None:
        """Answer nothing any more without importing the module."""
        for known in self.__dict__.pop("_known", ()):
            self.__dict__.pop(known, None)

    def _imported(self) -> ModuleType:
        """Import the module, and become it for whoever holds the placeholder."""
        name = self.__name__
        self.forget_known()
        if sys.modules.get(name) is self:
            del sys.modules[name]
        module = importlib.import_module(name)
        self.__dict__.update(module.__dict__)
        return module


_AT_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "torchmetrics": ("scipy.signal", {"hamming": None}),
    # PEFT asks once whether there is such a class, and there is since bitsandbytes 0.39.
    "peft": ("bitsandbytes", {"nn": SimpleNamespace(Linear4bit=None)}),
}
"""Package, the module that it wants at hand, and what it asks of that."""


class _Watch:
    """Puts a placeholder in place when the package that wants it begins to be imported; finds nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        wanted, known = _AT_HAND.get(name, ("", {}))
        # Where the module is imported already, or is not installed, everything stays as it is.
        if wanted and wanted not in sys.modules and _is_installed(wanted):
            sys.modules[wanted] = DeferredModule(wanted, **known)


@contextmanager
def deferred() -> Iterator[None]:
    """Let these modules be imported when they are used by what is imported within a `with` statement."""
    watch: Any = _Watch()
    sys.meta_path.insert(0, watch)
    try:
        with _without_collecting():
            yield
    finally:
        sys.meta_path.remove(watch)
        _settle()


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Let garbage be, and let the collector never again look at what is there in the end: modules live for ever.

    Importing makes so many objects that looking through them time and again takes a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once; what a program makes later is collected as ever
            gc.freeze()
        if enabled:
            gc.enable()


def _settle() -> None:
    """Answer what PEFT asks, and take back the answers: from now on, whoever wants more imports the module."""
    if "peft" in sys.modules:
        from peft.import_utils import is_bnb_4bit_available

        is_bnb_4bit_available()
    for name, _ in _AT_HAND.values():
        module = sys.modules.get(name)
        if isinstance(module, DeferredModule):
            module.forget_known()


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
