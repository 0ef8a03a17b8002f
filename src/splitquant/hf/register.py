"""Making splitquant known to transformers, without importing it: a hook waits until somebody else does.

transformers looks quantization methods up in two tables of `transformers.quantizers.auto`. Where that module is already
there, they are filled at once; else a finder on `sys.meta_path` fills them right after the module was executed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

METHOD = "splitquant"
AUTO = "transformers.quantizers.auto"
_TABLES = ("AUTO_QUANTIZATION_CONFIG_MAPPING", "AUTO_QUANTIZER_MAPPING")

_lock = threading.RLock()


def install() -> None:
    """Register with transformers now, if it is there, or as soon as it is imported. Calling it again does nothing."""
    with _lock:
        auto = sys.modules.get(AUTO)
        spec = getattr(auto, "__spec__", None)
        if auto is not None and getattr(spec, "_initializing", False) and type(spec) is ModuleSpec:
            spec.__class__ = _Executing  # it imports PyTorch, which has just called `autoload`
        elif auto is not None and getattr(auto, "register_quantizer", None) is not None:
            _register(auto)
        elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())


def autoload() -> None:
    """What PyTorch calls when it is imported (entry point group `torch.backends`): then our folders load without a word.

    It costs the import of this package, which loads no framework, and never fails. TORCH_DEVICE_BACKEND_AUTOLOAD=0, PyTorch's
    own switch, turns it off.
    """
    install()


class _Executing(ModuleSpec):
    """The spec of a module that is being executed: when it is told that this is over, it registers."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            if AUTO in sys.modules:  # it came to its end
                _register(sys.modules[AUTO])
            else:
                install()


def registration_failure() -> Exception | None:
    """Why transformers cannot use splitquant; None where it can. Imports what it would use."""
    try:
        _classes()
    except Exception as error:  # noqa: BLE001 - whatever an unknown version of transformers does
        return error
    return None


def _register(auto: ModuleType) -> None:
    """Fill the tables with what stands for our classes: most processes that import transformers never load a folder of ours."""
    with _lock:
        for number, name in enumerate(_TABLES):
            table = getattr(auto, name, None)
            if isinstance(table, dict):
                table.setdefault(METHOD, _Later(table, number))


def _classes() -> tuple[Any, Any]:
    """Our configuration and our quantizer, in the order of the tables."""
    from splitquant.hf.config import SplitQuantConfig  # noqa: PLC0415 - these import transformers
    from splitquant.hf.quantizer import SplitQuantizer  # noqa: PLC0415

    return SplitQuantConfig, SplitQuantizer


class _Later:
    """Stands in a table for a class of ours until it is used; then it is that class, or an ImportError that says what is wrong.

    It never fails before: importing transformers must not, and without it transformers would draw random weights.
    """

    def __init__(self, table: dict[str, Any], number: int) -> None:
        self._table = table
        self._number = number

    def _now(self) -> Any:
        try:
            found = _classes()[self._number]
        except Exception as cause:
            raise ImportError(failure_text(cause)) from cause
        self._table[METHOD] = found
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._now()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)


def failure_text(cause: Exception) -> str:
    """What to tell a user whose transformers does not fit."""
    version = getattr(sys.modules.get("transformers"), "__version__", "unknown")
    return (
        f"splitquant does not work with this transformers (version {version}): {type(cause).__name__}: {cause}; "
        "install one that fits with: pip install 'splitquant[hf]'"
    )


class _Finder(MetaPathFinder):
    """Finds `transformers.quantizers.auto` where everybody finds it, and has its loader register afterwards."""

    def __init__(self) -> None:
        self._searching = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != AUTO or getattr(self._searching, "now", False):
            return None
        self._searching.now = True
        try:
            spec = find_spec(fullname)
        finally:
            self._searching.now = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Executes a module as its own loader does, then registers."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _register(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
